"""Asynchronous client of the service; ``client`` documents the methods."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, closing
from os import PathLike
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack, cast

import anyio
import httpx

from ._calls import Call, FhirRelease, Filters, OnProgress, Pause, Steps, Study, Verbs
from ._http import http_options, schema_path, transport_error
from ._replies import Reply
from .callers import CallerInfo
from .followup import Outcome, OutcomeDraft, Review, ReviewDraft
from .registry import AsyncRegistry
from .study_calls import AsyncStudies
from .types import ErasureCertificate, Health, ModelInfo, Prediction

T = TypeVar("T")


class AsyncClient:
    """Asynchronous client with the arguments, methods and errors of ``Client``; ``list`` is an async iterator.

    Files are read in the event loop, 64 KiB at a time.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url
        self._http = httpx.AsyncClient(transport=transport, **http_options(url, api_key, timeout))
        self._verbs = Verbs(retries)
        self.registry = AsyncRegistry(self._verbs, self._run)
        self.studies = AsyncStudies(self._verbs, self._run)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """See ``Client.close``."""
        await self._http.aclose()

    async def predict(
        self,
        *,
        wait: float | None = 600.0,
        on_progress: OnProgress | None = None,
        idempotency_key: str | None = None,
        **study: Unpack[Study],
    ) -> Prediction:
        """See ``Client.predict``."""
        return await self._run(self._verbs.predict(study, idempotency_key, wait, on_progress))

    async def submit(
        self, *, on_progress: OnProgress | None = None, idempotency_key: str | None = None, **study: Unpack[Study]
    ) -> Prediction:
        """See ``Client.submit``."""
        return await self._run(self._verbs.submit(study, idempotency_key, on_progress))

    async def get(self, prediction_id: str) -> Prediction:
        """See ``Client.get``."""
        return await self._run(self._verbs.get(prediction_id))

    async def wait(
        self, prediction_id: str, *, seconds: float | None = 600.0, on_progress: OnProgress | None = None
    ) -> Prediction:
        """See ``Client.wait``."""
        return await self._run(self._verbs.wait(prediction_id, seconds, on_progress))

    async def list(self, **filters: Unpack[Filters]) -> AsyncIterator[Prediction]:
        """See ``Client.list``."""
        cursor = None
        while True:
            page = await self._run(self._verbs.page(filters, cursor))
            for prediction in page.items:
                yield prediction
            if (cursor := page.next) is None:
                return

    async def caller(self) -> CallerInfo:
        """See ``Client.caller``."""
        return await self._run(self._verbs.caller())

    async def cancel(self, prediction_id: str) -> Prediction:
        """See ``Client.cancel``."""
        return await self._run(self._verbs.cancel(prediction_id))

    async def erase(self, prediction_id: str) -> None:
        """See ``Client.erase``."""
        await self._run(self._verbs.erase(prediction_id))

    async def certificate(self, prediction_id: str) -> ErasureCertificate:
        """See ``Client.certificate``."""
        return await self._run(self._verbs.certificate(prediction_id))

    async def series(self, prediction_id: str, name: str, to: str | PathLike[str]) -> Path:
        """See ``Client.series``."""
        return await self._run(self._verbs.save(prediction_id, f"inputs/{name}.nii", to))

    async def alignment(self, prediction_id: str) -> dict[str, Any]:
        """See ``Client.alignment``."""
        return await self._run(self._verbs.schema(f"/v1/predictions/{prediction_id}/alignment.json"))

    async def map(self, prediction_id: str, name: str, to: str | PathLike[str]) -> Path:
        """See ``Client.map``."""
        return await self._run(self._verbs.save(prediction_id, f"maps/{name}.nii.gz", to))

    async def figure(self, prediction_id: str, name: str, to: str | PathLike[str], *, wait: float = 60.0) -> Path:
        """See ``Client.figure``."""
        return await self._run(self._verbs.save(prediction_id, f"figures/{name}", to, wait))

    async def report(self, prediction_id: str, to: str | PathLike[str], *, wait: float = 60.0) -> Path:
        """See ``Client.report``."""
        return await self._run(self._verbs.save(prediction_id, "report.html", to, wait))

    async def dicom(self, prediction_id: str, to: str | PathLike[str], *, wait: float = 60.0) -> Path:
        """See ``Client.dicom``."""
        return await self._run(self._verbs.save_dicom(prediction_id, to, wait))

    async def fhir(self, prediction_id: str, version: FhirRelease | None = None) -> dict[str, Any]:
        """See ``Client.fhir``."""
        return await self._run(self._verbs.fhir(prediction_id, version))

    async def review(self, prediction_id: str, draft: ReviewDraft) -> Review:
        """See ``Client.review``."""
        return await self._run(self._verbs.add_review(prediction_id, draft))

    async def reviews(self, prediction_id: str) -> Sequence[Review]:
        """See ``Client.reviews``."""
        return await self._run(self._verbs.reviews(prediction_id))

    async def set_outcome(self, prediction_id: str, draft: OutcomeDraft, *, correct: bool = False) -> Outcome:
        """See ``Client.set_outcome``."""
        return await self._run(self._verbs.set_outcome(prediction_id, draft, correct))

    async def outcome(self, prediction_id: str) -> Outcome | None:
        """See ``Client.outcome``."""
        return await self._run(self._verbs.outcome(prediction_id))

    async def models(self) -> Sequence[ModelInfo]:
        """See ``Client.models``."""
        return await self._run(self._verbs.models())

    async def model_card(self, name: str, version: str) -> str:
        """See ``Client.model_card``."""
        return await self._run(self._verbs.text(f"/v1/models/{name}/versions/{version}/card"))

    async def clinical_schema(self, name: str | None = None, version: str | None = None) -> dict[str, Any]:
        """See ``Client.clinical_schema``."""
        return await self._run(self._verbs.schema(schema_path(name, version)))

    async def health(self) -> Health:
        """See ``Client.health``."""
        return await self._run(self._verbs.health())

    async def _run(self, steps: Steps[T]) -> T:
        reply: Reply = None
        with closing(steps):
            while True:
                try:
                    step = steps.send(reply)
                except StopIteration as stop:
                    return cast("T", stop.value)
                reply = await self._perform(step)

    async def _perform(self, step: Call | Pause) -> Reply:
        if isinstance(step, Pause):
            await anyio.sleep(step.seconds)
            return None
        try:
            response = await self._http.send(step.request(self._http), stream=True)
            async with aclosing(response):
                if step.sink is None or not response.is_success:
                    await response.aread()
                else:
                    step.sink.seek(0)
                    step.sink.truncate()
                    async for chunk in response.aiter_bytes():
                        step.sink.write(chunk)
        except httpx.TransportError as error:
            return transport_error(error)
        return response
