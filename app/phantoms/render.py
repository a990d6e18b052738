"""Render a phantom directly onto a model's grid, as ``app.imaging.preprocess.prepare`` would resample it, but faster.

Design notes:
- Smoothing and sampling are linear: three small matrices (one per axis) map the canvas or the lattice to the grid, and
  a sparse matrix maps the artery voxels.
- The smoothing is a Gaussian of ``BLUR`` grid steps, which matches app/imaging/resample.py
  (tests/phantoms/test_render.py compares the two).
- ``grid_offsets`` imitate registration errors: fixed small shifts and stretches along the axes, one per patient.
- Values have physical units (HU, seconds, ratio); ``normalise`` applies the windows of the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from app.imaging.model_grid import ChannelSpec, Grid
from app.imaging.registration import brain_mask
from app.imaging.resample import highest
from app.phantoms import acquisition, anatomy, scene
from app.phantoms.acquisition import GridFrame
from app.phantoms.scanner import Scanner
from app.phantoms.scene import Scene
from app.phantoms.variant import TEMPLATE, Variant
from app.sdk.types import Channel

Array = NDArray[np.float32]

BLUR = 0.425  # standard deviation of the smoothing, in grid steps: a width at half maximum of one step
NEIGHBOURS = 5  # grid planes, along each axis, that one canvas voxel contributes to
NOISE_HU = 0.5  # noise of a scan after the smoothing
WHOLE_VOXELS = (1, 1)  # parts of NCCT and CTA along each axis
SEARCHED_MM = 5.0  # distance from the brain up to which the service looks for vessels
VEIN_SHARE = 0.7  # of the voxels of an enhanced vein that the service marks; measured before the curves below changed


@dataclass(frozen=True)
class GridOffset:
    """Registration error: along each axis, grid coordinate x shows MNI coordinate ``stretch * x + shift_mm``."""

    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    stretch: tuple[float, float, float] = (1.0, 1.0, 1.0)


def grid_offsets(count: int) -> list[GridOffset]:
    """The first ``count`` of a fixed list; the first is exact, the others are off by about 2 mm and 1.5 %."""
    rng = np.random.default_rng(20250113)
    offsets = [GridOffset()]
    for _ in range(count - 1):
        x, y, z = (float(v) for v in rng.normal(0, 1.5, 3))
        a, b, c = (float(v) for v in rng.normal(1, 0.015, 3))
        offsets.append(GridOffset((x, y, z), (a, b, c)))
    return offsets


def _weights(grid: Grid, offset: GridOffset, axis: int, start: float, step: float, count: int) -> Array:
    """(grid length, count) Gaussian weights along one axis, for samples at ``start + step * n`` mm.

    Rows sum to one before they are cut to the samples, so that values outside the samples count as zero.
    """
    source = start + np.arange(-count, 2 * count) * step
    target = grid.affine[axis][3] + np.arange(grid.shape[axis]) * grid.affine[axis][axis]
    target = offset.stretch[axis] * target + offset.shift_mm[axis]
    width = max(BLUR * grid.spacing_mm[axis], 0.3 * step)
    weights = np.exp(-0.5 * ((target[:, None] - source[None]) / width) ** 2)
    weights /= np.maximum(weights.sum(1, keepdims=True), 1e-12)
    weights[weights < 1e-9] = 0  # the tails would become denormal numbers, which are very slow
    return weights[:, count : 2 * count].astype(np.float32)


def _frame(grid: Grid, offset: GridOffset) -> GridFrame:
    axes = (
        offset.stretch[a] * (grid.affine[a][3] + np.arange(grid.shape[a]) * grid.affine[a][a]) + offset.shift_mm[a]
        for a in range(3)
    )
    x, y, z = (axis.astype(np.float32) for axis in axes)
    a, b, c = grid.spacing_mm
    return GridFrame((x, y, z), (a, b, c), (BLUR * a, BLUR * b, BLUR * c))


class _Ct:
    """Head and vessels of one variant on one grid, as a CT shows them."""

    def __init__(self, grid: Grid, offset: GridOffset, variant: Variant) -> None:
        self.shape, self.frame = grid.shape, _frame(grid, offset)
        head, tree = anatomy.head(variant), anatomy.arteries(variant)
        self._matrices = [_weights(grid, offset, a, anatomy.ORIGIN_MM[a], 1.0, anatomy.SHAPE[a]) for a in range(3)]
        # The canvas is surrounded by air: map the difference to air, so that zero means air outside.
        self._tissue = _carry(self._matrices, head.tissue - anatomy.AIR) + anatomy.AIR
        self._under = head.tissue.reshape(-1)[tree.index]
        self._cover = tree.cover
        self._arteries = self._sparse(tree.index)

    def _sparse(self, index: NDArray[np.int64]) -> sparse.csr_matrix:
        """(grid voxels, artery voxels): the product of the three matrices for single canvas voxels."""
        parts = []
        for weights, coordinate in zip(self._matrices, np.unravel_index(index, anatomy.SHAPE), strict=True):
            axis_weights = weights[:, coordinate].T  # (artery voxels, grid length); few neighbours are not zero
            near = np.sort(np.argpartition(-axis_weights, NEIGHBOURS, axis=1)[:, :NEIGHBOURS], axis=1)
            parts.append((near, np.take_along_axis(axis_weights, near, axis=1)))
        (i, wx), (j, wy), (k, wz) = parts
        flat = (i[:, :, None, None] * self.shape[1] + j[:, None, :, None]) * self.shape[2] + k[:, None, None, :]
        weight = wx[:, :, None, None] * wy[:, None, :, None] * wz[:, None, None, :]
        columns = np.broadcast_to(np.arange(len(index))[:, None, None, None], flat.shape)
        kept = weight > 1e-4
        whole = np.prod([axis_weights.sum(axis=1) for axis_weights in (wx, wy, wz)], axis=0)
        left = np.where(kept, weight, 0).sum(axis=(1, 2, 3))
        weight = weight * (whole / np.maximum(left, 1e-12))[:, None, None, None]  # the dropped tails are 2 % in all
        return sparse.csr_matrix(
            (weight[kept], (flat[kept], columns[kept])), shape=(int(np.prod(self.shape)), len(index)), dtype=np.float32
        )

    def filled(self, values: Array) -> Array:
        """Values (n,) of the artery voxels on the grid (X, Y, Z), by the share of a voxel that they fill."""
        return np.asarray((self._arteries @ values).reshape(self.shape), np.float32)

    def scanned(self, channel: Channel, blood: Array, grain: Array, scanner: Scanner) -> Array:
        """NCCT or CTA (X, Y, Z), HU, with these densities (n,) in its vessels and this noise, as a scanner shows it."""
        image = self._tissue + self.filled(self._cover * (blood - self._under))
        return acquisition.on_grid(image, channel, scanner, self.frame) + grain


class Renderer:
    """Renders scenes of one variant onto one grid; construction is slow, a scene is fast.

    ``parts`` are those of the channels NCCT and CTA, as in ``ChannelSpec``.
    """

    def __init__(
        self,
        grid: Grid,
        offset: GridOffset = GridOffset(),
        variant: Variant = TEMPLATE,
        *,
        parts: tuple[int, int] = WHOLE_VOXELS,
    ) -> None:
        self.shape = grid.shape
        self.variant = variant
        tree, brain = anatomy.arteries(variant), scene.lattice(variant)
        self._parts = dict(zip((Channel.NCCT, Channel.CTA), parts, strict=True))
        self._cts = {number: _Ct(grid.divided(number), offset, variant) for number in {1, *parts}}
        self._coarse = [
            _weights(grid, offset, a, brain.affine[a, 3], brain.affine[a, a], brain.mask.shape[a]) for a in range(3)
        ]
        self._cover = tree.cover
        self._segmented_share = _segmented(tree) if variant.is_template else _segmented(tree) * _reached(tree)
        self._carotid = tree.of("left/ica") | tree.of("right/ica")
        self._brain = brain.mask

    def _spread(self, values: Array) -> Array:
        """Lattice values (m,) on the grid; 0 outside the brain, as in the maps of perfusion software."""
        volume = np.zeros(self._brain.shape, np.float32)
        volume[self._brain] = values
        return _carry(self._coarse, volume)

    def render(self, patient_scene: Scene) -> dict[Channel, Array]:
        """Render the five channels in physical units, each (X, Y, Z) float32: HU, HU, 0 to 1, s, ratio.

        Raises:
            ValueError: The patient has another anatomical variant.
        """
        variation = patient_scene.variation
        if variation.variant != self.variant:
            raise ValueError("the renderer has another anatomical variant: build one with the variant of the scene")
        blood = anatomy.BLOOD + patient_scene.density
        noise = np.random.default_rng(variation.noise_seed)
        ranks = scene.ranks_ml(patient_scene)
        values = {
            Channel.NCCT: self._scanned(Channel.NCCT, blood, noise, patient_scene) + np.float32(variation.offset_hu),
            Channel.CTA: self._scanned(
                Channel.CTA, blood + patient_scene.enhancement * variation.contrast_hu, noise, patient_scene
            ),
            Channel.VESSELS: self._cts[1].filled(self._segmented_share * _visible(patient_scene, self._carotid)),
            Channel.TMAX: self._spread(scene.tmax_s(ranks, patient_scene.patient)),
            Channel.RCBF: self._spread(scene.flow(ranks, patient_scene.patient, self.variant)),
        }
        return acquisition.cut(values, variation.scanner, self._cts[1].frame)

    def clot(self, patient_scene: Scene) -> Array:
        """Share of each voxel (X, Y, Z) that the clot fills, 0 to 1."""
        return np.clip(self._cts[1].filled(self._cover * patient_scene.clot), 0, 1)

    def _scanned(self, channel: Channel, blood: Array, noise: np.random.Generator, patient_scene: Scene) -> Array:
        """NCCT or CTA (X, Y, Z), HU, with these densities (n,) in its vessels: the highest of each voxel's parts."""
        parts, scanner = self._parts[channel], patient_scene.variation.scanner
        ct = self._cts[parts]
        grain = noise.standard_normal(self.shape, dtype=np.float32)  # drawn always: the next channel's stays the same
        if parts == 1:
            return ct.scanned(
                channel, blood, grain * np.float32(NOISE_HU * acquisition.grain(channel, scanner)), scanner
            )
        own = np.random.default_rng([patient_scene.variation.noise_seed, 10, list(Channel).index(channel)])
        fine = acquisition.fine_grain(own.standard_normal(ct.shape, dtype=np.float32), channel, scanner, ct.frame)
        return np.ascontiguousarray(highest(ct.scanned(channel, blood, fine, scanner), parts))


