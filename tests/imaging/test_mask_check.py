"""Vessel masks: brain, bone and lesions are refused; displaced and mirrored masks are flagged; unusual masks pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from app.imaging import mask_check, vessels
from app.imaging.io.nifti import Volume
from app.imaging.registration import brain_mask
from app.sdk.errors import ImplausibleModality
from app.sdk.flags import Severity
from app.sdk.types import Flag, Input
from tests.imaging import heads

MNI = np.eye(4)
SHAPE, SPACING = (144, 168, 144), (1.3, 1.3, 1.3)


@pytest.fixture(scope="module")
def drawn() -> heads.Angiogram:
    return heads.angiogram(SHAPE, SPACING)


@pytest.fixture(scope="module")
def depth(drawn: heads.Angiogram) -> np.ndarray:
    return brain_mask.distance(drawn.cta.affine, SHAPE, MNI)


@pytest.fixture(scope="module")
def one_occluded(drawn: heads.Angiogram) -> np.ndarray:
    """The arteries without those of the left middle cerebral artery."""
    x = drawn.cta.affine[0, 3] + SPACING[0] * np.arange(SHAPE[0])
    return drawn.vessels & ~(x < -22)[:, None, None]


def mask_of(voxels: np.ndarray, like: Volume) -> Volume:
    return Volume(np.asfortranarray(voxels, np.uint8), like.affine)


def content(voxels: np.ndarray, drawn: heads.Angiogram, kind: Input = Input.CTA) -> set[str]:
    ct = drawn.cta if kind is Input.CTA else drawn.ncct
    return codes(mask_check.content(mask_of(voxels, drawn.cta), ct, kind, MNI))


def codes(flags: tuple[Flag, ...]) -> set[str]:
    return {flag.code for flag in flags}


def lesion(depth: np.ndarray, ml: float) -> np.ndarray:
    """A ball in the right hemisphere."""
    radius = np.cbrt(ml * 1000 * 3 / (4 * np.pi))
    at = np.stack(np.indices(SHAPE), axis=-1) * SPACING + heads.grid(SHAPE, SPACING)[:3, 3]
    return (np.linalg.norm(at - [34, -20, 32], axis=-1) < radius) & (depth < 0)


def test_true_mask_passes(drawn: heads.Angiogram, one_occluded: np.ndarray) -> None:
    for voxels in (drawn.vessels, one_occluded):
        assert content(voxels, drawn) == set()
        assert content(voxels, drawn, Input.NCCT) == set()


def test_wide_mask_passes(drawn: heads.Angiogram) -> None:
    assert content(ndimage.binary_dilation(drawn.vessels), drawn) == set()


def test_mask_with_a_large_aneurysm_passes(depth: np.ndarray) -> None:
    """A ball of 9 mL with contrast is compact, but it is bright."""
    drawn = heads.angiogram(SHAPE, SPACING)
    sac = lesion(depth, 9)
    values = np.where(sac, np.int16(350), drawn.cta.data)
    mask = mask_of(drawn.vessels | sac, drawn.cta)
    assert mask_check.content(mask, Volume(values, drawn.cta.affine), Input.CTA, MNI) == ()


def test_mask_on_another_grid_passes(drawn: heads.Angiogram) -> None:
    """Every second slice, stored from head to foot."""
    affine = drawn.cta.affine @ np.diag([1, 1, -2, 1])
    affine[:3, 3] = (drawn.cta.affine @ [0, 0, SHAPE[2] - 1, 1])[:3]
    mask = Volume(np.asfortranarray(drawn.vessels[:, :, ::-2], np.uint8), affine)
    assert mask_check.content(mask, drawn.cta, Input.CTA, MNI) == ()


@pytest.mark.parametrize("kind", [Input.CTA, Input.NCCT])
@pytest.mark.parametrize("name", ["brain", "half a brain", "bone", "lesion of 20 mL", "lesion of 100 mL"])
def test_mask_of_something_else_is_refused(drawn: heads.Angiogram, depth: np.ndarray, name: str, kind: Input) -> None:
    masks = {
        "brain": depth < 0,
        "half a brain": (depth < 0) & (np.arange(SHAPE[0]) < SHAPE[0] / 2)[:, None, None],
        "bone": drawn.ncct.data > 300,
        "lesion of 20 mL": lesion(depth, 20),
        "lesion of 100 mL": lesion(depth, 100),
    }
    with pytest.raises(ImplausibleModality, match="not a mask of vessels") as refusal:
        content(masks[name], drawn, kind)
    assert refusal.value.errors[0].field == Input.VESSELS


def test_small_lesion_is_refused_beside_a_cta(drawn: heads.Angiogram, depth: np.ndarray) -> None:
    with pytest.raises(ImplausibleModality, match="lesion"):
        content(lesion(depth, 5), drawn)


@pytest.mark.parametrize("shift", [(10, 0, 0), (0, 8, 8), (0, 0, 19), (-6, 6, -6)])
def test_displaced_mask_is_flagged(drawn: heads.Angiogram, shift: tuple[int, int, int]) -> None:
    assert content(np.roll(drawn.vessels, shift, axis=(0, 1, 2)), drawn) == {"vessels-misplaced"}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirrored_mask_is_flagged(drawn: heads.Angiogram, one_occluded: np.ndarray, axis: int) -> None:
    """Left and right differ by the occlusion only: the drawn arteries are symmetric, those of patients are not."""
    cta = np.where(drawn.vessels & ~one_occluded, np.int16(heads.TISSUE), drawn.cta.data)
    mask = mask_of(np.flip(one_occluded, axis), drawn.cta)
    shifted = Volume(np.roll(cta, 3, axis=0), drawn.cta.affine)
    true = mask_of(np.roll(one_occluded, 3, axis=0), drawn.cta)
    assert mask_check.content(true, shifted, Input.CTA, MNI) == ()
    mirrored = Volume(np.flip(true.data, axis), mask.affine)
    assert codes(mask_check.content(mirrored, shifted, Input.CTA, MNI)) == {"vessels-misplaced"}


def test_mask_outside_the_brain_is_flagged(drawn: heads.Angiogram, depth: np.ndarray) -> None:
    scalp = (np.abs(depth - 13) < 1.5) & (np.indices(SHAPE)[2] % 12 == 0)
    assert content(scalp, drawn) == {"vessels-misplaced"}


# Amount --------------------------------------------------------------------------------------------------------------


def amount(mask: Volume, *, complete: bool = True) -> set[str]:
    return codes(mask_check.amount(mask, MNI, complete=complete))


def test_empty_mask_is_flagged(drawn: heads.Angiogram) -> None:
    empty = vessels.segment(drawn.ncct, MNI)
    assert amount(empty) == amount(empty, complete=False) == {"vessels-empty"}


def test_small_mask_is_flagged_if_the_brain_is_in_view(drawn: heads.Angiogram) -> None:
    few = drawn.vessels & (np.indices(SHAPE)[2] > 0.66 * SHAPE[2])
    assert amount(mask_of(few, drawn.cta)) == {"vessels-few"}
    assert amount(mask_of(few, drawn.cta), complete=False) == set()


def test_arteries_of_one_side_are_flagged(drawn: heads.Angiogram) -> None:
    left = drawn.vessels & (np.arange(SHAPE[0]) < 0.49 * SHAPE[0])[:, None, None]
    assert amount(mask_of(left, drawn.cta)) == {"vessels-one-sided"}


def test_arteries_of_an_occlusion_pass(drawn: heads.Angiogram, one_occluded: np.ndarray) -> None:
    assert amount(mask_of(one_occluded, drawn.cta)) == set()


@pytest.mark.parametrize("contrast", [220, 350, 800])
def test_computed_mask_passes(contrast: float) -> None:
    drawn = heads.angiogram(SHAPE, SPACING, contrast=contrast)
    found = vessels.segment(drawn.cta, MNI)
    assert amount(found) == set()
    assert content(found.data > 0, drawn) == set()


# Contrast ------------------------------------------------------------------------------------------------------------


def contrast_flags(drawn: heads.Angiogram, mask: Volume | None = None) -> tuple[Flag, ...]:
    return mask_check.contrast(mask or vessels.segment(drawn.cta, MNI), drawn.cta, MNI)


@pytest.mark.parametrize(("contrast", "noise"), [(150, 5), (150, 15), (150, 40), (180, 15)])
def test_weakly_filled_arteries_are_flagged_whatever_the_noise(contrast: float, noise: float) -> None:
    drawn = heads.angiogram(SHAPE, SPACING, contrast=contrast, noise=noise)
    (flag,) = contrast_flags(drawn)
    assert flag.code == "contrast-weak"
    assert flag.severity is Severity.WARNING
    level = float(flag.detail.split(" have ")[1].split(" HU")[0])
    assert contrast - 20 < level < contrast + 20


@pytest.mark.parametrize(("contrast", "noise"), [(220, 15), (220, 40), (350, 15), (800, 15)])
def test_well_filled_arteries_pass(contrast: float, noise: float) -> None:
    assert contrast_flags(heads.angiogram(SHAPE, SPACING, contrast=contrast, noise=noise)) == ()


def test_well_filled_arteries_pass_in_a_wide_mask() -> None:
    drawn = heads.angiogram(SHAPE, SPACING, contrast=220)
    assert contrast_flags(drawn, mask_of(ndimage.binary_dilation(drawn.vessels), drawn.cta)) == ()


def test_contrast_of_an_empty_mask_is_not_judged(drawn: heads.Angiogram) -> None:
    assert contrast_flags(drawn, mask_of(np.zeros(SHAPE), drawn.cta)) == ()


def with_straight_sinus(drawn: heads.Angiogram, hu: float) -> heads.Angiogram:
    """A late phase: a straight sinus of 6 mm, in the CTA and in the mask."""
    x, y, z = np.stack(np.indices(SHAPE), axis=0) * SPACING[0] + heads.grid(SHAPE, SPACING)[:3, 3, None, None, None]
    sinus = (np.hypot(x, z - 8 - 0.3 * (y + 60)) < 3) & (y > -78) & (y < -42)
    cta = replace(drawn.cta, data=np.where(sinus, np.int16(hu), drawn.cta.data))
    return replace(drawn, cta=cta, vessels=drawn.vessels | sinus)


def late_flags(drawn: heads.Angiogram, hu: float) -> set[str]:
    late = with_straight_sinus(drawn, hu)
    return codes(contrast_flags(late, mask_of(late.vessels, late.cta)))


@pytest.mark.parametrize(("contrast", "found"), [(150, {"contrast-weak", "contrast-late"}), (220, {"contrast-late"})])
def test_bright_veins_do_not_hide_weak_arteries(contrast: float, found: set[str]) -> None:
    """Before, the level was that of the veins, so weakly filled arteries passed."""
    assert late_flags(heads.angiogram(SHAPE, SPACING, contrast=contrast), 320) == found


def test_arteries_that_only_a_late_mask_lacks_are_weak() -> None:
    """The mask holds veins and distant branches, but nothing around the circle of Willis, which the CTA shows."""
    late = with_straight_sinus(heads.angiogram(SHAPE, SPACING, contrast=80), 300)
    x, y, z = np.stack(np.indices(SHAPE), axis=0) * SPACING[0] + heads.grid(SHAPE, SPACING)[:3, 3, None, None, None]
    near = (np.abs(x) < 40) & (np.abs(y) < 30) & (z < 15)
    (flag,) = contrast_flags(late, mask_of(late.vessels & ~near, late.cta))
    assert flag.code == "contrast-weak"
    assert "circle of Willis" in flag.detail


@pytest.mark.parametrize(("contrast", "sinus"), [(350, 150), (350, 360), (220, 220)])
def test_usual_veins_pass(contrast: float, sinus: float) -> None:
    """Single-phase angiograms often show veins as bright as arteries."""
    assert late_flags(heads.angiogram(SHAPE, SPACING, contrast=contrast), sinus) == set()


# The NCCT ------------------------------------------------------------------------------------------------------------


def plain_blood_flags(drawn: heads.Angiogram, blood: np.ndarray, shift_mm: float = 0.0) -> tuple[Flag, ...]:
    """Flags for an NCCT with these HU (X, Y, Z) in its arteries, after a movement along y."""
    moved = np.eye(4)
    moved[1, 3] = shift_mm
    values = np.where(drawn.vessels, blood, drawn.ncct.data).astype(np.int16)
    ncct = Volume(np.asfortranarray(values), moved @ drawn.ncct.affine)
    return mask_check.plain_blood(mask_of(drawn.vessels, drawn.cta), drawn.cta, ncct, (MNI, moved))


@pytest.mark.parametrize("shift_mm", [0.0, 15.0])
@pytest.mark.parametrize("hu", [80, 100, 130])
def test_ncct_after_contrast_is_flagged(drawn: heads.Angiogram, hu: float, shift_mm: float) -> None:
    (flag,) = plain_blood_flags(drawn, np.full(SHAPE, hu), shift_mm)
    assert flag.code == "ncct-contrast"
    assert flag.severity is Severity.WARNING
    assert flag.detail.startswith(f"ncct: the blood in the wide arteries has {hu} HU")


@pytest.mark.parametrize("hu", [30, 45, 60])
def test_blood_without_contrast_passes(drawn: heads.Angiogram, hu: float) -> None:
    """60 HU: a haematocrit of 60 %, or a dense clot in every artery."""
    noise = np.random.default_rng(0).normal(0, 25, SHAPE)
    assert plain_blood_flags(drawn, hu + noise) == ()


def test_calcified_arteries_pass(drawn: heads.Angiogram) -> None:
    """A third of the arteries is calcified."""
    hard = np.random.default_rng(0).random((SHAPE[0] // 4, SHAPE[1] // 4, SHAPE[2] // 4)) < 0.33
    everywhere = np.kron(hard, np.ones((4, 4, 4), bool))
    assert plain_blood_flags(drawn, np.where(everywhere, 600, 45)) == ()


def test_ncct_of_an_empty_mask_is_not_judged(drawn: heads.Angiogram) -> None:
    empty = mask_of(np.zeros(SHAPE), drawn.cta)
    assert mask_check.plain_blood(empty, drawn.cta, drawn.ncct, (MNI, MNI)) == ()
