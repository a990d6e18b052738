"""Receives the instances of a STOW-RS request as a stream, and makes its answer.

Design notes:
- A part is written to a file as it arrives and then received like an instance of C-STORE, so nothing is decoded.
- Complete parts are received some at a time, because their sender gets one answer for all of them.
- A part that cannot be stored does not end the request; the answer says which instances are stored, and why others not.
- A fault of the disk or the database ends the request. Sent again, the stored instances are known.

Sources: DICOM PS3.18, 10.5 (store transaction) and annex I (store instances response module).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from python_multipart.multipart import parse_options_header

from app.core.multipart import PartsParser, Sink, boundary
from app.dicom.errors import OtherUids, Unreadable
from app.dicom.part_file import PartFile
from app.dicom.reception import MAX_INSTANCES, Outcome, Received, Reception
from app.sdk.errors import InvalidRequest, TooLarge, UnsupportedMedia

__all__ = ["MEDIA_TYPE", "StoreRequest"]

MEDIA_TYPE = "application/dicom+json"
_RULE = "Send the instances as multipart/related with parts of the type application/dicom."
_TOGETHER = 32
_OTHER_CLASS, _CANNOT_UNDERSTAND = 0xA900, 0xC000
_REASONS = {Outcome.CONFLICT: 0x0111, Outcome.TOO_MANY: 0xA700}
_STORED, _FAILED, _OTHER_FAILURES = "00081199", "00081198", "0008119A"
_CLASS, _INSTANCE, _REASON = "00081150", "00081155", "00081197"


@dataclass
class StoreRequest:
    """The parts of one request, and what became of each.

    Attributes:
        received: what became of the parts with readable UIDs.
        unreadable: failure reasons of the other parts.
    """

    reception: Reception
    tenant: str
    max_instance_bytes: int
    received: list[Received] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)
    _part: PartFile | None = None
    _parts: int = 0
    _complete: list[Path] = field(default_factory=list)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    _running: Future[list[Received | Unreadable]] | None = None

    def parser(self, content_type: str) -> PartsParser:
        """The parser of a body with this media type. Raises UnsupportedMedia, MalformedMultipart."""
        media_type, options = parse_options_header(content_type)
        kind = options.get(b"type", b"application/dicom").lower()
        if media_type != b"multipart/related" or kind != b"application/dicom":
            raise UnsupportedMedia(_RULE)
        return PartsParser(boundary(options), self._open)

    def _open(self, headers: dict[bytes, bytes]) -> Sink:
        media_type, _ = parse_options_header(headers.get(b"content-type", b"application/dicom").decode("latin-1"))
        if media_type != b"application/dicom":
            raise UnsupportedMedia(_RULE)
        self._parts += 1
        if self._parts > MAX_INSTANCES:
            raise TooLarge(f"A request may have {MAX_INSTANCES} instances. Send the others with another request.")
        self._part = PartFile(self.reception, self.max_instance_bytes, self.accept)
        return self._part

    def accept(self, path: Path) -> None:
        """Store a complete part, together with others, while further parts arrive."""
        self._complete.append(path)
        if len(self._complete) >= _TOGETHER:
            self._begin()

    def flush(self) -> None:
        """Store all complete parts. Raises Unavailable."""
        self._begin()
        self._end()

    def _begin(self) -> None:
        self._end()
        complete, self._complete = self._complete, []
        if complete:
            self._running = self._pool.submit(self.reception.accept_all, self.tenant, complete)

    def _end(self) -> None:
        """Wait for the parts that are being stored."""
        running, self._running = self._running, None
        for found in running.result() if running is not None else ():
            if isinstance(found, Unreadable):
                self.unreadable.append(_OTHER_CLASS if isinstance(found, OtherUids) else _CANNOT_UNDERSTAND)
            else:
                self.received.append(found)

    def discard(self) -> None:
        """Delete what has not arrived completely, or was not stored."""
        self._pool.shutdown()
        if self._part is not None:
            self._part.discard()
        for path in self._complete:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def answer(self) -> tuple[int, dict[str, Any]]:
        """Status and data set of the answer. Raises InvalidRequest if there was no part."""
        stored = [each for each in self.received if each.outcome.accepted]
        refused = [each for each in self.received if not each.outcome.accepted]
        if not stored and not refused and not self.unreadable:
            raise InvalidRequest(f"The request has no instance. {_RULE}")
        document: dict[str, Any] = {}
        if stored:
            document[_STORED] = _sequence([_references(each) for each in stored])
        if refused:
            failures = [_references(each) | _reason(_REASONS[each.outcome]) for each in refused]
            document[_FAILED] = _sequence(failures)
        if self.unreadable:
            document[_OTHER_FAILURES] = _sequence([_reason(code) for code in self.unreadable])
        complete = not refused and not self.unreadable
        return (200 if complete else 202 if stored else 409), document


def _sequence(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"vr": "SQ", "Value": list(items)}


def _references(received: Received) -> dict[str, Any]:
    uids = {_CLASS: received.head.sop_class_uid, _INSTANCE: received.head.sop_uid}
    return {tag: {"vr": "UI", "Value": [uid]} for tag, uid in uids.items()}


def _reason(code: int) -> dict[str, Any]:
    return {_REASON: {"vr": "US", "Value": [code]}}
