"""Inflate a gzip stream strictly: every byte is checked.

Design notes:
- Input and output are pieces of limited size, so that a decompression bomb needs no more memory than a scan.
- CRC-32 and length of each member are checked (nibabel reads neither, so it does not notice a flipped bit).
- Several members are one stream, as bgzip and pigz write them. After the last member only zeros may follow.
- The name, comment and time in the gzip header are dropped; the checksum of the header is checked if present.

Source: RFC 1952. igzip (ISA-L) inflates faster than zlib, and without the GIL.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

from isal import igzip_lib, isal_zlib

from app.imaging.io.limits import invalid
from app.sdk.types import Input

__all__ = ["MAGIC", "PIECE", "Gunzip"]

MAGIC = b"\x1f\x8b"
PIECE = 256 * 1024
_SLICE = 64 * 1024
_HEADER_STEP = 1024

_MAX_HEADER = 128 * 1024
_MAX_PADDING = 64 * 1024
_MAX_MEMBERS = 100_000  # bgzip packs 64 KiB into a member: 6 GiB
_FHCRC, _FEXTRA, _FNAME, _FCOMMENT = 2, 4, 8, 16


class Gunzip:
    """Inflate one gzip stream: call ``feed`` for each chunk, then ``finish``."""

    def __init__(self, field: Input) -> None:
        self._field = field
        self._buffer = bytearray()  # the part of a member header or trailer that has arrived
        self._inflator: igzip_lib.IgzipDecompressor | None = None
        self._trailer_due = False
        self._crc = 0
        self._size = 0
        self._members = 0
        self._padding = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Inflate ``data`` to pieces of at most ``PIECE`` bytes; raises InvalidVolume if the stream is damaged."""
        rest = memoryview(data)
        while rest:
            if self._inflator is not None:
                rest = yield from self._inflate(self._inflator, rest)
            elif self._trailer_due:
                rest = self._check_trailer(rest)
            else:
                rest = self._read_header(rest)

    def finish(self) -> None:
        """End the stream; raises InvalidVolume if its end is missing."""
        if self._inflator is not None or self._trailer_due or self._buffer or not self._members:
            raise invalid(self._field, "ends before its compressed stream does: send it again")

    def _inflate(self, inflator: igzip_lib.IgzipDecompressor, data: memoryview) -> Generator[bytes, None, memoryview]:
        """Inflate up to the end of the member; return the data after it."""
        taken = 0
        while not inflator.eof:
            part = data[taken : taken + _SLICE] if inflator.needs_input else b""
            if inflator.needs_input and not part:
                return data[taken:]
            taken += len(part)
            try:
                piece = inflator.decompress(part, PIECE)
            except isal_zlib.error:  # type: ignore[misc]  # a class; isal's stub says an instance
                raise invalid(self._field, "has a damaged compressed stream: send it again") from None
            self._crc = isal_zlib.crc32(piece, self._crc)
            self._size += len(piece)
            if piece:
                yield piece
        self._inflator, self._trailer_due = None, True
        unused = inflator.unused_data
        if len(unused) > taken:  # igzip reads ahead: a part came with an earlier chunk
            return memoryview(unused + data[taken:])
        return data[taken - len(unused) :]

    def _check_trailer(self, data: memoryview) -> memoryview:
        missing = 8 - len(self._buffer)
        self._buffer += data[:missing]
        if len(self._buffer) == 8:
            crc, size = (int.from_bytes(self._buffer[i : i + 4], "little") for i in (0, 4))
            if crc != self._crc or size != self._size & 0xFFFFFFFF:
                raise invalid(self._field, "does not match its checksum: send it again")
            self._buffer.clear()
            self._trailer_due = False
        return data[missing:]

    def _read_header(self, data: memoryview) -> memoryview:
        """Read a member header, or the zeros after the last member, from the start of ``data``; return the rest."""
        if not self._buffer and self._members and (self._padding or data[0] == 0):
            self._padding += len(data)
            if self._padding > _MAX_PADDING or any(data):
                raise invalid(self._field, "continues after the end of its compressed stream: send it again")
            return data[:0]
        before = len(self._buffer)
        self._buffer += data[:_HEADER_STEP]
        size = self._header_size(bytes(self._buffer))
        if size is None:
            if len(self._buffer) > _MAX_HEADER:
                raise invalid(self._field, "has an endless gzip header: compress it again")
            return data[_HEADER_STEP:]
        self._buffer.clear()
        self._members += 1
        if self._members > _MAX_MEMBERS:
            raise invalid(self._field, "is compressed in too many small parts: compress it again as one")
        self._inflator = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_DEFLATE)
        self._crc = self._size = 0
        return data[size - before :]

    def _header_size(self, header: bytes) -> int | None:
        """Length of the member header at the start of ``header``; None while it is incomplete."""
        if not header.startswith(MAGIC[: len(header)]):
            raise invalid(self._field, "continues after the end of its compressed stream: send it again")
        if len(header) < 10:
            return None
        method, flags = header[2], header[3]
        position = 10
        if flags & _FEXTRA:
            position = 12 + int.from_bytes(header[10:12], "little")
        for text in (_FNAME, _FCOMMENT):
            if flags & text:
                position = header.find(0, position) + 1 or len(header) + 1
        size = position + 2 if flags & _FHCRC else position
        if len(header) < size:
            return None
        checksum = int.from_bytes(header[position:size], "little")
        whole = not flags & _FHCRC or checksum == isal_zlib.crc32(header[:position]) & 0xFFFF
        if method != 8 or flags & 0xE0 or not whole:
            raise invalid(self._field, "has a damaged gzip header: send it again")
        return size
