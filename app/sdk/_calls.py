"""What the client does, apart from how it waits: every verb is a generator of steps.

Notable choices:
- A verb yields a ``Call`` (send this) or a ``Pause`` (sleep so long) and is sent the answer back. Client and
  AsyncClient only carry steps out, so sync and async can differ in nothing but ``await``.
- Every call may be repeated: reads by nature, a new prediction by its Idempotency-Key, a review because the same one
  twice is one, an outcome because the same one replaces itself. So a lost connection, a full
  queue (429), a service that starts or drains (502, 503, 504) and an upload still in progress (409) are retried.
- A volume is sent under its field's name. The name of the local file may hold a patient's, and never leaves.
- Nothing is checked here that the service checks: its answer is the one that counts.
"""

from __future__ import annotations

import io
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
from typing import IO, Any, BinaryIO, Literal, TypedDict, TypeVar, cast

import httpx

from ._replies import Reply, json_of, passing, read, read_all, succeeded, understood
from .clinical import ClinicalRecord
from .errors import NotFinished, NotFound, RlvoError
from .followup import Outcome, OutcomeDraft, Review, ReviewDraft
from .types import ErasureCertificate, Health, Input, ModelInfo, Prediction, PredictionPage, Priority, Status

Volume = str | os.PathLike[str] | bytes
"""A ``.nii`` or ``.nii.gz``: its path (streamed from disk), or its bytes."""


class Filters(TypedDict, total=False):
    """Which predictions to list; ``limit`` is the size of one page."""

    subject: str
    model: str
    status: Status
    created_after: datetime
    limit: int


class Study(TypedDict, total=False):
    """One patient's study. What a model needs of it stands in its card."""

    ncct: Volume
    cta: Volume
    vessels: Volume
    tmax: Volume
    cbf: Volume
    cbv: Volume
    mtt: Volume
    ctp: Volume
    clinical: ClinicalRecord | Mapping[str, object]
    model: str
    subject: str
    explain: bool | Literal["exact"]
    priority: Priority


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a prediction is: ``upload`` with its fraction, then the service's stages with that of the whole work."""

    stage: str
    fraction: float


OnProgress = Callable[[Progress], None]


class Upload:
    """A file as httpx reads it, that tells whoever watches each time some of it has gone out."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, io.SEEK_END)
        file.seek(0)
        self.moved: Callable[[], None] = lambda: None

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(size)
        self.moved()
        return chunk

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP exchange. A 2xx body goes to ``sink`` where there is one; ``patience`` is what a long poll may take."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, str | Upload] = field(default_factory=dict)
    document: str | None = None
    sink: BinaryIO | None = None
    patience: float = 0.0

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The same call as httpx speaks it; files are read from their start each time it is sent."""
        timeout = http.timeout.as_dict()
        timeout["read"] = (timeout["read"] or 0) + self.patience
        return http.build_request(
            self.method,
            self.path,
            params=dict(self.params),
            headers=dict(self.headers) | ({"Content-Type": "application/json"} if self.document else {}),
            content=self.document,
            files={name: _part(name, part) for name, part in self.parts.items()} or None,
            extensions={"timeout": timeout},
        )


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


T = TypeVar("T")
Steps = Generator[Call | Pause, Reply, T]


