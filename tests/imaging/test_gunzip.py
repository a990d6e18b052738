"""Gzip streams: every valid form inflates exactly, every fault is refused, and a bomb needs no memory."""

from __future__ import annotations

import gzip
import io
import tracemalloc
import zlib

import numpy as np
import pytest

from app.imaging.io.gunzip import PIECE, Gunzip
from app.sdk.errors import InvalidVolume
from app.sdk.types import Input
from tests.imaging.helpers import chunks
from tests.imaging.hostile import gz

TEXT = bytes(np.random.default_rng(0).integers(0, 12, 700_000, dtype=np.uint8))
EMPTY_BGZF = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def inflate(data: bytes, size: int = 1 << 16) -> bytes:
    gunzip = Gunzip(Input.CTA)
    pieces = [piece for chunk in chunks(data, size) for piece in gunzip.feed(chunk)]
    gunzip.finish()
    assert all(0 < len(piece) <= PIECE for piece in pieces)
    return b"".join(pieces)


def python_gzip(data: bytes) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile("patient name.nii", "wb", fileobj=out) as file:
        file.write(data)
    return out.getvalue()


LEGAL = {
    "plain": gz(TEXT),
    "python": python_gzip(TEXT),
    "name": gz(TEXT, name=b"DOE_JANE.nii"),
    "comment": gz(TEXT, comment=b"a comment"),
    "extra": gz(TEXT, extra=b"BC\2\0\1\1"),
    "largest extra": gz(TEXT, extra=bytes(65535)),
    "empty extra": gz(TEXT, extra=b""),
    "checksum": gz(TEXT, checksum=True),
    "everything": gz(TEXT, name=b"n", comment=b"c", extra=b"e" * 300, checksum=True, flags=1),
    "stored": gzip.compress(TEXT, 0),
    "two members": gz(TEXT[:100]) + gz(TEXT[100:], name=b"x"),
    "empty member first": gz(b"") + gz(TEXT),
    "empty member last": gz(TEXT) + gz(b""),
    "bgzip": b"".join(gz(part, extra=b"BC\2\0\1\1") for part in chunks(TEXT, 65280)) + EMPTY_BGZF,
    "a member a byte": b"".join(gz(TEXT[i : i + 1]) for i in range(300)) + gz(TEXT[300:]),
    "padded": gz(TEXT) + bytes(512),
}


@pytest.mark.parametrize("size", [1 << 20, 1 << 16, 4093])
@pytest.mark.parametrize("name", LEGAL)
def test_every_legal_form_inflates_exactly(name: str, size: int) -> None:
    assert inflate(LEGAL[name], size) == TEXT


@pytest.mark.parametrize("size", [*range(1, 20), 63, 64])
def test_chunks_of_any_size_inflate_exactly(size: int) -> None:
    data = gz(TEXT[:500], name=b"n", comment=b"c", extra=b"e" * 20, checksum=True) + gz(TEXT[500:900]) + bytes(5)
    assert inflate(data, size) == TEXT[:900]


@pytest.mark.parametrize("total", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE])
def test_lengths_around_the_piece_size(total: int) -> None:
    assert inflate(gz(bytes(total))) == bytes(total)
    assert inflate(gz(TEXT[:total]) + gz(TEXT[:3])) == TEXT[:total] + TEXT[:3]


def test_every_truncation_is_refused() -> None:
    data = gz(TEXT[:300], name=b"n", extra=b"ee", checksum=True) + gz(TEXT[300:400])
    whole_members = {0: False, len(gz(TEXT[:300], name=b"n", extra=b"ee", checksum=True)): True}
    for end in range(len(data)):
        if whole_members.get(end):
            assert inflate(data[:end]) == TEXT[:300]
        else:
            with pytest.raises(InvalidVolume):
                inflate(data[:end])


def test_every_flipped_bit_is_refused_or_harmless() -> None:
    data = gz(TEXT[:400], name=b"name")
    harmless = 0
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert inflate(bytes(flipped)) == TEXT[:400]
            harmless += 1
        except InvalidVolume:
            pass
    assert 48 < harmless < 120  # the time, the level, the system, the letters of the name, the text flag


def test_a_bomb_costs_no_memory() -> None:
    bomb = gz(bytes(200_000_000))
    tracemalloc.start()
    total = sum(len(piece) for piece in Gunzip(Input.CTA).feed(bomb))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == 200_000_000
    assert peak < 2_000_000


def test_too_many_members_are_refused() -> None:
    flood = gz(b"") * 100_001
    with pytest.raises(InvalidVolume, match="too many small parts"):
        inflate(flood, 1 << 20)


def test_empty_deflate_blocks_are_accepted() -> None:
    packer = zlib.compressobj(6, wbits=-15)
    body = packer.compress(b"x") + b"".join(packer.flush(zlib.Z_FULL_FLUSH) for _ in range(10))
    empty_blocks = b"\x00\x00\x00\xff\xff" * 100_000
    data = gz(b"")[:10] + body + empty_blocks + b"\x03\x00" + zlib.crc32(b"x").to_bytes(4, "little") + b"\1\0\0\0"
    assert inflate(data) == b"x"
