"""Build valid and invalid NIfTI files byte by byte, without any of the code under test.

``build`` makes a file from the field tables of the standard; ``mutations`` sets every field to unusual values;
``refused`` lists files that must be refused, each with the expected problem code.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from app.sdk.types import Input

# name: (offset, struct format), from nifti1.h and nifti2.h.
NIFTI1: dict[str, tuple[int, str]] = {
    "sizeof_hdr": (0, "i"), "data_type": (4, "10s"), "db_name": (14, "18s"), "extents": (32, "i"),
    "session_error": (36, "h"), "regular": (38, "c"), "dim_info": (39, "B"), "dim": (40, "8h"),
    "intent_p": (56, "3f"), "intent_code": (68, "h"), "datatype": (70, "h"), "bitpix": (72, "h"),
    "slice_start": (74, "h"), "pixdim": (76, "8f"), "vox_offset": (108, "f"), "scl_slope": (112, "f"),
    "scl_inter": (116, "f"), "slice_end": (120, "h"), "slice_code": (122, "B"), "xyzt_units": (123, "B"),
    "cal_max": (124, "f"), "cal_min": (128, "f"), "slice_duration": (132, "f"), "toffset": (136, "f"),
    "glmax": (140, "i"), "glmin": (144, "i"), "descrip": (148, "80s"), "aux_file": (228, "24s"),
    "qform_code": (252, "h"), "sform_code": (254, "h"), "quatern": (256, "3f"), "qoffset": (268, "3f"),
    "srow": (280, "12f"), "intent_name": (328, "16s"), "magic": (344, "4s"),
}  # fmt: skip
NIFTI2: dict[str, tuple[int, str]] = {
    "sizeof_hdr": (0, "i"), "magic": (4, "8s"), "datatype": (12, "h"), "bitpix": (14, "h"), "dim": (16, "8q"),
    "intent_p": (80, "3d"), "pixdim": (104, "8d"), "vox_offset": (168, "q"), "scl_slope": (176, "d"),
    "scl_inter": (184, "d"), "cal_max": (192, "d"), "cal_min": (200, "d"), "slice_duration": (208, "d"),
    "toffset": (216, "d"), "slice_start": (224, "q"), "slice_end": (232, "q"), "descrip": (240, "80s"),
    "aux_file": (320, "24s"), "qform_code": (344, "i"), "sform_code": (348, "i"), "quatern": (352, "3d"),
    "qoffset": (376, "3d"), "srow": (400, "12d"), "slice_code": (496, "i"), "xyzt_units": (500, "i"),
    "intent_code": (504, "i"), "intent_name": (508, "16s"), "dim_info": (524, "B"), "unused_str": (525, "15s"),
}  # fmt: skip
TABLES = {1: NIFTI1, 2: NIFTI2}
SIZES = {1: 348, 2: 540}
MAGIC = {1: b"n+1\0", 2: b"n+2\0\r\n\x1a\n"}
CODES = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512, "u4": 768, "i8": 1024, "u8": 1280}

AFFINE = np.array([[-0.5, 0, 0, 90], [0, 0.6, 0, -126], [0, 0, 2.0, -72], [0, 0, 0, 1]])
# The same as a quaternion: a half turn about y, and qfac -1 mirrors z back.
QUATERN, QFAC = (0.0, 1.0, 0.0), -1.0


def voxels(shape: tuple[int, ...] = (5, 4, 3), kind: str = "i2", seed: int = 0) -> np.ndarray[Any, Any]:
    """Random voxels of a type, Fortran order."""
    rng = np.random.default_rng(seed)
    if kind[0] == "f":
        data = rng.normal(0, 100, shape).astype(kind)
    else:
        info = np.iinfo(kind)
        data = rng.integers(max(info.min, -1024), min(info.max, 3071), shape, dtype=np.int64).astype(kind)
    return np.asfortranarray(data)


def build(
    data: np.ndarray[Any, Any] | None = None,
    *,
    version: int = 1,
    order: str = "<",
    between: bytes = b"",
    extender: bytes = bytes(4),
    tail: bytes = b"",
    **fields: Any,
) -> bytes:
    """A NIfTI file. ``fields`` replace the values of a valid header; ``between`` is written before the voxels."""
    data = voxels() if data is None else data
    header = bytearray(SIZES[version])
    spacing = (0.5, 0.6, 2.0)
    good: dict[str, Any] = {
        "sizeof_hdr": SIZES[version],
        "magic": MAGIC[version],
        "datatype": CODES[data.dtype.str[1:]],
        "bitpix": 8 * data.dtype.itemsize,
        "dim": (data.ndim, *data.shape, *(1,) * (7 - data.ndim)),
        "pixdim": (QFAC, *spacing, 1.5, 0.0, 0.0, 0.0),
        "vox_offset": SIZES[version] + 4 + len(between),
        "scl_slope": 1.0,
        "scl_inter": 0.0,
        "xyzt_units": 10,
        "qform_code": 1,
        "sform_code": 1,
        "quatern": QUATERN,
        "qoffset": tuple(AFFINE[:3, 3]),
        "srow": tuple(AFFINE[:3].ravel()),
    }
    for name, value in (good | fields).items():
        put(header, version, order, name, value)
    stored = data.astype(data.dtype.newbyteorder(order)).tobytes(order="F")
    return bytes(header) + extender + between + stored + tail


def put(header: bytearray, version: int, order: str, name: str, value: Any) -> None:
    """Write one field into a header."""
    offset, kind = TABLES[version][name]
    values = value if isinstance(value, tuple) else (value,)
    struct.pack_into(order + kind, header, offset, *values)


def gz(
    data: bytes,
    *,
    name: bytes = b"",
    extra: bytes | None = None,
    comment: bytes = b"",
    checksum: bool = False,
    crc: int | None = None,
    size: int | None = None,
    flags: int = 0,
    method: int = 8,
) -> bytes:
    """One gzip member, with any part of it replaced."""
    flags |= (8 if name else 0) | (4 if extra is not None else 0) | (16 if comment else 0) | (2 if checksum else 0)
    head = struct.pack("<BBBBIBB", 0x1F, 0x8B, method, flags, 1_700_000_000, 0, 3)
    if extra is not None:
        head += struct.pack("<H", len(extra)) + extra
    head += (name + b"\0" if name else b"") + (comment + b"\0" if comment else b"")
    if checksum:
        head += struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    packer = zlib.compressobj(6, wbits=-15)
    crc = zlib.crc32(data) if crc is None else crc
    size = len(data) if size is None else size
    return head + packer.compress(data) + packer.flush() + struct.pack("<II", crc, size & 0xFFFFFFFF)


@dataclass(frozen=True)
class Case:
    name: str
    data: bytes = field(repr=False)
    code: str = "nifti-invalid"
    sent_as: Input = Input.CTA
    hint: str = ""  # a part of the message


def mutations() -> Iterator[tuple[str, bytes]]:
    """Files of both versions and byte orders with one field set to an unusual value."""
    for version in (1, 2):
        for order in "<>":
            good = build(version=version, order=order)
            for name, (offset, kind) in TABLES[version].items():
                width = struct.calcsize(order + kind[-1]) if kind[-1] != "s" else int(kind[:-1])
                count = 1 if kind[-1] == "s" else int(kind[:-1] or 1)
                for index in range(count):
                    for label, odd in _odd(kind[-1], order, width):
                        data = bytearray(good)
                        data[offset + index * width : offset + (index + 1) * width] = odd
                        yield f"nifti{version}{order} {name}[{index}] {label}", bytes(data)


def _odd(kind: str, order: str, width: int) -> Iterator[tuple[str, bytes]]:
    if kind in "fd":
        for number in (0.0, -0.0, 1.0, -1.0, 0.5, 352.5, 1e-45, -1e-3, 1e3, 1e38, -1e38, math.nan, math.inf, -math.inf):
            yield str(number), struct.pack(order + kind, number)
        signalling = b"\x7f\xa0\0\1" if kind == "f" else b"\x7f\xf4\0\0\0\0\0\1"
        yield "sNaN", signalling if order == ">" else signalling[::-1]
        if kind == "d":
            yield "1e308", struct.pack(order + kind, 1e308)
    elif kind in "bBhiq":
        bits = 8 * width
        top = 2 ** (bits - 1) - 1
        for number in (0, 1, 2, 3, 4, 5, 7, 8, 16, 32, 64, 127, 255, 256, 512, 1024, 1792, 2304, top, top + 1,
                       -1, -2, -348, 0x5C010000, 2**32, 2**33, 2**62):  # fmt: skip
            yield str(number), (number & (2**bits - 1)).to_bytes(width, "little" if order == "<" else "big")
    else:
        for text in (b"\xff" * width, b"DOE^JANE 19700101", b"\0" * width, b"ni1", b"n+1"):
            yield repr(text), text[:width].ljust(width, b"\0")


def refused() -> Iterator[Case]:
    """Files that must be refused."""
    yield from _not_nifti()
    yield from _wrong_kind()
    yield from _wrong_shape()
    yield from _wrong_affine()
    yield from _wrong_spacing()
    yield from _wrong_length()
    yield from _wrong_gzip()


def _not_nifti() -> Iterator[Case]:
    text = b"Dear colleague,\nplease find the images attached.\n"
    good = build()
    yield Case("empty", b"", hint="empty")
    yield Case("empty gzip", gz(b""), hint="empty")
    for size in (1, 2, 3, 4, 40, 347, 348, 351, 352, 353):
        yield Case(f"first {size} bytes", good[:size])
        yield Case(f"first {size} bytes, gzip", gz(good[:size]))
    yield Case("text", text, hint="not NIfTI")
    yield Case("long text", text * 100, hint="not NIfTI")
    yield Case("text in gzip", gz(text * 100), hint="not NIfTI")
    yield Case("html", b"<!DOCTYPE html><html><body>404 Not Found</body></html>" * 20)
    yield Case("json", b'{"error": "not found"}' * 50)
    yield Case("png", b"\x89PNG\r\n\x1a\n" + bytes(600), hint="PNG")
    yield Case("jpeg", b"\xff\xd8\xff\xe0" + bytes(600), hint="JPEG")
    yield Case("pdf", b"%PDF-1.7\n" + bytes(600), hint="PDF")
    yield Case("zip", b"PK\x03\x04" + bytes(600), hint="ZIP")
    yield Case("tar", bytes(257) + b"ustar\x0000" + bytes(600), hint="tar")
    yield Case("bzip2", b"BZh91AY&SY" + bytes(600), hint="bzip2")
    yield Case("xz", b"\xfd7zXZ\0" + bytes(600), hint="xz")
    yield Case("zstd", b"\x28\xb5\x2f\xfd" + bytes(600), hint="zstd")
    yield Case("dicom", bytes(128) + b"DICM" + bytes(600), hint="DICOM")
    yield Case("nrrd", b"NRRD0005\n" + bytes(600), hint="NRRD")
    yield Case("zlib", zlib.compress(good))
    yield Case("bare deflate", zlib.compress(good)[2:-4])
    yield Case("zeros", bytes(1000))
    yield Case("ones", b"\xff" * 1000)
    yield Case("gzip in gzip", gz(gz(good)), hint="twice")
    yield Case("analyze", build(magic=b"\0\0\0\0"), hint="ANALYZE")
    yield Case("analyze header alone", build(magic=b"\0\0\0\0")[:348], hint="ANALYZE")
    yield Case("pair", build(magic=b"ni1\0"), hint="pair")
    yield Case("pair header alone", build(magic=b"ni1\0", vox_offset=0)[:348], hint="pair")
    yield Case("pair 2", build(version=2, magic=b"ni2\0\r\n\x1a\n"), hint="pair")
    for magic in (b"n+1 ", b"n+1\n", b"N+1\0", b"n+2\0", b"n+3\0", b"n-1\0", b"+n1\0", b"n+1\xff"):
        yield Case(f"magic {magic!r}", build(magic=magic), hint="signature")
    for magic in (b"n+2\0\n\x1a\n\0", b"n+2\0\r\r\n\x1a"):
        yield Case(f"magic {magic!r}", build(version=2, magic=magic), hint="text mode")
    yield Case("magic of the other version", build(version=2, magic=b"n+1\0\r\n\x1a\n"), hint="signature")
    for size in (0, 1, 347, 349, 540, 1543569408, -1):
        yield Case(f"sizeof_hdr {size}", build(sizeof_hdr=size))
    swapped = bytearray(build())
    put(swapped, 1, ">", "sizeof_hdr", 348)
    yield Case("big-endian size, little-endian rest", bytes(swapped))
    swapped = bytearray(build())
    put(swapped, 1, ">", "dim", (3, 5, 4, 3, 1, 1, 1, 1))
    yield Case("big-endian dimensions, little-endian rest", bytes(swapped))


def _wrong_kind() -> Iterator[Case]:
    for code, bits, hint in (
        (128, 24, "RGB"),
        (2304, 32, "RGB"),
        (32, 64, "complex"),
        (1792, 128, "complex"),
        (2048, 256, "complex"),
        (1536, 128, "128-bit"),
        (1, 1, "one-bit"),
    ):
        raw = bytes(range(60)) * (bits // 8 or 1)
        yield Case(f"datatype {code}", build(datatype=code, bitpix=bits, tail=raw), hint=hint)
    for code in (0, 3, 5, 255, 257, -1, -4, 32767):
        yield Case(f"datatype {code}", build(datatype=code), hint="voxel type")
    for bits in (0, 1, 8, 15, 17, 32, -16, 32767):
        yield Case(f"bitpix {bits}", build(bitpix=bits), hint="bits per voxel")
    for slope, inter in (
        (math.inf, 0.0),
        (-math.inf, 0.0),
        (1.0, math.nan),
        (1.0, math.inf),
        (1e38, 0.0),
        (1e-40, 0.0),
        (2.0, -math.inf),
        (1.0, 3.4028234e38),
    ):
        yield Case(f"slope {slope} inter {inter}", build(scl_slope=slope, scl_inter=inter), hint="slope")
    for value in (0, 7, -1024):
        yield Case(f"all {value}", build(np.full((5, 4, 3), value, "i2")), hint="same value")
    for value in (0.0, math.nan, math.inf, -math.inf):
        yield Case(f"all {value}", build(np.full((5, 4, 3), value, "f4")), hint="same value")
    one = np.full((5, 4, 3), math.nan, "f8")
    one[2, 2, 2] = 40
    yield Case("one number among NaN", build(one), hint="same value")
    one[1, 1, 1] = 1e300
    yield Case("one number among NaN and 1e300", build(one), hint="same value")


def _wrong_shape() -> Iterator[Case]:
    data = voxels()
    for rank in (0, -1, 8, 9, 768, -32768, 32767):
        yield Case(f"dim[0] {rank}", build(dim=(rank, 5, 4, 3, 1, 1, 1, 1)), hint="dimensions")
    for axis in range(1, 5):
        for size in (0, -1, -5, -32768):
            dim = [4, 5, 4, 3, 1, 1, 1, 1]
            dim[axis] = size
            yield Case(f"dim[{axis}] {size}", build(dim=tuple(dim)), hint="zero or less")
    yield Case("dim[7] 0", build(dim=(7, 5, 4, 3, 1, 1, 1, 0)), hint="zero or less")
    for shape in ((60,), (20, 3), (20, 3, 1), (1, 20, 3), (20, 1, 3), (60, 1, 1), (1, 1, 1), (20, 3, 1, 1)):
        yield Case(f"shape {shape}", build(voxels(shape)), hint="slice or line")
    yield Case("vector", build(voxels((5, 4, 3, 1, 3))), hint="vector")
    yield Case("vector with intent", build(voxels((5, 4, 3, 1, 3)), intent_code=1007), hint="vector")
    yield Case("vector on axis 4", build(voxels((5, 4, 3, 3)), intent_code=1007), hint="vector", sent_as=Input.CTP)
    yield Case("tensor", build(voxels((5, 4, 3, 1, 6)), intent_code=1005), hint="vector")
    yield Case("axis 7", build(voxels((5, 4, 3, 1, 1, 1, 2))), hint="vector", sent_as=Input.CTP)
    yield Case("5-D series", build(voxels((5, 4, 3, 2, 2))), hint="vector", sent_as=Input.CTP)
    for sent_as in (Input.NCCT, Input.CTA, Input.VESSELS, Input.TMAX, Input.CBF, Input.CBV, Input.MTT):
        yield Case(f"series as {sent_as}", build(voxels((5, 4, 3, 6))), hint="4-D series", sent_as=sent_as)
    yield Case("volume as ctp", build(data), hint="one volume", sent_as=Input.CTP)
    yield Case("series of one as ctp", build(voxels((5, 4, 3, 1))), hint="one volume", sent_as=Input.CTP)
    yield Case("spectra as ctp", build(voxels((5, 4, 3, 6)), xyzt_units=2 | 32), hint="time", sent_as=Input.CTP)
    too_large = "decompressed-too-large"
    yield Case("32767 cubed", build(dim=(3, 32767, 32767, 32767, 1, 1, 1, 1)), code=too_large, hint="voxels")
    yield Case("800 cubed and one slice", build(dim=(3, 800, 800, 801, 1, 1, 1, 1)), code=too_large, hint="voxels")
    for huge in (2**31, 2**32 + 5, 2**62, 2**63 - 1):
        dim = (3, huge, huge, huge, 1, 1, 1, 1)
        yield Case(f"dim {huge}", build(version=2, dim=dim), code=too_large, hint="voxels")
    wraps = (3, 2**32, 2**32, 3, 1, 1, 1, 1)  # 0 in 64 bits
    yield Case("product wraps to zero", build(version=2, dim=wraps), code=too_large, hint="voxels")
    yield Case("negative in 64 bits", build(version=2, dim=(3, -(2**63), 4, 3, 1, 1, 1, 1)), hint="zero or less")


def _wrong_affine() -> Iterator[Case]:
    sform, identity = tuple(AFFINE[:3].ravel()), tuple(np.eye(4)[:3].ravel())
    yield Case("neither form", build(qform_code=0, sform_code=0), hint="left and right")
    for code in (-1, 6, 100, -32768):
        yield Case(f"sform_code {code}", build(sform_code=code), hint="code")
        yield Case(f"qform_code {code}", build(qform_code=code), hint="code")
    for index in range(12):
        for odd in (math.nan, math.inf, -math.inf):
            row = (*sform[:index], odd, *sform[index + 1 :])
            yield Case(f"srow[{index}] {odd}", build(srow=row), hint="sform")
    yield Case("sform of zeros", build(srow=(0.0,) * 12), hint="voxel size")
    yield Case("sform in metres without saying so", build(srow=tuple(n / 1000 for n in sform)), hint="voxel size")
    flat = (1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    yield Case("two axes the same", build(srow=flat, qform_code=0), hint="flat")
    nearly = (1.0, 1.0, 0.0, 0.0, 0.0, 0.01, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    yield Case("two axes nearly the same", build(srow=nearly, qform_code=0), hint="flat")
    for far in (1e5, -1e9, 1e30):
        yield Case(f"origin {far}", build(srow=(*identity[:3], far, *identity[4:])), hint="origin")
        yield Case(f"qoffset {far}", build(sform_code=0, qoffset=(0.0, far, 0.0)), hint="origin")
    for quatern in ((1.0, 1.0, 0.0), (math.nan, 0.0, 0.0), (math.inf, 0.0, 0.0), (0.0, 0.0, -2.0)):
        yield Case(f"quatern {quatern}", build(quatern=quatern, sform_code=0), hint="qform")


def _wrong_spacing() -> Iterator[Case]:
    for axis in (1, 2, 3):
        for odd in (0.0, -1.0, math.nan, math.inf, -math.inf):
            pixdim = [1.0, 0.5, 0.6, 2.0, 1.0, 0.0, 0.0, 0.0]
            pixdim[axis] = odd
            yield Case(f"pixdim[{axis}] {odd}", build(pixdim=tuple(pixdim)), hint="voxel size")
            yield Case(f"pixdim[{axis}] {odd}, qform", build(pixdim=tuple(pixdim), sform_code=0), hint="voxel size")
    for absurd in (1e-3, 51.0, 1e6):
        pixdim = (1.0, absurd, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
        yield Case(f"pixdim {absurd}", build(pixdim=pixdim, sform_code=0), hint="voxel size")
    for qfac in (2.0, -3.0, 0.5, math.nan, math.inf):
        pixdim = (qfac, 0.5, 0.6, 2.0, 0.0, 0.0, 0.0, 0.0)
        yield Case(f"qfac {qfac}", build(pixdim=pixdim, sform_code=0), hint="qform")
    for units in (4, 5, 7, 64, 128, 255):
        yield Case(f"xyzt_units {units}", build(xyzt_units=units), hint="length unit")
    yield Case("micrometres that are millimetres", build(xyzt_units=3), hint="voxel size")
    yield Case("metres that are millimetres", build(xyzt_units=1), hint="voxel size")


def _wrong_length() -> Iterator[Case]:
    good = build()
    for missing in (1, 2, 3, 60, 119, 120):
        yield Case(f"{missing} bytes short", good[:-missing])
        yield Case(f"{missing} bytes short, gzip", gz(good[:-missing]))
    yield Case("text after the voxels", good + b"trailing", hint="more than")
    yield Case("text after the voxels, gzip", gz(good + b"trailing"), hint="more than")
    yield Case("much after the voxels", good + bytes(5000), hint="more than")
    yield Case("a volume too many", good + good[352:], hint="more than")
    for offset in (0.0, 1.0, 348.0, 351.0, 351.5, 352.5, -1.0, -352.0, 1e-3, math.nan, math.inf, -math.inf):
        yield Case(f"vox_offset {offset}", build(vox_offset=offset), hint="start at")
    for offset in (2.0**21, 1e30, 3.4e38):
        yield Case(f"vox_offset {offset}", build(vox_offset=offset), hint="before its voxels")
    for offset in (0, 540, 543, -544, -(2**63)):
        yield Case(f"vox_offset {offset}, 2", build(version=2, vox_offset=offset), hint="start at")
    for offset in (2**31, 2**40, 2**63 - 1):
        yield Case(f"vox_offset {offset}, 2", build(version=2, vox_offset=offset), hint="before its voxels")
    yield Case("vox_offset past the end", build(vox_offset=2000.0))
    yes = b"\1\0\0\0"
    for size in (-16, -1, 1, 8, 15, 17, 33, 48, 64, 2**31 - 16, -(2**31)):
        chain = struct.pack("<ii", size, 6) + b"x" * 24
        yield Case(f"extension of {size}", build(between=chain, extender=yes), hint="extensions")
    chain = struct.pack("<ii", 16, 6) + b"x" * 8 + struct.pack("<ii", 32, 6) + b"x" * 8
    yield Case("second extension too long", build(between=chain, extender=yes), hint="extensions")
    yield Case("extension without end", build(between=b"\0" * 16 + b"x" * 16, extender=yes), hint="extensions")


def _wrong_gzip() -> Iterator[Case]:
    good = build()
    packed = gz(good)
    yield Case("gzip magic alone", b"\x1f\x8b")
    yield Case("first byte of gzip", b"\x1f")
    yield Case("gzip header alone", packed[:10])
    for missing in (1, 4, 7, 8, 9, 20):
        yield Case(f"gzip {missing} bytes short", packed[:-missing], hint="ends before")
    yield Case("wrong crc", gz(good, crc=0), hint="checksum")
    yield Case("wrong length", gz(good, size=len(good) + 1), hint="checksum")
    yield Case("length of zero", gz(good, size=0), hint="checksum")
    yield Case("wrong method", gz(good, method=7), hint="gzip header")
    for flag in (0x20, 0x40, 0x80):
        yield Case(f"reserved flag {flag}", gz(good, flags=flag), hint="gzip header")
    broken = bytearray(gz(good, name=b"a.nii", checksum=True))
    broken[12] ^= 1
    yield Case("wrong header checksum", bytes(broken), hint="gzip header")
    yield Case("name without end", packed[:3] + b"\x08" + packed[4:10] + b"x" * 1000)
    yield Case("name of 1 MB", gz(good, name=b"x" * 1_000_000), hint="gzip header")
    yield Case("extra field past the end", packed[:3] + b"\x04" + packed[4:10] + b"\xff\xff" + packed[10:])
    for tail in (
        b"x",
        b"\0x",
        b"\x1f",
        b"\x1f\x8b",
        b"\x1f\x8bx",
        b"PK\3\4",
        b"\0" * 100 + b"x",
        good,
        b"\0" * 100_000,
    ):
        yield Case(f"gzip and {tail[:4]!r} after", packed + tail)
    yield Case("truncated second member", gz(good[:400]) + gz(good[400:])[:-3], hint="ends before")
    yield Case("wrong crc in the second member", gz(good[:400]) + gz(good[400:], crc=1), hint="checksum")
    yield Case("second member of another file", packed + packed, hint="more than")
    yield Case("stored block of the wrong length", packed[:10] + b"\x01\x05\x00\x00\x00hello" + packed[-8:])
    yield Case("a bomb", gz(good[:352] + bytes(20_000_000)), hint="more than")
    yield Case("reference before the start", packed[:10] + bytes.fromhex("4b0401") + packed[-8:])
    yield Case("from the gzip module, cut", gzip.compress(good)[:-5], hint="ends before")
