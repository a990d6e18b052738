"""Segment the vessel tree from a CT angiogram, for patients whose site sends no vessel mask.

Steps: average the region of the brain to about 0.9 mm; remove bone; find tubes by second derivatives at three scales;
keep weak tubes that are connected to strong ones; drop islands; return to the voxels of the CTA.

Design notes:
- Frangi's vesselness (Frangi et al., MICCAI 1998): a bright tube has two large negative eigenvalues of the Hessian and
  one near zero. It is evaluated only in voxels that are bright enough to be a vessel, which saves most of the work.
- ``bone.searched`` says where vessels are searched: near the brain, without bone.
- Limits: carotid siphons that touch bone are too thin; veins are part of the mask.
- Every function that maps an aligned CTA to a mask can replace it: see ``Segmenter``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import numpy as np

from app.imaging.bone import MARGIN_MM, searched
from app.imaging.connected import connected_parts, without_border
from app.imaging.io.nifti import Volume
from app.imaging.registration import brain_mask
from app.imaging.resample import shrink
from app.imaging.smoothing import gaussian
from app.sdk.types import Flag

__all__ = ["Segmenter", "VesselProbability", "is_vessel", "learned_segmenter", "segment", "vesselness"]

_WORKING_MM: Final = 0.9
_SCALES_MM: Final = (0.7, 1.1, 1.8)
_MIN_HU: Final = 90.0  # contrast is brighter than this: grey matter has about 40 HU, clotted blood about 80
_TISSUE_HU: Final = 40.0
_STRONG: Final = 0.30
_WEAK: Final = 0.08
_ISLAND_MM3: Final = 40.0
_BRANCH_MM3: Final = 150.0  # of weak tubes that are left out; a branch of the middle cerebral artery has 500 to 1000


class Segmenter(Protocol):
    """A function that makes a vessel mask: ``segment`` below, or a trained network."""

    def __call__(self, cta: Volume, mni_from_world: np.ndarray, bone: Volume | None = None) -> Volume:
        """Segment the vessels.

        Args:
            cta: (X, Y, Z) HU.
            mni_from_world: (4, 4), the CTA's RAS+ mm -> MNI152 mm.
            bone: the NCCT, with its affine in the world frame of the CTA; None without an NCCT.

        Returns:
            The mask on the grid of the CTA: uint8, 1 in vessels; its flags say what is doubtful about it.
        """


VesselProbability = Callable[[np.ndarray], np.ndarray]
"""A trained network: float32 (X, Y, Z) HU on voxels of about 0.9 mm -> probability of vessel per voxel, 0 to 1."""


def segment(cta: Volume, mni_from_world: np.ndarray, bone: Volume | None = None) -> Volume:
    """Segment the intracranial vessel tree; arguments as in ``Segmenter``. Empty if the CTA does not show the brain.

    Flag ``vessels-weak``: parts that look like weakly filled branches are left out, because no place of them is a
    strong tube. A branch behind a clot is found or left out as a whole, so noise and kernel can decide.
    """
    return _segment(cta, mni_from_world, bone, _vessel_blocks)


def learned_segmenter(vessel_probability: VesselProbability) -> Segmenter:
    """A segmenter like ``segment``, except that a trained network decides which blocks are vessel."""

    def find_blocks(values: np.ndarray, inside: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, float]:  # noqa: ARG001
        return np.argwhere(without_border(inside & (values > _MIN_HU)) & (vessel_probability(values) > 0.5)), 0.0

    return lambda cta, mni_from_world, bone=None: _segment(cta, mni_from_world, bone, find_blocks)


def _segment(
    cta: Volume,
    mni_from_world: np.ndarray,
    bone: Volume | None,
    find_blocks: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, float]],
) -> Volume:
    mask = np.zeros(cta.shape, np.uint8, order="F")
    factors = _factors(cta.spacing_mm)
    part = _whole_blocks(brain_mask.box(cta.affine, cta.shape, mni_from_world, MARGIN_MM), factors)
    window = cta.data[part]
    left_out = 0.0
    if window.size:
        values, affine = _block_values(cta, part, factors)
        edges = np.linalg.norm(affine[:3, :3], axis=0)
        depth = brain_mask.distance(affine, values.shape, mni_from_world)
        near = searched(values, depth, affine, mni_from_world, bone)
        # Transposed for sequential memory access; the measure does not depend on the order of the axes.
        blocks, left_out = find_blocks(values.T, near.T, edges[::-1])
        blocks = blocks[:, ::-1]
        _mark_voxels(
            mask[part], window, blocks * factors, factors, (_edge_level(values, blocks) - cta.inter) / cta.slope
        )
    return Volume(mask, cta.affine, flags=_left_out(left_out))


def _left_out(volume_mm3: float) -> tuple[Flag, ...]:
    if volume_mm3 < _BRANCH_MM3:
        return ()
    detail = f"vessels: {volume_mm3 / 1000:.2f} mL that could be weakly filled branches are not in the computed mask"
    return (Flag(code="vessels-weak", detail=detail),)


def is_vessel(mask: Volume) -> np.ndarray:
    """Bool array of a mask that was sent: real value above 0.5, because a label can decode to 1.000015."""
    threshold = (0.5 - mask.inter) / mask.slope
    return np.asarray(mask.data > threshold if mask.slope > 0 else mask.data < threshold)


def vesselness(values: np.ndarray, at: np.ndarray, edges_mm: np.ndarray) -> np.ndarray:
    """Frangi's measure of bright tubes, maximum over the scales, at chosen voxels.

    Args:
        values: (X, Y, Z) float32 HU.
        at: (n,), flat C-order indices of the voxels, none on the border of the array.
        edges_mm: (3,), voxel edges.

    Returns:
        (n,) float32, 0 to 1.
    """
    fine = (values, at, edges_mm)
    coarse = _halved(*fine) if min(values.shape) > 4 else fine
    enough = _COARSE_VOXELS * edges_mm.max()
    best = np.zeros(at.size, np.float32)
    for scale in _SCALES_MM:
        np.maximum(best, _tube_measure(*(coarse if scale >= enough else fine), scale), out=best)
    return best


_COARSE_VOXELS: Final = 1.9  # smoothing, in voxels, from which a scale is computed at half the resolution


def _halved(values: np.ndarray, at: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of 2 x 2 x 2 voxels; for each voxel of ``at``, its block, or the nearest block not on the border."""
    blocks = np.ascontiguousarray(shrink(values, (2, 2, 2))[0])
    place = np.stack(np.unravel_index(at, values.shape)) // 2
    within = np.clip(place, 1, np.array(blocks.shape)[:, None] - 2)
    return blocks, np.ravel_multi_index(tuple(within), blocks.shape), 2 * edges


