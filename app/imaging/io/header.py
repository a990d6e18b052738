"""Read NIfTI headers strictly: a complete description of the voxels, or one clear reason for refusal.

Design notes:
- Single-file NIfTI-1 and -2, either byte order. A header that nibabel and the C library read differently is refused.
- ``Header.canonical`` is rebuilt from the fields in use, without free text and extensions; its meaning is the same.
- Numbers become Python int or float before use, so a product of dimensions cannot overflow.
- Imports numpy only, because the API process uses it.

Sources: nifti1.h and nifti2.h of the NIfTI-1.1 and NIfTI-2 standards (https://nifti.nimh.nih.gov).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from app.imaging.io.affine import Matrix, voxel_to_world
from app.imaging.io.limits import DEFAULT, Limits, invalid, too_large
from app.sdk.types import Flag, Input

__all__ = ["Header", "Limits", "check_extensions", "header_length", "parse"]


@dataclass(frozen=True, eq=False)
class Header:
    """Description of the voxels in a NIfTI file.

    Attributes:
        dtype: type of the stored voxels, in the file's byte order.
        shape: (X, Y, Z), or (X, Y, Z, T) for a series; the first axis is fastest in the file.
        spacing_mm: lengths of the voxel's edges under ``affine``.
        affine: (4, 4), voxel index -> RAS+ millimetres.
        offset: position of the first voxel in the file as received.
        slope: real value = slope * stored + inter.
        form: the transform that is used, ``sform`` or ``qform``.
        time_step_s: seconds between the volumes of a series; None if unknown.
        canonical: the scrubbed header with an empty extension mark: all 352 (544) bytes before the voxels.
    """

    version: int
    big_endian: bool
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    spacing_mm: tuple[float, float, float]
    affine: Matrix
    offset: int
    slope: float
    inter: float
    form: str
    flags: tuple[Flag, ...]
    time_step_s: float | None
    canonical: bytes

    @property
    def voxel_bytes(self) -> int:
        """Bytes of all voxels in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


# The two layouts: name, type, offset. No other field is read; of these, only _KEPT is stored unchanged. ----------

_NIFTI1 = (
    ("sizeof_hdr", "i4", 0), ("dim", "8i2", 40), ("intent_code", "i2", 68), ("datatype", "i2", 70),
    ("bitpix", "i2", 72), ("pixdim", "8f4", 76), ("vox_offset", "f4", 108), ("scl_slope", "f4", 112),
    ("scl_inter", "f4", 116), ("xyzt_units", "u1", 123), ("qform_code", "i2", 252), ("sform_code", "i2", 254),
    ("quatern", "3f4", 256), ("qoffset", "3f4", 268), ("srow", "(3,4)f4", 280), ("magic", "V4", 344),
)  # fmt: skip
_NIFTI2 = (
    ("sizeof_hdr", "i4", 0), ("magic", "V8", 4), ("datatype", "i2", 12), ("bitpix", "i2", 14), ("dim", "8i8", 16),
    ("pixdim", "8f8", 104), ("vox_offset", "i8", 168), ("scl_slope", "f8", 176), ("scl_inter", "f8", 184),
    ("qform_code", "i4", 344), ("sform_code", "i4", 348), ("quatern", "3f8", 352), ("qoffset", "3f8", 376),
    ("srow", "(3,4)f8", 400), ("xyzt_units", "i4", 500), ("intent_code", "i4", 504),
)  # fmt: skip
_KEPT = ("magic", "datatype", "bitpix", "scl_slope", "scl_inter", "xyzt_units", "qform_code", "sform_code")


class _Version(NamedTuple):
    number: int
    size: int
    fields: tuple[tuple[str, str, int], ...]
    magic: bytes
    pair_magic: bytes

    @property
    def first_voxel(self) -> int:
        """Smallest offset of the voxels: after the header and the four bytes that announce extensions."""
        return self.size + 4

    def record(self, head: bytes, order: str) -> Any:
        names, formats, offsets = zip(*self.fields, strict=True)
        layout = np.dtype(
            {"names": names, "formats": [order + kind for kind in formats], "offsets": offsets, "itemsize": self.size}
        )
        return np.frombuffer(head, layout, count=1)[0]


