"""Read volumes from NIfTI files, and write maps to them.

Design notes:
- Reading uses the check of an upload (``stream_check.StreamCheck``) and copies its pieces into the final array: one set
  of rules, and one copy of the voxels in their stored type.
- Non-finite voxels (usually outside the field of view) become the lowest real value of the volume: air in a CT. In a
  map or mask they become 0 (no data) at most. So ``Volume.data`` is finite, with a flag if the file was not.
- Written files are reproducible: no name, no time, no free text except ``description``.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
from isal import igzip

from app.imaging.io.header import Header
from app.imaging.io.limits import DEFAULT, Limits
from app.imaging.io.nibabel_alone import nibabel as nib
from app.imaging.io.stream_check import CT_FIELDS, NON_FINITE, StreamCheck, max_stored
from app.sdk.types import Flag, Input

__all__ = ["Volume", "pack", "read", "write"]

_CHUNK = 64 * 1024
_BLOCK = 1 << 20
_AIR_HU, _BELOW_FAT_HU = -1000.0, -300.0


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels as stored, with their affine and scaling.

    Attributes:
        data: (X, Y, Z) or (X, Y, Z, T), in native byte order.
        affine: (4, 4), voxel index -> RAS+ millimetres.
        slope: real value = slope * stored + inter.
        time_step_s: seconds between the volumes of a series; None if unknown.
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
        """Lengths of the voxel's edges, millimetres."""
        x, y, z = (float(edge) for edge in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z

    def values(self) -> npt.NDArray[np.float32]:
        """Real-world values, float32, (X, Y, Z) or (X, Y, Z, T), first axis fastest in memory.

        Scaling is done in float64, slice by slice: with uint32 voxels and an intercept of -2**31, float32 would lose
        256 HU. A label stored with a slope may decode to 1.000015: compare with 0.5 or round, do not use ``==``.
        """
        out = np.empty(self.data.shape, np.float32, order="F")
        plain = self.slope == 1 and self.inter == 0
        for index in np.ndindex(*self.data.shape[2:]):
            stored = self.data[(..., *index)]
            out[(..., *index)] = stored if plain else stored.astype(np.float64) * self.slope + self.inter
        return out


def read(path: Path, *, field: Input, limits: Limits = DEFAULT) -> Volume:
    """Read a .nii or .nii.gz file exactly; peak memory is the volume and about a megabyte.

    Raises:
        InvalidVolume: the file cannot be read exactly.
        DecompressedTooLarge: the file is larger than ``limits``.
    """
    with path.open("rb", buffering=0) as file:
        header, data = _voxels(file, field, limits)
    return Volume(
        data=data,
        affine=header.affine,
        slope=header.slope,
        inter=header.inter,
        flags=header.flags,
        time_step_s=header.time_step_s,
    )


def _voxels(file: IO[bytes], field: Input, limits: Limits) -> tuple[Header, npt.NDArray[Any]]:
    check = StreamCheck(field, limits)
    flat = np.empty(0, np.uint8)
    filled = -1  # the first piece is the header
    while chunk := file.read(_CHUNK):
        for piece in check.feed(chunk):
            if filled < 0:
                flat = np.empty(cast("Header", check.header).voxel_bytes, np.uint8)
                filled = 0
                continue
            flat[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
            filled += len(piece)
    header = check.finish()
    data = flat.view(header.dtype).reshape(header.shape, order="F")
    if not header.dtype.isnative:
        data = data.byteswap(inplace=True).view(header.dtype.newbyteorder("="))
    if any(flag.code == NON_FINITE for flag in header.flags):
        _fill_non_finite(data, header, zero=field not in CT_FIELDS)
    return header, data


@np.errstate(invalid="ignore")  # NaN compares false
def _fill_non_finite(data: npt.NDArray[Any], header: Header, *, zero: bool) -> None:
    """Set every non-finite voxel to the lowest real value, or to 0 if ``zero`` is set and no value is lower.

    A CT whose air was removed has a lowest value between fat and air, which is no HU of air: air takes its place.
    It works block by block, to avoid a second copy.
    """
    largest = max_stored(header)
    flat = data.reshape(-1, order="F")  # a view
    blocks = [flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK)]
    numbers = [np.abs(block) <= largest for block in blocks]
    lowest = np.min if header.slope > 0 else np.max
    values = [lowest(block[good]) for block, good in zip(blocks, numbers, strict=True) if good.any()]
    value = lowest([*values, -header.inter / header.slope] if zero else values)
    if not zero and _AIR_HU < value * header.slope + header.inter < _BELOW_FAT_HU:
        value = (_AIR_HU - header.inter) / header.slope
    for block, good in zip(blocks, numbers, strict=True):
        block[~good] = value


def write(
    path: Path,
    data: npt.NDArray[Any],
    affine: npt.NDArray[np.float64],
    *,
    slope: float = 1.0,
    description: str = "",
    time_step_s: float | None = None,
) -> None:
    """Write a map or a series.

    Args:
        path: ``.nii``, or ``.nii.gz`` to compress.
        data: (X, Y, Z), or (X, Y, Z, T) for a series; its dtype is kept.
        affine: (4, 4), voxel index -> RAS+ millimetres.
        slope: real value = slope * stored.
        description: at most 79 ASCII characters, for the field ``descrip``.
        time_step_s: seconds between the volumes of a series; only for an uncompressed file.
    """
    if path.suffix == ".gz":
        path.write_bytes(pack(data, affine, slope=slope, description=description))
        return
    with path.open("wb") as file:
        _write(file, data, affine, slope, description, time_step_s)


def pack(
    data: npt.NDArray[Any], affine: npt.NDArray[np.float64], *, slope: float = 1.0, description: str = ""
) -> bytes:
    """The bytes of the ``.nii.gz`` file that ``write`` writes."""
    out = io.BytesIO()
    with igzip.IGzipFile(filename="", mode="wb", compresslevel=1, fileobj=out, mtime=0) as packed:
        _write(packed, data, affine, slope, description)
    return out.getvalue()


def _write(
    file: Any,
    data: npt.NDArray[Any],
    affine: npt.NDArray[np.float64],
    slope: float,
    description: str,
    time_step_s: float | None = None,
) -> None:
    kind: Any = nib.Nifti1Image if max(data.shape) < 2**15 else nib.Nifti2Image
    header = kind(data, affine, dtype=data.dtype).header
    header.set_xyzt_units("mm", "sec")
    header.set_slope_inter(slope, 0)
    if time_step_s is not None:
        header["pixdim"][4] = time_step_s
    header["descrip"] = description.encode("ascii", "replace")[:79]
    header.write_to(file)
    file.write(np.asfortranarray(data).T.data)
