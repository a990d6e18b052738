"""One submission on its way in: from the request's bytes to a study that is checked, and only then kept.

Notable choices:
- Each chunk goes straight through: parser, NIfTI check, storage. Memory stays the same for any size of upload, and
  nothing is written outside of the storage's own folder.
- The event loop only passes chunks on; parsing and inflating run in one thread, hashing and writing a few pieces behind
  it in another. A megabyte may gather before them; a faster sender has to wait.
- Nothing becomes visible before everything was checked. Whatever goes wrong, also a client that hangs up, leaves the
  storage as it was.
- The digest of a submission is of its parts by name, so a retry with another boundary or order is still the same.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import wait
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import anyio
from starlette.requests import Request

from app.api import json_parsing
from app.api.dependencies import Services
from app.api.multipart import FormParser, PartHead, Sink
from app.core.concurrency import BoundedExecutor, submit
from app.imaging.io import grid_check
from app.imaging.io.header import Header
from app.imaging.io.limits import Limits
from app.imaging.io.stream_check import StreamCheck
from app.sdk.clinical import ClinicalRecord
from app.sdk.errors import DigestMismatch, FieldError, InvalidRequest, MissingInput, TooLarge
from app.sdk.types import Input, InputSummary
from app.storage.local import Storage, Writer

SUBJECT = r"[A-Za-z0-9._-]{1,64}"
MODEL = r"[a-z0-9@.-]{1,160}"

GATHERED_CHUNKS = 16
"""Chunks (of 64 KiB, as the server gives them) that may wait for the thread."""
PIECES_BEHIND = 8
"""Pieces (of 256 KiB) that may wait to be hashed and written."""

_FIELD_BYTES = 256
_VOLUMES = frozenset(Input)


@dataclass
class UploadedStudy:
    """What a caller sent, checked. Optional fields are None where they were left out."""

    record: ClinicalRecord = field(default_factory=ClinicalRecord)
    model: str | None = None
    subject: str | None = None
    explain: bool = True
    exact: bool = False
    headers: dict[Input, Header] = field(default_factory=dict)


class UploadReceiver:
    """Takes the parts of one submission. Used from one thread at a time."""

    def __init__(self, storage: Storage, limits: Limits, max_json_bytes: int) -> None:
        self.study = UploadedStudy()
        self._storage = storage
        self._limits = limits
        self._max_json_bytes = max_json_bytes
        self._writers: dict[Input, Writer] = {}
        self._digests: dict[str, str] = {}
        self._open = ExitStack()

    def part(self, head: PartHead) -> Sink:
        """The sink for a part. Raises InvalidRequest for one that has no place here."""
        texts: dict[str, tuple[int, Callable[[bytes], None]]] = {
            "clinical": (self._max_json_bytes, self._clinical),
            "model": (_FIELD_BYTES, self._model),
            "subject": (_FIELD_BYTES, self._subject),
            "explain": (_FIELD_BYTES, self._explain),
        }
        if head.name in self._digests:
            raise _refused(head.name, "may be sent once only")
        if head.name in texts:
            self._digests[head.name] = ""
            return _Text(head.name, *texts[head.name], done=self._sent)
        if head.name in _VOLUMES:
            self._digests[head.name] = ""
            return _Volume(
                Input(head.name),
                self._limits,
                self._writer,
                self._behind,
                done=self._received,
                chosen=bool(head.filename),
            )
        allowed = ", ".join((*Input, *texts))
        raise InvalidRequest(f"The form has a field that this call does not take; it takes {allowed}.")

    def check(self) -> None:
        """What can only be said of the whole. Raises MissingInput, GeometryMismatch."""
        if not self.study.headers:
            raise MissingInput(f"No volume was sent; send at least one of {', '.join(Input)}.")
        grid_check.check(self.study.headers)

    @property
    def digest(self) -> str:
        """The sha-256 of all parts, by name."""
        lines = "".join(f"{name} {digest}\n" for name, digest in sorted(self._digests.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    def keep(self) -> dict[Input, InputSummary]:
        """Makes the volumes durable. Raises StorageFull."""
        kept = {}
        begun = {name: submit(writer.commit) for name, writer in self._writers.items()}
        wait(begun.values())  # one that fails must not have the others dropped while they are at it
        for name, committed in begun.items():
            header = self.study.headers[name]
            sha256, size = committed.result()
            kept[name] = InputSummary(
                sha256=sha256,
                bytes=size,
                shape=list(header.shape),
                spacing_mm=[round(mm, 6) for mm in header.spacing_mm],
            )
        return kept

    def drop(self) -> None:
        """Deletes what was not kept. Harmless when repeated."""
        self._open.close()

    def _writer(self, name: Input) -> Writer:
        self._writers[name] = self._open.enter_context(self._storage.writer())
        return self._writers[name]

    def _behind(self) -> BoundedExecutor:
        return self._open.enter_context(BoundedExecutor(PIECES_BEHIND))

    def _received(self, name: Input, header: Header | None, digest: str) -> None:
        if header is None:  # a file picker that was left empty
            del self._digests[name]
            return
        self.study.headers[name] = header
        self._digests[name] = digest

    def _sent(self, name: str, digest: str) -> None:
        self._digests[name] = digest

    def _clinical(self, content: bytes) -> None:
        self.study.record = json_parsing.clinical_record(content)

    def _model(self, content: bytes) -> None:
        self.study.model = _matching("model", content, MODEL, "is `name`, `name@1.2.0` or `name@alias`")

    def _subject(self, content: bytes) -> None:
        self.study.subject = _matching(
            "subject", content, SUBJECT, "has 1 to 64 letters, digits, dots, dashes, underscores"
        )

    def _explain(self, content: bytes) -> None:
        wanted = _matching("explain", content, "true|false|exact", "is `true`, `false` or `exact`")
        self.study.explain, self.study.exact = wanted != "false", wanted == "exact"


@asynccontextmanager
async def receive(request: Request, services: Services) -> AsyncIterator[UploadReceiver]:
    """Receives and checks a submission. What the block does not `keep` is gone at its end.

    :raises RlvoError: whatever is wrong with it: the format, a volume, the record, its size, its time
    """
    settings = services.settings
    limits = Limits(max_voxels=settings.max_voxels, max_bytes=settings.max_volume_bytes)
    reception = UploadReceiver(services.storage, limits, settings.max_json_bytes)
    try:
        parser = FormParser(request.headers.get("content-type", ""), reception.part)
        claimed = _claimed_digest(request.headers)
        whole = hashlib.sha256()

        def take(batch: bytes) -> None:
            if claimed:
                whole.update(batch)
            parser.write(batch)

        await _pass_on(request.stream(), lambda batch: services.work(take, batch))
        parser.close()
        if claimed and whole.digest() != claimed:
            raise DigestMismatch("The body is not the one that its Content-Digest was made of; send it again.")
        reception.check()
        yield reception
    finally:
        with anyio.CancelScope(shield=True):
            await services.work(reception.drop)


async def _pass_on(chunks: AsyncIterator[bytes], work: Callable[[bytes], Awaitable[None]]) -> None:
    """Gives the chunks to a thread. While it works on some, the next ones gather, up to a bound; then the sender waits.

    :raises RlvoError: what either side raised, at once, also where nothing more arrives
    """
    to_work, arrived = anyio.create_memory_object_stream[bytes](GATHERED_CHUNKS)

    async def consume() -> None:
        async for chunk in arrived:
            batch = [chunk, *(arrived.receive_nowait() for _ in range(arrived.statistics().current_buffer_used))]
            await work(b"".join(batch))

    try:
        with arrived:
            async with anyio.create_task_group() as tasks, to_work:
                tasks.start_soon(consume)
                async for chunk in chunks:
                    await to_work.send(chunk)
    except BaseExceptionGroup as group:  # one side failed and the other was told to stop: a single error
        raise group.exceptions[0] from None


class _Volume:
    """The sink of a file part. Its writer is opened by the first byte.

    A form sends its empty file pickers too, without bytes and without a file name: they count as not sent.
    """

    def __init__(
        self,
        name: Input,
        limits: Limits,
        writer: Callable[[Input], Writer],
        behind: Callable[[], BoundedExecutor],
        *,
        done: Callable[[Input, Header | None, str], None],
        chosen: bool,
    ) -> None:
        self._name = name
        self._intake = StreamCheck(name, limits)
        self._new_writer, self._new_behind = writer, behind
        self._writer: Writer | None = None
        self._hash = hashlib.sha256()
        self._done = done
        self._chosen = chosen

    def write(self, chunk: memoryview) -> None:
        if self._writer is None:
            self._writer = self._new_writer(self._name)
            self._behind = self._new_behind()
        sent = bytes(chunk)
        self._behind(partial(self._hash.update, sent))
        for piece in self._intake.feed(sent):
            self._behind(partial(self._writer.write, piece))

    def close(self) -> None:
        if self._writer is not None:
            self._behind.catch_up()
        empty_picker = self._writer is None and not self._chosen
        header = None if empty_picker else self._intake.finish()
        self._done(self._name, header, self._hash.hexdigest())


class _Text:
    """The sink of a short field, which is understood as soon as it is complete."""

    def __init__(
        self, name: str, limit: int, use: Callable[[bytes], None], *, done: Callable[[str, str], None]
    ) -> None:
        self._name = name
        self._limit = limit
        self._use = use
        self._done = done
        self._content = bytearray()

    def write(self, chunk: memoryview) -> None:
        if len(self._content) + len(chunk) > self._limit:
            raise TooLarge(f"The field {self._name} takes at most {self._limit} bytes.")
        self._content += chunk

    def close(self) -> None:
        content = bytes(self._content)
        if content or self._name == "clinical":  # a form sends its empty fields too; an empty document is a broken one
            self._use(content)
        self._done(self._name, hashlib.sha256(content).hexdigest())


def _matching(name: str, content: bytes, pattern: str, rule: str) -> str:
    text = content.decode("utf-8", "replace")
    if not re.fullmatch(pattern, text):
        raise _refused(name, rule)
    return text


def _refused(name: str, rule: str) -> InvalidRequest:
    return InvalidRequest(f"The field {name} {rule}.", errors=[FieldError(name, rule)])


def _claimed_digest(headers: Mapping[str, str]) -> bytes | None:
    """The sha-256 of the body that the caller sent along (RFC 9530 ``Content-Digest``); None where it sent none."""
    match = re.search(r"(?:^|[ ,])sha-256=:([A-Za-z0-9+/]{43}=):", headers.get("content-digest", ""))
    return base64.b64decode(match[1]) if match else None
