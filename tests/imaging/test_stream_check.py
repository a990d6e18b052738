"""Streaming check of an upload: refused with its reason, or stored bit for bit with a scrubbed header."""

from __future__ import annotations

import logging
import tracemalloc

import numpy as np
import pytest

from app.imaging.io.header import parse
from app.imaging.io.stream_check import StreamCheck
from app.sdk.errors import InvalidVolume, RlvoError
from app.sdk.types import Input
from tests.imaging.helpers import check_stream, read_by_nibabel
from tests.imaging.hostile import SIZES, Case, build, gz, mutations, refused, voxels

REFUSED = list(refused())


@pytest.mark.parametrize("case", REFUSED, ids=[case.name for case in REFUSED])
def test_invalid_files_are_refused_with_their_reason(case: Case) -> None:
    for size in (1 << 16, 61):
        if len(case.data) / size > 5000:
            continue
        with pytest.raises(RlvoError) as caught:
            check_stream(case.data, case.sent_as, size=size)
        assert caught.value.code == case.code
        assert case.hint in caught.value.detail
        assert caught.value.detail.startswith(f"{case.sent_as}: the file ")
        assert len(caught.value.detail) < 200


def test_mutated_headers_are_refused_or_read_as_nibabel_reads_them(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "nibabel.global")
    accepted = 0
    seen = set()
    for name, data in mutations():
        try:
            stored, header = check_stream(data)
        except RlvoError:
            continue
        accepted += 1
        field, result = name.split("[")[0], stored
        if (field, result) in seen:
            continue  # most fields are not read
        seen.add((field, result))
        raw, values, affine = read_by_nibabel(data)
        ours = np.frombuffer(stored[len(header.canonical) :], header.dtype).reshape(header.shape, order="F")
        assert np.array_equal(ours, raw.reshape(header.shape)), name
        assert np.allclose(ours * header.slope + header.inter, values.reshape(header.shape), rtol=1e-6), name
        assert np.allclose(header.affine, affine, atol=1e-4), name
        assert parse(stored, field=Input.CTA).flags == header.flags, name
    assert accepted > 1000
    assert len(seen) > 300


@pytest.mark.parametrize("packed", [False, True])
def test_every_truncation_is_refused(packed: bool) -> None:
    for version in (1, 2):
        good = build(version=version, between=b"\1\2\3\4" * 8)
        good = gz(good) if packed else good
        for end in range(len(good)):
            with pytest.raises(InvalidVolume):
                check_stream(good[:end])


def test_every_flipped_bit_of_a_gzip_is_refused_or_harmless() -> None:
    good = gz(build())
    expected, _ = check_stream(good)
    changed = 0
    for bit in range(8 * len(good)):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            stored, _ = check_stream(bytes(flipped))
        except RlvoError:
            changed += 1
        else:
            assert stored == expected
    assert changed > 8 * (len(good) - 10)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 343, 1 << 16])
@pytest.mark.parametrize("packed", [False, True])
def test_stored_bytes_do_not_depend_on_chunks_or_compression(size: int, packed: bool) -> None:
    for kind in ("u1", "i2", "f8"):
        good = build(voxels((9, 8, 7), kind), between=b"\x20\0\0\0" + bytes(28), extender=b"\1\0\0\0")
        expected = build(voxels((9, 8, 7), kind), pixdim=(-1.0, 0.5, 0.6, 2.0, 0.0, 0.0, 0.0, 0.0))
        assert check_stream(gz(good) if packed else good, size=size)[0] == expected


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
def test_nothing_of_the_patient_is_stored(version: int, order: str) -> None:
    canary = b"DOE^JANE"
    chain = (32).to_bytes(4, "little" if order == "<" else "big") + bytes(4) + canary * 3
    good = build(
        version=version,
        order=order,
        between=chain,
        extender=b"\1\0\0\0",
        descrip=canary,
        aux_file=canary,
        intent_name=canary,
    )
    stored, header = check_stream(gz(good, name=canary, comment=canary, extra=canary))
    assert canary in good
    assert canary not in stored
    assert stored[: SIZES[version] + 4] == header.canonical
    assert stored[SIZES[version] + 4 :] == good[SIZES[version] + 36 :]


