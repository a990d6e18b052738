"""From grid to grid: against a spline reference, against nibabel's orientations, and at the edges."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from app.imaging.io.nifti import Volume
from app.imaging.model_grid import Grid
from app.imaging.registration import brain_mask
from app.imaging.resample import resample, shrink, to_grid, to_patient
from tests.imaging import heads

GRID = Grid(shape=(48, 56, 48), affine=((4, 0, 0, -95), (0, 4, 0, -129), (0, 0, 4, -77), (0, 0, 0, 1)))
SHAPE, SPACING = (170, 190, 160), (1.0, 1.0, 1.1)
"""A quarter of the grid's edge, as 0.5 mm are of 2 mm."""


@pytest.fixture(scope="module")
def head() -> Volume:
    """With a CT's noise, one voxel's from the next one's."""
    affine = heads.grid(SHAPE, SPACING)
    noise = 18 * np.random.default_rng(0).standard_normal(SHAPE)
    return heads.stored(heads.tissues(affine, SHAPE) + noise, affine)


def turned() -> np.ndarray:
    """A small turn, a shift and a shear: MNI mm to world mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = [[0.98, -0.17, 0.02], [0.17, 0.97, -0.09], [0.0, 0.1, 1.03]]
    matrix[:3, 3] = [3.3, -5.1, 2.7]
    return matrix


def reference(volume: Volume, grid: Grid, world_from_mni: np.ndarray) -> np.ndarray:
    """The low-pass that ``resample`` promises, exactly, then a cubic spline."""
    matrix = np.linalg.inv(volume.affine) @ world_from_mni @ np.asarray(grid.affine)
    width = np.linalg.norm(matrix[:3, :3], axis=1)  # of the output voxel along each input axis
    smooth = ndimage.gaussian_filter(volume.values().astype(float), width / np.sqrt(8 * np.log(2)), truncate=6)
    return ndimage.affine_transform(smooth, matrix[:3, :3], matrix[:3, 3], grid.shape, order=3, cval=-1000)


@pytest.mark.parametrize("world_from_mni", [np.eye(4), turned()])
def test_within_a_few_hu_of_a_spline(head: Volume, world_from_mni: np.ndarray) -> None:
    """In the brain, an output voxel from its edge: where no skull leaks in."""
    found = to_grid(head, GRID, world_from_mni, fill=-1000)
    truth = reference(head, GRID, world_from_mni)
    depth = brain_mask.distance(np.asarray(GRID.affine), GRID.shape, world_from_mni)
    assert np.sqrt(np.mean((found - truth)[depth < -4] ** 2)) < 1.5


def test_integers_with_slope_and_intercept_are_the_same_volume(head: Volume) -> None:
    scaled = Volume(np.asfortranarray((head.data + 1024) * 2), head.affine, slope=0.5, inter=-1024.0)
    floats = Volume(np.asfortranarray(head.data, dtype=np.float64), head.affine)
    plain = to_grid(head, GRID, turned(), fill=-1000)
    for other in (scaled, floats):
        assert np.abs(to_grid(other, GRID, turned(), fill=-1000) - plain).max() < 1e-2


def test_any_orientation_is_the_same_volume(head: Volume) -> None:
    image = nib.Nifti1Image(head.data, head.affine)
    plain = to_grid(head, GRID, turned(), fill=-1000)
    inside = brain_mask.distance(np.asarray(GRID.affine), GRID.shape, turned()) < -4
    for axes in ("LPS", "AIL", "SRA", "IPR"):
        ornt = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes))
        other = image.as_reoriented(ornt)
        for order in "CF":
            volume = Volume(np.asarray(other.dataobj, order=order), other.affine)
            # Blocks begin at the other end, so that averages are of other voxels: as far apart as from a spline.
            off = to_grid(volume, GRID, turned(), fill=-1000) - plain
            assert np.sqrt(np.mean(off[inside] ** 2)) < 2


def test_the_same_grid_changes_nothing() -> None:
    data = np.asfortranarray(np.random.default_rng(0).integers(-1024, 3000, (9, 8, 7)), dtype=np.int16)
    assert np.array_equal(resample(data, np.eye(4), data.shape, nearest=True), data)
    # The low-pass of an output voxel as wide as the input's is what linear interpolation may spread: within 1 % here.
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


def test_a_voxel_is_a_box() -> None:
    """Half a voxel beyond the outermost centres is inside; more is ``fill``."""
    row = np.arange(10, 14, dtype=np.float32)[:, None, None]
    matrix = np.eye(4)
    matrix[0, 3] = -1
    matrix[0, 0] = 0.5
    found = resample(row, matrix, (12, 1, 1), fill=-7)[:, 0, 0]
    assert found.tolist() == pytest.approx([-7, 10, 10, 10.5, 11, 11.5, 12, 12.5, 13, 13, -7, -7])


def test_a_bright_edge_stays_where_it_is_under_clamped_blocks() -> None:
    row = np.array([0, 0, 0, 3000, 3000, 3000], np.int16)[:, None, None]
    means, matrix = shrink(row, (2, 1, 1), clamp=(-400, 400))
    assert means[:, 0, 0].tolist() == [0, 200, 400]
    assert np.allclose(matrix @ [0, 0, 0, 1], [0.5, 0, 0, 1])


def test_there_and_back(head: Volume) -> None:
    """A smooth field on the common grid, shown on the patient's voxels: the field at their place."""
    i, j, k = np.indices(GRID.shape)
    field = np.sin(i / 9) + np.cos(j / 11) + k / 40
    back = to_patient(field.astype(np.float32), GRID, head.affine, SHAPE, np.linalg.inv(turned()))
    at = np.array([70, 80, 75, 1])
    there = np.linalg.inv(np.asarray(GRID.affine)) @ np.linalg.inv(turned()) @ head.affine @ at
    expected = ndimage.map_coordinates(field, there[:3, None], order=3)[0]
    assert back.shape == SHAPE
    assert back[70, 80, 75] == pytest.approx(expected, abs=0.01)
