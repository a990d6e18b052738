"""Volumes read from NIfTI files, and maps written to them.

Notable choices:
- Reading is the very check of an upload (``intake.StreamCheck``), with its pieces laid straight into the final array: one
  set of rules, one copy of the voxels, in the type they are stored in.
- Voxels that are no number (NaN or infinite: outside the field of view, as a rule) become the volume's lowest real
  value: air in a CT, zero in a perfusion map. So ``Volume.data`` of a file is finite, and flagged where it was not.
- Written files are the same bytes each time: no name, no time, no free text but ``description``.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip

from app.imaging.io.header import Header
from app.imaging.io.limits import DEFAULT, Limits
from app.imaging.io.stream_check import GAPS, StreamCheck, largest_stored
from app.sdk.types import Flag, Input

__all__ = ["Volume", "pack", "read", "write"]

_CHUNK = 64 * 1024
_BLOCK = 1 << 20


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels as stored, and where they lie.

    :ivar data: (X, Y, Z) or (X, Y, Z, T), in native byte order
    :ivar affine: (4, 4), voxel index -> RAS+ millimetres
    :ivar slope: real value = slope * stored + inter
    :ivar time_step_s: seconds between the volumes of a series; None where unknown
    """

    data: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    slope: float = 1.0
    inter: float = 0.0
    flags: tuple[Flag, ...] = ()
    time_step_s: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Lengths of the voxel's edges."""
        x, y, z = (float(edge) for edge in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z

    def values(self) -> npt.NDArray[np.float32]:
        """Real-world values, float32, (X, Y, Z) or (X, Y, Z, T), first axis fastest in memory.

        Scaling is done in float64, a slice at a time: with uint32 voxels and an intercept of -2**31, float32 would lose
        256 HU. A label stored with a slope comes back as 1.000015, not 1: compare with 0.5, or round; never by ``==``.
        """
        out = np.empty(self.data.shape, np.float32, order="F")
        plain = self.slope == 1 and self.inter == 0
        for index in np.ndindex(*self.data.shape[2:]):
            stored = self.data[(..., *index)]
            out[(..., *index)] = stored if plain else stored.astype(np.float64) * self.slope + self.inter
        return out


def read(path: Path, *, field: Input, limits: Limits = DEFAULT) -> Volume:
    """Reads a .nii or .nii.gz exactly, or refuses it.

    Peak memory: the volume's own bytes and about a megabyte.

    :raises InvalidVolume: the file cannot be read exactly
    :raises DecompressedTooLarge: it is larger than ``limits``
    """
    with path.open("rb", buffering=0) as file:
        header, data = _voxels(file, StreamCheck(field, limits))
    return Volume(
        data=data,
        affine=header.affine,
        slope=header.slope,
        inter=header.inter,
        flags=header.flags,
        time_step_s=header.time_step_s,
    )


def _voxels(file: IO[bytes], intake: StreamCheck) -> tuple[Header, npt.NDArray[Any]]:
    flat = np.empty(0, np.uint8)
    filled = -1  # the first piece is the header
    while chunk := file.read(_CHUNK):
        for piece in intake.feed(chunk):
            if filled < 0:
                flat = np.empty(cast("Header", intake.header).voxel_bytes, np.uint8)
                filled = 0
                continue
            flat[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
            filled += len(piece)
    header = intake.finish()
    data = flat.view(header.dtype).reshape(header.shape, order="F")
    if not header.dtype.isnative:
        data = data.byteswap(inplace=True).view(header.dtype.newbyteorder("="))
    if any(flag.code == GAPS for flag in header.flags):
        _fill_gaps(data, header)
    return header, data


@np.errstate(invalid="ignore")  # NaN compares false
def _fill_gaps(data: npt.NDArray[Any], header: Header) -> None:
    """Gives every voxel that is no number the lowest real value, a block at a time to hold no second copy."""
    largest = largest_stored(header)
    flat = data.reshape(-1, order="F")  # a view
    blocks = [flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK)]
    numbers = [np.abs(block) <= largest for block in blocks]
    lowest = np.min if header.slope > 0 else np.max
    value = lowest([lowest(block[good]) for block, good in zip(blocks, numbers, strict=True) if good.any()])
    for block, good in zip(blocks, numbers, strict=True):
        block[~good] = value


def write(
    path: Path,
    data: npt.NDArray[Any],
    affine: npt.NDArray[np.float64],
    *,
    slope: float = 1.0,
    description: str = "",
) -> None:
    """Writes a map: ``data`` (X, Y, Z) in its own type, ``affine`` voxel index -> RAS+ millimetres.

    :param path: ``.nii``, or ``.nii.gz`` to compress
    :param slope: what a reader multiplies the stored values by
    :param description: at most 79 ASCII characters, for the field ``descrip``
    """
    if path.suffix == ".gz":
        path.write_bytes(pack(data, affine, slope=slope, description=description))
        return
    with path.open("wb") as file:
        _write(file, data, affine, slope, description)


def pack(
    data: npt.NDArray[Any], affine: npt.NDArray[np.float64], *, slope: float = 1.0, description: str = ""
) -> bytes:
    """The bytes of the ``.nii.gz`` that `write` would write."""
    out = io.BytesIO()
    with igzip.IGzipFile(filename="", mode="wb", compresslevel=1, fileobj=out, mtime=0) as packed:
        _write(packed, data, affine, slope, description)
    return out.getvalue()


def _write(file: Any, data: npt.NDArray[Any], affine: npt.NDArray[np.float64], slope: float, description: str) -> None:
    kind: Any = nib.Nifti1Image if max(data.shape) < 2**15 else nib.Nifti2Image
    header = kind(data, affine, dtype=data.dtype).header
    header.set_xyzt_units("mm", "sec")
    header.set_slope_inter(slope, 0)
    header["descrip"] = description.encode("ascii", "replace")[:79]
    header.write_to(file)
    file.write(np.asfortranarray(data).T.data)