def _tube_measure(values: np.ndarray, at: np.ndarray, edges_mm: np.ndarray, scale: float) -> np.ndarray:
    """Frangi's measure at one scale (standard deviation of the smoothing, mm)."""
    smooth = gaussian(values, [scale / edge for edge in edges_mm], truncate=2.5)
    hessian = _hessian(smooth, at, edges_mm) * np.float32(scale**2)
    low, middle, high = _eigenvalues(hessian)
    # low <= middle <= high; a bright tube has low, middle << 0 and high near 0.
    plate = middle / np.minimum(low, -1e-6)
    blob = np.abs(high) / np.sqrt(np.maximum(low * middle, 1e-6))
    size = np.sqrt(low**2 + middle**2 + high**2)
    tube = (1 - np.exp(-(plate**2) / 0.5)) * np.exp(-(blob**2) / 0.5) * (1 - np.exp(-(size**2) / (2 * _CLEAR_HU**2)))
    result: np.ndarray = np.where(middle < 0, tube, 0)
    return result


_CLEAR_HU: Final = 40.0  # scale-normalised second derivative of a clear structure: three times the usual noise


def _factors(spacing_mm: tuple[float, float, float]) -> tuple[int, int, int]:
    x, y, z = (max(1, round(_WORKING_MM / edge)) for edge in spacing_mm)
    return x, y, z


