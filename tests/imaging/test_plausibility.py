"""Plausibility checks: real files in the wrong field are refused, real heads pass, doubts give flags."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from app.imaging.io import nifti
from app.imaging.io.nifti import Volume
from app.imaging.plausibility import check
from app.phantoms import biology, scene, volumes
from app.phantoms.scanner import Metal, Scanner
from app.sdk.errors import ImplausibleModality
from app.sdk.flags import Severity, severity_of
from app.sdk.types import Input
from tests.imaging import heads

CT = (Input.NCCT, Input.CTA)
SHAPE = (100, 120, 90)


def codes(volume: Volume, field: Input) -> set[str]:
    return {flag.code for flag in check(volume, field)}


def head(noise: float = 4.0) -> Volume:
    return heads.ct(heads.grid(SHAPE, (2, 2, 2)), SHAPE, noise=noise)


# Real files --------------------------------------------------------------------------------------------------------


def test_real_ncct_has_no_flags(real_images: Path) -> None:
    volume = nifti.read(real_images / "ncct_human_ge_deskewed.nii.gz", field=Input.NCCT)
    assert codes(volume, Input.NCCT) == set()


def test_real_ncct_sent_as_cta_is_flagged(real_images: Path) -> None:
    volume = nifti.read(real_images / "ncct_human_ge_deskewed.nii.gz", field=Input.NCCT)
    assert "slice-thickness" in codes(volume, Input.CTA)


@pytest.mark.parametrize("field", CT)
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ct_abdomen_int32.nii.gz", "not a CT of the head"),
        ("ct_headphantom_pitch_uint8.nii.gz", "not Hounsfield units"),
        ("template_scct_wholehead_cormack.nii", "not Hounsfield units"),
        ("template_scct_stripped_cormack.nii", "not Hounsfield units"),
        ("nifti2_mr.nii.gz", "not Hounsfield units"),
        ("orient_AIL.nii.gz", "not Hounsfield units"),
        ("bigendian_int16.nii", "not Hounsfield units"),
        ("cta_avm_vessels.nii.gz", "not Hounsfield units"),
        ("labels_float64_blast_atlas.nii.gz", "not Hounsfield units"),
        ("atlas_arterial_territories.nii.gz", "not Hounsfield units"),
    ],
)
def test_volume_that_is_not_a_head_ct_is_refused(real_images: Path, name: str, reason: str, field: Input) -> None:
    volume = nifti.read(real_images / name, field=field)
    with pytest.raises(ImplausibleModality, match=reason) as refusal:
        check(volume, field)
    assert refusal.value.errors[0].field == field


def test_plastic_head_in_hu_is_flagged(real_images: Path) -> None:
    volume = nifti.read(real_images / "ct_headphantom_shear_uint8_scaled.nii.gz", field=Input.NCCT)
    assert "head-doubtful" in codes(volume, Input.NCCT)


def test_skull_stripped_brain_in_hu_is_flagged(real_images: Path) -> None:
    volume = nifti.read(real_images / "template_ct_stripped_hu.nii", field=Input.NCCT)
    assert codes(volume, Input.NCCT) == {"skull-stripped"}


def test_angiogram_sent_as_mask_is_refused(real_images: Path) -> None:
    volume = nifti.read(real_images / "cta_avm_vessels.nii.gz", field=Input.VESSELS)
    with pytest.raises(ImplausibleModality, match="mask is expected"):
        check(volume, Input.VESSELS)


@pytest.mark.parametrize("name", ["mask_native_lps_qform_only.nii.gz", "atlas_arterial_territories.nii.gz"])
def test_label_map_is_a_mask(real_images: Path, name: str) -> None:
    volume = nifti.read(real_images / name, field=Input.VESSELS)
    assert codes(volume, Input.VESSELS) == set()


# Drawn heads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "spacing", "as_ncct", "as_cta"),
    [
        ((16, 16, 16), 12.0, {"slice-thickness"}, {"slice-thickness"}),
        ((24, 24, 24), 8.0, {"slice-thickness"}, {"slice-thickness"}),
        ((48, 56, 48), 4.0, set(), {"slice-thickness", "contrast-doubtful"}),
        ((100, 120, 90), 2.0, set(), {"slice-thickness", "contrast-doubtful"}),
        ((200, 240, 12), 0.9, set(), {"contrast-doubtful"}),
    ],
)
def test_head_of_any_size_passes(
    shape: tuple[int, int, int], spacing: float, as_ncct: set[str], as_cta: set[str]
) -> None:
    volume = heads.ct(heads.grid(shape, (spacing,) * 3), shape, noise=5)
    assert codes(volume, Input.NCCT) == as_ncct
    assert codes(volume, Input.CTA) == as_cta


@pytest.mark.parametrize("padding", [-1500, -2000, -3024])
def test_padding_below_air_passes(padding: int) -> None:
    volume = head()
    data = np.array(volume.data)
    data[:20] = data[-20:] = padding
    assert codes(dataclasses.replace(volume, data=data), Input.NCCT) == set()


def test_metal_passes_and_is_said() -> None:
    volume = head()
    data = np.array(volume.data)
    data[48:54, 50:56, 40:44] = 12_000
    assert codes(dataclasses.replace(volume, data=data), Input.NCCT) == {"metal"}
    assert severity_of("metal") is Severity.INFO


@pytest.mark.parametrize(
    ("place_mm", "hu", "found"),
    [
        ((-20.0, 4.0, -12.0), 2200.0, {"metal"}),  # a clip at the middle cerebral artery
        ((0.0, 22.0, -12.0), 2200.0, {"metal"}),
        ((26.0, 48.0, -92.0), 3000.0, set()),  # a dental filling
        ((-20.0, 4.0, -12.0), 1100.0, set()),  # the densest plaque
    ],
)
def test_clip_is_said_and_filling_and_plaque_are_not(
    place_mm: tuple[float, float, float], hu: float, found: set[str]
) -> None:
    metal = Metal(place_mm, hu=hu, streak_hu=100.0, angles=(0.3, 1.0, 2.0))
    variation = dataclasses.replace(scene.draw_variation(7, 0), scanner=Scanner(metal=metal))
    drawn, pose = scene.build(biology.draw(1, 7)[0], variation), volumes.draw_pose(np.random.default_rng(7))
    series = next(one for one in volumes.series(drawn, pose) if one.name == "ncct")
    assert codes(Volume(np.asfortranarray(series.data), series.affine), Input.NCCT) == found


def test_missing_piece_of_skull_passes() -> None:
    volume = head()
    data = np.array(volume.data)
    data[60:, :, 50:][data[60:, :, 50:] > 200] = 40
    assert codes(dataclasses.replace(volume, data=data), Input.NCCT) == set()


def test_air_set_to_zero_passes() -> None:
    volume = head()
    data = np.array(volume.data)
    data[data < -200] = 0
    assert codes(dataclasses.replace(volume, data=data), Input.NCCT) == set()


def test_missing_rescale_intercept_is_refused() -> None:
    volume = head()
    with pytest.raises(ImplausibleModality, match="intercept"):
        check(dataclasses.replace(volume, data=(volume.data + 1024).astype(np.int16)), Input.NCCT)


def test_brain_window_is_refused() -> None:
    volume = head()
    shown = (np.clip(volume.data, 0, 80) / 80 * 255).astype(np.uint8)
    with pytest.raises(ImplausibleModality, match="display levels"):
        check(dataclasses.replace(volume, data=shown), Input.NCCT)


def test_thorax_is_refused() -> None:
    affine = np.diag([4.0, 4.0, 5.0, 1.0])
    i, j, k = np.indices((90, 70, 60))
    chest = np.hypot((i - 45) / 42, (j - 35) / 30) < 1
    lungs = np.minimum(np.hypot((i - 25) / 14, (j - 35) / 20), np.hypot((i - 65) / 14, (j - 35) / 20)) < 1
    values = np.where(lungs, -800, np.where(chest, 40, -1000)) + 0 * k
    with pytest.raises(ImplausibleModality, match="not a CT of the head"):
        check(Volume(values.astype(np.int16), affine), Input.CTA)


def test_missing_contrast_is_flagged() -> None:
    drawn = heads.angiogram((190, 220, 190), (1.0, 1.0, 1.0))
    assert codes(drawn.cta, Input.CTA) == set()
    assert codes(drawn.ncct, Input.CTA) == {"contrast-doubtful"}
    assert codes(drawn.ncct, Input.NCCT) == set()


# Maps and masks ----------------------------------------------------------------------------------------------------


def map_of(value: float, peak: float) -> Volume:
    values = np.zeros((40, 40, 20), np.float32)
    values[5:35, 5:35] = value
    values[10:20, 10:20, 5:15] = peak
    return Volume(values, np.diag([4.0, 4.0, 6.0, 1.0]))


def test_maps_have_no_flags() -> None:
    assert codes(map_of(2, 12), Input.TMAX) == set()
    assert codes(map_of(50, 5), Input.CBF) == set()


def test_nan_outside_the_brain_passes() -> None:
    volume = map_of(2, 12)
    values = np.array(volume.data)
    values[values == 0] = np.nan
    assert codes(Volume(values, volume.affine), Input.TMAX) == set()


@pytest.mark.parametrize("field", [Input.TMAX, Input.MTT])
def test_milliseconds_are_refused(field: Input) -> None:
    with pytest.raises(ImplausibleModality, match="seconds"):
        check(map_of(2000, 12_000), field)


@pytest.mark.parametrize("field", [Input.TMAX, Input.CBF, Input.CBV, Input.MTT])
def test_ct_sent_as_map_is_refused(field: Input) -> None:
    with pytest.raises(ImplausibleModality, match="perfusion map"):
        check(head(), field)


def test_tmax_without_delay_is_flagged() -> None:
    assert codes(map_of(0.2, 1.0), Input.TMAX) == {"tmax-doubtful"}


def test_empty_and_inverted_masks() -> None:
    mask = np.zeros((30, 30, 30), np.uint8)
    plain = Volume(mask, np.eye(4))
    assert codes(plain, Input.VESSELS) == {"vessels-empty"}
    mask[10:12] = 255
    assert codes(plain, Input.VESSELS) == set()
    with pytest.raises(ImplausibleModality, match="mask is expected"):
        check(Volume(255 - mask, np.eye(4)), Input.VESSELS)
