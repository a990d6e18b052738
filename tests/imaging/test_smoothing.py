"""Kernels against scipy on the same arrays."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from app.imaging import bone, connected
from app.imaging.resample import resample
from app.imaging.smoothing import gaussian

SHAPES = [(5, 6, 7), (1, 4, 3), (31, 18, 22), (40, 1, 9)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sigma", [(0.7, 0.8, 0.9), (1.3, 2.0, 0.4), (3.0, 3.0, 3.0)])
def test_gaussian_equals_scipy(shape: tuple[int, int, int], sigma: tuple[float, float, float]) -> None:
    values = np.random.default_rng(0).normal(0, 1000, shape).astype(np.float32)
    expected = ndimage.gaussian_filter(values.astype(np.float64), sigma, truncate=2.5, mode="nearest")
    assert np.abs(gaussian(values, sigma, truncate=2.5) - expected).max() < 2.3e-4  # measured 1.8e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_dilation_within_a_mask_equals_scipy(shape: tuple[int, int, int]) -> None:
    values = np.asfortranarray(np.random.default_rng(1).normal(size=shape))
    seeds, within = values > 1.5, values > 0
    seeds |= np.random.default_rng(2).random(shape) < 0.01  # some are outside the mask
    assert (bone.dilated(seeds, within) == ndimage.binary_dilation(seeds, mask=within)).all()


@pytest.mark.parametrize("share", [0.0, 0.002, 0.03, 0.15])
def test_connected_parts_equal_scipy(share: float) -> None:
    mask = connected.without_border(np.random.default_rng(3).random((21, 30, 17)) < share)
    at = np.flatnonzero(mask)
    expected = ndimage.label(mask, structure=np.ones((3, 3, 3)))[0].ravel()[at]
    found = connected.connected_parts(at, mask.shape)
    assert len({*zip(found, expected, strict=True)}) == len({*expected}) == len({*found})


@pytest.mark.parametrize("seed", range(40))
def test_interpolation_equals_scipy_inside_and_fill_outside(seed: int) -> None:
    """Rotated, mirrored and shifted grids that cross the border of the data; this voxel size needs no anti-aliasing."""
    rng = np.random.default_rng(seed)
    shape, out = rng.integers(1, 12, 3), rng.integers(1, 25, 3)
    values = np.asfortranarray(rng.normal(size=shape).astype(np.float32))
    matrix = np.eye(4)
    matrix[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0] * rng.uniform(0.2, 0.5)
    if seed % 4 == 0:
        matrix[:3, :3] = np.diag(rng.choice([-0.5, 0.5], 3))  # along the axes, one of them constant
        matrix[0, 0] = 0
    matrix[:3, 3] = rng.uniform(-3, 12, 3)
    at = np.tensordot(matrix[:3, :3], np.indices(out), 1) + matrix[:3, 3, None, None, None]
    inside = np.all((at >= -0.5) & (at <= shape[:, None, None, None] - 0.5), axis=0)
    expected = 2 * ndimage.map_coordinates(values, at, order=1, mode="nearest") + 1
    found = resample(values, matrix, tuple(int(n) for n in out), fill=-7, slope=2, inter=1)
    assert np.abs(np.where(inside, expected, -7) - found).max() < 1.3e-6  # measured 9.5e-7
