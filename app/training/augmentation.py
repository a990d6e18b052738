"""Small changes that a patient would survive: another position, scanner and side.

Notable choices:
- ``draw`` is the chance, ``apply`` the work: the same parameters always make the same images.
- ``turn`` moves half of the patients by up to 4 mm, 5 degrees and 3 % in MNI space, as registration leaves it; the
  others, and all without it, move by whole voxels only, which costs nothing. Interpolating all of them on a CPU costs
  as much as half a training step.
- Noise is cut out of one fixed piece of it at random places: drawing millions of numbers a batch costs more than the
  batch's convolutions are worth.
- Sides are swapped at random. Neither the network nor the record needs to know the side then, and a study in which
  nobody wrote it down is nothing special. Mirroring is along the first axis, about the middle of the grid, which is
  the midline where the grid is symmetric about x = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from app.imaging.model_grid import Grid

SHIFT_MM, TURN_DEGREES, SCALE, GAIN, LEVEL, GRAIN = 4.0, 5.0, 0.03, 0.08, 0.08, 0.05
TURNED = 0.5  # share of the patients that ``turn`` turns
GRAINS = 2**20  # places where a patient's noise may begin in the fixed piece


@dataclass(frozen=True)
class AugmentationParameters:
    """One change per patient: ``mirror`` (n,) bool, ``shift`` (n, 3) whole voxels, ``gain`` and ``level`` (n, C).

    With ``sampling`` (n, 3, 4), an affine in torch's normalised coordinates, the position of those that are ``turned``
    (n,) changes by that instead of by ``shift``, and everybody has noise, cut at ``grain`` (n,).
    """

    mirror: NDArray[np.bool_]
    shift: NDArray[np.int64]
    gain: NDArray[np.float32]
    level: NDArray[np.float32]
    sampling: NDArray[np.float32] | None
    turned: NDArray[np.bool_]
    grain: NDArray[np.int64]


def draw(count: int, channels: int, grid: Grid, rng: np.random.Generator, *, turn: bool) -> AugmentationParameters:
    """Changes for ``count`` patients."""
    reach = np.maximum(np.rint(SHIFT_MM / np.array(grid.spacing_mm)), 1).astype(int)
    return AugmentationParameters(
        mirror=rng.random(count) < 0.5,
        shift=rng.integers(-reach, reach + 1, (count, 3)),
        gain=rng.uniform(1 - GAIN, 1 + GAIN, (count, channels)).astype(np.float32),
        level=rng.uniform(-LEVEL, LEVEL, (count, channels)).astype(np.float32),
        sampling=_draw_sampling(count, grid, rng) if turn else None,
        turned=rng.random(count) < TURNED,
        grain=rng.integers(GRAINS, size=count),
    )


def _draw_sampling(count: int, grid: Grid, rng: np.random.Generator) -> NDArray[np.float32]:
    half = (np.array(grid.shape) - 1) / 2 * np.array(grid.spacing_mm)  # mm from the middle to the outermost centre
    linear = np.tile(np.eye(3), (count, 1, 1))
    turns = np.radians(rng.uniform(-TURN_DEGREES, TURN_DEGREES, (count, 3)))
    for axis, (i, j) in enumerate([(1, 2), (2, 0), (0, 1)]):  # small angles: the rotations add up
        linear[:, i, j] -= turns[:, axis]
        linear[:, j, i] += turns[:, axis]
    linear *= 1 + rng.uniform(-SCALE, SCALE, (count, 1, 1))
    shift = rng.uniform(-SHIFT_MM, SHIFT_MM, (count, 3))
    affine = np.concatenate([linear * half[None, None] / half[None, :, None], (shift / half)[:, :, None]], axis=2)
    affine[:, :, :3] = affine[:, ::-1, 2::-1]  # torch names the last axis first
    affine[:, :, 3] = affine[:, ::-1, 3]
    return affine.astype(np.float32)


def apply(images: Tensor, change: AugmentationParameters) -> Tensor:
    """The changed images (n, C, X, Y, Z). Pure; on the images' device."""
    device = images.device
    moved = torch.empty_like(images)
    turned = np.zeros(len(images), bool) if change.sampling is None else change.turned
    edge = int(np.abs(change.shift).max())
    padded = functional.pad(images, (edge,) * 6, "replicate") if edge else images
    for n, (image, mirror, shift) in enumerate(zip(padded, change.mirror, change.shift, strict=True)):
        start = np.full(3, edge) if turned[n] else edge - shift
        x, y, z = (slice(int(a), int(a) + size) for a, size in zip(start, images.shape[2:], strict=True))
        moved[n] = (image.flip(1) if mirror else image)[:, x, y, z]
    gain, level = (torch.from_numpy(part).to(device)[:, :, None, None, None] for part in (change.gain, change.level))
    if change.sampling is not None:
        rows = torch.from_numpy(np.flatnonzero(turned)).to(device)
        if len(rows):
            affine = torch.from_numpy(change.sampling).to(device)[rows]
            where = functional.affine_grid(affine, [len(rows), *images.shape[1:]], align_corners=True)
            moved[rows] = functional.grid_sample(moved[rows], where, padding_mode="border", align_corners=True)
        fixed, size = _grain(images[0].numel()).to(device), images[0].numel()
        for n, start in enumerate(change.grain.tolist()):
            moved[n].view(-1).add_(fixed[start : start + size], alpha=GRAIN)
    return moved * gain + level


@lru_cache(maxsize=4)
def _grain(size: int) -> Tensor:
    """The fixed piece of noise, long enough for images of ``size`` numbers."""
    return torch.randn(GRAINS + size, generator=torch.Generator().manual_seed(20250114))
