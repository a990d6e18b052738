"""Shares of a sum keep their sum and their place when they move to a grid of the patient."""

from __future__ import annotations

import numpy as np
import pytest

from app.imaging.deposit import deposit
from app.imaging.io.nifti import Volume
from tests.dicom.results import MNI_FROM_WORLD, MODEL_GRID
from tests.dicom.studies import REGULAR, TILTED

FINE = REGULAR @ np.diag([0.09, 0.09, 0.08, 1.0])  # 0.45 x 0.45 x 0.64 mm


def values() -> np.ndarray:
    noise = np.random.default_rng(0)
    return (noise.normal(size=(16, 16, 16)) * (noise.random((16, 16, 16)) < 0.2)).astype(np.float32)


@pytest.mark.parametrize("image", [REGULAR, TILTED, FINE])
def test_the_sum_stays_also_where_values_lie_outside_the_image(image: np.ndarray) -> None:
    moved = deposit(values(), MODEL_GRID, image, MNI_FROM_WORLD)
    assert moved.data.sum(dtype=np.float64) == pytest.approx(values().sum(dtype=np.float64), abs=1e-5)


@pytest.mark.parametrize("image", [REGULAR, TILTED, FINE])
@pytest.mark.parametrize("voxel", [(3, 9, 12), (8, 8, 8), (15, 0, 7)])
def test_a_single_value_is_found_within_one_cell(image: np.ndarray, voxel: tuple[int, int, int]) -> None:
    planted = np.zeros((16, 16, 16), np.float32)
    planted[voxel] = 2.0
    moved = deposit(planted, MODEL_GRID, image, MNI_FROM_WORLD)
    centre = (np.linalg.inv(MNI_FROM_WORLD) @ MODEL_GRID @ [*voxel, 1])[:3]
    cell = np.linalg.inv(moved.affine) @ [*centre, 1]
    peak = np.unravel_index(moved.data.argmax(), moved.shape)
    assert np.abs(cell[:3] - peak).max() <= 1


def test_cells_are_blocks_of_whole_voxels_about_as_large_as_the_model_s() -> None:
    moved = deposit(values(), MODEL_GRID, FINE, MNI_FROM_WORLD)
    blocks = moved.affine[:3, :3] / np.where(FINE[:3, :3] == 0, np.inf, FINE[:3, :3])
    np.testing.assert_allclose(np.diag(blocks), np.rint(np.diag(blocks)), atol=1e-9)
    assert all(10 < edge < 15 for edge in moved.spacing_mm)


def test_even_values_stay_even() -> None:
    """No pattern of the two grids is seen inside a region with one value."""
    even = np.ones((16, 16, 16), np.float32)
    moved = deposit(even, MODEL_GRID, FINE, MNI_FROM_WORLD)
    inner = moved.data[6:-6, 6:-6, 6:-6]
    assert inner.std() / inner.mean() < 0.02  # measured: 0.009


def test_a_map_without_values_is_one_empty_cell() -> None:
    moved: Volume = deposit(np.zeros((4, 4, 4), np.float32), MODEL_GRID, REGULAR, MNI_FROM_WORLD)
    assert moved.shape == (1, 1, 1)
    assert not moved.data.any()
