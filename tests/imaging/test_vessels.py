"""A drawn vessel tree in a drawn head: overlap, centre lines, bone, and what must not be found."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from app.imaging import vessels
from app.imaging.io.nifti import Volume
from app.imaging.registration import brain_mask
from tests.imaging import heads

MNI = np.eye(4)
SHAPE, SPACING = (172, 200, 172), (1.1, 1.1, 1.1)


@pytest.fixture(scope="module")
def drawn() -> heads.Angiogram:
    return heads.angiogram(SHAPE, SPACING)


@pytest.fixture(scope="module")
def reach(drawn: heads.Angiogram) -> np.ndarray:
    """Within the skull, which starts 3 mm from the brain."""
    return brain_mask.distance(drawn.cta.affine, SHAPE, MNI) < 3


def dice(one: np.ndarray, two: np.ndarray) -> float:
    return float(2 * np.count_nonzero(one & two) / (np.count_nonzero(one) + np.count_nonzero(two)))


def followed(near: np.ndarray, line: np.ndarray, affine: np.ndarray, reach: np.ndarray) -> float:
    """Which share of a centre line, as far as it is in reach, lies in ``near``."""
    at = np.round((line - affine[:3, 3]) / np.diag(affine)[:3]).astype(int)
    at = at[np.all((at >= 0) & (at < near.shape), axis=1)]
    at = at[reach[tuple(at.T)]]
    return float(near[tuple(at.T)].mean())


@pytest.mark.parametrize("subtract", [False, True])
def test_overlap_and_centre_lines(drawn: heads.Angiogram, reach: np.ndarray, subtract: bool) -> None:
    found = vessels.segment(drawn.cta, MNI, drawn.ncct if subtract else None)
    mask = found.data > 0
    assert found.data.dtype == np.uint8
    assert found.data.shape == SHAPE
    assert np.array_equal(found.affine, drawn.cta.affine)
    assert dice(mask, drawn.vessels & reach) > 0.85
    near = ndimage.binary_dilation(mask)
    assert min(followed(near, line, found.affine, reach) for line in drawn.lines) > 0.9
    strays = mask & ~ndimage.binary_dilation(drawn.vessels, iterations=2)
    assert np.count_nonzero(strays) * 1.1**3 < 100  # mm3


def test_a_network_can_say_which_blocks_are_vessel(drawn: heads.Angiogram, reach: np.ndarray) -> None:
    """Working values in HU go in, chances come out; the border, bone and all beyond the brain stay empty."""
    asked: list[np.ndarray] = []

    def bright(values: np.ndarray) -> np.ndarray:
        asked.append(values)
        return (values > 150).astype(np.float32)

    mask = vessels.learned(bright)(drawn.cta, MNI, drawn.ncct).data > 0
    assert asked[0].dtype == np.float32
    assert dice(mask, drawn.vessels & reach) > 0.85
    assert not (mask & ~(brain_mask.distance(drawn.cta.affine, SHAPE, MNI) < 8)).any()
    assert vessels.learned(np.zeros_like)(drawn.cta, MNI).data.max() == 0


def test_thin_slices_in_any_orientation(drawn: heads.Angiogram) -> None:
    """Axes permuted and flipped, voxels of 0.8 x 0.8 x 1.4 mm: the same tree in the world."""
    fine = heads.angiogram((240, 275, 130), (0.8, 0.8, 1.4))
    turned = Volume(
        np.asfortranarray(fine.cta.data.transpose(1, 2, 0)[:, :, ::-1]),
        fine.cta.affine @ np.array([[0, 0, -1, 239], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]]),
    )
    straight = vessels.segment(fine.cta, MNI).data
    again = vessels.segment(turned, MNI).data[:, :, ::-1].transpose(2, 0, 1)
    assert dice(straight > 0, again > 0) > 0.95


def test_a_head_without_contrast_has_no_vessels(drawn: heads.Angiogram) -> None:
    assert vessels.segment(drawn.ncct, MNI).data.sum() * 1.1**3 < 50


def test_subtraction_takes_calcium_away(drawn: heads.Angiogram) -> None:
    """A calcified falx, dense in both scans, is found in the CTA alone and not after subtraction."""
    strip = (slice(85, 88), slice(74, 106), slice(122, 125))
    cta, ncct = (np.array(volume.data, order="F") for volume in (drawn.cta, drawn.ncct))
    cta[strip] = ncct[strip] = 300
    both = dataclasses.replace(drawn.cta, data=cta), dataclasses.replace(drawn.ncct, data=ncct)
    assert vessels.segment(both[0], MNI).data[strip].mean() > 0.5
    assert vessels.segment(*both[:1], MNI, both[1]).data[strip].mean() < 0.05


def test_stored_with_slope_and_intercept(drawn: heads.Angiogram) -> None:
    scaled = Volume(np.asfortranarray((drawn.cta.data + 1024) * 2), drawn.cta.affine, slope=0.5, inter=-1024.0)
    plain = vessels.segment(drawn.cta, MNI).data
    assert dice(vessels.segment(scaled, MNI).data > 0, plain > 0) > 0.99


@pytest.mark.parametrize("shape", [(16, 16, 16), (8, 8, 4)])
def test_volumes_too_coarse_for_vessels(shape: tuple[int, int, int]) -> None:
    coarse = heads.ct(heads.grid(shape, (12.0, 12.0, 12.0)), shape)
    assert vessels.segment(coarse, MNI).data.shape == shape


@pytest.mark.parametrize("slices", [1, 2, 3, 4, 5, 9])
def test_a_few_thin_slices(slices: int) -> None:
    shape = (190, 220, slices)
    thin = heads.ct(heads.grid(shape, (0.9, 0.9, 0.9)), shape, noise=60)
    assert vessels.segment(thin, MNI).data.shape == shape


def test_a_field_of_view_beside_the_brain(drawn: heads.Angiogram) -> None:
    away = drawn.cta.affine.copy()
    away[2, 3] -= 600
    assert not vessels.segment(dataclasses.replace(drawn.cta, affine=away), MNI).data.any()


def test_vesselness_of_a_tube_a_sheet_and_a_ball() -> None:
    i, j, k = np.indices((41, 41, 41)) - 20
    shapes = {"tube": np.hypot(i, j) < 2, "sheet": np.abs(i) < 2, "ball": i**2 + j**2 + k**2 < 16}
    middle = np.array([np.ravel_multi_index((20, 20, 20), (41, 41, 41))])
    found = {
        name: float(vessels.vesselness(np.where(inside, 300, 40).astype(np.float32), middle, np.ones(3))[0])
        for name, inside in shapes.items()
    }
    assert found["tube"] > 0.7
    assert found["sheet"] < 0.15
    assert found["ball"] < 0.5 * found["tube"]


@pytest.mark.parametrize("seed", range(3))
def test_eigenvalues_are_numpys(seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((50, 6))
    xx, yy, zz, xy, xz, yz = values.T
    matrices = np.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], axis=1).reshape(-1, 3, 3)
    assert np.stack(vessels._eigenvalues(values), axis=1) == pytest.approx(np.linalg.eigvalsh(matrices), abs=1e-6)
