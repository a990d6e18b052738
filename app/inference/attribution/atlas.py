"""Coarse anatomical regions on the MNI152 grid, named as in stroke care; atlas ``rlvo-regions-3``.

Design notes:
- The definitions are this project's: capsules around the usual course of a vessel, ellipsoids around deep structures,
  half-spaces for the cortical territories. They show where to look; they are no segmentation.
- The hemispheres mirror each other (x to -x). Coordinates are RAS+, so the left hemisphere has negative x.
- If a patient's arteries are known, the vessel tree is one more region per hemisphere (``with_vessel_tree``).
- A voxel belongs to the first region that contains it, or to ``other`` (skull, face, neck, air). So the regions of a
  modality sum to the modality.
- No network reads the regions of an explanation, so a version that names an earlier atlas is explained with this one.
  In ``rlvo-regions-1``, a part of the thalamus belonged to the basal ganglia. In ``rlvo-regions-2``, the ICA was a
  straight line through the skull base, and the siphon belonged to ``other``; the side of an occlusion is still found in
  its regions (``occlusion_side``).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ATLAS, BEFORE = "rlvo-regions-3", "rlvo-regions-2"
KNOWN = ("rlvo-regions-1", BEFORE, ATLAS)
"""Atlases that a version may name."""

Point = tuple[float, float, float]
Mask = NDArray[np.bool_]
Millimetres = NDArray[np.float64]

TREE = "vessel tree"
SUPERIOR, INFERIOR = "MCA territory, superior division", "MCA territory, inferior division"
PAIRED = ("ICA", "MCA M1", "insula", "basal ganglia", "ACA", "PCA", SUPERIOR, INFERIOR, TREE)
NAMES = ("other", "brainstem and cerebellum", *(f"{side} {region}" for side in ("left", "right") for region in PAIRED))

_CAROTIDS: dict[str, tuple[Sequence[Point], float]] = {
    ATLAS: ([(28, -28, -56), (24, -14, -46), (15, -3, -36), (13, 8, -28), (14, 9, -21), (14, 3, -17)], 9),
    BEFORE: ([(28, -28, -56), (24, -20, -38), (14, -4, -28), (14, 3, -17)], 8),
}
"""Course of the carotid artery through the skull base, and radius around it, of each atlas; with and without siphon."""


@lru_cache(maxsize=16)
def labels(shape: tuple[int, int, int], affine: tuple[tuple[float, ...], ...], atlas: str = ATLAS) -> NDArray[np.intp]:
    """Return the index into ``NAMES`` of every voxel (x, y, z); the array is cached, so do not change it.

    ``affine`` is (4, 4), voxel to MNI152 RAS+ millimetres; ``atlas`` is ``ATLAS`` or ``BEFORE``.
    """
    voxels = np.stack([*np.indices(shape), np.ones(shape)])
    x, y, z = np.tensordot(np.asarray(affine, dtype=np.float64), voxels, axes=1)[:3]
    at = np.stack([np.abs(x), y, z])  # both hemispheres at once
    regions = np.zeros(shape, dtype=np.intp)
    free = np.ones(shape, dtype=bool)
    for region, mask in _shapes(at, _CAROTIDS[atlas]).items():
        inside = mask & free
        free &= ~inside
        if region in PAIRED:
            left = NAMES.index(f"left {region}")
            regions[inside] = np.where(x[inside] < 0, left, left + len(PAIRED))
        else:
            regions[inside] = NAMES.index(region)
    return regions


def with_vessel_tree(regions: NDArray[np.intp], lumen: Mask, affine: tuple[tuple[float, ...], ...]) -> NDArray[np.intp]:
    """Return ``regions`` (see ``labels``) with the arteries of ``lumen`` (x, y, z) as vessel trees; a new array.

    ICA and M1 keep their regions, so that a clot in M1 is reported in M1.
    """
    named = [NAMES.index(f"{side} {artery}") for side in ("left", "right") for artery in ("ICA", "MCA M1")]
    x = affine[0][0] * np.arange(regions.shape[0]) + affine[0][3]
    tree = np.where(x < 0, NAMES.index(f"left {TREE}"), NAMES.index(f"right {TREE}"))[:, None, None]
    in_tree = lumen & ~np.isin(regions, [NAMES.index("other"), *named])
    return np.asarray(np.where(in_tree, tree, regions))


def relative_side(region: str, affected: str | None) -> Literal["affected", "contralateral"] | None:
    """Return a region's side relative to the occlusion; None on the midline or if ``affected`` is unknown."""
    region_side, _, name = region.partition(" ")
    if affected is None or name not in PAIRED:
        return None
    return "affected" if region_side == affected else "contralateral"