@pytest.mark.parametrize(
    ("between", "extender"),
    [
        (b"", bytes(4)),
        (b"\x10\0\0\0\6\0\0\0comments", b"\1\0\0\0"),
        (b"\x10\0\0\0\6\0\0\0comments" + bytes(16), b"\1\0\0\0"),
        (b"not announced", bytes(4)),
        (bytes(13), b"\1\0\0\0"),
        (b"\x10\0\0\0\6\0\0\0comments" * 65_000, b"\1\0\0\0"),
    ],
)
def test_extensions_are_checked_and_dropped(between: bytes, extender: bytes) -> None:
    stored, header = check_stream(build(between=between, extender=extender))
    assert header.offset == 352 + len(between)
    assert stored == check_stream(build())[0]


def test_zeros_after_the_voxels_are_accepted() -> None:
    good = build()
    for padded in (good + bytes(512), gz(good + bytes(4096)) + bytes(512)):
        assert check_stream(padded)[0] == check_stream(good)[0]


def test_non_finite_voxels_are_flagged() -> None:
    for kind, gap in (("f4", np.nan), ("f4", -np.inf), ("f8", np.nan), ("f8", 1e300)):
        data = voxels((9, 8, 7), kind)
        assert check_stream(build(data))[1].flags == ()
        data[3:5, 2, 1] = gap
        stored, header = check_stream(build(data), size=61)
        assert [flag.code for flag in header.flags] == ["non-finite-voxels"]
        assert stored[352:] == data.tobytes(order="F")


def test_one_different_voxel_is_enough() -> None:
    for kind in ("u1", "i2", "i8", "f4"):
        for place in (0, 1, 499, 503):
            data = np.zeros(504, kind)
            data[place] = 1
            good = build(data.reshape((9, 8, 7), order="F"))
            for size in (1, 61, 1 << 16):
                stored, header = check_stream(good, size=size)
                assert stored[len(header.canonical) :] == data.tobytes()
                assert header.flags == ()


def test_header_error_is_raised_before_any_voxel() -> None:
    check = StreamCheck(Input.CTA)
    with pytest.raises(InvalidVolume, match="RGB"):
        list(check.feed(build(datatype=128, bitpix=24)[:352]))
    check = StreamCheck(Input.CTA)
    assert list(check.feed(build()[:351])) == []
    assert check.header is None
    assert b"".join(check.feed(build()[351:352])) != b""
    assert check.header is not None


def test_memory_stays_small_for_a_bomb() -> None:
    shape = (512, 512, 200)
    head = build(voxels((5, 4, 3), "i2"), dim=(3, *shape, 1, 1, 1, 1))[:352]
    bomb = gz(head + b"\1" + bytes(2 * 512 * 512 * 200 - 1))
    assert len(bomb) < 1_000_000
    tracemalloc.start()
    check = StreamCheck(Input.VESSELS)
    total = sum(len(piece) for piece in check.feed(bomb))
    check.finish()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == 352 + 2 * 512 * 512 * 200
    assert peak < 4_000_000


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_random_damage_is_refused_or_read_exactly() -> None:
    rng = np.random.default_rng(7)
    for round_number in range(50_000):
        kind = str(rng.choice(["u1", "i2", "f4", "f8"]))
        version, order = int(rng.integers(1, 3)), str(rng.choice(["<", ">"]))
        good = gz(build(voxels((6, 5, 4), kind, seed=round_number), version=version, order=order))
        expected, _ = check_stream(good)
        damaged = bytearray(good)
        for _ in range(int(rng.integers(1, 4))):
            start = int(rng.integers(0, len(damaged)))
            match int(rng.integers(0, 4)):
                case 0:
                    damaged[start] ^= 1 << int(rng.integers(0, 8))
                case 1:
                    del damaged[start : start + int(rng.integers(1, 40))]
                case 2:
                    damaged[start:start] = rng.bytes(int(rng.integers(1, 40)))
                case _:
                    damaged[start : start + 8] = bytes(8)
            if not damaged:
                break
        try:
            stored, _ = check_stream(bytes(damaged), size=int(rng.integers(1, 3000)))
        except RlvoError:
            continue
        assert stored == expected
