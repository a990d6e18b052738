"""Registration with known results: a CT template in MNI space, and a real head CT."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from app.imaging.io import nifti
from app.imaging.io.nifti import Volume
from app.imaging.registration import align, brain_mask
from app.sdk.types import Input


@pytest.fixture(scope="module")
def head(real_images: Path) -> Volume:
    """A whole-head CT template in MNI space, converted from Cormack units to HU as its source describes."""
    image = nib.Nifti1Image.from_filename(real_images / "template_scct_wholehead_cormack.nii")
    stored = np.asarray(image.get_fdata(), np.float32)
    hu = np.where(stored <= 900, stored - 1000, np.where(stored <= 3100, (stored - 900) / 11 - 100, stored - 3000))
    return Volume(np.asfortranarray(np.rint(hu).astype(np.int16)), np.asarray(image.affine, np.float64))


def error_mm(mni_from_world: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Distance of each brain point from its true position, mm."""
    at = np.c_[brain_mask.points(), np.ones(len(brain_mask.points()))]
    mapped = at @ (mni_from_world @ np.linalg.inv(truth)).T
    return np.asarray(np.linalg.norm((mapped - at)[:, :3], axis=1))


def test_head_in_mni_space_is_not_moved(head: Volume) -> None:
    found = align.to_mni(align.RegistrationImage(head))
    assert not found.poor
    assert error_mm(found.mni_from_world, np.eye(4)).mean() < 1.88  # measured 1.44 mm


def test_moved_head_returns_to_the_same_position(head: Volume) -> None:
    turn = np.radians(18)
    moved = np.eye(4)
    moved[1:3, 1:3] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    moved[:3, 3] = [40, -900, 700]
    first = align.to_mni(align.RegistrationImage(head)).mni_from_world
    again = align.to_mni(align.RegistrationImage(Volume(head.data, moved @ head.affine)))
    assert not again.poor
    assert error_mm(again.mni_from_world @ moved, first).mean() < 0.226  # measured 0.173 mm


def test_field_of_view_of_real_head_covers_the_template_brain(real_images: Path) -> None:
    volume = nifti.read(real_images / "ncct_human_ge_deskewed.nii.gz", field=Input.NCCT)
    found = align.to_mni(align.RegistrationImage(volume))
    assert not found.poor
    assert brain_mask.coverage(volume.affine, volume.shape, found.mni_from_world) == 1


@pytest.mark.parametrize("rigid", [False, True])
def test_coregistration_of_a_shifted_copy_is_exact(head: Volume, rigid: bool) -> None:
    shift = np.eye(4)
    shift[:3, 3] = [6, -9, 4]
    found, quality, mismatch_mm = align.coregister(
        align.RegistrationImage(Volume(head.data, shift @ head.affine)), align.RegistrationImage(head), rigid=rigid
    )
    if rigid:
        assert np.allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-6)
    assert quality == pytest.approx(1)
    assert mismatch_mm < 0.01
    assert error_mm(found @ shift, np.eye(4)).max() < 1e-6  # measured 5e-11 mm


def test_the_same_volume_gives_the_same_matrix(head: Volume) -> None:
    first, second = (align.to_mni(align.RegistrationImage(head)).mni_from_world for _ in range(2))
    assert np.array_equal(first, second)


def test_volume_without_a_head_gives_poor_finite_alignment() -> None:
    noise = np.random.default_rng(0).integers(-1000, 1500, (16, 16, 16), dtype=np.int16)
    found = align.to_mni(align.RegistrationImage(Volume(noise, np.diag([12.0, 12, 12, 1]))))
    assert found.poor
    assert np.isfinite(found.mni_from_world).all()


def test_tilted_head_without_its_vertex_is_not_stretched(real_images: Path) -> None:
    """Its intracranial space looks flat, so the start search also tries a flat head, which fits its outline well."""
    from bench import align as bench

    head = bench.ct_template(real_images / bench.CT_TEMPLATE.name)
    world_from_mni = np.eye(4)
    world_from_mni[:3, :3] = align.rotation((-20, 5, 10))
    for crop in (15.0, 30.0):
        pose = bench.Pose(world_from_mni, np.array([1.0, 1, 5]), crop, noise=5, tilt=0)
        volume = bench.scan(head, pose, np.random.default_rng(0))
        found = align.to_mni(align.RegistrationImage(volume))
        assert bench.error(found.mni_from_world, pose)[0] < 3  # measured 1.53 mm, and 36 mm from the flat start


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("name", "bound_mm"), [("phantom", 1.3), ("CT template", 3.0)])
def test_random_poses_are_aligned(real_images: Path, name: str, bound_mm: float) -> None:
    """100 poses each of +-30 degrees, +-60 mm and +-10 % scale, cropped, tilted and noisy: the worst mean error."""
    from bench import align as bench

    worst, poses = 0.0, bench.scans(bench.heads(real=False)[name], 100, bench.SEED + 1)
    for pose, volume in poses:
        found = align.to_mni(align.RegistrationImage(volume))
        assert not found.poor
        worst = max(worst, bench.error(found.mni_from_world, pose)[0])
    assert worst < bound_mm  # measured 1.00 and 2.87 mm
