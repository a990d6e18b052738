"""Voxel-to-world affine: qform and sform against nibabel, and their disagreement."""

from __future__ import annotations

import io

import nibabel as nib
import numpy as np
import pytest

from app.imaging.io.header import Header, parse
from app.sdk.errors import InvalidVolume
from app.sdk.types import Input
from tests.imaging.hostile import AFFINE, build

CORNER = np.array([4, 3, 2, 1])  # the last voxel of the 5x4x3 volume that `build` makes


def disagrees(header: Header) -> bool:
    return "affine-disagree" in [flag.code for flag in header.flags]


def test_random_qforms_equal_nibabel() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        quatern = rng.normal(size=4)
        quatern /= np.linalg.norm(quatern) * np.sign(quatern[0])
        pixdim = (float(rng.choice([-1.0, 0.0, 1.0])), *rng.uniform(0.2, 9, 3), 0.0, 0.0, 0.0, 0.0)
        qoffset = tuple(rng.uniform(-900, 900, 3))
        data = build(sform_code=0, quatern=tuple(quatern[1:]), pixdim=pixdim, qoffset=qoffset)
        with np.errstate(all="raise"):
            header = parse(data, field=Input.CTA)
        expected = nib.Nifti1Header.from_fileobj(io.BytesIO(data)).get_best_affine()
        assert header.form == "qform"
        assert np.allclose(header.affine, expected, atol=1e-4)


def test_half_turn_quaternion_above_one_is_accepted() -> None:
    header = parse(build(sform_code=0, quatern=(0.0, 1.0000001, 0.0)), field=Input.CTA)
    assert np.allclose(header.affine, AFFINE, atol=1e-5)


@pytest.mark.parametrize("tilt", [5, 18.5, 30, 45])
def test_gantry_tilt_is_kept(tilt: float) -> None:
    sheared = AFFINE.copy()
    sheared[1, 2] = 2 * np.tan(np.radians(tilt))
    header = parse(
        build(
            srow=tuple(sheared[:3].ravel()),
            qform_code=0,
            pixdim=(1.0, 0.5, 0.6, float(np.linalg.norm(sheared[:3, 2])), 0.0, 0.0, 0.0, 0.0),
        ),
        field=Input.CTA,
    )
    assert np.allclose(header.affine, sheared, atol=1e-5)
    assert header.spacing_mm[2] == pytest.approx(2 / np.cos(np.radians(tilt)), rel=1e-6)
    assert not header.flags


@pytest.mark.parametrize(("shift", "flagged"), [(0.0, False), (0.9, False), (1.1, True), (300.0, True)])
def test_disagreement_over_one_mm_is_flagged(shift: float, flagged: bool) -> None:
    x, y, z = AFFINE[:3, 3]
    header = parse(build(qoffset=(x + shift, y, z)), field=Input.CTA)
    assert np.allclose(header.affine, AFFINE, atol=1e-5)
    assert disagrees(header) is flagged


def test_mirrored_qform_is_flagged() -> None:
    header = parse(build(pixdim=(1.0, 0.5, 0.6, 2.0, 0.0, 0.0, 0.0, 0.0)), field=Input.CTA)
    assert disagrees(header)


@pytest.mark.parametrize("quatern", [(2.0, 0.0, 0.0), (float("nan"), 0.0, 0.0)])
def test_damaged_qform_with_valid_sform_is_flagged(quatern: tuple[float, ...]) -> None:
    assert disagrees(parse(build(quatern=quatern), field=Input.CTA))


def test_sform_with_other_voxel_size_is_flagged() -> None:
    header = parse(build(qform_code=0, pixdim=(1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)), field=Input.CTA)
    assert disagrees(header)
    assert np.allclose(header.spacing_mm, (0.5, 0.6, 2.0))


def test_origin_a_metre_away_is_accepted() -> None:
    far = AFFINE.copy()
    far[:3, 3] = 1100, -900, 1700
    header = parse(build(srow=tuple(far[:3].ravel()), qform_code=0), field=Input.CTA)
    assert np.allclose(header.affine @ CORNER, far @ CORNER)


@pytest.mark.parametrize("huge", [1e155, 1e300, 1.7e308])
def test_overflowing_numbers_are_refused_without_warning(huge: float) -> None:
    for fields in (
        {"srow": (huge,) * 12},
        {"srow": (huge, *AFFINE[:3].ravel()[1:])},
        {"sform_code": 0, "qoffset": (huge, -huge, huge)},
        {"sform_code": 0, "pixdim": (1.0, huge, huge, huge, 0.0, 0.0, 0.0, 0.0)},
    ):
        for units in (1, 2, 3):
            with pytest.raises(InvalidVolume):
                parse(build(version=2, xyzt_units=units, **fields), field=Input.CTA)


@pytest.mark.parametrize("edges", [(1.0, 1.0, 1.0), (0.5, 0.6, 2.0)])
def test_affine_that_only_scales_is_refused(edges: tuple[float, ...]) -> None:
    srow = np.zeros((3, 4))
    srow[:, :3] = np.diag(edges)
    with pytest.raises(InvalidVolume, match="left and right would be a guess"):
        parse(build(srow=tuple(srow.ravel()), qform_code=0), field=Input.CTA)
    srow[:, 3] = -80, -110, 20
    header = parse(build(srow=tuple(srow.ravel()), qform_code=0), field=Input.CTA)
    assert np.allclose(header.affine[:3], srow)


@pytest.mark.parametrize("signs", [(-1, 1, 1), (-1, -1, 1)])
def test_affine_with_a_reversed_axis_at_the_origin_is_read(signs: tuple[int, ...]) -> None:
    """Two real files of ../shared have such an affine."""
    srow = np.zeros((3, 4))
    srow[:, :3] = np.diag(signs)
    header = parse(build(srow=tuple(srow.ravel()), qform_code=0), field=Input.CTA)
    assert np.allclose(header.affine[:3], srow)


def test_qform_that_only_scales_is_refused() -> None:
    fields = {"sform_code": 0, "quatern": (0.0, 0.0, 0.0), "pixdim": (1.0, 0.5, 0.6, 2.0, 0.0, 0.0, 0.0, 0.0)}
    with pytest.raises(InvalidVolume, match="only scales"):
        parse(build(qoffset=(0.0, 0.0, 0.0), **fields), field=Input.CTA)
    assert parse(build(qoffset=(-80.0, -110.0, 20.0), **fields), field=Input.CTA).form == "qform"
