"""The check of an upload while it streams in: what comes out may be stored, and can be read exactly.

Notable choices:
- Gzip or plain is told by content, not by name. What is stored is always a plain .nii: nobody inflates it again.
- A fault is raised at the first byte that shows it; the header's as soon as it is there, before a voxel is taken.
- The file must hold just the voxels its header claims. Zeros may follow (tape blocks), nothing else.
- The header that goes out is ``Header.canonical``: no free text, no extension. The voxels go out bit for bit.
- A volume whose finite voxels are all equal is refused. A float volume with some NaN or infinite voxels is taken (many
  maps have NaN outside the head) and flagged; ``nifti.read`` says what becomes of them.
- Memory: a few pieces of 256 KiB, and at most 1 MiB of header extensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from app.imaging.io.gunzip import MAGIC, PIECE, Gunzip
from app.imaging.io.header import Header, check_extensions, length, parse
from app.imaging.io.limits import DEFAULT, Limits, invalid
from app.sdk.types import Flag, Input

__all__ = ["GAPS", "StreamCheck", "largest_stored"]

GAPS = "non-finite-voxels"

_MAX_PADDING = 4096
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class StreamCheck:
    """Takes one volume in; see :meth:`feed` and :meth:`finish`. After an error it is of no further use.

    >>> with storage.writer() as writer:
    ...     for chunk in body:
    ...         for piece in intake.feed(chunk):
    ...             writer.write(piece)
    ...     header = intake.finish()

    :ivar header: what the file says of itself, as soon as that is known
    """

    def __init__(self, field: Input, limits: Limits = DEFAULT) -> None:
        self.header: Header | None = None
        self._field = field
        self._limits = limits
        self._start = b""  # too little yet to tell gzip from plain
        self._plain = False
        self._gunzip: Gunzip | None = None
        self._head = bytearray()
        self._scan: _Scan | None = None
        self._missing = 0  # bytes of voxels that are still to come
        self._padding = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Takes the next bytes of the upload, gives the bytes to store, in pieces. The iterator must be used up.

        :raises InvalidVolume: the file is certainly not a volume that can be read exactly
        :raises DecompressedTooLarge: it claims more than the limits allow
        """
        for piece in self._inflated(chunk):
            yield from self._take(piece)

    def finish(self) -> Header:
        """Says that the upload is complete, and gives its header with all flags.

        :raises InvalidVolume: something is missing, or there is nothing to see in the voxels
        """
        if self._gunzip is not None:
            self._gunzip.finish()
        if self.header is None or self._scan is None:
            parse(self._start + self._head, field=self._field, limits=self._limits)  # says what it is, if not NIfTI
            raise invalid(self._field, "ends before its voxels: send it again")
        if self._missing:
            raise invalid(self._field, "holds fewer voxels than its header says: send it again")
        if not self._scan.varies:
            raise invalid(self._field, "has the same value in all its voxels, or none that is a number")
        if self._scan.gaps:
            detail = f"{self._field.value}: some voxels are not numbers; they count as the lowest value"
            flag = Flag(code=GAPS, detail=detail)
            self.header = replace(self.header, flags=(*self.header.flags, flag))
        return self.header

    def _inflated(self, chunk: bytes) -> Iterator[bytes]:
        if self._gunzip is None and not self._plain:
            chunk = self._start = self._start + chunk
            if len(chunk) < len(MAGIC):
                return
            self._start = b""
            self._plain = not chunk.startswith(MAGIC)
            self._gunzip = None if self._plain else Gunzip(self._field)
        if self._gunzip is not None:
            yield from self._gunzip.feed(chunk)
        else:
            yield chunk

    def _take(self, piece: bytes) -> Iterator[bytes]:
        if self._scan is None:
            self._head += piece
            piece = self._open()
            if self._scan is None or self.header is None:
                return
            yield self.header.canonical
        voxels, rest = piece[: self._missing], piece[self._missing :]
        self._missing -= len(voxels)
        self._padding += len(rest)
        if self._padding > _MAX_PADDING or any(rest):
            raise invalid(self._field, "holds more than the voxels its header says: write it again")
        if voxels:
            self._scan.look(voxels)
            yield voxels

    def _open(self) -> bytes:
        """Reads the header once it is all there, and gives the voxels that came with it."""
        if self.header is None:
            if len(self._head) < 4 or len(self._head) < length(bytes(self._head[:4])):
                return b""
            self.header = parse(bytes(self._head), field=self._field, limits=self._limits)
        if len(self._head) < self.header.offset:
            return b""
        check_extensions(bytes(self._head), self.header, field=self._field)
        voxels = bytes(self._head[self.header.offset :])
        self._head.clear()
        self._missing = self.header.voxel_bytes
        self._scan = _Scan(self.header)
        return voxels


def largest_stored(header: Header) -> Any:
    """The largest stored float, of the stored type, whose real value float32 can hold."""
    largest = (_FLOAT32_MAX - abs(header.inter)) / abs(header.slope)
    return header.dtype.type(min(largest, float(np.finfo(header.dtype).max)))


class _Scan:
    """Looks at voxels as they pass, only for as long as there is something left to learn.

    :ivar varies: two voxels hold different numbers
    :ivar gaps: a voxel holds no number that float32 can hold after scaling: NaN, an infinity, 1e300
    """

    def __init__(self, header: Header) -> None:
        self.varies = False
        self.gaps = False
        self._dtype = header.dtype
        self._floats = header.dtype.kind == "f"
        if self._floats:
            self._largest = largest_stored(header)
        self._first: Any = None
        self._part = b""  # a voxel may lie across two pieces

    @np.errstate(invalid="ignore")  # NaN compares false
    def look(self, data: bytes) -> None:
        if self.varies and (self.gaps or not self._floats):
            return
        whole = self._part + data if self._part else data
        end = len(whole) - len(whole) % self._dtype.itemsize
        self._part = bytes(whole[end:])
        for start in range(0, end, PIECE):
            voxels = np.frombuffer(whole[start : min(start + PIECE, end)], self._dtype)
            if self._floats and not (voxels.min() >= -self._largest and voxels.max() <= self._largest):
                self.gaps = True
                voxels = voxels[np.abs(voxels) <= self._largest]
            if voxels.size and not self.varies:
                self._first = voxels[0] if self._first is None else self._first
                self.varies = bool((voxels != self._first).any())