_VERSIONS = (
    _Version(1, 348, _NIFTI1, b"n+1\0", b"ni1\0"),
    _Version(2, 540, _NIFTI2, b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n"),
)

_DATATYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_REFUSED_DATATYPES = {
    1: "has one-bit voxels",
    128: "is a colour (RGB) picture",
    2304: "is a colour (RGBA) picture",
    32: "has complex voxels",
    1792: "has complex voxels",
    2048: "has complex voxels",
    1536: "has 128-bit voxels",
}
_VECTOR_INTENT = 1007
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_SECONDS_PER_UNIT = {0: 1.0, 8: 1.0, 16: 1e-3, 24: 1e-6}
_NOT_TIME_UNITS = (32, 40, 48)  # Hz, ppm, rad/s
_FLOAT32_MAX = float(np.finfo(np.float32).max)

_OTHER_FORMATS = (
    (0, b"\x1f\x8b", "is compressed twice: send the .nii.gz as the conversion tool wrote it"),
    (128, b"DICM", "is a single DICOM file: send its series here as a ZIP archive, or the study as the part study"),
    (0, b"PK\x03\x04", "is a ZIP archive: send the DICOM files as one, or the NIfTI file itself"),
    (257, b"ustar", "is a tar archive: send the NIfTI file itself"),
    (0, b"BZh", "is compressed by bzip2: send .nii or .nii.gz"),
    (0, b"\xfd7zXZ", "is compressed by xz: send .nii or .nii.gz"),
    (0, b"\x28\xb5\x2f\xfd", "is compressed by zstd: send .nii or .nii.gz"),
    (0, b"\x89PNG", "is a PNG picture: send the volume"),
    (0, b"\xff\xd8\xff", "is a JPEG picture: send the volume"),
    (0, b"%PDF", "is a PDF document: send the volume"),
    (0, b"NRRD", "is an NRRD file: convert it to NIfTI"),
    (0, b"ObjectType", "is a MetaImage file: convert it to NIfTI"),
    (0, b"\x89HDF", "is an HDF5 or MINC file: convert it to NIfTI"),
)


def header_length(start: bytes) -> int:
    """Number of bytes that ``parse`` needs, from the first four bytes: 544 for NIfTI-2, otherwise 352."""
    version, _ = _identify(start) or (_VERSIONS[0], "<")
    return version.first_voxel


def parse(head: bytes, *, field: Input, limits: Limits = DEFAULT) -> Header:
    """Read the header at the start of ``head``.

    Args:
        head: at least ``header_length`` bytes.
        field: the upload field; ``ctp`` must have a time axis, the others must not.
        limits: largest accepted size, voxel size and distance.

    Raises:
        InvalidVolume: the header is invalid or ambiguous.
        DecompressedTooLarge: it claims more voxels or bytes than ``limits`` allow.
    """
    version, order, raw = _recognise(head, field)
    shape = _shape(raw, field)
    dtype = _dtype(raw, order, field)
    offset = _offset(raw, version, limits, field)
    _check_size(shape, dtype, offset, limits, field)
    slope, inter, scale_flags = _scaling(raw, dtype, field)
    mm, unit_flags = _length_unit(raw, field)
    transform = voxel_to_world(raw, shape, mm, field=field, limits=limits)
    time_step, time_flags = _time_step(raw, shape, field)
    x, y, z = (float(edge) for edge in np.linalg.norm(transform.affine[:3, :3], axis=0))
    return Header(
        version=version.number,
        big_endian=order == ">",
        dtype=dtype,
        shape=shape,
        spacing_mm=(x, y, z),
        affine=transform.affine,
        offset=offset,
        slope=slope,
        inter=inter,
        form=transform.form,
        flags=scale_flags + unit_flags + transform.flags + time_flags,
        time_step_s=time_step,
        canonical=_canonical(raw, version, shape),
    )


def check_extensions(before_voxels: bytes, header: Header, *, field: Input) -> None:
    """Check the extensions in ``before_voxels``, the first ``header.offset`` bytes of the file.

    Extensions are dropped, but a chain that does not end before the voxels means that the header is wrong.

    Raises:
        InvalidVolume: a size in the chain is not a multiple of 16, or the chain does not end before the voxels.
    """
    position, end = len(header.canonical), header.offset
    if before_voxels[position - 4] == 0:
        return
    order: Literal["big", "little"] = "big" if header.big_endian else "little"
    chain = memoryview(before_voxels)
    while any(chain[position:end]):  # zeros up to the voxels are padding
        size = int.from_bytes(chain[position : position + 4], order, signed=True)
        if size < 16 or size % 16 or position + size > end:
            raise invalid(field, "has damaged header extensions: write it again without them")
        position += size


# One check each, in the order of parse --------------------------------------------------------------------------------


def _identify(start: bytes) -> tuple[_Version, str] | None:
    """Version and byte order by ``sizeof_hdr``, the first field of both versions."""
    for version in _VERSIONS:
        if start[:4] == version.size.to_bytes(4, "little"):
            return version, "<"
        if start[:4] == version.size.to_bytes(4, "big"):
            return version, ">"
    return None


def _recognise(head: bytes, field: Input) -> tuple[_Version, str, Any]:
    identified = _identify(head)
    if identified is None:
        raise invalid(field, _other_format(head))
    version, order = identified
    if len(head) < version.size:
        raise invalid(field, "ends inside its header: send it again")
    raw = version.record(head, order)
    magic = bytes(raw["magic"])
    if magic == version.magic and len(head) >= version.first_voxel:
        return version, order, raw
    if magic == version.magic:
        raise invalid(field, "ends with its header: send it again")
    if magic == version.pair_magic:
        raise invalid(field, "is half of a .hdr/.img pair: join the two into one .nii")
    if version.number == 2 and magic[:4] == version.magic[:4]:
        raise invalid(field, "was altered by a transfer in text mode: send it in binary mode")
    if version.number == 1 and not any(magic):
        raise invalid(field, "is an ANALYZE 7.5 header, which does not define left and right: convert it to NIfTI")
    raise invalid(field, "does not have the signature of a single-file NIfTI")


def _other_format(head: bytes) -> str:
    if not head:
        return "is empty"
    for position, mark, detail in _OTHER_FORMATS:
        if head[position : position + len(mark)] == mark:
            return detail
    return "is not NIfTI: send a .nii or .nii.gz"


def _shape(raw: Any, field: Input) -> tuple[int, ...]:
    rank, *sizes = (int(n) for n in raw["dim"])
    if not 1 <= rank <= 7:
        raise invalid(field, "has a damaged header: its number of dimensions must be 1 to 7")
    sizes = sizes[:rank]
    if min(sizes) < 1:
        raise invalid(field, "has a damaged header: a dimension is zero or less")
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) > 4 or (len(sizes) == 4 and int(raw["intent_code"]) == _VECTOR_INTENT):
        raise invalid(field, "has several values per voxel (a vector or tensor image): send a scalar volume")
    if len(sizes) < 3 or min(sizes[:3]) < 2:
        raise invalid(field, "is a single slice or line: send the whole volume")
    if field is Input.CTP and len(sizes) == 3:
        raise invalid(field, "is one volume: ctp takes the 4-D series; send computed maps as tmax, cbf, cbv and mtt")
    if field is not Input.CTP and len(sizes) == 4:
        raise invalid(field, "is a 4-D series: send one volume here; only ctp takes a series")
    return tuple(sizes)


