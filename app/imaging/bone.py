"""Find bone in a CT angiogram, so that the vessel segmentation leaves it out.

Design notes:
- With an aligned NCCT, every voxel that is dense in the NCCT too is bone.
- The skull of a real patient is not dense throughout: thin plates and marrow have 250 to 700 HU, as arteries have.
  Without an NCCT, bone is what is brighter than the patient's own arteries, and the bright voxels that are connected to
  it: far away from the large arteries of the base, and only near bone beside them. Away from the base no artery of
  interest lies outside the brain, so nothing is searched there.
- Contrast above 700 HU (low tube voltage, virtual monoenergetic images) is told from bone by its place: a dense part
  that reaches deep into the brain is no skull.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy import ndimage

from app.imaging.connected import connected_parts, without_border
from app.imaging.io.nifti import Volume
from app.imaging.jit import lazy_njit, run_in_slabs
from app.imaging.registration import brain_mask
from app.imaging.resample import resample

__all__ = ["MARGIN_MM", "searched"]

MARGIN_MM: Final = 5.0  # distance from the brain up to which arteries are searched
_BONE_HU: Final = 700.0
_METAL_HU: Final = 2000.0  # coils and clips; contrast in an artery stays below
_LINK_HU: Final = 500.0  # noise does not break a bright artery into parts at this level
_DEEP_MM: Final = 5.0  # skull never lies this deep in the registered brain (real head: 3 mm, at the skull base)
_SURFACE_MM: Final = 0.0  # from the depth, a bright artery is followed to the surface of the brain
_ARTERY_MM: Final = 25.0  # length of a part; calcium in the brain is shorter
_DENSE_HU: Final = 250.0
_NCCT_DENSE_HU: Final = 130.0
_REACH_MM: Final = 2.0

# Without an NCCT. Measured on the real head with arteries drawn into it; docs/imaging.md gives the result.
_LEVEL_MM3: Final = 300.0  # of the brightest voxels deep in the brain; the darkest of them are as bright as an artery
_LEVEL_OF_MM3: Final = 100_000.0  # with less brain in the volume, the level of the arteries is not known
_ABOVE_ARTERIES: Final = 1.2
_LEAST_BONE_HU: Final = 320.0
_BASE_MM: Final = (
    ((-26.0, -5.0), (-18.0, 15.0), (-60.0, -10.0)),  # MNI x, y, z: carotid siphons
    ((5.0, 26.0), (-18.0, 15.0), (-60.0, -10.0)),
    ((-16.0, 16.0), (-65.0, -18.0), (-100.0, -15.0)),  # basilar and vertebral arteries
)
_BASE_HU, _BASE_REACH_MM = 150.0, 2.0
_AWAY_HU, _AWAY_REACH_MM = 100.0, 12.0


def searched(
    values: np.ndarray, depth: np.ndarray, affine: np.ndarray, mni_from_world: np.ndarray, ncct: Volume | None
) -> np.ndarray:
    """Find the voxels in which vessels are searched: near the brain, without bone.

    Args:
        values: (X, Y, Z) float32, the CTA, HU.
        depth: (X, Y, Z), MNI mm from the surface of the brain, negative inside.
        affine: (4, 4), voxel -> RAS+ mm of the CTA.
        mni_from_world: (4, 4), the CTA's RAS+ mm -> MNI152 mm.
        ncct: With its affine in the world frame of the CTA; None without an NCCT.

    Returns:
        (X, Y, Z) bool.
    """
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    near: np.ndarray = depth < MARGIN_MM
    if ncct is not None:
        plain = resample(
            ncct.data, np.linalg.inv(ncct.affine) @ affine, values.shape, slope=ncct.slope, inter=ncct.inter
        )
        dense = values > _DENSE_HU
        grown = _grown(_seeds(values, depth, edges, _BONE_HU), dense, _steps(_REACH_MM, edges))
        near &= ~(grown | dilated(plain > _NCCT_DENSE_HU, dense))
        return near
    level = _above_arteries(values, depth, edges)
    seeds = _seeds(values, depth, edges, level)
    if level == _BONE_HU:  # little brain in the volume, or arteries nearly as dense as bone
        near &= ~_grown(seeds, values > _DENSE_HU, _steps(_REACH_MM, edges))
        return near
    base = _base(affine, values.shape, mni_from_world)
    surface = depth > -_DEEP_MM
    first, last = _steps(_BASE_REACH_MM, edges), _steps(_AWAY_REACH_MM, edges)
    away = ~base & surface & (values > _AWAY_HU)
    grown = _grown(seeds & surface, away | (base & surface & (values > _BASE_HU)), first)
    near &= (base | (depth < 0)) & ~_grown(grown, away, last - first)
    return near


def _above_arteries(values: np.ndarray, depth: np.ndarray, edges: np.ndarray) -> float:
    """HU above which a voxel is bone by its density; ``_BONE_HU`` at most, and if little brain is in the volume."""
    deep = values[depth < -_DEEP_MM]
    voxel = float(np.prod(edges))
    count = int(_LEVEL_MM3 / voxel)
    if deep.size * voxel < _LEVEL_OF_MM3 or not 0 < count < deep.size:
        return _BONE_HU
    arteries = float(np.partition(deep, -count)[-count])
    return float(np.clip(_ABOVE_ARTERIES * arteries, _LEAST_BONE_HU, _BONE_HU))


def _base(affine: np.ndarray, shape: tuple[int, ...], mni_from_world: np.ndarray) -> np.ndarray:
    """Bool of ``shape``: the part of the head with the large arteries outside the brain."""
    boxes = [np.ones(shape, bool) for _ in _BASE_MM]
    for axis in range(3):
        place = brain_mask.mni_mm(affine, shape, mni_from_world, axis)
        for inside, sides in zip(boxes, _BASE_MM, strict=True):
            inside &= (place > sides[axis][0]) & (place < sides[axis][1])
    anywhere: np.ndarray = np.logical_or.reduce(boxes)
    return anywhere


def _steps(reach_mm: float, edges: np.ndarray) -> int:
    return max(1, round(reach_mm / float(min(edges))))


def _seeds(values: np.ndarray, depth: np.ndarray, edges: np.ndarray, level: float) -> np.ndarray:
    """Voxels above ``level``, without the arteries: long dense parts that reach deep into the brain."""
    bone = values > level
    inside = without_border((values > _LINK_HU) & (values < _METAL_HU) & (depth < _SURFACE_MM))
    at = np.flatnonzero(inside)
    voxels = np.stack(np.unravel_index(at, inside.shape))
    deep = bone[tuple(voxels)] & (depth[tuple(voxels)] < -_DEEP_MM)
    if not deep.any():
        return bone
    part = connected_parts(at, inside.shape)
    parts = np.arange(part.max() + 1)
    lengths = np.zeros(parts.size)
    for axis, edge in zip(voxels, edges, strict=True):
        low, high, _, _ = ndimage.extrema(axis, part, parts)
        lengths = np.maximum(lengths, (high - low + 1) * edge)
    is_artery = np.isin(parts, part[deep]) & (lengths > _ARTERY_MM)
    bone[tuple(voxels[:, is_artery[part]])] = False
    return bone


def _grown(seeds: np.ndarray, within: np.ndarray, steps: int) -> np.ndarray:
    for _ in range(steps):
        seeds = dilated(seeds, within)
    return seeds


def dilated(seeds: np.ndarray, within: np.ndarray) -> np.ndarray:
    """The seeds, and the voxels of ``within`` that share a face with one; much faster than scipy's dilation."""
    contiguous, allowed = np.ascontiguousarray(seeds.T), np.ascontiguousarray(within.T)
    grown = np.empty_like(contiguous)
    run_in_slabs(len(contiguous), lambda start, stop: _grow(contiguous, allowed, grown[start:stop], start))
    return grown.T


@lazy_njit
def _grow(seeds: np.ndarray, within: np.ndarray, grown: np.ndarray, first: int) -> None:
    planes, rows, columns = seeds.shape
    for a in range(grown.shape[0]):
        p = first + a
        for b in range(rows):
            for c in range(columns):
                grown[a, b, c] = seeds[p, b, c] or (
                    within[p, b, c]
                    and (
                        (p > 0 and seeds[p - 1, b, c])
                        or (p < planes - 1 and seeds[p + 1, b, c])
                        or (b > 0 and seeds[p, b - 1, c])
                        or (b < rows - 1 and seeds[p, b + 1, c])
                        or (c > 0 and seeds[p, b, c - 1])
                        or (c < columns - 1 and seeds[p, b, c + 1])
                    )
                )
