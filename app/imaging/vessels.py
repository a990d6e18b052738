"""The vessel tree from a CT angiogram, for patients whose site sends no mask of its own.

Steps: the part of the volume that holds the brain, averaged to about 0.9 mm; bone out; tubes found by their
second derivatives at three scales; strong tubes grown along weaker ones; islands dropped; back to the CTA's own voxels.

Notable choices:
- Frangi's vesselness (Frangi et al., MICCAI 1998): of the Hessian's eigenvalues, a bright tube has two that are large
  and negative and one near zero. It is evaluated only where the voxel is bright enough to be a vessel (2-5 % of the
  head), from differences of three Gaussian-smoothed images, which is what makes it fast.
- Bone is what is too dense for contrast (> 700 HU), grown through what is dense and touching it by 2 mm; with an
  aligned NCCT, also every voxel that is dense there too: contrast is what the CTA has and the NCCT has not.
- The skull base is where this is weakest: carotid siphons that touch bone come out thinned.
- Veins are vessels too; a mask that should not have them must be sent by the site.
- Anything that maps an aligned CTA to a mask can take its place: see ``Segmenter``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import numpy as np
from scipy import sparse

from app.imaging.io.nifti import Volume
from app.imaging.jit import jit_compiled, over_slabs
from app.imaging.registration import brain_mask
from app.imaging.resample import resample, shrink
from app.imaging.smoothing import gaussian

__all__ = ["Marks", "Segmenter", "inside", "learned", "segment", "vesselness"]

_WORKING_MM: Final = 0.9
_MARGIN_MM: Final = 5.0
_SCALES_MM: Final = (0.7, 1.1, 1.8)
_LEAST_HU: Final = 90.0
"""Below this nothing is contrast: grey matter lies near 40 HU, clotted blood near 80."""

_TISSUE_HU: Final = 40.0
_BONE_HU: Final = 700.0
_DENSE_HU: Final = 250.0
_NCCT_DENSE_HU: Final = 130.0
_BONE_REACH_MM: Final = 2.0
_STRONG: Final = 0.30
_WEAK: Final = 0.08
_ISLAND_MM3: Final = 40.0


class Segmenter(Protocol):
    """Whatever makes a vessel mask: ``segment`` below, or a trained network in its place."""

    def __call__(self, cta: Volume, mni_from_world: np.ndarray, bone: Volume | None = None) -> Volume:
        """The mask on the CTA's own grid: uint8, 1 in vessels.

        :param cta: (X, Y, Z) HU
        :param mni_from_world: (4, 4) the CTA's RAS+ mm -> MNI152 mm
        :param bone: the NCCT, its affine already moved into the CTA's world frame; None where there is none
        """


Marks = Callable[[np.ndarray], np.ndarray]
"""A trained network: float32 (X, Y, Z) HU on voxels of about 0.9 mm to the chance of vessel, 0 to 1, in each."""


def segment(cta: Volume, mni_from_world: np.ndarray, bone: Volume | None = None) -> Volume:
    """The intracranial vessel tree on the CTA's own grid. See ``Segmenter`` for the arguments.

    Empty where the CTA does not show the brain.
    """
    return _segment(cta, mni_from_world, bone, _tree)


def learned(marks: Marks) -> Segmenter:
    """A segmenter that asks a trained network which blocks are vessel, and does all else as ``segment`` does."""

    def tree(values: np.ndarray, inside: np.ndarray, edges: np.ndarray) -> np.ndarray:  # noqa: ARG001
        return np.argwhere(_off_border(inside & (values > _LEAST_HU)) & (marks(values) > 0.5))

    return lambda cta, mni_from_world, bone=None: _segment(cta, mni_from_world, bone, tree)


def _segment(
    cta: Volume,
    mni_from_world: np.ndarray,
    bone: Volume | None,
    tree: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
) -> Volume:
    mask = np.zeros(cta.shape, np.uint8, order="F")
    factors = _factors(cta.spacing_mm)
    part = _whole_blocks(brain_mask.box(cta.affine, cta.shape, mni_from_world, _MARGIN_MM), factors)
    window = cta.data[part]
    if window.size:
        values, affine = _working(cta, part, factors)
        edges = np.linalg.norm(affine[:3, :3], axis=0)
        near = brain_mask.distance(affine, values.shape, mni_from_world) < _MARGIN_MM
        near &= ~_bone(values, affine, edges, bone)
        # Axes are taken in the order they lie in memory: tubes are tubes in any order.
        blocks = tree(values.T, near.T, edges[::-1])[:, ::-1]
        _mark(mask[part], window, blocks * factors, factors, (_rim(values, blocks) - cta.inter) / cta.slope)
    return Volume(mask, cta.affine)


def inside(mask: Volume) -> np.ndarray:
    """Where a mask that was sent has a vessel: above 0.5, since a label can decode to 1.000015. Compared as stored."""
    cut = (0.5 - mask.inter) / mask.slope
    return np.asarray(mask.data > cut if mask.slope > 0 else mask.data < cut)


def vesselness(values: np.ndarray, at: np.ndarray, edges_mm: np.ndarray) -> np.ndarray:
    """Frangi's measure for bright tubes, largest over the scales, at chosen voxels.

    :param values: (X, Y, Z) float32 HU
    :param at: (n,) flat C-order indices of the voxels asked for, none of them on the array's border
    :param edges_mm: voxel edges
    :return: (n,) float32 in 0..1
    """
    fine = (values, at, edges_mm)
    coarse = _halved(*fine) if min(values.shape) > 4 else fine
    enough = _COARSE * edges_mm.max()
    best = np.zeros(at.size, np.float32)
    for scale in _SCALES_MM:
        np.maximum(best, _tubes(*(coarse if scale >= enough else fine), scale), out=best)
    return best


_COARSE: Final = 1.9
"""Voxels of smoothing from which a scale is worked on at half the resolution, at an eighth of the cost."""


def _halved(values: np.ndarray, at: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of 2 x 2 x 2 voxels; for each voxel of ``at`` the block it is in, or the next one off the border."""
    blocks = np.ascontiguousarray(shrink(values, (2, 2, 2))[0])
    place = np.stack(np.unravel_index(at, values.shape)) // 2
    within = np.clip(place, 1, np.array(blocks.shape)[:, None] - 2)
    return blocks, np.ravel_multi_index(tuple(within), blocks.shape), 2 * edges