def _dtype(raw: Any, order: str, field: Input) -> np.dtype[Any]:
    code = int(raw["datatype"])
    if code in _REFUSED_DATATYPES:
        raise invalid(field, f"{_REFUSED_DATATYPES[code]}: send the measured values as integers or floats")
    if code not in _DATATYPES:
        raise invalid(field, "has a voxel type that the NIfTI standard does not define")
    dtype = np.dtype(order + _DATATYPES[code])
    if int(raw["bitpix"]) != 8 * dtype.itemsize:
        raise invalid(field, "has a damaged header: its bits per voxel do not match its voxel type")
    return dtype


def _offset(raw: Any, version: _Version, limits: Limits, field: Input) -> int:
    value = raw["vox_offset"].item()
    if not math.isfinite(value) or value != int(value) or value < version.first_voxel:
        raise invalid(field, "has a damaged header: its voxels cannot start at the position that it gives")
    if value > limits.max_offset:
        raise invalid(field, f"has more than {limits.max_offset} bytes before its voxels: remove its extensions")
    return int(value)


def _check_size(shape: tuple[int, ...], dtype: np.dtype[Any], offset: int, limits: Limits, field: Input) -> None:
    voxels = math.prod(shape)
    if voxels > limits.max_voxels:
        raise too_large(field, f"has more than {limits.max_voxels} voxels, the limit of this service")
    if offset + voxels * dtype.itemsize > limits.max_bytes:
        raise too_large(field, f"inflates to more than {limits.max_bytes} bytes, the limit of this service")


