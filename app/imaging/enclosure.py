"""Find what the skull surrounds in each axial slice of a head CT, on block means of about 3 mm.

Design notes:
- A slice is judged alone, so an open vertex or an open skull base does not matter.
- Gaps of up to 6 mm (sutures, thin bone, foramina) are closed.
- Bright islands that do not touch the skull (arteries with contrast, calcifications, metal) count as inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from scipy import ndimage

from app.imaging import morphology

__all__ = ["SKULL_HU", "SOFT_HU", "Enclosure", "between", "find"]

SKULL_HU: Final = 200.0
SOFT_HU: Final = (-20.0, 100.0)
_GAP_MM: Final = 3.0  # half of the largest gap
_SLICE_AXES: Final = (1, 2)
_CORE_MM: Final = 9.0  # the scalp, or the gap between head and head-rest, is thinner than twice this


@dataclass(frozen=True)
class Enclosure:
    """Masks (X, Y, Z) of a volume of block means.

    Attributes:
        brain: soft tissue that bone surrounds.
        brain_hu: its median value; NaN without any.
        inside: what the skull surrounds, with bright islands.
        core: the part of ``brain`` that lies some way from the outer surface of the skull.
        axis: array axis of the axial slices.
        edges: edges of a block, mm.
    """

    brain: np.ndarray
    brain_hu: float
    inside: np.ndarray
    core: np.ndarray
    axis: int
    edges: np.ndarray

    @cached_property
    def brain_cm2(self) -> np.ndarray:
        """Area of brain in each axial slice, cm2."""
        return self._areas(self.brain)

    @cached_property
    def core_cm2(self) -> np.ndarray:
        """Area of the core in each axial slice, cm2."""
        return self._areas(self.core)

    def _areas(self, mask: np.ndarray) -> np.ndarray:
        others = tuple(other for other in range(3) if other != self.axis)
        areas: np.ndarray = mask.sum(axis=others) * np.prod(self.edges[list(others)]) / 100
        return areas


def between(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Mask of the values between two limits."""
    inside: np.ndarray = (values > limits[0]) & (values < limits[1])
    return inside


def find(values: np.ndarray, edges: np.ndarray, axis: int) -> Enclosure:
    """Find the space inside the skull.

    Args:
        values: (X, Y, Z) block means, HU.
        edges: (3,) edges of a block, mm.
        axis: array axis of the axial slices.
    """
    bone = np.moveaxis(values > SKULL_HU, axis, 0)
    edge = float(np.delete(edges, axis).mean())
    reach = round(_GAP_MM / edge)
    margin = reach + 1
    ring = np.pad(bone, ((0, 0), (margin, margin), (margin, margin)))
    if reach:
        ring = morphology.erode(morphology.dilate(ring, _SLICE_AXES, reach), _SLICE_AXES, reach)
    filled = morphology.fill_slices(ring)
    pieces, count = ndimage.label(ring, morphology.SLICE_NEIGHBOURS)
    is_skull = np.zeros(count + 1, bool)
    is_skull[pieces[morphology.dilate(~filled, _SLICE_AXES) & ring]] = True
    core = morphology.erode(filled, _SLICE_AXES, max(1, round(_CORE_MM / edge)))
    own = (slice(None), slice(margin, -margin), slice(margin, -margin))
    brain = filled[own] & ~bone & np.moveaxis(between(values, SOFT_HU), axis, 0)
    inside = filled & ~is_skull[pieces]
    brain, inside, deep = (np.moveaxis(mask, 0, axis) for mask in (brain, inside[own], brain & core[own]))
    brain_hu = float(np.median(values[brain])) if brain.any() else np.nan
    return Enclosure(brain, brain_hu, inside, deep, axis, edges)
