"""Hounsfield units: wrong intercepts, slopes, signs and windows are refused, and unusual correct scans pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from app.imaging.io import nifti
from app.imaging.io.nifti import Volume
from app.imaging.plausibility import check, check_exchange
from app.sdk.errors import ImplausibleModality
from app.sdk.types import Input
from tests.imaging import heads

SHAPE, SPACING = (100, 120, 90), (2.0, 2.0, 2.0)
Change = Callable[[np.ndarray], np.ndarray]


def codes(volume: Volume, field: Input) -> set[str]:
    return {flag.code for flag in check(volume, field)} - {"slice-thickness"}


@pytest.fixture(scope="module")
def head() -> Volume:
    """A head with bone of 600 to 1400 HU; bone of one density does not exist."""
    affine = heads.grid(SHAPE, SPACING)
    values = heads.tissues(affine, SHAPE)
    bone = values == heads.BONE
    values[bone] += np.random.default_rng(1).uniform(-400, 400, bone.sum())
    return heads.stored(ndimage.gaussian_filter(values, 0.5), affine, noise=5)


@pytest.fixture(scope="module")
def angiogram() -> heads.Angiogram:
    return heads.angiogram((172, 200, 160), (1.1, 1.1, 1.1), contrast=350)


@pytest.fixture(scope="module")
def real(real_images: Path) -> Volume:
    return nifti.read(real_images / "ncct_human_ge_deskewed.nii.gz", field=Input.NCCT)


def changed(volume: Volume, change: Change) -> Volume:
    return dataclasses.replace(
        volume, data=np.asfortranarray(np.round(change(volume.data.astype(np.float32))), np.int16)
    )


def outside_circle(values: np.ndarray, padding: float) -> np.ndarray:
    """The values with padding outside a circular field of view that holds the head."""
    x, y = (np.linspace(-1, 1, n) for n in values.shape[:2])
    outside = np.hypot(x[:, None], y) > 1.05
    return np.where(outside[..., None], np.float32(padding), values)


WRONG: dict[str, tuple[Change, str]] = {
    "stored values": (lambda v: v + 1024, "not Hounsfield units"),
    "stored values of a GE scanner, with padding": (lambda v: outside_circle(v + 1024, -2000), "intercept is missing"),
    "intercept applied twice": (lambda v: v - 1024, "applied twice"),
    "intercept applied twice, with padding": (lambda v: outside_circle(v, -2000) - 1024, "applied twice"),
    "half the slope": (lambda v: v * 0.5, "wrong slope"),
    "double slope": (lambda v: v * 2, "wrong slope"),
    "ten times the slope": (lambda v: v * 10, "wrong slope|not Hounsfield units"),
    "inverted sign": (lambda v: -v, "sign is inverted"),
    "cut at 300 HU": (lambda v: np.minimum(v, 300), "display window"),
    "window 80/40": (lambda v: np.clip(v, 0, 80), "not Hounsfield units|display window"),
    "window 80/40, with padding": (lambda v: outside_circle(np.clip(v, 0, 80), -1024), "display window"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused(head: Volume, name: str) -> None:
    change, reason = WRONG[name]
    with pytest.raises(ImplausibleModality, match=reason):
        check(changed(head, change), Input.NCCT)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_of_a_real_head_are_refused(real: Volume, name: str) -> None:
    """The file has padding of its own, which the changes move, too; so the reason may be another one."""
    with pytest.raises(ImplausibleModality, match=r"not Hounsfield units|display window"):
        check(changed(real, WRONG[name][0]), Input.NCCT)


def craniectomy(values: np.ndarray) -> np.ndarray:
    opened = values.copy()
    piece = opened[:45, :, 50:]
    piece[piece > 150] = 40
    return opened


def low_dose(values: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(values.shape).astype(np.float32)
    return np.clip(values + 40 * noise, -1024, 3071)


def metal(values: np.ndarray) -> np.ndarray:
    clipped = values.copy()
    clipped[45:55, 60:70, 40:50] = 3071
    return clipped


VALID: dict[str, Change] = {
    "as drawn": lambda v: v,
    "padding -1500": lambda v: outside_circle(v, -1500),
    "padding -2000": lambda v: outside_circle(v, -2000),
    "padding -3024": lambda v: outside_circle(v, -3024),
    "air replaced by -1024": lambda v: np.where(v < -500, np.float32(-1024), v),
    "air replaced by the padding": lambda v: np.where(v < -500, np.float32(-2000), v),
    "air replaced by zero": lambda v: np.where(v < -200, np.float32(0), v),
    "craniectomy": craniectomy,
    "low dose": low_dose,
    "metal at the highest value of 12 bits": metal,
    "calibration 15 HU too high": lambda v: v + 15,
}


@pytest.mark.parametrize("name", VALID)
def test_unusual_heads_pass(head: Volume, name: str) -> None:
    said = {"metal"} if name.startswith("metal") else set()  # it is no warning
    assert codes(changed(head, VALID[name]), Input.NCCT) == said


@pytest.mark.parametrize("name", VALID)
def test_unusual_real_heads_pass(real: Volume, name: str) -> None:
    assert codes(changed(real, VALID[name]), Input.NCCT) == set()


def test_neck_and_lungs_below_the_head_pass(head: Volume) -> None:
    """As in a CTA from the aortic arch: muscle, fat and lungs in 150 mm below the head."""
    below = np.full((100, 120, 75), 50, np.float32)
    below[:8] = below[-8:] = -100
    below[15:45, 20:100, :40] = below[55:85, 20:100, :40] = -850
    affine = head.affine.copy()
    affine[2, 3] -= 150
    data = np.concatenate([below, head.data.astype(np.float32)], axis=2)
    assert codes(heads.stored(data, affine, noise=5), Input.NCCT) == set()


def test_values_40_hu_too_high_are_flagged(head: Volume) -> None:
    assert codes(changed(head, lambda v: v + 40), Input.NCCT) == {"hu-doubtful"}


def test_cut_cta_is_flagged(angiogram: heads.Angiogram) -> None:
    assert codes(changed(angiogram.cta, lambda v: np.minimum(v, 500)), Input.CTA) == {"hu-cut"}
    assert codes(changed(angiogram.ncct, lambda v: np.minimum(v, 500)), Input.NCCT) == set()
    assert codes(changed(angiogram.cta, lambda v: np.minimum(v, 900)), Input.CTA) == set()


def test_cut_brain_without_skull_is_refused(head: Volume) -> None:
    """Windowed to 0..80 HU, the skull is a plateau at 80, which a skull-stripped brain does not have."""
    with pytest.raises(ImplausibleModality):
        check(changed(head, lambda v: np.clip(v, 0, 80)), Input.NCCT)


# Contrast ------------------------------------------------------------------------------------------------------------


def thick(volume: Volume, count: int) -> Volume:
    data = volume.data[..., : volume.shape[2] // count * count]
    means = data.reshape(*data.shape[:2], -1, count).mean(axis=-1)
    return Volume(np.asfortranarray(np.round(means), np.int16), volume.affine @ np.diag([1, 1, count, 1]))


@pytest.mark.parametrize("contrast", [350, 600, 900])
@pytest.mark.parametrize("slices", [1, 4])
def test_contrast_is_seen_at_any_strength_and_in_thick_slices(contrast: float, slices: int) -> None:
    drawn = heads.angiogram((172, 200, 160), (1.1, 1.1, 1.1), contrast=contrast)
    cta, ncct = thick(drawn.cta, slices), thick(drawn.ncct, slices)
    assert codes(cta, Input.CTA) == codes(ncct, Input.NCCT) == set()
    assert codes(cta, Input.NCCT) == codes(ncct, Input.CTA) == {"contrast-doubtful"}


def test_weak_contrast_passes() -> None:
    drawn = heads.angiogram((172, 200, 160), (1.1, 1.1, 1.1), contrast=220)
    assert codes(drawn.cta, Input.CTA) == set()


def test_exchanged_cta_and_ncct_are_refused(angiogram: heads.Angiogram) -> None:
    right = (*check(angiogram.cta, Input.CTA), *check(angiogram.ncct, Input.NCCT))
    check_exchange(right)
    with pytest.raises(ImplausibleModality, match="exchange") as refusal:
        check_exchange((*check(angiogram.ncct, Input.CTA), *check(angiogram.cta, Input.NCCT)))
    assert {error.field for error in refusal.value.errors} == {Input.NCCT, Input.CTA}


def test_calcifications_and_bleeding_are_not_contrast(angiogram: heads.Angiogram) -> None:
    values = np.array(angiogram.ncct.data)
    x, y, z = (n // 2 for n in values.shape)
    for side in (-20, 16):
        values[x + side : x + side + 5, y - 20 : y - 12, z : z + 6] = 400  # choroid plexus
    values[x : x + 2, y : y + 20, z + 15 : z + 20] = 500  # falx
    values[x + 22 : x + 45, y : y + 25, z : z + 20] = 72  # bleeding
    assert codes(dataclasses.replace(angiogram.ncct, data=values), Input.NCCT) == set()
