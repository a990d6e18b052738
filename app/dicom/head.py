"""The UIDs and the accession number at the start of a DICOM file, read without decoding anything else.

Design notes:
- Only the elements up to the Series Instance UID are walked; no value but these is read.
- The walk is a loop with a limit of depth and of bytes, so that no file can use much time or memory.
- This module needs no DICOM library.

Sources: DICOM PS3.5, 7.1 (data elements), 7.5 (sequences); PS3.10, 7.1 (file meta information).
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from typing import BinaryIO

from app.dicom.errors import OtherUids, Unreadable

__all__ = ["MAX_HEAD_BYTES", "Head", "read_head"]

MAX_HEAD_BYTES = 1 << 20  # within which the UIDs must stand
_MAX_DEPTH = 64
_START = 132  # preamble and mark
_MARK = b"DICM"
_UNDEFINED = 0xFFFFFFFF
_LONG = frozenset((b"OB", b"OW", b"OF", b"SQ", b"UN", b"UT", b"UC", b"UR", b"OD", b"OL", b"OV", b"SV", b"UV"))
_META_SOP_CLASS, _META_SOP_INSTANCE, _META_SYNTAX = 0x00020002, 0x00020003, 0x00020010
_SOP_CLASS, _SOP_INSTANCE, _ACCESSION = 0x00080016, 0x00080018, 0x00080050
_STUDY, _SERIES = 0x0020000D, 0x0020000E
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_IMPLICIT, _BIG_ENDIAN, _DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
_UID = re.compile(rb"[0-9]+(\.[0-9]+)*")
_MAX_UID = 64


@dataclass(frozen=True)
class Head:
    """UIDs of one file.

    Attributes:
        study_uid: Study Instance UID.
        series_uid: Series Instance UID.
        sop_class_uid: SOP Class UID.
        sop_uid: SOP Instance UID.
        syntax: Transfer Syntax UID.
        start: offset of the data set in the file.
        accession: Accession Number; empty if there is none.
    """

    study_uid: str
    series_uid: str
    sop_class_uid: str
    sop_uid: str
    syntax: str
    start: int
    accession: bytes = field(default=b"", repr=False)


def read_head(file: BinaryIO) -> Head:
    """Read the UIDs of a file with file meta information.

    Args:
        file: the file, at its start.

    Returns:
        The UIDs.

    Raises:
        Unreadable: the file is not DICOM, is damaged, or lacks a UID.
        OtherUids: the file meta information names another class or instance than the data set.
    """
    data = file.read(MAX_HEAD_BYTES)
    if data[_START - len(_MARK) : _START] != _MARK:
        raise Unreadable("is not DICOM, or has no file meta information")
    meta = _Walk(data, _START, implicit=False, order="little")
    meta.run(last=0x0002FFFF)
    syntax = _uid(meta.found, _META_SYNTAX)
    body, start = (_inflated(data[meta.at :]), 0) if syntax == _DEFLATED else (data, meta.at)
    walk = _Walk(body, start, implicit=syntax == _IMPLICIT, order="big" if syntax == _BIG_ENDIAN else "little")
    walk.run(last=_SERIES)
    sop_class, sop_uid = _uid(walk.found, _SOP_CLASS), _uid(walk.found, _SOP_INSTANCE)
    for tag, value in ((_META_SOP_CLASS, sop_class), (_META_SOP_INSTANCE, sop_uid)):
        if tag in meta.found and _uid(meta.found, tag) != value:
            raise OtherUids("has other UIDs in its file meta information than in its data set")
    study, accession = _uid(walk.found, _STUDY), walk.found.get(_ACCESSION, b"").strip(b"\0 ")
    return Head(study, _uid(walk.found, _SERIES), sop_class, sop_uid, syntax, meta.at, accession)


def _inflated(packed: bytes) -> bytes:
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, MAX_HEAD_BYTES)
    except zlib.error as error:
        raise Unreadable("is damaged") from error


def _uid(found: dict[int, bytes], tag: int) -> str:
    value = found.get(tag, b"").rstrip(b"\0 ")
    if not _UID.fullmatch(value) or len(value) > _MAX_UID:
        raise Unreadable("lacks one of its UIDs, or has one that is no UID")
    return value.decode("ascii")


_WANTED = (_META_SOP_CLASS, _META_SOP_INSTANCE, _META_SYNTAX, _SOP_CLASS, _SOP_INSTANCE, _ACCESSION, _STUDY, _SERIES)


class _Walk:
    """A walk over the elements of a data set; ``found`` has the values of the wanted ones at the top level."""

    def __init__(self, data: bytes, at: int, *, implicit: bool, order: str) -> None:
        self._data = data
        self._implicit = implicit
        self._big = order == "big"
        self.at = at
        self.found: dict[int, bytes] = {}

    def run(self, last: int) -> None:
        """Walk to the first element behind the tag ``last``; ``at`` is its offset."""
        before = -1
        while self.at + 8 <= len(self._data) and (tag := self._tag()) <= last:
            if tag <= before:
                raise Unreadable("is damaged: its elements are not in order")
            before, length = tag, self._header()
            if length == _UNDEFINED:
                self._skip_sequence()
                continue
            if tag in _WANTED:
                self.found[tag] = self._data[self.at : self.at + min(length, _MAX_UID + 1)]
            self._skip(length)

    def _number(self, size: int, at: int) -> int:
        return int.from_bytes(self._data[at : at + size], "big" if self._big else "little")

    def _tag(self) -> int:
        return self._number(2, self.at) << 16 | self._number(2, self.at + 2)

    def _header(self) -> int:
        """Length of the value of the element at ``at``, which moves to the value."""
        if self._implicit or self._tag() in (_ITEM, _ITEM_END, _SEQUENCE_END):
            length, size = self._number(4, self.at + 4), 8
        elif self._data[self.at + 4 : self.at + 6] in _LONG:
            length, size = self._number(4, self.at + 8), 12
        else:
            length, size = self._number(2, self.at + 6), 8
        self._skip(size)
        return length

    def _skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self._data):
            raise Unreadable("is damaged, or its UIDs stand too far behind its start")

    def _skip_sequence(self) -> None:
        """Skip a sequence of undefined length: items and elements, each of which may be of undefined length."""
        depth = 1
        while depth:
            if self.at + 8 > len(self._data) or depth > _MAX_DEPTH:
                raise Unreadable("is damaged, or has sequences that are too long or too deep")
            tag = self._tag()
            length = self._header()
            if tag in (_ITEM_END, _SEQUENCE_END):
                depth -= 1
            elif length == _UNDEFINED:
                depth += 1
            else:
                self._skip(length)
