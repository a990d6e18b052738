"""Straight onto a model's grid: a phantom as the service's own ``prepare`` would have left it, in milliseconds.

Notable choices:
- ``prepare`` smooths and samples; both are linear, so they are done once: three small matrices (one an axis) carry
  the canvas or the lattice to the grid, and a sparse one carries the artery voxels.
- The smoothing is a Gaussian of ``BLUR`` grid steps, measured to match app/imaging/resample.py on random oblique
  patients (tests/phantoms/test_render.py holds the two paths together).
- A registration is never perfect. ``grid_offsets`` are fixed small shifts and stretches of the head on the grid; each
  patient of a cohort lies in one of them. They keep the axes, so the three matrices stay three matrices.
- Values are in physical units (HU, seconds, ratio); ``normalise`` then does what the manifest says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from app.imaging.model_grid import ChannelSpec, Grid
from app.phantoms import anatomy, scene
from app.phantoms.scene import Scene
from app.sdk.types import Channel

Array = NDArray[np.float32]

BLUR = 0.425  # standard deviation of the smoothing, in grid steps: a width at half maximum of one step
NEIGHBOURS = 5  # grid planes, along each axis, that one canvas voxel reaches
NOISE_HU = 0.5  # what is left of a scan's noise after the smoothing


@dataclass(frozen=True)
class GridOffset:
    """MNI coordinate seen at grid coordinate x, along each axis: ``stretch * x + shift_mm``."""

    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    stretch: tuple[float, float, float] = (1.0, 1.0, 1.0)


def grid_offsets(count: int) -> list[GridOffset]:
    """The first ``count`` of a fixed list; the first is exact, the others are off by some 2 mm and 1.5 %."""
    rng = np.random.default_rng(20250113)
    found = [GridOffset()]
    for _ in range(count - 1):
        x, y, z = (float(v) for v in rng.normal(0, 1.5, 3))
        a, b, c = (float(v) for v in rng.normal(1, 0.015, 3))
        found.append(GridOffset((x, y, z), (a, b, c)))
    return found


def _weights(grid: Grid, placement: GridOffset, axis: int, start: float, step: float, count: int) -> Array:
    """(grid length, count) Gaussian weights along one axis, for samples at ``start + step * n`` mm. Rows sum to one
    as far as the samples reach: what lies beyond them counts as zero.
    """
    source = start + np.arange(-count, 2 * count) * step
    target = grid.affine[axis][3] + np.arange(grid.shape[axis]) * grid.affine[axis][axis]
    target = placement.stretch[axis] * target + placement.shift_mm[axis]
    width = max(BLUR * grid.spacing_mm[axis], 0.3 * step)
    weights = np.exp(-0.5 * ((target[:, None] - source[None]) / width) ** 2)
    weights /= np.maximum(weights.sum(1, keepdims=True), 1e-12)
    weights[weights < 1e-9] = 0  # denormal numbers, which the far tails would become, cost a hundredfold
    return weights[:, count : 2 * count].astype(np.float32)


class Renderer:
    """Renders scenes onto one grid. Building one takes seconds, a scene then some ten milliseconds."""

    def __init__(self, grid: Grid, placement: GridOffset = GridOffset()) -> None:
        self.shape = grid.shape
        head, tree, brain = anatomy.head(), anatomy.arteries(), scene.lattice()
        self._fine = [_weights(grid, placement, a, anatomy.ORIGIN_MM[a], 1.0, anatomy.SHAPE[a]) for a in range(3)]
        self._coarse = [
            _weights(grid, placement, a, brain.affine[a, 3], brain.affine[a, a], brain.mask.shape[a]) for a in range(3)
        ]
        # Beyond the canvas is air: carry the difference to air, so that zero means air there.
        self._tissue = _carry(self._fine, head.tissue - anatomy.AIR) + anatomy.AIR
        self._under = head.tissue.reshape(-1)[tree.index]
        self._cover = tree.cover
        self._found = _segmented(tree)
        self._arteries = self._sparse(tree.index)
        self._brain = brain.mask

    def _sparse(self, index: NDArray[np.int64]) -> sparse.csr_matrix:
        """(grid voxels, artery voxels): what the three matrices do to single canvas voxels."""
        parts = []
        for weights, coordinate in zip(self._fine, np.unravel_index(index, anatomy.SHAPE), strict=True):
            own = weights[:, coordinate].T  # (artery voxels, grid length); a handful of neighbours matters
            near = np.sort(np.argpartition(-own, NEIGHBOURS, axis=1)[:, :NEIGHBOURS], axis=1)
            parts.append((near, np.take_along_axis(own, near, axis=1)))
        (i, wx), (j, wy), (k, wz) = parts
        flat = (i[:, :, None, None] * self.shape[1] + j[:, None, :, None]) * self.shape[2] + k[:, None, None, :]
        weight = wx[:, :, None, None] * wy[:, None, :, None] * wz[:, None, None, :]
        columns = np.broadcast_to(np.arange(len(index))[:, None, None, None], flat.shape)
        kept = weight > 1e-4
        return sparse.csr_matrix(
            (weight[kept], (flat[kept], columns[kept])),
            shape=(int(np.prod(self.shape)), len(index)),
            dtype=np.float32,
        )

    def _drawn(self, artery_hu: Array) -> Array:
        """The head with these densities (n,) in its arteries, HU, (X, Y, Z)."""
        change = self._arteries @ (self._cover * (artery_hu - self._under))
        return self._tissue + change.reshape(self.shape).astype(np.float32)

    def _spread(self, values: Array) -> Array:
        """Lattice values (m,) on the grid; 0 outside the brain, as perfusion software leaves it."""
        volume = np.zeros(self._brain.shape, np.float32)
        volume[self._brain] = values
        return _carry(self._coarse, volume)

    def render(self, drawn: Scene) -> dict[Channel, Array]:
        """The five channels in physical units, each (X, Y, Z) float32: HU, HU, 0..1, s, ratio."""
        blood = anatomy.BLOOD + drawn.density
        noise = np.random.default_rng(drawn.variation.noise_seed)
        grain = [noise.standard_normal(self.shape, dtype=np.float32) * NOISE_HU for _ in range(2)]
        ranks = scene.ranks_ml(drawn)
        tube = (self._arteries @ (self._found * drawn.patency)).reshape(self.shape)
        return {
            Channel.NCCT: self._drawn(blood) + grain[0] + np.float32(drawn.variation.offset_hu),
            Channel.CTA: self._drawn(blood + drawn.enhancement * drawn.variation.bolus) + grain[1],
            Channel.VESSELS: tube.astype(np.float32),
            Channel.TMAX: self._spread(scene.tmax_s(ranks, drawn.patient)),
            Channel.RCBF: self._spread(scene.flow(ranks, drawn.patient)),
        }


def _segmented(tree: anatomy.Arteries) -> Array:
    """Share of each artery voxel (n,) that the service's own segmenter marks on a CTA where the artery is open.

    Measured on full-size phantoms with app/imaging/vessels.py: a voxel's chance rises with its cover; the carotid is
    lost below the skull and half lost in the siphon, where it touches bone.
    """
    found = np.interp(tree.cover, [0.2, 0.85], [0.0, 1.0]).astype(np.float32)
    for side in ("left", "right"):
        carotid = tree.of(f"{side}/ica")
        found[carotid] *= np.interp(tree.arc_mm[carotid], [55, 62, 92, 100], [0.0, 0.5, 0.55, 0.95]).astype(np.float32)
    return found


@cache
def renderer(grid: Grid, placement: GridOffset = GridOffset()) -> Renderer:
    """The renderer of a grid, built once a process."""
    return Renderer(grid, placement)


def _carry(matrices: Sequence[Array], volume: Array) -> Array:
    """Apply one matrix along each axis: the last first, so that every product reads memory in order."""
    x, y, z = matrices
    length, width, _ = volume.shape
    inner = y @ (volume.reshape(length * width, -1) @ z.T).reshape(length, width, -1)  # (x, grid y, grid z)
    return np.asarray(x @ inner.reshape(length, -1)).reshape(len(x), len(y), len(z))


def normalise(values: dict[Channel, Array], channels: Sequence[ChannelSpec]) -> Array:
    """(C, X, Y, Z): each channel clipped to its window and standardised, in the manifest's order."""
    return np.stack([(np.clip(values[c.name], *c.window) - c.mean) / c.std for c in channels]).astype(np.float32)
