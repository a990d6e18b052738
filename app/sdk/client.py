"""The Python client: ``Client``, and ``AsyncClient`` with the same verbs to await.

    with Client("http://127.0.0.1:8000") as rlvo:
        prediction = rlvo.predict(ncct="ncct.nii.gz", cta="cta.nii.gz", clinical={"age": 74, "nihss": 15})
        print(prediction.probability, prediction.interval)

Notable choices:
- What a verb does stands once, in ``_calls``; the two classes here only send and sleep, one blocking, one awaiting.
- Everything that can go wrong is a class of ``errors``: the service's own errors arrive as the class it raised.
- Volumes are streamed from disk; no file is ever held in memory, nor is a map that is saved.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, closing
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import anyio
import httpx

from ._calls import Call, Filters, OnProgress, Pause, Progress, Steps, Study, Verbs, Volume
from ._replies import Reply
from .errors import TransportError
from .followup import Outcome, OutcomeDraft, Review, ReviewDraft
from .registry import AsyncRegistry, Registry
from .types import ErasureCertificate, Health, ModelInfo, Prediction

__all__ = ["AsyncClient", "Client", "Filters", "OnProgress", "Progress", "Study", "Volume"]

T = TypeVar("T")


def _options(url: str, api_key: str | None, timeout: float) -> dict[str, Any]:
    headers = {"Accept": "application/json", "User-Agent": "rlvo-python"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    return {"base_url": url, "headers": headers, "timeout": httpx.Timeout(timeout, connect=min(timeout, 10.0))}


def _no_answer(error: httpx.TransportError) -> TransportError:
    return TransportError(f"The service did not answer ({type(error).__name__})")


def _schema_path(name: str | None, version: str | None) -> str:
    if name is None:
        return "/v1/schema/clinical"
    return f"/v1/models/{name}/versions/{version or 'champion'}/clinical-schema"


class Client:
    """The service at ``url``.

    :param api_key: sent as a bearer token; needed wherever the service listens beyond its own machine
    :param timeout: longest silence of the network in seconds, not counting what a call itself waits for
    :param retries: how often a call is repeated where that may help; pauses grow and are jittered
    :param transport: how httpx reaches the service, where that is not plain HTTP
    :ivar registry: what operators ask: aliases, promotion, rollback, shadows
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url
        self._http = httpx.Client(transport=transport, **_options(url, api_key, timeout))
        self._verbs = Verbs(retries)
        self.registry = Registry(self._verbs, self._run)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def predict(
        self,
        *,
        wait: float | None = 600.0,
        on_progress: OnProgress | None = None,
        idempotency_key: str | None = None,
        **study: Unpack[Study],
    ) -> Prediction:
        """Sends a study and waits for its prediction.

        :param wait: seconds to wait once the study is sent; None waits without end
        :param on_progress: called with the upload's progress, then with the service's
        :param idempotency_key: makes a repeated call answer with the first one's prediction; made up if None
        :param study: volumes (``ncct``, ``cta``, ...), ``clinical``, ``model``, ``subject``, ``explain``
        :raises NotFinished: after ``wait`` seconds; the prediction goes on, and its id stands in the error's notes
        :raises RlvoError: what the service refused the study for, or what the prediction failed of
        """
        return self._run(self._verbs.predict(study, idempotency_key, wait, on_progress))

    def submit(
        self,
        *,
        on_progress: OnProgress | None = None,
        idempotency_key: str | None = None,
        **study: Unpack[Study],
    ) -> Prediction:
        """Sends a study and returns once it is on record: queued, with its id."""
        return self._run(self._verbs.submit(study, idempotency_key, on_progress))

    def get(self, prediction_id: str) -> Prediction:
        """One prediction, in any state."""
        return self._run(self._verbs.get(prediction_id))

    def wait(
        self, prediction_id: str, *, seconds: float | None = 600.0, on_progress: OnProgress | None = None
    ) -> Prediction:
        """Waits until a prediction has finished, failed or cancelled ones too, and returns it.

        :raises NotFinished: after ``seconds``
        """
        return self._run(self._verbs.wait(prediction_id, seconds, on_progress))

    def list(self, **filters: Unpack[Filters]) -> Iterator[Prediction]:
        """All predictions that match, newest first, fetched page by page as they are asked for."""
        cursor = None
        while True:
            page = self._run(self._verbs.page(filters, cursor))
            yield from page.items
            if (cursor := page.next) is None:
                return

    def cancel(self, prediction_id: str) -> Prediction:
        """Stops a queued or running prediction."""
        return self._run(self._verbs.cancel(prediction_id))

    def erase(self, prediction_id: str) -> None:
        """Erases a prediction with all its inputs, results and maps, for good."""
        self._run(self._verbs.erase(prediction_id))

    def certificate(self, prediction_id: str) -> ErasureCertificate:
        """What was erased of a prediction, and whether all of it is gone by now. Raises NotFound where nothing was."""
        return self._run(self._verbs.certificate(prediction_id))

    def map(self, prediction_id: str, name: str, to: str | PathLike[str]) -> Path:
        """Saves one map volume (``attribution-cta``) as ``.nii.gz`` and returns where.

        :param to: a file, or a folder in which the file takes the map's name; it appears only once complete
        """
        return self._run(self._verbs.save(prediction_id, f"maps/{name}.nii.gz", to))

    def figure(self, prediction_id: str, name: str, to: str | PathLike[str]) -> Path:
        """Saves a figure (``overlay-cta.png``, ``waterfall.svg``) and returns where; ``to`` as in ``map``."""
        return self._run(self._verbs.save(prediction_id, f"figures/{name}", to))

    def report(self, prediction_id: str, to: str | PathLike[str]) -> Path:
        """Saves the report, one HTML page complete in itself, and returns where; ``to`` as in ``map``."""
        return self._run(self._verbs.save(prediction_id, "report.html", to))

    def fhir(self, prediction_id: str) -> dict[str, Any]:
        """The prediction as a FHIR R4B Bundle."""
        return self._run(self._verbs.schema(f"/v1/predictions/{prediction_id}/fhir"))

    def review(self, prediction_id: str, draft: ReviewDraft) -> Review:
        """Agrees with a prediction's decision, or overrides it for a reason. The same review twice is one."""
        return self._run(self._verbs.add_review(prediction_id, draft))

    def reviews(self, prediction_id: str) -> Sequence[Review]:
        """Every review of a prediction, oldest first."""
        return self._run(self._verbs.reviews(prediction_id))

    def set_outcome(self, prediction_id: str, draft: OutcomeDraft, *, correct: bool = False) -> Outcome:
        """Records how the thrombectomy ended.

        :param correct: replaces the outcome that is on record
        :raises PreconditionRequired: there is one, and ``correct`` was not asked for
        """
        return self._run(self._verbs.set_outcome(prediction_id, draft, correct))

    def outcome(self, prediction_id: str) -> Outcome | None:
        """How the thrombectomy ended; None where nobody told yet."""
        return self._run(self._verbs.outcome(prediction_id))

    def models(self) -> Sequence[ModelInfo]:
        """Every model with its versions, aliases and readiness."""
        return self._run(self._verbs.models())

    def model_card(self, name: str, version: str) -> str:
        """What a version is, was trained on, and is not for."""
        return self._run(self._verbs.text(f"/v1/models/{name}/versions/{version}/card"))

    def clinical_schema(self, name: str | None = None, version: str | None = None) -> dict[str, Any]:
        """JSON Schema of the clinical document: what one model version takes, or all that is known."""
        return self._run(self._verbs.schema(_schema_path(name, version)))

    def health(self) -> Health:
        """Whether the service would answer a prediction now, and if not, what is amiss."""
        return self._run(self._verbs.health())

    def _run(self, steps: Steps[T]) -> T:
        reply: Reply = None
        with closing(steps):
            while True:
                try:
                    step = steps.send(reply)
                except StopIteration as done:
                    result: T = done.value
                    return result
                reply = self._take(step)

    def _take(self, step: Call | Pause) -> Reply:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        try:
            response = self._http.send(step.request(self._http), stream=True)
            with closing(response):
                if step.sink is None or not response.is_success:
                    response.read()
                else:
                    step.sink.seek(0)
                    step.sink.truncate()
                    for chunk in response.iter_bytes():
                        step.sink.write(chunk)
        except httpx.TransportError as error:
            return _no_answer(error)
        return response


