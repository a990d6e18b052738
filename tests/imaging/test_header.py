"""Header parser: the meaning of each field, refusals with their reason, and random bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.imaging.io.header import Header, header_length, parse
from app.imaging.io.limits import Limits
from app.sdk.errors import DecompressedTooLarge, InvalidVolume
from app.sdk.types import Input
from tests.imaging.hostile import AFFINE, CODES, MAGIC, SIZES, build, voxels

BOTH = pytest.mark.parametrize(("version", "order"), [(1, "<"), (1, ">"), (2, "<"), (2, ">")])


def codes(header: Header) -> list[str]:
    return [flag.code for flag in header.flags]


def same(one: Header, other: Header) -> bool:
    """Whether two headers are equal except for the offset of the voxels."""
    names = (
        "version",
        "big_endian",
        "dtype",
        "shape",
        "spacing_mm",
        "slope",
        "inter",
        "form",
        "flags",
        "time_step_s",
        "canonical",
    )
    return np.array_equal(one.affine, other.affine) and all(getattr(one, n) == getattr(other, n) for n in names)


@BOTH
def test_every_field_is_read(version: int, order: str) -> None:
    data = build(voxels((5, 4, 3), "u2"), version=version, order=order, scl_slope=0.5, scl_inter=-1024.0)
    header = parse(data, field=Input.CTA)
    assert (header.version, header.big_endian) == (version, order == ">")
    assert header.dtype == np.dtype(order + "u2")
    assert header.shape == (5, 4, 3)
    assert header.offset == header_length(data[:4]) == SIZES[version] + 4
    assert (header.slope, header.inter) == (0.5, -1024.0)
    assert header.form == "sform"
    assert np.allclose(header.affine, AFFINE, atol=1e-6)
    assert np.allclose(header.spacing_mm, (0.5, 0.6, 2.0))
    assert header.time_step_s is None
    assert header.flags == ()
    assert header.voxel_bytes == 5 * 4 * 3 * 2


@BOTH
def test_qform_and_sform_of_one_file_agree(version: int, order: str) -> None:
    both = parse(build(version=version, order=order), field=Input.CTA)
    q = parse(build(version=version, order=order, sform_code=0, srow=(math.nan,) * 12), field=Input.CTA)
    s = parse(build(version=version, order=order, qform_code=0, quatern=(9.0, 9.0, 9.0)), field=Input.CTA)
    assert (both.form, q.form, s.form) == ("sform", "qform", "sform")
    assert np.allclose(q.affine, s.affine, atol=1e-6)
    assert np.array_equal(both.affine, s.affine)
    assert both.flags == q.flags == s.flags == ()


@pytest.mark.parametrize(("units", "per_mm"), [(1, 1e-3), (2, 1.0), (3, 1e3), (0, 1.0)])
@pytest.mark.parametrize("form", ["qform", "sform"])
def test_lengths_are_converted_to_millimetres(units: int, per_mm: float, form: str) -> None:
    srow = tuple(AFFINE[:3].ravel() * per_mm)
    pixdim = (-1.0, 0.5 * per_mm, 0.6 * per_mm, 2.0 * per_mm, 0.0, 0.0, 0.0, 0.0)
    qoffset = tuple(AFFINE[:3, 3] * per_mm)
    other = {"qform": "sform_code", "sform": "qform_code"}[form]
    data = build(xyzt_units=units, srow=srow, pixdim=pixdim, qoffset=qoffset, **{other: 0})
    header = parse(data, field=Input.CTA)
    assert np.allclose(header.affine, AFFINE, rtol=1e-6, atol=1e-5)
    assert codes(header) == (["units-assumed"] if units == 0 else [])


@pytest.mark.parametrize(
    ("slope", "inter", "expected"),
    [
        (0.0, 0.0, (1.0, 0.0, [])),
        (math.nan, math.nan, (1.0, 0.0, [])),
        (math.nan, 0.0, (1.0, 0.0, [])),
        (0.0, -1024.0, (1.0, 0.0, ["scaling-ignored"])),
        (-2.0, 5.0, (-2.0, 5.0, [])),
        (1.0, -1024.0, (1.0, -1024.0, [])),
    ],
)
def test_scaling(slope: float, inter: float, expected: tuple[float, float, list[str]]) -> None:
    header = parse(build(scl_slope=slope, scl_inter=inter), field=Input.CTA)
    assert (header.slope, header.inter, codes(header)) == expected


@pytest.mark.parametrize("ones", [0, 1, 2, 3, 4])
def test_trailing_axes_of_one_are_dropped(ones: int) -> None:
    header = parse(build(voxels((5, 4, 3, *(1,) * ones))), field=Input.CTA)
    assert header.shape == (5, 4, 3)


def test_dimensions_beyond_the_rank_are_ignored() -> None:
    header = parse(build(dim=(3, 5, 4, 3, 0, -7, 25, 0)), field=Input.CTA)
    assert header.shape == (5, 4, 3)


@pytest.mark.parametrize("kind", CODES)
@BOTH
def test_every_number_type(kind: str, version: int, order: str) -> None:
    header = parse(build(voxels(kind=kind), version=version, order=order), field=Input.CTA)
    assert header.dtype == np.dtype(order + kind)


@pytest.mark.parametrize(
    ("unit", "step", "seconds"),
    [(8, 1.5, 1.5), (16, 1500.0, 1.5), (24, 1.5e6, 1.5), (0, 2.0, 2.0), (8, 1500.0, None), (0, 1500.0, None),
     (8, 0.0, None), (8, -1.0, None), (8, math.nan, None), (56, 1.5, None)],
)  # fmt: skip
def test_time_step_of_a_series(unit: int, step: float, seconds: float | None) -> None:
    data = build(voxels((5, 4, 3, 6)), xyzt_units=2 | unit, pixdim=(-1.0, 0.5, 0.6, 2.0, step, 0.0, 0.0, 0.0))
    header = parse(data, field=Input.CTP)
    assert header.shape == (5, 4, 3, 6)
    assert header.time_step_s == (None if seconds is None else pytest.approx(seconds))
    assumed = [] if unit else ["time-unit-assumed"]
    assert codes(header) == (["time-step-unknown"] if seconds is None else assumed)


def test_limits_are_exact() -> None:
    data = build()
    size = len(data)
    parse(data, field=Input.CTA, limits=Limits(max_voxels=60, max_bytes=size))
    with pytest.raises(DecompressedTooLarge):
        parse(data, field=Input.CTA, limits=Limits(max_voxels=59))
    with pytest.raises(DecompressedTooLarge):
        parse(data, field=Input.CTA, limits=Limits(max_bytes=size - 1))


@BOTH
def test_canonical_header_keeps_only_fields_in_use(version: int, order: str) -> None:
    text = b"DOE^JANE 1970-01-01 4711"
    private = {
        "descrip": text,
        "aux_file": text,
        "intent_name": text[:16],
        "intent_code": 1002,
        "dim_info": 0x4A,
        "intent_p": (7.5, 7.5, 7.5),
        "slice_start": 0x4A4A,
        "slice_end": 0x4A4A,
        "slice_code": 0x4A,
        "cal_max": 7.5,
        "cal_min": 7.5,
        "slice_duration": 7.5,
        "toffset": 7.5,
        "pixdim": (-1.0, 0.5, 0.6, 2.0, 7.5, 7.5, 7.5, 7.5),
        "dim": (3, 5, 4, 3, 0x4A4A, 0x4A4A, 0x4A4A, 0x4A4A),
        "sform_code": 0,
        "srow": (7.5,) * 12,
    }
    if version == 1:
        private |= {
            "data_type": b"JANE DOE",
            "db_name": text[:18],
            "extents": 0x4A4A4A4A,
            "session_error": 0x4A4A,
            "regular": b"J",
            "glmax": 0x4A4A4A4A,
            "glmin": 0x4A4A4A4A,
        }
    else:
        private |= {"unused_str": text[:15]}
    data = build(version=version, order=order, between=text, extender=b"\1\2\3\4", **private)
    header = parse(data, field=Input.CTA)
    plain = build(
        version=version, order=order, sform_code=0, srow=(0.0,) * 12, pixdim=(-1.0, 0.5, 0.6, 2.0, 0.0, 0.0, 0.0, 0.0)
    )
    assert header.canonical == plain[: SIZES[version] + 4]
    assert same(parse(header.canonical, field=Input.CTA), header)


def test_canonical_header_gives_the_same_flags() -> None:
    header = parse(build(qoffset=(0.0, 0.0, 0.0), xyzt_units=0), field=Input.CTA)
    again = parse(header.canonical, field=Input.CTA)
    assert codes(again) == ["units-assumed", "affine-disagree"]
    assert same(again, header)


def test_message_names_the_field_and_the_remedy() -> None:
    with pytest.raises(InvalidVolume) as caught:
        parse(build(voxels((5, 4, 3, 6))), field=Input.TMAX)
    assert caught.value.detail == "tmax: the file is a 4-D series: send one volume here; only ctp takes a series"
    assert [error.field for error in caught.value.errors] == ["tmax"]


# Random bytes give a header or a refusal ------------------------------------------------------------------------------

_FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)
_GOOD = [build(version=version, order=order)[: SIZES[version] + 4] for version in (1, 2) for order in "<>"]
_PATCHES = st.lists(st.tuples(st.integers(0, 543), st.binary(min_size=1, max_size=8)), min_size=1, max_size=8)


def _parse_or_refuse(head: bytes, sent_as: Input) -> None:
    try:
        header = parse(head, field=sent_as)
    except (InvalidVolume, DecompressedTooLarge):
        return
    assert np.isfinite(header.affine).all()
    assert len(header.shape) == (4 if sent_as is Input.CTP else 3)
    assert min(header.shape[:3]) > 1
    assert header.voxel_bytes <= 4 << 30
    assert same(parse(header.canonical, field=sent_as), header)


def _patched(base: bytes, patches: list[tuple[int, bytes]]) -> bytes:
    head = bytearray(base)
    for position, patch in patches:
        if position < len(head):
            head[position : position + len(patch)] = patch
    return bytes(head[: len(base)])


@_FUZZ
@given(base=st.sampled_from(_GOOD), patches=_PATCHES, sent_as=st.sampled_from([Input.CTA, Input.CTP]))
def test_patched_headers_are_parsed_or_refused(base: bytes, patches: list[tuple[int, bytes]], sent_as: Input) -> None:
    _parse_or_refuse(_patched(base, patches), sent_as)


@_FUZZ
@given(rest=st.binary(max_size=600), start=st.sampled_from([b"", *(base[:4] for base in _GOOD)]))
@example(rest=b"", start=b"")
def test_any_bytes_are_parsed_or_refused(rest: bytes, start: bytes) -> None:
    _parse_or_refuse(start + rest, Input.CTA)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@settings(_FUZZ, max_examples=50_000)
@given(
    base=st.sampled_from(_GOOD),
    patches=_PATCHES,
    sent_as=st.sampled_from(list(Input)),
    cut=st.one_of(st.none(), st.integers(0, 544)),
)
def test_patched_headers_are_parsed_or_refused_at_length(
    base: bytes, patches: list[tuple[int, bytes]], sent_as: Input, cut: int | None
) -> None:
    _parse_or_refuse(_patched(base, patches)[:cut], sent_as)


def test_magic_equals_the_standard() -> None:
    assert MAGIC[1] == b"n+1\0"
    assert MAGIC[2] == bytes.fromhex("6e2b32000d0a1a0a")
