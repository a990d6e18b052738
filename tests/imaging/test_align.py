"""Alignment against answers that are known: the template that lies in MNI space already, and a real head CT."""

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
    """A whole-head CT template in MNI space, from Cormack units to HU as its source says."""
    image = nib.Nifti1Image.from_filename(real_images / "template_scct_wholehead_cormack.nii")
    stored = np.asarray(image.get_fdata(), np.float32)
    hu = np.where(stored <= 900, stored - 1000, np.where(stored <= 3100, (stored - 900) / 11 - 100, stored - 3000))
    return Volume(np.asfortranarray(np.rint(hu).astype(np.int16)), np.asarray(image.affine, np.float64))


def error_mm(mni_from_world: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Distances in mm between where brain points land and where they belong."""
    at = np.c_[brain_mask.points(), np.ones(len(brain_mask.points()))]
    landed = at @ (mni_from_world @ np.linalg.inv(truth)).T
    return np.asarray(np.linalg.norm((landed - at)[:, :3], axis=1))


def test_a_head_in_mni_space_stays_where_it_is(head: Volume) -> None:
    found = align.to_mni(align.RegistrationImage(head))
    assert not found.poor
    assert error_mm(found.mni_from_world, np.eye(4)).mean() < 5


def test_a_moved_head_comes_back_to_the_same_place(head: Volume) -> None:
    turn = np.radians(18)
    moved = np.eye(4)
    moved[1:3, 1:3] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    moved[:3, 3] = [40, -900, 700]
    there = Volume(head.data, moved @ head.affine)
    first = align.to_mni(align.RegistrationImage(head)).mni_from_world
    again = align.to_mni(align.RegistrationImage(there))
    assert not again.poor
    assert error_mm(again.mni_from_world @ moved, first).mean() < 4


def test_a_real_head_fills_the_template_s_brain(real_images: Path) -> None:
    volume = nifti.read(real_images / "ncct_human_ge_deskewed.nii.gz", field=Input.NCCT)
    found = align.to_mni(align.RegistrationImage(volume))
    assert not found.poor
    assert brain_mask.coverage(volume.affine, volume.shape, found.mni_from_world) > 0.9


@pytest.mark.parametrize("rigid", [False, True])
def test_two_scans_of_one_head_meet(head: Volume, rigid: bool) -> None:
    shift = np.eye(4)
    shift[:3, 3] = [6, -9, 4]
    found, quality = align.between(
        align.RegistrationImage(Volume(head.data, shift @ head.affine)), align.RegistrationImage(head), rigid=rigid
    )
    if rigid:
        assert np.allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-6)
    assert quality > 0.95
    assert error_mm(found @ shift, np.eye(4)).max() < 2


def test_the_same_volume_gives_the_same_matrix(head: Volume) -> None:
    first, second = (align.to_mni(align.RegistrationImage(head)).mni_from_world for _ in range(2))
    assert np.abs(first - second).max() < 1e-6


def test_what_holds_no_head_is_poor_and_raises_nothing() -> None:
    noise = np.random.default_rng(0).integers(-1000, 1500, (16, 16, 16), dtype=np.int16)
    found = align.to_mni(align.RegistrationImage(Volume(noise, np.diag([12.0, 12, 12, 1]))))
    assert found.poor
    assert np.isfinite(found.mni_from_world).all()


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["phantom", "CT template"])
def test_no_pose_fails(real_images: Path, name: str) -> None:
    """100 poses each of +-30 degrees, +-60 mm and +-10 % scale, cropped, tilted and noisy: the worst mean error."""
    from bench import align as bench

    worst, poses = 0.0, bench.scans(bench.heads(real=False)[name], 100, bench.SEED + 1)
    for pose, volume in poses:
        found = align.to_mni(align.RegistrationImage(volume))
        assert not found.poor
        worst = max(worst, bench.error(found.mni_from_world, pose)[0])
    assert worst < 3
