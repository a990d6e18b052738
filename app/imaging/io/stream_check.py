"""Check an upload while it streams in; the output may be stored and can be read exactly.

Design notes:
- Gzip is recognised by content, not by name. The output is always a plain .nii file.
- An error is raised at the first byte that shows it; an error of the header before any voxel is accepted.
- The file must contain exactly the voxels that its header claims; only zeros may follow (tape blocks).
- The output has ``Header.canonical`` as header (no free text, no extensions) and bit-identical voxels.
- A volume whose finite voxels are all equal is refused. Some NaN or infinite voxels give a flag; see ``nifti.read``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from app.imaging.io.gunzip import MAGIC, PIECE, Gunzip
from app.imaging.io.header import Header, check_extensions, header_length, parse
from app.imaging.io.limits import DEFAULT, Limits, invalid
from app.sdk.types import Flag, Input

__all__ = ["CT_FIELDS", "NON_FINITE", "StreamCheck", "max_stored"]

NON_FINITE = "non-finite-voxels"
CT_FIELDS = frozenset({Input.NCCT, Input.CTA, Input.CTP})

_MAX_PADDING = 4096
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class StreamCheck:
    """Check of one volume: call ``feed`` for each chunk, then ``finish``. It cannot be used after an error.

    >>> with storage.writer() as writer:
    ...     for chunk in body:
    ...         for piece in check.feed(chunk):
    ...             writer.write(piece)
    ...     header = check.finish()

    Attributes:
        header: header of the file; None until it is complete.
    """

    def __init__(self, field: Input, limits: Limits = DEFAULT) -> None:
        self.header: Header | None = None
        self._field = field
        self._limits = limits
        self._start = b""  # the first bytes, while there are too few to recognise gzip
        self._plain = False
        self._gunzip: Gunzip | None = None
        self._head = bytearray()
        self._scan: _VoxelScan | None = None
        self._remaining = 0  # bytes of voxels that are still missing
        self._padding = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Check the next bytes of the upload; yields the bytes to store. The iterator must be exhausted.

        Raises:
            InvalidVolume: the file cannot be read exactly.
            DecompressedTooLarge: the file claims more than the limits allow.
        """
        for piece in self._inflated(chunk):
            yield from self._process(piece)

    def finish(self) -> Header:
        """End the upload; returns its header with all flags.

        Raises:
            InvalidVolume: voxels are missing, or all finite voxels are equal.
        """
        if self._gunzip is not None:
            self._gunzip.finish()
        if self.header is None or self._scan is None:
            parse(self._start + self._head, field=self._field, limits=self._limits)  # raises, if it is not NIfTI
            raise invalid(self._field, "ends before its voxels: send it again")
        if self._remaining:
            raise invalid(self._field, "has fewer voxels than its header says: send it again")
        if not self._scan.varies:
            raise invalid(self._field, "has the same value in all its voxels, or no finite value: export it again")
        if self._scan.non_finite:
            meaning = "air or the lowest value" if self._field in CT_FIELDS else "no data"
            detail = f"{self._field.value}: some voxels are NaN or infinite; they count as {meaning}"
            flag = Flag(code=NON_FINITE, detail=detail)
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

    def _process(self, piece: bytes) -> Iterator[bytes]:
        if self._scan is None:
            self._head += piece
            piece = self._complete_header()
            if self._scan is None or self.header is None:
                return
            yield self.header.canonical
        voxels, rest = piece[: self._remaining], piece[self._remaining :]
        self._remaining -= len(voxels)
        self._padding += len(rest)
        if self._padding > _MAX_PADDING or any(rest):
            raise invalid(self._field, "has more than the voxels that its header says: write it again")
        if voxels:
            self._scan.update(voxels)
            yield voxels

    def _complete_header(self) -> bytes:
        """Parse the header when it is complete; return the voxels that arrived with it."""
        if self.header is None:
            if len(self._head) < 4 or len(self._head) < header_length(bytes(self._head[:4])):
                return b""
            self.header = parse(bytes(self._head), field=self._field, limits=self._limits)
        if len(self._head) < self.header.offset:
            return b""
        check_extensions(bytes(self._head), self.header, field=self._field)
        voxels = bytes(self._head[self.header.offset :])
        self._head.clear()
        self._remaining = self.header.voxel_bytes
        self._scan = _VoxelScan(self.header)
        return voxels


def max_stored(header: Header) -> Any:
    """Largest stored value, in the stored float type, whose real value fits float32."""
    largest = (_FLOAT32_MAX - abs(header.inter)) / abs(header.slope)
    return header.dtype.type(min(largest, float(np.finfo(header.dtype).max)))


class _VoxelScan:
    """Scan of the voxels as they stream in, until both attributes are known.

    Attributes:
        varies: two voxels have different values.
        non_finite: after scaling, a voxel is not a finite float32: NaN, infinity, 1e300.
    """

    def __init__(self, header: Header) -> None:
        self.varies = False
        self.non_finite = False
        self._dtype = header.dtype
        self._floats = header.dtype.kind == "f"
        if self._floats:
            self._largest = max_stored(header)
        self._first: Any = None
        self._part = b""  # the start of a voxel that is split between two pieces

    @np.errstate(invalid="ignore")  # NaN compares false
    def update(self, data: bytes) -> None:
        if self.varies and (self.non_finite or not self._floats):
            return
        whole = self._part + data if self._part else data
        end = len(whole) - len(whole) % self._dtype.itemsize
        self._part = bytes(whole[end:])
        for start in range(0, end, PIECE):
            voxels = np.frombuffer(whole[start : min(start + PIECE, end)], self._dtype)
            if self._floats and not (voxels.min() >= -self._largest and voxels.max() <= self._largest):
                self.non_finite = True
                voxels = voxels[np.abs(voxels) <= self._largest]
            if voxels.size and not self.varies:
                self._first = voxels[0] if self._first is None else self._first
                self.varies = bool((voxels != self._first).any())