def _whole_blocks(part: tuple[slice, ...], factors: tuple[int, int, int]) -> tuple[slice, ...]:
    """The part, extended to start at the edge of a block."""
    return tuple(slice(axis.start // k * k, axis.stop) for axis, k in zip(part, factors, strict=True))


def _block_values(cta: Volume, part: tuple[slice, ...], factors: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Block means (HU, float32) of a part of the CTA, and their affine.

    Whole slices are averaged and then cropped, because a part of a slice is not contiguous and would be copied.
    """
    blocks, from_blocks = shrink(cta.data[:, :, part[2]], factors)
    cut = tuple(slice(axis.start // k, -(-axis.stop // k)) for axis, k in zip(part[:2], factors, strict=False))
    values = blocks[cut] * np.float32(cta.slope) + np.float32(cta.inter)
    moved = np.eye(4)
    moved[:3, 3] = [cut[0].start, cut[1].start, 0]
    slab = np.eye(4)
    slab[2, 3] = part[2].start
    return values, cta.affine @ slab @ from_blocks @ moved


def _vessel_blocks(values: np.ndarray, inside: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, float]:
    """Voxels (n, 3) of strong tubes and of weak tubes that are connected to them, without islands.

    Also the volume (mm3) of weak tubes that are no islands and are connected to no strong one.
    """
    possible = without_border(inside & (values > _MIN_HU))
    at = np.flatnonzero(possible)
    # Bone would be the strongest edge: it is clipped to the level of a bright vessel before the derivatives.
    level = np.where(inside, np.float32(500), np.float32(60))
    measure = vesselness(np.minimum(values, level, out=level), at, edges)
    weak = measure > _WEAK
    at, measure = at[weak], measure[weak]
    part = connected_parts(at, values.shape)
    size = np.bincount(part) * float(np.prod(edges))
    large, strong = size >= _ISLAND_MM3, np.isin(np.arange(size.size), part[measure > _STRONG])
    keep = large & strong
    blocks = np.stack(np.unravel_index(at[keep[part]], values.shape), axis=1)
    return blocks, float(size[large & ~strong].sum())


def _edge_level(values: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """(n,) HU at the edge of the vessel in each block: halfway from tissue to the brightest of its 27 neighbours.

    No block lies on the border of the array, so all neighbours exist.
    """
    height = np.full(len(blocks), -np.inf, np.float32)
    for step in np.ndindex(3, 3, 3):
        np.maximum(height, values[tuple((blocks + step - 1).T)], out=height)
    return np.maximum((height + _TISSUE_HU) / 2, _MIN_HU)


def _mark_voxels(
    mask: np.ndarray, stored: np.ndarray, first: np.ndarray, factors: tuple[int, int, int], edge_level: np.ndarray
) -> None:
    """Set the voxels in the blocks of the tree that are brighter than the edge level; ``first``: (n, 3) per block."""
    for step in np.ndindex(factors):
        voxels = first + step
        valid = np.all(voxels < mask.shape, axis=1)
        at = tuple(voxels[valid].T)
        mask[at] = stored[at] > edge_level[valid]


def _hessian(smooth: np.ndarray, at: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(n, 6): xx, yy, zz, xy, xz, yz by central differences, HU per mm squared."""
    flat = smooth.ravel()
    steps = [smooth.shape[1] * smooth.shape[2], smooth.shape[2], 1]
    centre = flat[at]
    parts = [(flat[at - s] - 2 * centre + flat[at + s]) / e**2 for s, e in zip(steps, edges, strict=True)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        s, t = steps[a], steps[b]
        cross = flat[at + s + t] - flat[at + s - t] - flat[at - s + t] + flat[at - s - t]
        parts.append(cross / (4 * edges[a] * edges[b]))
    return np.stack(parts, axis=1).astype(np.float32)


def _eigenvalues(hessian: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eigenvalues of symmetric 3 x 3 matrices, ascending, by the trigonometric formula (Smith, CACM 1961;4:168)."""
    xx, yy, zz, xy, xz, yz = hessian.T.astype(np.float64)
    mean = (xx + yy + zz) / 3
    a, b, c = xx - mean, yy - mean, zz - mean
    spread = np.sqrt(np.maximum((a**2 + b**2 + c**2 + 2 * (xy**2 + xz**2 + yz**2)) / 6, 1e-20))
    half_det = (a * (b * c - yz**2) - xy * (xy * c - yz * xz) + xz * (xy * yz - b * xz)) / (2 * spread**3)
    angle = np.arccos(np.clip(half_det, -1, 1)) / 3
    high = mean + 2 * spread * np.cos(angle)
    low = mean + 2 * spread * np.cos(angle + 2 * np.pi / 3)
    return low, 3 * mean - high - low, high
