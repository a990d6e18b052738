"""Anatomy of the phantoms in MNI space: a CT-like head around the MNI brain, and vessels on analytic centre lines.

Design notes:
- All parts are on one canvas of 1 mm voxels, MNI152 RAS+ millimetres, which is resampled for patients and grids.
- The head of a variant needs 130 MB, so at most two are in memory: draw patients of one variant together.
"""

from __future__ import annotations

from functools import lru_cache

from app.phantoms import template, variant_head, vessel_tree
from app.phantoms.canvas import AIR, BLOOD, CANVAS, CONTRAST, ORIGIN_MM, PLAQUE, SHAPE, SIPHON
from app.phantoms.template import PhantomHead
from app.phantoms.variant import TEMPLATE, Variant
from app.phantoms.vessel_tree import Arteries

__all__ = ["AIR", "BLOOD", "CANVAS", "CONTRAST", "ORIGIN_MM", "PLAQUE", "SHAPE", "SIPHON"]
__all__ += ["Arteries", "PhantomHead", "Variant", "arteries", "head"]


def head(variant: Variant = TEMPLATE) -> PhantomHead:
    """The head of a variant; the last two are kept."""
    return _head(variant)


def arteries(variant: Variant = TEMPLATE) -> Arteries:
    """All vessels of both sides of a variant; ``left`` is the patient's left, negative x in RAS+."""
    return _arteries(variant)


@lru_cache(maxsize=2)
def _head(variant: Variant) -> PhantomHead:
    return template.build() if variant.is_template else variant_head.build(variant)


@lru_cache(maxsize=64)
def _arteries(variant: Variant) -> Arteries:
    return vessel_tree.build(variant)
