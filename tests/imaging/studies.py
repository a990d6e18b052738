"""A small study with a stroke on the left, in MNI space: NCCT with ventricles, Tmax and CBF."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from app.imaging.io.nifti import Volume
from app.imaging.perfusion.map_check import PlacedVolume
from app.imaging.registration import brain_mask
from app.sdk.types import Input
from tests.imaging import heads

SHAPE, SPACING = (56, 66, 40), (3.0, 3.0, 4.0)


def study(seed: int = 0) -> dict[Input, Volume]:
    """Normal Tmax 1 to 3 s and CBF 25 to 75; the ventricles are CSF on the CT and have no data in the maps."""
    affine = heads.grid(SHAPE, SPACING)
    labels = heads.territories(affine, SHAPE)
    x, y, z = np.moveaxis(_mm(affine), -1, 0)
    ventricles = (np.abs(np.abs(x) - 9) < 6) & (np.abs(y + 10) < 25) & (np.abs(z - 14) < 7)
    data = (brain_mask.distance(affine, SHAPE, np.eye(4)) < -2) & ~ventricles
    rng = np.random.default_rng(seed)
    grain = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1.0)
    grain /= grain.std()
    away = np.linalg.norm(np.stack([x + 38, y + 15, z - 20]), axis=0)
    late = np.interp(away, [0, 20, 35, 45], [13, 10, 6.5, 0]) * (x < -3)
    tmax = np.where(data, np.maximum(np.maximum(2 + 0.4 * grain, late), 0.05), 0)
    cbf = np.where(data, np.array([50, 50, 20, 6])[labels] * (1 + 0.15 * grain), 0)
    plain = np.where(ventricles, heads.FLUID, heads.tissues(affine, SHAPE))
    return {
        Input.NCCT: heads.stored(plain, affine, noise=4),
        Input.TMAX: Volume(np.asfortranarray(tmax, dtype=np.float32), affine),
        Input.CBF: Volume(np.asfortranarray(cbf, dtype=np.float32), affine),
    }


def ct_of(volumes: dict[Input, Volume]) -> PlacedVolume:
    return PlacedVolume(volumes[Input.NCCT], np.eye(4))


def ball(centre: tuple[float, float, float], radius: float) -> np.ndarray:
    """(X, Y, Z) bool on the grid of the study."""
    away: np.ndarray = np.linalg.norm(_mm(heads.grid(SHAPE, SPACING)) - centre, axis=-1) < radius
    return away


def _mm(affine: np.ndarray) -> np.ndarray:
    at: np.ndarray = np.stack(np.indices(SHAPE), axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    return at