def _tubes(values: np.ndarray, at: np.ndarray, edges_mm: np.ndarray, scale: float) -> np.ndarray:
    """The measure at one scale (standard deviation of the smoothing, mm)."""
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


_CLEAR_HU: Final = 40.0
"""Second derivative (HU, scale-normalised) at which a structure counts as clear: three times a usual CTA's noise."""


def _factors(spacing_mm: tuple[float, float, float]) -> tuple[int, int, int]:
    x, y, z = (max(1, round(_WORKING_MM / edge)) for edge in spacing_mm)
    return x, y, z


def _whole_blocks(part: tuple[slice, ...], factors: tuple[int, int, int]) -> tuple[slice, ...]:
    """The part, begun on a block's edge."""
    return tuple(slice(axis.start // k * k, axis.stop) for axis, k in zip(part, factors, strict=True))


def _working(cta: Volume, part: tuple[slice, ...], factors: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Block means (HU, float32) of a part of the CTA, and their affine.

    Whole slices are averaged and cut afterwards: a part of a slice does not lie in one piece, and would be copied.
    """
    blocks, from_blocks = shrink(cta.data[:, :, part[2]], factors)
    cut = tuple(slice(axis.start // k, -(-axis.stop // k)) for axis, k in zip(part[:2], factors, strict=False))
    values = blocks[cut] * np.float32(cta.slope) + np.float32(cta.inter)
    moved = np.eye(4)
    moved[:3, 3] = [cut[0].start, cut[1].start, 0]
    slab = np.eye(4)
    slab[2, 3] = part[2].start
    return values, cta.affine @ slab @ from_blocks @ moved


def _bone(values: np.ndarray, affine: np.ndarray, edges: np.ndarray, ncct: Volume | None) -> np.ndarray:
    """Where bone is, grown into the dense voxels that touch it."""
    dense = values > _DENSE_HU
    bone = values > _BONE_HU
    for _ in range(max(1, round(_BONE_REACH_MM / min(edges)))):
        bone = _grown(bone, dense)
    if ncct is not None:
        plain = resample(
            ncct.data, np.linalg.inv(ncct.affine) @ affine, values.shape, slope=ncct.slope, inter=ncct.inter
        )
        bone |= _grown(plain > _NCCT_DENSE_HU, dense)
    return bone


def _grown(seeds: np.ndarray, within: np.ndarray) -> np.ndarray:
    """The seeds, and the voxels of ``within`` that share a face with one: a tenth of scipy's time for the same mask."""
    lying, allowed = np.ascontiguousarray(seeds.T), np.ascontiguousarray(within.T)
    grown = np.empty_like(lying)
    over_slabs(len(lying), lambda start, stop: _grow(lying, allowed, grown[start:stop], start))
    return grown.T


@jit_compiled
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


def _tree(values: np.ndarray, inside: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The voxels (n, 3) of strong tubes and of weaker ones that hang on them; without islands."""
    possible = _off_border(inside & (values > _LEAST_HU))
    at = np.flatnonzero(possible)
    # Bone would be the strongest edge of all: it is flattened to the level of a bright vessel before the derivatives.
    level = np.where(inside, np.float32(500), np.float32(60))
    measure = vesselness(np.minimum(values, level, out=level), at, edges)
    weak = measure > _WEAK
    at, measure = at[weak], measure[weak]
    part = _parts(at, values.shape)
    size = np.bincount(part) * float(np.prod(edges))
    keep = size >= _ISLAND_MM3
    keep &= np.isin(np.arange(keep.size), part[measure > _STRONG])
    return np.stack(np.unravel_index(at[keep[part]], values.shape), axis=1)


def _parts(at: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(n,) the number of the connected part (26 neighbours) that each voxel is in.

    By the few voxels that there are, where an image of labels would go through all of them.

    :param at: (n,) flat C-order indices, ascending, none on the border
    """
    number = np.zeros(int(np.prod(shape)), np.int32)  # untouched pages cost nothing
    number[at] = np.arange(1, at.size + 1)
    steps = np.array([1, shape[2], shape[1] * shape[2]])
    ahead = [int(step @ steps) for step in np.indices((3, 3, 3)).reshape(3, -1).T[14:] - 1]
    beside = np.stack([number[at + step] for step in ahead])
    which, one = np.nonzero(beside)
    touching = sparse.coo_array((np.ones(one.size, bool), (one, beside[which, one] - 1)), (at.size, at.size))
    part: np.ndarray = sparse.csgraph.connected_components(touching, directed=False)[1]
    return part


def _off_border(mask: np.ndarray) -> np.ndarray:
    mask[[0, -1]] = mask[:, [0, -1]] = mask[:, :, [0, -1]] = False
    return mask


def _rim(values: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """(n,) HU at which each of the tree's blocks ends: half way from tissue to the brightest block beside it.

    The tree never touches the array's border, so every block has its 26 neighbours.
    """
    height = np.full(len(blocks), -np.inf, np.float32)
    for step in np.ndindex(3, 3, 3):
        np.maximum(height, values[tuple((blocks + step - 1).T)], out=height)
    return np.maximum((height + _TISSUE_HU) / 2, _LEAST_HU)


def _mark(
    mask: np.ndarray, stored: np.ndarray, first: np.ndarray, factors: tuple[int, int, int], rim: np.ndarray
) -> None:
    """Set the voxels of the tree's blocks that are bright themselves: the CTA's own voxels trim the blocks.

    :param first: (n, 3) each block's first voxel
    """
    for step in np.ndindex(factors):
        voxels = first + step
        there = np.all(voxels < mask.shape, axis=1)
        at = tuple(voxels[there].T)
        mask[at] = stored[at] > rim[there]


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