@dataclass(frozen=True, slots=True)
class Verbs:
    """All that can be asked of the service."""

    retries: int
    long_poll: float = 20.0
    progress_poll: float = 1.0
    first_pause: float = 0.5
    longest_pause: float = 60.0

    def submit(self, study: Study, idempotency_key: str | None, on_progress: OnProgress | None) -> Steps[Prediction]:
        with ExitStack() as opened:
            volumes: list[tuple[str, Volume]] = [
                (name.value, study[name.value]) for name in Input if name.value in study
            ]
            uploads = {name: Upload(opened.enter_context(_open(volume))) for name, volume in volumes}
            if on_progress:
                _watch(list(uploads.values()), on_progress)
            call = Call(
                "POST",
                "/v1/predictions",
                headers={
                    "Idempotency-Key": idempotency_key or str(uuid.uuid4()),
                    "Prefer": "respond-async",
                    **({"Priority": "u=5"} if study.get("priority") == Priority.BATCH else {}),
                },
                parts={**_fields(study), **uploads},
            )
            return read(Prediction, (yield from self.exchange(call)))

    def predict(
        self, study: Study, idempotency_key: str | None, wait: float | None, on_progress: OnProgress | None
    ) -> Steps[Prediction]:
        submitted = yield from self.submit(study, idempotency_key, on_progress)
        try:
            return succeeded((yield from self.wait(submitted.id, wait, on_progress)))
        except RlvoError as error:
            error.add_note(f"prediction {submitted.id}")
            raise

    def get(self, prediction_id: str, wait: float = 0.0) -> Steps[Prediction]:
        params = {"wait": f"{wait:g}"} if wait else {}
        call = Call("GET", f"/v1/predictions/{prediction_id}", params=params, patience=wait)
        return read(Prediction, (yield from self.exchange(call)))

    def wait(self, prediction_id: str, seconds: float | None, on_progress: OnProgress | None) -> Steps[Prediction]:
        end = time.monotonic() + (float("inf") if seconds is None else seconds)
        poll = self.progress_poll if on_progress else self.long_poll
        while True:
            left = end - time.monotonic()
            prediction = yield from self.get(prediction_id, wait=max(0.0, min(poll, left)))
            if on_progress:
                on_progress(Progress(prediction.stage or prediction.status, prediction.progress))
            if prediction.status.finished:
                return prediction
            if left <= 0:
                raise NotFinished(f"The prediction is still {prediction.status} after {seconds:g} s; wait for it again")
            yield Pause(0.1)  # a service that answers a long poll at once must not be asked without end

    def page(self, filters: Filters, cursor: str | None) -> Steps[PredictionPage]:
        params = {
            name: value.isoformat() if isinstance(value, datetime) else str(value) for name, value in filters.items()
        }
        if cursor:
            params["cursor"] = cursor
        return read(PredictionPage, (yield from self.exchange(Call("GET", "/v1/predictions", params=params))))

    def cancel(self, prediction_id: str) -> Steps[Prediction]:
        return read(Prediction, (yield from self.exchange(Call("POST", f"/v1/predictions/{prediction_id}/cancel"))))

    def erase(self, prediction_id: str) -> Steps[None]:
        yield from self.exchange(Call("DELETE", f"/v1/predictions/{prediction_id}"))

    def certificate(self, prediction_id: str) -> Steps[ErasureCertificate]:
        call = Call("GET", f"/v1/predictions/{prediction_id}/erasure")
        return read(ErasureCertificate, (yield from self.exchange(call)))

    def save(self, prediction_id: str, name: str, to: str | os.PathLike[str]) -> Steps[Path]:
        """``name`` is the file's address within the prediction, such as ``maps/attribution-cta.nii.gz``."""
        path = Path(to) / Path(name).name if Path(to).is_dir() else Path(to)
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        try:
            with part.open("wb") as sink:
                yield from self.exchange(Call("GET", f"/v1/predictions/{prediction_id}/{name}", sink=sink))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path

    def add_review(self, prediction_id: str, draft: ReviewDraft) -> Steps[Review]:
        path = f"/v1/predictions/{prediction_id}/reviews"
        call = Call("POST", path, document=draft.model_dump_json(exclude_none=True))
        return read(Review, (yield from self.exchange(call)))

    def reviews(self, prediction_id: str) -> Steps[list[Review]]:
        return read_all(Review, (yield from self.exchange(Call("GET", f"/v1/predictions/{prediction_id}/reviews"))))

    def set_outcome(self, prediction_id: str, draft: OutcomeDraft, correct: bool) -> Steps[Outcome]:
        path = f"/v1/predictions/{prediction_id}/outcome"
        headers = {}
        if correct:
            headers["If-Match"] = (yield from self.exchange(Call("GET", path))).headers["ETag"]
        call = Call("PUT", path, headers=headers, document=draft.model_dump_json(exclude_none=True))
        return read(Outcome, (yield from self.exchange(call)))

    def outcome(self, prediction_id: str) -> Steps[Outcome | None]:
        try:
            return read(Outcome, (yield from self.exchange(Call("GET", f"/v1/predictions/{prediction_id}/outcome"))))
        except NotFound as error:
            if error.code != NotFound.code:  # it is the prediction that is unknown
                raise
            return None

    def models(self) -> Steps[list[ModelInfo]]:
        return read_all(ModelInfo, (yield from self.exchange(Call("GET", "/v1/models"))))

    def health(self) -> Steps[Health]:
        reply = yield Call("GET", "/readyz")
        if isinstance(reply, httpx.Response) and reply.status_code == 503:
            return read(Health, reply)  # not ready is an answer here, with its reasons
        return read(Health, understood(reply))

    def schema(self, path: str) -> Steps[dict[str, Any]]:
        return cast("dict[str, Any]", json_of((yield from self.exchange(Call("GET", path)))))

    def text(self, path: str) -> Steps[str]:
        return (yield from self.exchange(Call("GET", path))).text

    def exchange(self, call: Call) -> Steps[httpx.Response]:
        """Sends ``call``, again after a while where that may help, and raises what the service raised."""
        for attempt in range(self.retries + 1):
            reply = yield call
            try:
                return understood(reply)
            except RlvoError as error:
                pause = self.pause(attempt, error)
                if attempt == self.retries or not passing(reply, error) or pause > self.longest_pause:
                    raise
            yield Pause(pause)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def pause(self, attempt: int, error: RlvoError) -> float:
        """Seconds until the next attempt: exponential with full jitter, and never sooner than the service asked."""
        spread = random.uniform(0, self.first_pause * 2**attempt)  # noqa: S311 - jitter, not a secret
        return (error.retry_after or 0.0) + spread


# what goes out ----------------------------------------------------------------------------------------------------


def _part(name: str, part: str | Upload) -> tuple[str | None, IO[bytes] | str, str | None]:
    """A form part for httpx: file name, content, media type."""
    if isinstance(part, str):
        return None, part, None
    return name, cast("IO[bytes]", part), "application/octet-stream"


def _open(volume: Volume) -> BinaryIO:
    return io.BytesIO(volume) if isinstance(volume, bytes) else Path(volume).open("rb")


def _watch(uploads: list[Upload], on_progress: OnProgress) -> None:
    """Tells ``on_progress`` how much of all uploads has gone out, once per percent."""
    total = sum(upload.size for upload in uploads)
    told = -1

    def moved() -> None:
        nonlocal told
        percent = 100 * sum(upload.tell() for upload in uploads) // max(total, 1)
        if percent != told:
            told = percent
            on_progress(Progress("upload", percent / 100))

    for upload in uploads:
        upload.moved = moved


def _fields(study: Study) -> dict[str, str]:
    fields: dict[str, str] = {name: study[name] for name in ("model", "subject") if name in study}
    if "explain" in study:
        fields["explain"] = str(study["explain"]).lower()
    clinical = study.get("clinical", {})
    if isinstance(clinical, ClinicalRecord):
        fields["clinical"] = clinical.model_dump_json(exclude_none=True)
    else:
        fields["clinical"] = json.dumps(dict(clinical))
    return fields
