"""Resampling: against a cubic spline, in nibabel's orientations, and at the edges."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from app.imaging.io.nifti import Volume
from app.imaging.model_grid import Grid
from app.imaging.registration import brain_mask
from app.imaging.resample import highest, resample, shrink, to_grid, to_patient
from tests.imaging import heads

GRID = Grid(shape=(48, 56, 48), affine=((4, 0, 0, -95), (0, 4, 0, -129), (0, 0, 4, -77), (0, 0, 0, 1)))
SHAPE, SPACING = (170, 190, 160), (1.0, 1.0, 1.1)
"""A quarter of the grid's edge, like 0.5 mm of 2 mm."""


@pytest.fixture(scope="module")
def head() -> Volume:
    """A head with the noise of a CT, independent between voxels."""
    affine = heads.grid(SHAPE, SPACING)
    noise = 18 * np.random.default_rng(0).standard_normal(SHAPE)
    return heads.stored(heads.tissues(affine, SHAPE) + noise, affine)


def turned() -> np.ndarray:
    """A small rotation, a shift and a shear: MNI mm -> world mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = [[0.98, -0.17, 0.02], [0.17, 0.97, -0.09], [0.0, 0.1, 1.03]]
    matrix[:3, 3] = [3.3, -5.1, 2.7]
    return matrix


def reference(volume: Volume, grid: Grid, world_from_mni: np.ndarray) -> np.ndarray:
    """An exact Gaussian with the width of the low-pass of ``resample``, then a cubic spline."""
    matrix = np.linalg.inv(volume.affine) @ world_from_mni @ np.asarray(grid.affine)
    width = np.linalg.norm(matrix[:3, :3], axis=1)  # of the output voxel along each input axis
    smooth = ndimage.gaussian_filter(volume.values().astype(float), width / np.sqrt(8 * np.log(2)), truncate=6)
    return ndimage.affine_transform(smooth, matrix[:3, :3], matrix[:3, 3], grid.shape, order=3, cval=-1000)


@pytest.mark.parametrize("world_from_mni", [np.eye(4), turned()])
def test_result_is_close_to_a_cubic_spline(head: Volume, world_from_mni: np.ndarray) -> None:
    """Compared in the brain, one output voxel from its edge, where the skull has no influence."""
    found = to_grid(head, GRID, world_from_mni, fill=-1000)
    truth = reference(head, GRID, world_from_mni)
    depth = brain_mask.distance(np.asarray(GRID.affine), GRID.shape, world_from_mni)
    assert np.sqrt(np.mean((found - truth)[depth < -4] ** 2)) < 1.11  # measured 0.856 HU


@pytest.mark.parametrize("parts", [2, 3])
def test_divided_grid_holds_the_parts_of_each_voxel(parts: int) -> None:
    fine, grid = np.asarray(GRID.divided(parts).affine), np.asarray(GRID.affine)
    assert GRID.divided(parts).shape == tuple(parts * length for length in GRID.shape)
    first = np.stack(np.meshgrid(*[np.arange(parts)] * 3), -1).reshape(-1, 3)
    for voxel in ([0, 0, 0], [5, 7, 11]):
        centres = (first + parts * np.array(voxel)) @ fine[:3, :3].T + fine[:3, 3]
        middle = grid[:3, :3] @ voxel + grid[:3, 3]
        assert centres.mean(axis=0) == pytest.approx(middle)
        assert np.abs(centres - middle).max() == pytest.approx(2 - 2 / parts)  # half a voxel less half a part


def test_highest_is_that_of_each_block() -> None:
    values = np.random.default_rng(0).standard_normal((6, 4, 8)).astype(np.float32)
    found = highest(values, 2)
    assert found.shape == (3, 2, 4)
    assert found[1, 1, 3] == values[2:4, 2:4, 6:8].max()
    assert np.array_equal(highest(values, 1), values)


def test_voxel_with_parts_keeps_a_bright_spot_that_its_own_value_hides() -> None:
    """A sphere of 3 mm, 30 HU above its surroundings, at the centre of a part; and the same brain without it."""
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:3, 3] = -20
    grid = Grid(shape=(6, 6, 6), affine=((4, 0, 0, -10), (0, 4, 0, -10), (0, 0, 4, -10), (0, 0, 0, 1)))
    places = np.stack(np.indices((80, 80, 80)), -1) * 0.5 - 20
    plain = Volume(np.full((80, 80, 80), 35, np.int16), affine)
    spot = Volume(np.where(np.linalg.norm(places - [-1, -1, 1], axis=-1) <= 1.5, 65, 35).astype(np.int16), affine)
    rise = {
        parts: float((to_grid(spot, grid, np.eye(4), parts=parts) - to_grid(plain, grid, np.eye(4), parts=parts)).max())
        for parts in (1, 2)
    }
    assert rise[1] < 3.9  # measured 2.99
    assert rise[2] > 16  # measured 17.84
    assert np.array_equal(
        to_grid(spot, grid, np.eye(4), parts=2), highest(to_grid(spot, grid.divided(2), np.eye(4)), 2)
    )


def test_scaled_integers_give_the_same_result(head: Volume) -> None:
    scaled = Volume(np.asfortranarray((head.data + 1024) * 2), head.affine, slope=0.5, inter=-1024.0)
    floats = Volume(np.asfortranarray(head.data, dtype=np.float64), head.affine)
    plain = to_grid(head, GRID, turned(), fill=-1000)
    for other in (scaled, floats):
        assert np.abs(to_grid(other, GRID, turned(), fill=-1000) - plain).max() < 4.8e-4  # measured 3.7e-4


def test_orientation_does_not_change_the_result(head: Volume) -> None:
    image = nib.Nifti1Image(head.data, head.affine)
    plain = to_grid(head, GRID, turned(), fill=-1000)
    inside = brain_mask.distance(np.asarray(GRID.affine), GRID.shape, turned()) < -4
    for axes in ("LPS", "AIL", "SRA", "IPR"):
        ornt = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes))
        other = image.as_reoriented(ornt)
        for order in "CF":
            volume = Volume(np.asarray(other.dataobj, order=order), other.affine)
            # Blocks start at the other end and average other voxels, so the difference is like that from a spline.
            off = to_grid(volume, GRID, turned(), fill=-1000) - plain
            assert np.sqrt(np.mean(off[inside] ** 2)) < 1.74  # measured 1.34 HU


def test_same_grid_gives_the_same_values() -> None:
    data = np.asfortranarray(np.random.default_rng(0).integers(-1024, 3000, (9, 8, 7)), dtype=np.int16)
    assert np.array_equal(resample(data, np.eye(4), data.shape, nearest=True), data)
    # With equal voxel sizes, the low-pass is the blur of linear interpolation; it keeps a constant.
    flat = np.full((9, 8, 7), 37, np.int16)
    assert np.allclose(resample(flat, np.eye(4), flat.shape), 37)


def test_labels_stay_labels() -> None:
    labels = np.random.default_rng(0).integers(0, 5, (20, 20, 20)).astype(np.uint8)
    matrix = np.diag([2.5, 2.5, 2.5, 1.0])
    found = resample(labels, matrix, (8, 8, 8), nearest=True)
    assert set(np.unique(found)) <= set(range(5))
    at = np.rint(np.argwhere(np.ones((8, 8, 8))) * 2.5 + 1e-9).astype(int)
    whole = np.all((np.argwhere(np.ones((8, 8, 8))) * 2.5) % 1 != 0.5, axis=1) & np.all(at < 20, axis=1)
    assert np.array_equal(found.ravel()[whole], labels[tuple(at[whole].T)])


def test_values_extend_half_a_voxel() -> None:
    """Up to half a voxel outside the outermost centres is inside; farther out is ``fill``."""
    row = np.arange(10, 14, dtype=np.float32)[:, None, None]
    matrix = np.eye(4)
    matrix[0, 3] = -1
    matrix[0, 0] = 0.5
    found = resample(row, matrix, (12, 1, 1), fill=-7)[:, 0, 0]
    assert found.tolist() == pytest.approx([-7, 10, 10, 10.5, 11, 11.5, 12, 12.5, 13, 13, -7, -7])


def test_clamped_blocks_keep_the_position_of_an_edge() -> None:
    row = np.array([0, 0, 0, 3000, 3000, 3000], np.int16)[:, None, None]
    means, matrix = shrink(row, (2, 1, 1), clamp=(-400, 400))
    assert means[:, 0, 0].tolist() == [0, 200, 400]
    assert np.allclose(matrix @ [0, 0, 0, 1], [0.5, 0, 0, 1])


def test_field_on_the_grid_is_shown_at_its_position_in_the_patient(head: Volume) -> None:
    """A smooth field on the model's grid has the same value at the same world position in the patient's voxels."""
    i, j, k = np.indices(GRID.shape)
    field = np.sin(i / 9) + np.cos(j / 11) + k / 40
    back = to_patient(field.astype(np.float32), GRID, head.affine, SHAPE, np.linalg.inv(turned()))
    at = np.array([70, 80, 75, 1])
    on_grid = np.linalg.inv(np.asarray(GRID.affine)) @ np.linalg.inv(turned()) @ head.affine @ at
    expected = ndimage.map_coordinates(field, on_grid[:3, None], order=3)[0]
    assert back.shape == SHAPE
    assert back[70, 80, 75] == pytest.approx(expected, abs=3.9e-4)  # measured 3.0e-4


@pytest.mark.parametrize("rounding", [0.0, 1e-17, -1e-17, 1e-18, -1e-18, 1e-19, -1e-19, 1e-30, -1e-30])
def test_outside_is_fill_if_zeros_of_the_matrix_are_rounded(rounding: float) -> None:
    """The inverse of an oblique affine times another one has entries that are almost, but not exactly, zero."""
    data = np.asfortranarray(np.full((12, 10, 8), 30, np.int16))
    matrix = np.eye(4)
    matrix[1, 0] = matrix[2, 0] = rounding
    matrix[1, 2], matrix[1, 3] = 1.5, -5.8
    out = resample(data, matrix, (12, 10, 8), fill=-1000)
    j, k = np.meshgrid(np.arange(10), np.arange(8), indexing="ij")
    at = j + 1.5 * k - 5.8
    inside = (at >= -0.5) & (at <= 9.5)
    assert np.array_equal(out, np.broadcast_to(np.where(inside, 30, -1000).astype(np.float32), out.shape))
