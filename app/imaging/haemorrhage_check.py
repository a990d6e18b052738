"""Flag an NCCT with a large dense region in the brain, as of a haemorrhage.

Design notes:
- The density is compared with the brain of the same scan, so that another scanner or filter does not matter.
- Dense structures that are under 12 mm wide do not survive an opening: arteries with a clot, falx, tentorium, veins,
  noise, and most streaks of metal. Bone and the streaks beside it are left out by their distance from the skull.
- Small bleedings and those along the skull are not found. The check is no detector of haemorrhages.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy import ndimage

from app.imaging.enclosure import Enclosure

__all__ = ["dense_ml"]

_ABOVE_BRAIN_HU: Final = 18.0  # fresh blood is 25 to 45 HU above the brain, grey matter at most 10
_CALCIUM_HU: Final = 110.0
_FROM_SKULL_MM: Final = 9.0
_HALF_WIDTH_MM: Final = 6.0


def dense_ml(values: np.ndarray, space: Enclosure) -> float:
    """Volume of the largest dense region in the brain, mL.

    Args:
        values: (X, Y, Z) HU of an NCCT, block means over about 3 mm.
        space: its intracranial space.
    """
    smooth = ndimage.gaussian_filter(values, 3.0 / (2.355 * space.edges))
    dense = space.inside & (smooth > space.brain_hu + _ABOVE_BRAIN_HU) & (smooth < _CALCIUM_HU)
    if not dense.any():
        return 0.0
    dense &= _depth_mm(space.inside, space) > _FROM_SKULL_MM
    wide = dense & (_depth_mm(_depth_mm(dense, space) <= _HALF_WIDTH_MM, space) <= _HALF_WIDTH_MM)
    labels, count = ndimage.label(wide)
    largest = int(np.bincount(labels.ravel())[1:].max()) if count else 0
    return largest * float(np.prod(space.edges)) / 1000


def _depth_mm(mask: np.ndarray, space: Enclosure) -> np.ndarray:
    """Distance of each voxel of a mask from what is outside of it, mm; 0 outside."""
    depth: np.ndarray = ndimage.distance_transform_edt(mask, sampling=space.edges)
    return depth