class AsyncClient:
    """``Client`` to await: the same arguments, verbs and errors, and an asynchronous iterator as ``list``.

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
        self._http = httpx.AsyncClient(transport=transport, **_options(url, api_key, timeout))
        self._verbs = Verbs(retries)
        self.registry = AsyncRegistry(self._verbs, self._run)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
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
        self,
        *,
        on_progress: OnProgress | None = None,
        idempotency_key: str | None = None,
        **study: Unpack[Study],
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

    async def cancel(self, prediction_id: str) -> Prediction:
        """See ``Client.cancel``."""
        return await self._run(self._verbs.cancel(prediction_id))

    async def erase(self, prediction_id: str) -> None:
        """See ``Client.erase``."""
        await self._run(self._verbs.erase(prediction_id))

    async def certificate(self, prediction_id: str) -> ErasureCertificate:
        """See ``Client.certificate``."""
        return await self._run(self._verbs.certificate(prediction_id))

    async def map(self, prediction_id: str, name: str, to: str | PathLike[str]) -> Path:
        """See ``Client.map``."""
        return await self._run(self._verbs.save(prediction_id, f"maps/{name}.nii.gz", to))

    async def figure(self, prediction_id: str, name: str, to: str | PathLike[str]) -> Path:
        """See ``Client.figure``."""
        return await self._run(self._verbs.save(prediction_id, f"figures/{name}", to))

    async def report(self, prediction_id: str, to: str | PathLike[str]) -> Path:
        """See ``Client.report``."""
        return await self._run(self._verbs.save(prediction_id, "report.html", to))

    async def fhir(self, prediction_id: str) -> dict[str, Any]:
        """See ``Client.fhir``."""
        return await self._run(self._verbs.schema(f"/v1/predictions/{prediction_id}/fhir"))

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
        return await self._run(self._verbs.schema(_schema_path(name, version)))

    async def health(self) -> Health:
        """See ``Client.health``."""
        return await self._run(self._verbs.health())

    async def _run(self, steps: Steps[T]) -> T:
        reply: Reply = None
        with closing(steps):
            while True:
                try:
                    step = steps.send(reply)
                except StopIteration as done:
                    result: T = done.value
                    return result
                reply = await self._take(step)

    async def _take(self, step: Call | Pause) -> Reply:
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
            return _no_answer(error)
        return response