def region_sums(values: NDArray[np.float32], regions: NDArray[np.intp]) -> NDArray[np.float64]:
    """Sum a map (x, y, z) over each region, in the order of ``NAMES``."""
    sums = np.bincount(regions.ravel(), weights=values.ravel().astype(np.float64), minlength=len(NAMES))
    return sums.astype(np.float64)


def _shapes(at: Millimetres, carotid: tuple[Sequence[Point], float]) -> dict[str, Mask]:
    """Return the regions in order of precedence, at (|x|, y, z) in MNI152 millimetres; ``carotid``: course, radius."""
    x, y, z = at
    sylvian = z > 3 - 0.36 * y  # above the plane through the Sylvian fissure, which rises backwards
    # The hemispheres, without the orbits and the skull base in front of and between the temporal lobes.
    brain = _ellipsoid(at, (0, -17, 8), (74, 92, 76)) & (z > -50)
    brain &= (z > -26) | ((y < 24) & (x > 16))
    return {
        # Petrous and cavernous segments to the terminus, below which M1 begins.
        "ICA": _capsule(at, *carotid),
        "MCA M1": _capsule(at, [(16, 3, -14), (38, 0, -15)], 8),
        "brainstem and cerebellum": _ellipsoid(at, (0, -28, -36), (17, 17, 30))
        | (_ellipsoid(at, (0, -64, -36), (58, 42, 34)) & (z < -18 - 0.2 * (y + 90))),
        "insula": _ellipsoid(at, (38, 2, 2), (8, 26, 17)),
        # P1 and P2, the thalamus that their branches supply, the occipital lobe and the medial temporal lobe. The basal
        # ganglia come later, because their ellipsoid reaches into the thalamus.
        "PCA": _capsule(at, [(2, -16, -14), (18, -26, -13), (25, -44, -8), (14, -80, 4)], 8)
        | _ellipsoid(at, (11, -19, 7), (11, 14, 11))
        | (brain & (y < -62) & (x < 42) & (z < 30))
        | (brain & (x < 34) & (z < -8) & (y < -10)),
        "basal ganglia": _ellipsoid(at, (19, 4, 4), (13, 24, 18)),
        # A1 and A2, and the medial surface of the frontal and parietal lobes.
        "ACA": _capsule(at, [(14, 4, -13), (3, 13, -13), (3, 30, 4)], 7) | (brain & (x < 18) & (z > -22)),
        SUPERIOR: brain & sylvian,
        INFERIOR: brain & ~sylvian,
    }


def _ellipsoid(at: Millimetres, centre: Point, radii: Point) -> Mask:
    offset = (at - np.asarray(centre)[:, None, None, None]) / np.asarray(radii)[:, None, None, None]
    inside: Mask = np.square(offset).sum(axis=0) <= 1
    return inside


def _capsule(at: Millimetres, course: Sequence[Point], radius: float) -> Mask:
    """Return the points within ``radius`` of the line through the points of ``course``."""
    inside = np.zeros(at.shape[1:], dtype=bool)
    for start, end in itertools.pairwise(course):
        first, along = np.asarray(start), np.asarray(end) - np.asarray(start)
        offset = at - first[:, None, None, None]
        share = np.clip(np.tensordot(along, offset, axes=1) / (along @ along), 0, 1)
        inside |= np.square(offset - share * along[:, None, None, None]).sum(axis=0) <= radius**2
    return inside
