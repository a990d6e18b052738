"""Receives a submission as a stream, checks it, and stores its volumes.

Design notes:
- Each chunk passes through parser, NIfTI check and storage, so memory does not grow with the size of the upload.
- One thread parses and inflates; a second one hashes and writes. Both have bounded buffers, so a fast sender waits.
- Nothing is visible before the whole submission is checked. After any error the storage is unchanged.
- The digest of a submission covers its parts by name, so a retry with another boundary or order has the same digest.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import wait
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field

import anyio
from starlette.requests import Request

from app.api import dicom_uploads, json_parsing
from app.api.dependencies import Services
from app.api.dicom_uploads import STUDY, StudyArchives
from app.api.multipart import FormParser, PartHeader, Sink
from app.api.upload_sinks import FieldSink, StudySink, VolumeSink
from app.core.concurrency import BoundedExecutor, submit
from app.core.config import Settings
from app.dicom.conversion import Conversion
from app.dicom.one_patient import check_one_patient
from app.dicom.return_address import ReturnAddress
from app.dicom.spare import SpareProcesses
from app.imaging.io import duplicates, grid_check
from app.imaging.io.header import Header
from app.imaging.io.limits import Limits
from app.sdk.clinical import ClinicalRecord
from app.sdk.errors import DigestMismatch, FieldError, InvalidRequest, MissingInput
from app.sdk.series import SeriesRole, SeriesSummary
from app.sdk.types import Flag, Input, InputSummary
from app.storage.local import Storage, Writer

SUBJECT = r"[A-Za-z0-9._-]{1,64}"
MODEL = r"[a-z0-9@.-]{1,160}"
UID = r"[0-2](\.(0|[1-9][0-9]*))+"
MAX_UID_LENGTH = 64
ACCESSION = r"[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?"
"""Accession Number, DICOM PS3.5, value representation SH: 1 to 16 characters, here of ASCII, without a backslash."""
INTERVAL = r"[0-9]{1,3}(\.[0-9]{1,6})?"
CTP_INTERVAL_S = (0.2, 6.0)

MAX_BUFFERED_CHUNKS = 16  # chunks of the request (64 KiB each) that may wait for the parser
MAX_PENDING_PIECES = 8  # pieces of a volume (256 KiB each) that may wait to be hashed and written
_FIELD_BYTES = 256
_PIECE_BYTES = 256 * 1024
_VOLUMES = frozenset(Input)


@dataclass
class UploadedStudy:
    """A checked submission. Optional fields that were not sent are None."""

    record: ClinicalRecord = field(default_factory=ClinicalRecord)
    model: str | None = None
    subject: str | None = None
    study_instance_uid: str | None = None
    accession_number: str | None = None
    explain: bool = True
    exact: bool = False
    accept_warnings: bool = False
    ctp_interval_s: float | None = None
    headers: dict[Input, Header] = field(default_factory=dict)
    series_roles: dict[str, SeriesRole] = field(default_factory=dict)
    series: list[SeriesSummary] = field(default_factory=list)
    flags: list[Flag] = field(default_factory=list)
    address: ReturnAddress | None = None


class UploadReceiver:
    """Receives the parts of one submission. Only one thread at a time may use it."""

    def __init__(self, storage: Storage, settings: Settings, conversions: SpareProcesses) -> None:
        self.study = UploadedStudy()
        self._storage = storage
        self.limits = Limits(max_voxels=settings.max_voxels, max_bytes=settings.max_volume_bytes)
        self._max_json_bytes = settings.max_json_bytes
        self._writers: dict[Input, Writer] = {}
        self._digests: dict[str, str] = {}
        self._volume_digests: dict[Input, str] = {}
        self._resources = ExitStack()
        self.archives = StudyArchives(settings, conversions)
        self._resources.callback(self.archives.discard)

    def open_part(self, header: PartHeader) -> Sink:
        """Returns the sink for a part. Raises InvalidRequest for an unknown or repeated part."""
        fields: dict[str, tuple[int, Callable[[bytes], None]]] = {
            "clinical": (self._max_json_bytes, self._clinical),
            "model": (_FIELD_BYTES, self._model),
            "subject": (_FIELD_BYTES, self._subject),
            "study_instance_uid": (_FIELD_BYTES, self._study_instance_uid),
            "accession_number": (_FIELD_BYTES, self._accession_number),
            "explain": (_FIELD_BYTES, self._explain),
            "accept_warnings": (_FIELD_BYTES, self._accept_warnings),
            "ctp_interval_s": (_FIELD_BYTES, self._ctp_interval),
            "series_roles": (self._max_json_bytes, self._series_roles),
        }
        name = header.name
        if name in self._digests:
            raise _invalid_field(name, "may be sent only once")
        if name in fields:
            self._digests[name] = ""
            return FieldSink(self, name, *fields[name])
        if name in _VOLUMES:
            self._digests[name] = ""
            return VolumeSink(self, Input(name), has_filename=bool(header.filename))
        if name == STUDY:
            self._digests[name] = ""
            return StudySink(self)
        allowed = ", ".join((*Input, STUDY, *fields))
        raise InvalidRequest(f"The form has an unknown field. Allowed are: {allowed}.")

    def convert(self) -> None:
        """Converts the DICOM archives; their volumes count as sent, unless the input was sent as a file of its own.

        Raises:
            PatientMismatch: The archives belong to several patients.
            RlvoError: An archive cannot be used.
        """
        if self.study.series_roles and STUDY not in self.archives.names:
            raise _invalid_field("series_roles", "needs a study: send both, or none")
        sent = {*self.study.headers, *(Input(name) for name in self.archives.names if name != STUDY)}
        stated, uids, patients = self.study.study_instance_uid, set[str](), list[Mapping[str, str]]()
        for name in self.archives.names:
            conversion = self.archives.convert(name, self.study.series_roles)
            uids.add(conversion.study_uid)
            patients.append(conversion.patient)
            check_one_patient(patients, "archives")
            self.add_volumes(dicom_uploads.without(conversion, frozenset(sent)) if name == STUDY else conversion)
            if name == STUDY:
                self.study.study_instance_uid = self.study.study_instance_uid or uid_or_none(conversion.study_uid)
        if stated and uids - {"", stated}:
            detail = "study_instance_uid is not the Study Instance UID of the DICOM files"
            self.study.flags.append(Flag(code="study-uid-differs", detail=detail))

    def add_volumes(self, conversion: Conversion) -> None:
        """Writes the volumes of a conversion to the storage, and deletes their files. Raises StorageFull."""
        for name, path in conversion.volumes.items():
            sink = VolumeSink(self, name, has_filename=True, converted=True)
            with path.open("rb") as volume:
                while chunk := volume.read(_PIECE_BYTES):
                    sink.write(memoryview(chunk))
            sink.close()
            path.unlink()
        self.study.series += conversion.series
        self.study.flags += conversion.flags
        first, further = self.study.address, conversion.address
        self.study.address = first.with_archive(further) if first and further else first or further

    def check(self) -> None:
        """Checks the submission as a whole. Raises MissingInput, GeometryMismatch, ImplausibleModality."""
        if not self.study.headers:
            raise MissingInput(f"The form has no volume. Send at least one of: {', '.join(Input)}.")
        if self.study.ctp_interval_s is not None and Input.CTP not in self.study.headers:
            raise _invalid_field("ctp_interval_s", "needs a ctp series: send both, or none")
        grid_check.check(self.study.headers)
        duplicates.check_bytes(self._volume_digests)

    @property
    def digest(self) -> str:
        """The sha-256 of all parts in the order of their names."""
        lines = "".join(f"{name} {digest}\n" for name, digest in sorted(self._digests.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    def commit(self) -> dict[Input, InputSummary]:
        """Makes the volumes durable and describes them. Raises StorageFull."""
        summaries = {}
        commits = {name: submit(writer.commit) for name, writer in self._writers.items()}
        wait(commits.values())  # an error of one must not discard the others while they are written
        for name, future in commits.items():
            header = self.study.headers[name]
            sha256, size = future.result()
            summaries[name] = InputSummary(
                sha256=sha256,
                bytes=size,
                shape=list(header.shape),
                spacing_mm=[round(mm, 6) for mm in header.spacing_mm],
            )
        return summaries

    def discard(self) -> None:
        """Deletes what was not committed; further calls do nothing."""
        self._resources.close()

    def open_volume(self, name: Input) -> tuple[Writer, BoundedExecutor]:
        """Returns a writer for a volume, and an executor that hashes and writes in a second thread."""
        self._writers[name] = self._resources.enter_context(self._storage.writer())
        return self._writers[name], self._resources.enter_context(BoundedExecutor(MAX_PENDING_PIECES))

    def volume_done(self, name: Input, header: Header | None, digest: str, *, converted: bool = False) -> None:
        """Records a complete volume; a None header means that the user left the file input of the form empty.

        A ``converted`` volume is no part of the submission; its archive is.
        """
        if header is None:
            del self._digests[name]
            return
        self.study.headers[name] = header
        self._volume_digests[name] = digest
        if not converted:
            self._digests[name] = digest

    def field_done(self, name: str, digest: str) -> None:
        """Records a complete field."""
        self._digests[name] = digest

    def _clinical(self, content: bytes) -> None:
        self.study.record = json_parsing.clinical_record(content)

    def _model(self, content: bytes) -> None:
        self.study.model = _matching("model", content, MODEL, "must be `name`, `name@1.2.0` or `name@alias`")

    def _subject(self, content: bytes) -> None:
        rule = "must have 1 to 64 letters, digits, dots, dashes or underscores"
        self.study.subject = _matching("subject", content, SUBJECT, rule)

    def _study_instance_uid(self, content: bytes) -> None:
        rule = "must be a DICOM UID of at most 64 characters, such as 1.2.840.113619.2.55.3"
        uid = _matching("study_instance_uid", content, UID, rule)
        if len(uid) > MAX_UID_LENGTH:
            raise _invalid_field("study_instance_uid", rule)
        self.study.study_instance_uid = uid

    def _accession_number(self, content: bytes) -> None:
        rule = "must have 1 to 16 ASCII characters, no backslash, and no space at its ends"
        self.study.accession_number = _matching("accession_number", content, ACCESSION, rule)

    def _explain(self, content: bytes) -> None:
        explain = _matching("explain", content, "true|false|exact", "must be `true`, `false` or `exact`")
        self.study.explain, self.study.exact = explain != "false", explain == "exact"

    def _series_roles(self, content: bytes) -> None:
        self.study.series_roles = dicom_uploads.roles(content)

    def _accept_warnings(self, content: bytes) -> None:
        text = _matching("accept_warnings", content, "true|false", "must be `true` or `false`")
        self.study.accept_warnings = text == "true"

    def _ctp_interval(self, content: bytes) -> None:
        low, high = CTP_INTERVAL_S
        rule = f"must be a number of seconds from {low} to {high}, such as 1.5"
        seconds = float(_matching("ctp_interval_s", content, INTERVAL, rule))
        if not low <= seconds <= high:
            raise _invalid_field("ctp_interval_s", rule)
        self.study.ctp_interval_s = seconds


@asynccontextmanager
async def receive(request: Request, services: Services) -> AsyncIterator[UploadReceiver]:
    """Receives and checks a submission; what the block does not commit is deleted at its end.

    Raises:
        RlvoError: The form, a volume or the clinical record is not valid, too large or too late.
    """
    settings = services.settings
    upload = UploadReceiver(services.storage, settings, services.spare_conversions)
    try:
        parser = FormParser(request.headers.get("content-type", ""), upload.open_part)
        expected = _content_digest(request.headers)
        body_hash = hashlib.sha256()

        def parse(batch: bytes) -> None:
            if expected:
                body_hash.update(batch)
            parser.write(batch)

        await stream_to_thread(request.stream(), lambda batch: services.run_in_thread(parse, batch))
        parser.close()
        if expected and body_hash.digest() != expected:
            raise DigestMismatch("The body does not match its Content-Digest header. Send it again.")
        if upload.archives.names:
            async with services.conversion_slots:
                await services.run_in_thread(upload.convert)
        elif upload.study.series_roles:
            upload.convert()
        upload.check()
        yield upload
    finally:
        with anyio.CancelScope(shield=True):
            await services.run_in_thread(upload.discard)


async def stream_to_thread(chunks: AsyncIterator[bytes], work: Callable[[bytes], Awaitable[None]]) -> None:
    """Passes the chunks to ``work`` in batches; the next batch is what has arrived while the last one was processed.

    Raises:
        RlvoError: The first error of either side, at once, even if no further chunk arrives.
    """
    sender, receiver = anyio.create_memory_object_stream[bytes](MAX_BUFFERED_CHUNKS)

    async def consume() -> None:
        async for chunk in receiver:
            batch = [chunk, *(receiver.receive_nowait() for _ in range(receiver.statistics().current_buffer_used))]
            await work(b"".join(batch))

    try:
        with receiver:
            async with anyio.create_task_group() as tasks, sender:
                tasks.start_soon(consume)
                async for chunk in chunks:
                    await sender.send(chunk)
    except BaseExceptionGroup as group:  # one side failed and the other was cancelled, so there is one error
        raise group.exceptions[0] from None


def _matching(name: str, content: bytes, pattern: str, rule: str) -> str:
    text = content.decode("utf-8", "replace")
    if not re.fullmatch(pattern, text):
        raise _invalid_field(name, rule)
    return text


def uid_or_none(uid: str) -> str | None:
    return uid if re.fullmatch(UID, uid) and len(uid) <= MAX_UID_LENGTH else None


def _invalid_field(name: str, rule: str) -> InvalidRequest:
    return InvalidRequest(f"The field {name} {rule}.", errors=[FieldError(name, rule)])


def _content_digest(headers: Mapping[str, str]) -> bytes | None:
    """The sha-256 in the ``Content-Digest`` header (RFC 9530), or None."""
    match = re.search(r"(?:^|[ ,])sha-256=:([A-Za-z0-9+/]{43}=):", headers.get("content-digest", ""))
    return base64.b64decode(match[1]) if match else None