def _scaling(raw: Any, dtype: np.dtype[Any], field: Input) -> tuple[float, float, tuple[Flag, ...]]:
    """Slope and intercept. A slope of 0 means none; nibabel and the C library read NaN, which some write, as 0."""
    slope, inter = float(raw["scl_slope"]), float(raw["scl_inter"])
    if slope == 0 or math.isnan(slope):
        if inter == 0 or math.isnan(inter):
            return 1.0, 0.0, ()
        detail = f"{field.value}: an intercept without a slope was ignored, as the NIfTI standard requires"
        return 1.0, 0.0, (Flag(code="scaling-ignored", detail=detail),)
    largest = float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0
    if abs(slope) < 1e-30 or not abs(slope) * largest + abs(inter) < _FLOAT32_MAX:  # also refuses NaN
        raise invalid(field, "has a damaged header: its slope and intercept are outside the range of float32")
    return slope, inter, ()


def _length_unit(raw: Any, field: Input) -> tuple[float, tuple[Flag, ...]]:
    """Millimetres in one length unit of the file."""
    code = int(raw["xyzt_units"])
    unit = code & 7
    if unit not in _MM_PER_UNIT or not 0 <= code <= 0x3F:
        raise invalid(field, "has a length unit that the NIfTI standard does not define: write it in millimetres")
    if unit:
        return _MM_PER_UNIT[unit], ()
    return 1.0, (Flag(code="units-assumed", detail=f"{field.value}: no length unit is given; millimetres assumed"),)


def _time_step(raw: Any, shape: tuple[int, ...], field: Input) -> tuple[float | None, tuple[Flag, ...]]:
    """Seconds between two volumes; only 0.05 to 60 s is accepted, because the unit is often missing or wrong."""
    if len(shape) == 3:
        return None, ()
    unit = int(raw["xyzt_units"]) & 0x38
    if unit in _NOT_TIME_UNITS:
        raise invalid(field, "has a fourth axis that is not time: send the perfusion series")
    step = float(raw["pixdim"][4]) * _SECONDS_PER_UNIT.get(unit, math.nan)
    if 0.05 <= step <= 60:
        return step, _step_doubts(step, field) if unit == 0 else ()
    detail = f"{field.value}: the time between volumes is missing, or not between 0.05 and 60 s"
    return None, (Flag(code="time-step-unknown", detail=detail),)


def _step_doubts(step: float, field: Input) -> tuple[Flag, ...]:
    """The flag of a time step without a unit; libraries write 1 where no one has set a step."""
    if step == 1:
        detail = f"{field.value}: the time step is the default of 1 without a unit: send the seconds as ctp_interval_s"
        return (Flag(code="time-step-default", detail=detail),)
    return (Flag(code="time-unit-assumed", detail=f"{field.value}: the time step has no unit; seconds assumed"),)


def _canonical(raw: Any, version: _Version, shape: tuple[int, ...]) -> bytes:
    """A header with only the fields that ``parse`` uses, each number exactly as stored."""
    new = np.zeros((), raw.dtype)
    for name in _KEPT:
        new[name] = raw[name]
    new["dim"] = (len(shape), *shape, *(1,) * (7 - len(shape)))
    new["pixdim"][: len(shape) + 1] = raw["pixdim"][: len(shape) + 1]
    new["sizeof_hdr"], new["vox_offset"] = version.size, version.first_voxel
    if raw["qform_code"]:
        new["quatern"], new["qoffset"] = raw["quatern"], raw["qoffset"]
    if raw["sform_code"]:
        new["srow"] = raw["srow"]
    return bytes(new.tobytes()) + bytes(4)