# Measured on eight full-size phantoms with NCCT: share of an artery voxel that app/imaging/vessels.py marks, and a
# fiftieth more for marked voxels beside the artery. docs/imaging.md gives the agreement.
_COVER = [0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95, 1.0]
_BY_COVER = [0.075, 0.115, 0.165, 0.235, 0.325, 0.46, 0.55, 0.66, 0.745, 0.815, 0.925]
_CAROTID_MM = [58.0, 61.0, 64.0, 67.0, 70.0, 82.0, 85.0, 88.0, 91.0, 94.0, 97.0, 100.0]  # it touches bone up to 95 mm
_BY_CAROTID = [0.0, 0.07, 0.27, 0.41, 0.46, 0.45, 0.35, 0.25, 0.13, 0.11, 0.62, 0.98]
_FILLED_HU = [140.0, 155.0, 175.0, 240.0]  # a weakly filled branch is lost or found as a whole
_BY_FILLED = [0.0, 0.8, 0.92, 1.0]
_FILLED_CAROTID_HU = [215.0, 270.0]  # beside bone, less of a weakly filled carotid is found
_BY_FILLED_CAROTID = [0.6, 0.87]
_CALCIUM_HU = [20.0, 55.0, 90.0]  # above blood; voxels that are dense in the NCCT are bone
_BY_CALCIUM = [1.0, 0.3, 0.0]


