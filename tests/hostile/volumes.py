"""Malformed, unusual and hostile volumes, as bytes.

`tests/imaging/hostile.py` builds the files and lists those that must be refused. This module adds random damage (bits,
cuts, swapped and repeated blocks), decompression bombs, gzip members, header extensions, and unusual valid files.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from app.sdk.types import Input
from tests.imaging import hostile


def volumes(*, seed: int = 3, flips: int = 150) -> Iterator[tuple[str, Input, bytes]]:
    """All files with their names and the fields that they are sent as."""
    for case in hostile.refused():
        yield case.name, case.sent_as, case.data
    rng = random.Random(seed)
    yield from _valid()
    yield from _bombs()
    yield from _members(rng)
    yield from _extensions()
    yield from _damaged(rng, flips)


def mutated(*, every: int = 1) -> Iterator[tuple[str, Input, bytes]]:
    """Files with unusual values in each header field; some of them are still valid."""
    for number, (name, data) in enumerate(hostile.mutations()):
        if number % every == 0:
            yield name, Input.CTA, data


def _valid() -> Iterator[tuple[str, Input, bytes]]:
    for kind in hostile.CODES:
        yield f"voxels of {kind}", Input.CTA, hostile.build(hostile.voxels(kind=kind))
        yield (
            f"voxels of {kind}, big-endian",
            Input.NCCT,
            hostile.gz(hostile.build(hostile.voxels(kind=kind), order=">")),
        )
    for shape in ((2, 2, 2), (2, 2, 300), (300, 2, 2), (1000, 3, 2), (5, 4, 3, 1), (5, 4, 3, 1, 1)):
        yield f"shape {shape}", Input.CTA, hostile.build(hostile.voxels(shape))
    series = hostile.build(hostile.voxels((5, 4, 3, 20)))
    yield "a short series", Input.CTP, series
    for bad in (np.nan, np.inf, -np.inf, 1e38, -1e38, 1e-40):
        data = hostile.voxels(kind="f4")
        data[1:3] = bad
        yield f"with {bad}", Input.TMAX, hostile.build(data)
    yield "constant but one", Input.CTA, hostile.build(np.pad(np.ones((1, 1, 1), "i2"), 4))
    yield "steep", Input.CTA, hostile.build(scl_slope=1e30, scl_inter=-1e30)
    yield "mask", Input.VESSELS, hostile.build(hostile.voxels(kind="u1") % 2)
    yield "far away", Input.CTA, hostile.build(srow=(1.0, 0, 0, 9e3, 0, 1, 0, 9e3, 0, 0, 1, 9e3))


def _bombs() -> Iterator[tuple[str, Input, bytes]]:
    header = hostile.build(hostile.voxels((2, 2, 2)), dim=(3, 500, 500, 500, 1, 1, 1, 1))[:352]
    zeros = hostile.gz(header + bytes(250_000_000))
    yield "a quarter of a gigabyte of zeros", Input.CTA, zeros
    yield "more zeros than claimed", Input.CTA, hostile.gz(hostile.build() + bytes(60_000_000))
    packer = zlib.compressobj(9, wbits=31)
    yield "a bomb without a header", Input.CTA, packer.compress(bytes(100_000_000)) + packer.flush()
    yield "a bomb in a bomb", Input.CTA, hostile.gz(hostile.gz(header + bytes(50_000_000)))
    yield "an endless file name", Input.CTA, struct.pack("<BBBBIBB", 0x1F, 0x8B, 8, 8, 0, 0, 3) + b"a" * 400_000
    yield "an endless extra field", Input.CTA, hostile.gz(hostile.build(), extra=b"e" * 65535)
    yield "members without content", Input.CTA, hostile.gz(b"") * 60_000
    yield "claims all there is", Input.CTA, hostile.build(version=2, dim=(3, 2**20, 2**20, 2**20, 1, 1, 1, 1))


def _members(rng: random.Random) -> Iterator[tuple[str, Input, bytes]]:
    good = hostile.build(hostile.voxels((20, 20, 20)))
    for count in (2, 5, 50):
        edges = sorted(rng.sample(range(1, len(good)), count - 1))
        pieces = [good[a:b] for a, b in zip([0, *edges], [*edges, len(good)], strict=True)]
        yield f"{count} members", Input.CTA, b"".join(map(hostile.gz, pieces))
        yield f"{count} members, one lost", Input.CTA, b"".join(map(hostile.gz, pieces[:-1]))
        yield f"{count} members, swapped", Input.CTA, b"".join(map(hostile.gz, reversed(pieces)))
        yield f"{count} members, then zeros", Input.CTA, b"".join(map(hostile.gz, pieces)) + bytes(512)
        yield f"{count} members, then text", Input.CTA, b"".join(map(hostile.gz, pieces)) + b"DOE^JANE"
    yield "twice the file", Input.CTA, hostile.gz(good) * 2
    yield "gzip then plain", Input.CTA, hostile.gz(good[:400]) + good[400:]


def _extensions() -> Iterator[tuple[str, Input, bytes]]:
    for size, code in (
        (16, 4),
        (32, 6),
        (0, 4),
        (8, 4),
        (17, 4),
        (-16, 4),
        (2**31 - 1, 4),
        (2**31 - 16, 2),
        (16, -1),
        (1 << 20, 2),
    ):
        text = struct.pack("<ii", size, code) + b"DOE^JANE" * 1
        yield f"extension of {size}, code {code}", Input.CTA, hostile.build(between=text, extender=b"\1\0\0\0")
    many = b"".join(struct.pack("<ii", 16, 4) + b"DOE^JANE" for _ in range(5000))
    yield "five thousand extensions", Input.CTA, hostile.build(between=many, extender=b"\1\0\0\0")
    for extender in (b"\2\0\0\0", b"\xff\xff\xff\xff", b"\0\1\0\0"):
        yield f"extender {extender!r}", Input.CTA, hostile.build(extender=extender)
    for offset in (-1.0, 0.0, 1.0, 348.0, 351.9, 352.5, 1e9, 1e30, float("nan"), float("inf"), 353.0, 368.0):
        yield f"offset {offset}", Input.CTA, hostile.build(vox_offset=offset)


def _damaged(rng: random.Random, flips: int) -> Iterator[tuple[str, Input, bytes]]:
    plain = hostile.build(hostile.voxels((16, 15, 14)))
    packed = hostile.gz(plain, name=b"DOE^JANE.nii", checksum=True)
    for name, good in (("plain", plain), ("packed", packed)):
        for number in range(flips):
            data = bytearray(good)
            span = 352 if name == "plain" and number % 3 else len(data)
            for _ in range(rng.choice((1, 1, 1, 2, 8))):
                data[rng.randrange(span)] ^= 1 << rng.randrange(8)
            yield f"{name}, bits {number}", Input.CTA, bytes(data)
        for number in range(flips // 5):
            yield f"{name}, cut {number}", Input.CTA, good[: rng.randrange(len(good))]
            start = rng.randrange(len(good))
            size = rng.choice((1, 8, 512))
            yield f"{name}, hole {number}", Input.CTA, good[:start] + good[start + size :]
            yield f"{name}, zeros {number}", Input.CTA, good[:start] + bytes(size) + good[start + size :]
            yield f"{name}, repeat {number}", Input.CTA, good[:start] + good[max(0, start - size) :]
