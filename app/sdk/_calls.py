"""Methods of the client as generators of steps, shared by the blocking and the asynchronous client.

Design notes:
- A method yields a ``Call`` (send this request) or a ``Pause`` (sleep) and receives the reply. ``Client`` and
  ``AsyncClient`` only perform the steps.
- All calls can be repeated: a prediction has an Idempotency-Key, a repeated review or outcome is stored once, and an
  erasure whose answer was lost has succeeded. So lost connections, full queues (429), uploads in progress (409) and
  unavailable services (502, 503, 504) are retried.
- A volume is sent under the name of its field, because the local file name may contain the name of a patient.
- The client validates nothing that the service validates. Names of arguments do not reach the service, so it checks
  them.
"""

from __future__ import annotations

import difflib
import json
import os
import random
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypedDict, TypeVar, cast

import httpx

from ._replies import Reply, is_transient, json_of, parse, parse_all, require_response, require_success
from ._volumes import Volume, VolumeUpload, form_part, opened
from .callers import CallerInfo
from .clinical import ClinicalRecord
from .errors import Erased, EtagMismatch, FiguresNotReady, NotFinished, NotFound, PreconditionRequired, RlvoError
from .followup import Outcome, OutcomeDraft, Review, ReviewDraft
from .sorting import Sort
from .types import ErasureCertificate, Health, Input, ModelInfo, Prediction, PredictionPage, Priority, Status

FhirRelease = Literal["4.0", "4.3", "5.0"]
"""Release of FHIR: R4, R4B or R5."""


class Filters(TypedDict, total=False):
    """Filters of ``list``; ``limit`` is the size of one page."""

    subject: str
    study_instance_uid: str
    accession_number: str
    model: str
    status: Status
    created_after: datetime
    subject_contains: str
    reviewed: bool
    sort: Sort
    limit: int


class Study(TypedDict, total=False):
    """Study of one patient. The model card lists the inputs that a model requires; None counts as not given.

    With ``accept_warnings``, the answer has a decision in spite of warnings. ``ctp_interval_s`` is the time from frame
    to frame of ``ctp``, s; it replaces the time step of its header. ``study`` is a DICOM study: a folder or a ZIP
    archive; ``series_roles`` states the role of a series (its number or UID), such as ``{"3": "ncct"}``.
    """

    ncct: Volume
    cta: Volume
    vessels: Volume
    tmax: Volume
    cbf: Volume
    cbv: Volume
    mtt: Volume
    ctp: Volume
    study: Volume
    series_roles: Mapping[str, str]
    clinical: ClinicalRecord | Mapping[str, object]
    model: str
    subject: str
    study_instance_uid: str
    accession_number: str
    explain: bool | Literal["exact"]
    accept_warnings: bool
    ctp_interval_s: float
    priority: Priority


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress: stage ``upload`` with the fraction sent, then a stage of the service with the fraction of all work.

    ``stage`` is the reason of `Prediction.waiting` while the service waits until a fault of its storage ends.
    """

    stage: str
    fraction: float


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request; a 2xx body is written to ``sink``, and ``extra_timeout`` (s) is added to the read timeout."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, str | VolumeUpload] = field(default_factory=dict)
    document: str | None = None
    sink: BinaryIO | None = None
    extra_timeout: float = 0.0

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Build the httpx request; files are read from the start at each attempt."""
        timeout = http.timeout.as_dict()
        timeout["read"] = (timeout["read"] or 0) + self.extra_timeout
        return http.build_request(
            self.method,
            self.path,
            params=dict(self.params),
            headers=dict(self.headers) | ({"Content-Type": "application/json"} if self.document else {}),
            content=self.document,
            files={name: form_part(name, part) for name, part in self.parts.items()} or None,
            extensions={"timeout": timeout},
        )


@dataclass(frozen=True, slots=True)
class Pause:
    """Pause before the next step."""

    seconds: float