def _segmented(tree: anatomy.Arteries) -> Array:
    """(n,): share of an artery voxel that app/imaging/vessels.py marks on a CTA if the artery is filled."""
    share = np.interp(tree.cover, _COVER, _BY_COVER)
    for side in ("left", "right"):
        carotid = tree.of(f"{side}/ica")
        share[carotid] *= np.interp(tree.arc_mm[carotid], _CAROTID_MM, _BY_CAROTID)
    return share.astype(np.float32)


def _visible(patient_scene: Scene, carotid: NDArray[np.bool_]) -> Array:
    """(n,): factor of ``_segmented`` by contrast and calcium; ``carotid`` (n,): the voxels of the carotids."""
    contrast = patient_scene.enhancement * patient_scene.variation.contrast_hu
    filled = anatomy.BLOOD + patient_scene.density + contrast
    visible = np.interp(filled, _FILLED_HU, _BY_FILLED) * np.interp(patient_scene.density, _CALCIUM_HU, _BY_CALCIUM)
    visible[carotid] *= np.interp(filled[carotid], _FILLED_CAROTID_HU, _BY_FILLED_CAROTID)
    return visible.astype(np.float32)


def _reached(tree: anatomy.Arteries) -> Array:
    """(n,): relative probability of the veins, and of vessels outside the brain, in the computed mask.

    The segmentation ends near the brain, and loses the part of a dural sinus that touches bone.
    """
    points = np.stack(np.unravel_index(tree.index, anatomy.SHAPE), -1) + anatomy.ORIGIN_MM
    near = brain_mask.distance_at(points) < SEARCHED_MM
    return np.where(near, np.where(tree.vein, VEIN_SHARE, 1.0), 0.0).astype(np.float32)


