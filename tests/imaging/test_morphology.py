"""Morphology by shifted views equals scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from app.imaging import morphology

CROSS = ndimage.generate_binary_structure(3, 1)
IN_SLICE = ndimage.generate_binary_structure(2, 1)[None]


@pytest.fixture(params=range(4))
def mask(request: pytest.FixtureRequest) -> np.ndarray:
    rng = np.random.default_rng(request.param)
    smooth = ndimage.gaussian_filter(rng.standard_normal((13, 21, 17)), 1.5)
    found: np.ndarray = smooth > np.quantile(smooth, 0.5)
    return found


@pytest.mark.parametrize(("axes", "structure"), [(morphology.ALL_AXES, CROSS), ((1, 2), IN_SLICE)])
@pytest.mark.parametrize("times", [1, 3])
def test_dilation_and_erosion_equal_scipys(
    mask: np.ndarray, axes: tuple[int, ...], structure: np.ndarray, times: int
) -> None:
    assert (morphology.dilate(mask, axes, times) == ndimage.binary_dilation(mask, structure, times)).all()
    assert (morphology.erode(mask, axes, times) == ndimage.binary_erosion(mask, structure, times)).all()


def test_opening_equals_scipys(mask: np.ndarray) -> None:
    assert (morphology.opened(mask) == ndimage.binary_opening(mask)).all()


def test_filled_slices_equal_scipys(mask: np.ndarray) -> None:
    expected = np.stack([ndimage.binary_fill_holes(plane) for plane in mask])
    assert (morphology.fill_slices(mask) == expected).all()


def test_the_given_mask_is_not_changed(mask: np.ndarray) -> None:
    before = mask.copy()
    morphology.opened(mask)
    morphology.fill_slices(mask)
    assert (mask == before).all()
