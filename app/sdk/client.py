"""Python client of the service: ``Client``, and ``AsyncClient`` with the same methods as coroutines.

    with Client("http://127.0.0.1:8000") as rlvo:
        prediction = rlvo.predict(ncct="ncct.nii.gz", cta="cta.nii.gz", clinical={"age": 74, "nihss": 15})
        print(prediction.probability, prediction.interval)

Design notes:
- ``_calls`` implements each method once, without I/O; the two client classes only send requests and sleep.
- Every error is a class of ``errors``; an error of the service is raised as the class that the service raised.
- Volumes and maps are streamed from and to disk, never held in memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from os import PathLike
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack, cast

import httpx

from ._calls import Call, FhirRelease, Filters, OnProgress, Pause, Progress, Steps, Study, Verbs
from ._http import http_options, schema_path, transport_error
from ._replies import Reply
from ._volumes import Volume
from .async_client import AsyncClient
from .callers import CallerInfo
from .followup import Outcome, OutcomeDraft, Review, ReviewDraft
from .registry import Registry
from .study_calls import Studies
from .types import ErasureCertificate, Health, ModelInfo, Prediction

__all__ = ["AsyncClient", "Client", "Filters", "OnProgress", "Progress", "Study", "Volume"]

T = TypeVar("T")


class Client:
    """Blocking client of the service at ``url``.

    Args:
        url: Base address of the service, with ``http://`` or ``https://``.
        api_key: API key, sent as a bearer token. A service that other machines can reach requires one.
        timeout: Longest pause of the network in seconds; the waiting time of a long poll is added.
        retries: Number of retries after a transient error, with growing random pauses.
        transport: httpx transport to use instead of plain HTTP.

    Attributes:
        registry: Operations on model versions: aliases, promotion, rollback, shadow scores.
        studies: Received DICOM studies: state, series and roles, clinical record, cancel, erase.
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
        self._http = httpx.Client(transport=transport, **http_options(url, api_key, timeout))
        self._verbs = Verbs(retries)
        self.registry = Registry(self._verbs, self._run)
        self.studies = Studies(self._verbs, self._run)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def predict(
        self,
        *,
        wait: float | None = 600.0,
        on_progress: OnProgress | None = None,
        idempotency_key: str | None = None,
        **study: Unpack[Study],
    ) -> Prediction:
        """Send a study and wait for its prediction.

        Args:
            wait: Seconds to wait after the study is sent; None waits without limit.
            on_progress: Called with the progress of the upload, then of the prediction.
            idempotency_key: A repeated call with the same key returns the first prediction; random if None.
            **study: Volumes as paths or bytes (``ncct``, ``cta``, ``vessels``, ``tmax``, ``cbf``, ``cbv``, ``mtt``,
                ``ctp``), or a DICOM ``study`` with ``series_roles``; ``clinical`` (a record or a dict), ``model``,
                ``subject``, ``study_instance_uid``, ``accession_number``, ``explain``, ``accept_warnings``,
                ``ctp_interval_s`` and ``priority``. `Study` describes them.

        Raises:
            NotFinished: After ``wait`` seconds. The prediction continues; ``prediction_id`` of the error is its id.
            RlvoError: The service refused the study, or the prediction failed or was cancelled.
            TypeError: An argument has a name or a type that a study does not have.
        """
        return self._run(self._verbs.predict(study, idempotency_key, wait, on_progress))

    def submit(
        self, *, on_progress: OnProgress | None = None, idempotency_key: str | None = None, **study: Unpack[Study]
    ) -> Prediction:
        """Send a study as in ``predict``, and return the queued prediction as soon as the service has stored it.

        Raises:
            RlvoError: The service refused the study.
        """
        return self._run(self._verbs.submit(study, idempotency_key, on_progress))

    def get(self, prediction_id: str) -> Prediction:
        """Return a prediction in any state; raises ``PredictionNotFound`` or ``Erased``."""
        return self._run(self._verbs.get(prediction_id))

    def wait(
        self, prediction_id: str, *, seconds: float | None = 600.0, on_progress: OnProgress | None = None
    ) -> Prediction:
        """Wait up to ``seconds`` (None: without limit) until a prediction is final, and return it.

        Raises:
            NotFinished: After ``seconds``.
        """
        return self._run(self._verbs.wait(prediction_id, seconds, on_progress))

    def list(self, **filters: Unpack[Filters]) -> Iterator[Prediction]:
        """Iterate over all predictions that match; pages are fetched on demand.

        Args:
            **filters: ``subject``, ``subject_contains``, ``study_instance_uid``, ``accession_number``, ``model``,
                ``status``, ``created_after``, ``reviewed``, ``sort`` (by default newest first), and ``limit`` (size of
                one page).

        Raises:
            InvalidRequest: A filter has an unknown name or value.
        """
        cursor = None
        while True:
            page = self._run(self._verbs.page(filters, cursor))
            yield from page.items
            if (cursor := page.next) is None:
                return

    def caller(self) -> CallerInfo:
        """Return the name, tenant and scopes by which the service knows this client."""
        return self._run(self._verbs.caller())

    def cancel(self, prediction_id: str) -> Prediction:
        """Cancel a queued or running prediction, and return it."""
        return self._run(self._verbs.cancel(prediction_id))

    def erase(self, prediction_id: str) -> None:
        """Erase a prediction with all inputs, results and maps permanently."""
        self._run(self._verbs.erase(prediction_id))

    def certificate(self, prediction_id: str) -> ErasureCertificate:
        """Return what was erased of a prediction, and whether all of it is deleted.

        Raises:
            NotFound: The prediction was not erased.
        """
        return self._run(self._verbs.certificate(prediction_id))

    def series(self, prediction_id: str, name: str, to: str | PathLike[str]) -> Path:
        """Save a volume of the study as it is stored, as ``.nii``, and return its path.

        Args:
            prediction_id: Id of the prediction.
            name: Name in ``Prediction.inputs``, such as ``cta``.
            to: File, or folder in which the file is named after the series. The file is written atomically.

        Raises:
            Erased: The prediction and its series are deleted.
        """
        return self._run(self._verbs.save(prediction_id, f"inputs/{name}.nii", to))

    def alignment(self, prediction_id: str) -> dict[str, Any]:
        """Return ``affine`` and ``mni_from_world``, (4, 4) in mm, of each image of the patient.

        Raises:
            NotFound: The prediction has no explanation.
        """
        return self._run(self._verbs.schema(f"/v1/predictions/{prediction_id}/alignment.json"))

    def map(self, prediction_id: str, name: str, to: str | PathLike[str]) -> Path:
        """Save a map volume as ``.nii.gz`` and return its path.

        Args:
            prediction_id: Id of the prediction.
            name: Name of the map, such as ``attribution-cta``.
            to: File, or folder in which the file is named after the map. The file is written atomically.
        """
        return self._run(self._verbs.save(prediction_id, f"maps/{name}.nii.gz", to))

    def figure(self, prediction_id: str, name: str, to: str | PathLike[str], *, wait: float = 60.0) -> Path:
        """Save a figure (``overlay-cta.png``, ``waterfall.svg``) and return its path.

        Args:
            prediction_id: Id of the prediction.
            name: Name of the figure.
            to: As in ``map``.
            wait: Seconds to wait until it is drawn; ``Prediction.figures`` says when it is there.

        Raises:
            FiguresNotReady: After ``wait`` seconds. The answer is not affected.
        """
        return self._run(self._verbs.save(prediction_id, f"figures/{name}", to, wait))

    def report(self, prediction_id: str, to: str | PathLike[str], *, wait: float = 60.0) -> Path:
        """Save the self-contained HTML report and return its path; ``to`` as in ``map``, ``wait`` as in ``figure``."""
        return self._run(self._verbs.save(prediction_id, "report.html", to, wait))

    def dicom(self, prediction_id: str, to: str | PathLike[str], *, wait: float = 60.0) -> Path:
        """Save the DICOM objects of a prediction as one ZIP archive and return its path; they name the patient.

        They hold the figures; ``wait`` as in ``figure``.
        """
        return self._run(self._verbs.save_dicom(prediction_id, to, wait))

    def fhir(self, prediction_id: str, version: FhirRelease | None = None) -> dict[str, Any]:
        """Return the prediction as a Bundle of a FHIR release, by default of R4 (also valid for R4B)."""
        return self._run(self._verbs.fhir(prediction_id, version))

    def review(self, prediction_id: str, draft: ReviewDraft) -> Review:
        """Record that a reviewer agrees with the decision or overrides it; a repeated review is stored once.

        Raises:
            Conflict: Warnings withhold the decision, so there is none to review.
        """
        return self._run(self._verbs.add_review(prediction_id, draft))

    def reviews(self, prediction_id: str) -> Sequence[Review]:
        """Return all reviews of a prediction, oldest first."""
        return self._run(self._verbs.reviews(prediction_id))

    def set_outcome(self, prediction_id: str, draft: OutcomeDraft, *, correct: bool = False) -> Outcome:
        """Record the outcome of the thrombectomy; ``correct`` replaces an outcome that is already on record.

        Raises:
            PreconditionRequired: An outcome is on record, and ``correct`` is false.
        """
        return self._run(self._verbs.set_outcome(prediction_id, draft, correct))

    def outcome(self, prediction_id: str) -> Outcome | None:
        """Return the outcome of the thrombectomy, or None if none is on record."""
        return self._run(self._verbs.outcome(prediction_id))

    def models(self) -> Sequence[ModelInfo]:
        """Return all models with their versions, aliases and readiness."""
        return self._run(self._verbs.models())

    def model_card(self, name: str, version: str) -> str:
        """Return the model card of a version as Markdown."""
        return self._run(self._verbs.text(f"/v1/models/{name}/versions/{version}/card"))

    def clinical_schema(self, name: str | None = None, version: str | None = None) -> dict[str, Any]:
        """Return the JSON Schema of the clinical document.

        Args:
            name: Model; None for the schema of all known fields.
            version: Version or alias of the model; None for its champion.
        """
        return self._run(self._verbs.schema(schema_path(name, version)))

    def health(self) -> Health:
        """Return whether the service is ready to predict, and the result of each check."""
        return self._run(self._verbs.health())

    def _run(self, steps: Steps[T]) -> T:
        reply: Reply = None
        with closing(steps):
            while True:
                try:
                    step = steps.send(reply)
                except StopIteration as stop:
                    return cast("T", stop.value)
                reply = self._perform(step)

    def _perform(self, step: Call | Pause) -> Reply:
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
            return transport_error(error)
        return response