def renderer(
    grid: Grid, channels: Sequence[ChannelSpec] = (), offset: GridOffset = GridOffset(), variant: Variant = TEMPLATE
) -> Renderer:
    """The renderer of a grid, the parts of the voxels of ``channels``, and a variant; the last ones are kept."""
    parts = {channel.name: channel.parts for channel in channels}
    if any(number > 1 for name, number in parts.items() if name not in (Channel.NCCT, Channel.CTA)):
        raise ValueError("phantoms have parts of voxels in NCCT and CTA only")
    if any(number > 2 for number in parts.values()):
        raise ValueError("the noise of phantoms is known for two parts of a voxel only")
    return _renderer(grid, (parts.get(Channel.NCCT, 1), parts.get(Channel.CTA, 1)), offset, variant)


@lru_cache(maxsize=48)
def _renderer(grid: Grid, parts: tuple[int, int], offset: GridOffset, variant: Variant) -> Renderer:
    return Renderer(grid, offset, variant, parts=parts)


def _carry(matrices: Sequence[Array], volume: Array) -> Array:
    """Apply one matrix along each axis, the last axis first, for sequential memory access."""
    x, y, z = matrices
    length, width, _ = volume.shape
    inner = y @ (volume.reshape(length * width, -1) @ z.T).reshape(length, width, -1)  # (x, grid y, grid z)
    return np.asarray(x @ inner.reshape(length, -1)).reshape(len(x), len(y), len(z))


def normalise(values: dict[Channel, Array], channels: Sequence[ChannelSpec]) -> Array:
    """Clip each channel to its window and standardise it: (C, X, Y, Z) float32, in the order of ``channels``."""
    return np.stack([(np.clip(values[c.name], *c.window) - c.mean) / c.std for c in channels]).astype(np.float32)
