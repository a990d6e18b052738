"""A volume on a grid in MNI space, and the voxel of its largest absolute value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class GridVolume:
    """A volume (x, y, z) and its affine (4, 4), voxel to MNI RAS+ mm; the affine of an image is axis-aligned."""

    values: NDArray[np.floating]
    affine: NDArray[np.float64]


def peak(attribution: GridVolume) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Return the voxel of the largest absolute attribution, and its MNI coordinates (3,) in mm."""
    flat = int(np.argmax(np.abs(attribution.values)))
    i, j, k = (int(n) for n in np.unravel_index(flat, attribution.values.shape))
    return (i, j, k), (attribution.affine @ np.array([i, j, k, 1.0]))[:3]