_OF_PROXIES = (502, 504)  # a proxy has no answer of the service, which may have done what was asked

T = TypeVar("T")
Steps = Generator[Call | Pause, Reply, T]


@dataclass(frozen=True, slots=True)
class Verbs:
    """Methods of the client, each as a generator of steps."""

    retries: int
    long_poll: float = 20.0
    progress_poll: float = 1.0
    first_pause: float = 0.5
    longest_pause: float = 60.0

    def submit(self, study: Study, idempotency_key: str | None, on_progress: OnProgress | None) -> Steps[Prediction]:
        study = _given(study)
        with ExitStack() as files:
            volumes: list[tuple[str, Volume]] = [
                (name.value, study[name.value]) for name in Input if name.value in study
            ]
            if "study" in study:
                volumes.append(("study", study["study"]))
            uploads = {name: VolumeUpload(files.enter_context(opened(volume))) for name, volume in volumes}
            if on_progress:
                _report_upload(list(uploads.values()), on_progress)
            call = Call(
                "POST",
                "/v1/predictions",
                headers={
                    "Idempotency-Key": idempotency_key or str(uuid.uuid4()),
                    "Prefer": "respond-async",
                    **({"Priority": "u=5"} if study.get("priority") is Priority.BATCH else {}),
                },
                parts={**_fields(study), **uploads},
            )
            return parse(Prediction, (yield from self.exchange(call)))

    def predict(
        self, study: Study, idempotency_key: str | None, wait: float | None, on_progress: OnProgress | None
    ) -> Steps[Prediction]:
        submitted = yield from self.submit(study, idempotency_key, on_progress)
        try:
            return require_success((yield from self.wait(submitted.id, wait, on_progress)))
        except RlvoError as error:
            error.prediction_id = submitted.id
            error.add_note(f"prediction {submitted.id}")
            raise

    def get(self, prediction_id: str, wait: float = 0.0) -> Steps[Prediction]:
        params = {"wait": f"{wait:g}"} if wait else {}
        call = Call("GET", f"/v1/predictions/{prediction_id}", params=params, extra_timeout=wait)
        return parse(Prediction, (yield from self.exchange(call)))

    def wait(self, prediction_id: str, seconds: float | None, on_progress: OnProgress | None) -> Steps[Prediction]:
        end = time.monotonic() + (float("inf") if seconds is None else seconds)
        poll = self.progress_poll if on_progress else self.long_poll
        while True:
            remaining = end - time.monotonic()
            prediction = yield from self.get(prediction_id, wait=max(0.0, min(poll, remaining)))
            if on_progress:
                waiting = prediction.waiting and prediction.waiting.reason
                on_progress(Progress(waiting or prediction.stage or prediction.status, prediction.progress))
            if prediction.status.finished:
                return prediction
            if remaining <= 0:
                raise NotFinished(f"The prediction is still {prediction.status} after {seconds:g} s; call wait again")
            yield Pause(0.1)  # limits the request rate if the service answers a long poll at once

    def page(self, filters: Filters, cursor: str | None) -> Steps[PredictionPage]:
        params = {name: _parameter(value) for name, value in filters.items()}
        if cursor:
            params["cursor"] = cursor
        return parse(PredictionPage, (yield from self.exchange(Call("GET", "/v1/predictions", params=params))))

    def caller(self) -> Steps[CallerInfo]:
        return parse(CallerInfo, (yield from self.exchange(Call("GET", "/v1/caller"))))

    def cancel(self, prediction_id: str) -> Steps[Prediction]:
        return parse(Prediction, (yield from self.exchange(Call("POST", f"/v1/predictions/{prediction_id}/cancel"))))

    def erase(self, prediction_id: str) -> Steps[None]:
        yield from self.exchange(Call("DELETE", f"/v1/predictions/{prediction_id}"), done=Erased)

    def certificate(self, prediction_id: str) -> Steps[ErasureCertificate]:
        call = Call("GET", f"/v1/predictions/{prediction_id}/erasure")
        return parse(ErasureCertificate, (yield from self.exchange(call)))

    def save(self, prediction_id: str, name: str, to: str | os.PathLike[str], wait: float = 0.0) -> Steps[Path]:
        """Save the file ``name`` of a prediction, such as ``maps/attribution-cta.nii.gz``, atomically.

        A file that is drawn after the answer is waited for up to ``wait`` seconds.
        """
        path = Path(to) / Path(name).name if Path(to).is_dir() else Path(to)
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        try:
            with part.open("wb") as sink:
                yield from self._drawn(f"/v1/predictions/{prediction_id}/{name}", sink, wait)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path

    def save_dicom(self, prediction_id: str, to: str | os.PathLike[str], wait: float) -> Steps[Path]:
        path = Path(to) / f"{prediction_id}-dicom.zip" if Path(to).is_dir() else Path(to)
        return (yield from self.save(prediction_id, "dicom", path, wait))

    def _drawn(self, path: str, sink: BinaryIO, wait: float) -> Steps[None]:
        """Read a file into ``sink``; repeat the request for ``wait`` seconds while it is not drawn yet."""
        end = time.monotonic() + wait
        while True:
            try:
                yield from self.exchange(Call("GET", path, sink=sink))
            except FiguresNotReady as error:
                remaining = end - time.monotonic()
                if remaining <= 0:
                    raise
                yield Pause(min(error.retry_after or 1.0, remaining))
            else:
                return

    def add_review(self, prediction_id: str, draft: ReviewDraft) -> Steps[Review]:
        path = f"/v1/predictions/{prediction_id}/reviews"
        call = Call("POST", path, document=draft.model_dump_json(exclude_none=True))
        return parse(Review, (yield from self.exchange(call)))

    def reviews(self, prediction_id: str) -> Steps[list[Review]]:
        return parse_all(Review, (yield from self.exchange(Call("GET", f"/v1/predictions/{prediction_id}/reviews"))))

    def set_outcome(self, prediction_id: str, draft: OutcomeDraft, correct: bool) -> Steps[Outcome]:
        path = f"/v1/predictions/{prediction_id}/outcome"
        headers = {}
        if correct:
            headers["If-Match"] = (yield from self.exchange(Call("GET", path))).headers["ETag"]
        call = Call("PUT", path, headers=headers, document=draft.model_dump_json(exclude_none=True))
        response = yield from self.exchange(call, done=(PreconditionRequired, EtagMismatch))
        if response.is_success:
            return parse(Outcome, response)
        recorded = yield from self.outcome(prediction_id)
        if recorded is None or recorded.model_dump(include=set(OutcomeDraft.model_fields)) != draft.model_dump():
            require_response(response)
        return cast("Outcome", recorded)

    def outcome(self, prediction_id: str) -> Steps[Outcome | None]:
        try:
            return parse(Outcome, (yield from self.exchange(Call("GET", f"/v1/predictions/{prediction_id}/outcome"))))
        except NotFound as error:
            if error.code != NotFound.code:  # the prediction does not exist
                raise
            return None

    def models(self) -> Steps[list[ModelInfo]]:
        return parse_all(ModelInfo, (yield from self.exchange(Call("GET", "/v1/models"))))

    def health(self) -> Steps[Health]:
        reply = yield Call("GET", "/readyz")
        if isinstance(reply, httpx.Response) and reply.status_code == 503:
            return parse(Health, reply)  # the body says which check failed
        return parse(Health, require_response(reply))

    def schema(self, path: str) -> Steps[dict[str, Any]]:
        return cast("dict[str, Any]", json_of((yield from self.exchange(Call("GET", path)))))

    def fhir(self, prediction_id: str, version: FhirRelease | None) -> Steps[dict[str, Any]]:
        params = {"fhirVersion": str(version)} if version else {}
        call = Call("GET", f"/v1/predictions/{prediction_id}/fhir", params=params)
        return cast("dict[str, Any]", json_of((yield from self.exchange(call))))

    def text(self, path: str) -> Steps[str]:
        return (yield from self.exchange(Call("GET", path))).text

    def exchange(
        self, call: Call, *, done: type[RlvoError] | tuple[type[RlvoError], ...] = ()
    ) -> Steps[httpx.Response]:
        """Send ``call``, retry after a transient error, and raise the error of the service.

        If the answer to an earlier attempt was lost, an error ``done`` is returned as a response: that attempt has done
        what the call asks for.
        """
        lost = False
        for attempt in range(self.retries + 1):
            reply = yield call
            try:
                return require_response(reply)
            except RlvoError as error:
                if lost and isinstance(error, done) and isinstance(reply, httpx.Response):
                    return reply
                pause = self.pause(attempt, error)
                if attempt == self.retries or not is_transient(reply, error) or pause > self.longest_pause:
                    raise
            lost = lost or not isinstance(reply, httpx.Response) or reply.status_code in _OF_PROXIES
            yield Pause(pause)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def pause(self, attempt: int, error: RlvoError) -> float:
        """Seconds until the next attempt: ``Retry-After`` plus an exponential pause with full jitter."""
        jitter = random.uniform(0, self.first_pause * 2**attempt)  # noqa: S311 - not a secret
        return (error.retry_after or 0.0) + jitter


# request bodies --------------------------------------------------------------------------------------------------


def _parameter(value: object) -> str:
    """Query parameter of one filter."""
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _report_upload(uploads: list[VolumeUpload], on_progress: OnProgress) -> None:
    """Report the sent share of all uploads, once per percent."""
    total = sum(upload.size for upload in uploads)
    last_percent = -1

    def on_read() -> None:
        nonlocal last_percent
        percent = 100 * sum(upload.tell() for upload in uploads) // max(total, 1)
        if percent != last_percent:
            last_percent = percent
            on_progress(Progress("upload", percent / 100))

    for upload in uploads:
        upload.on_read = on_read


_TEXTS: Final[tuple[Literal["model", "subject", "study_instance_uid", "accession_number"], ...]] = (
    "model",
    "subject",
    "study_instance_uid",
    "accession_number",
)


def _given(study: Study) -> Study:
    """The arguments that have a value.

    Raises:
        TypeError: There is no argument of this name, or ``clinical`` is neither a record nor a mapping.
        ValueError: There is no such priority.
    """
    known = Study.__annotations__
    for name in study:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f". A study has: {', '.join(known)}."
            raise TypeError(f"A study has no {name!r}{hint}")
    given = cast("Study", {name: value for name, value in study.items() if value is not None})
    if not isinstance(given.get("clinical", {}), (ClinicalRecord, Mapping)):
        raise TypeError("`clinical` must be a ClinicalRecord or a dict. Read a JSON file with json.load.")
    if "priority" in given:
        given["priority"] = Priority(given["priority"])
    return given


def _fields(study: Study) -> dict[str, str]:
    fields: dict[str, str] = {name: study[name] for name in _TEXTS if name in study}
    if "explain" in study:
        fields["explain"] = str(study["explain"]).lower()
    if study.get("accept_warnings"):
        fields["accept_warnings"] = "true"
    if "ctp_interval_s" in study:
        fields["ctp_interval_s"] = f"{study['ctp_interval_s']:.6f}".rstrip("0").rstrip(".")
    if study.get("series_roles"):
        fields["series_roles"] = json.dumps(dict(study["series_roles"]))
    clinical = study.get("clinical", {})
    if isinstance(clinical, ClinicalRecord):
        fields["clinical"] = clinical.model_dump_json(exclude_none=True)
    else:
        fields["clinical"] = json.dumps(dict(clinical))
    return fields
