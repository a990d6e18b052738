"""Small changes that a patient would survive: another position, scanner and side.

Notable choices:
- ``draw`` is the chance, ``apply`` the work: the same parameters always make the same images.
- ``turn`` moves by up to 4 mm, 5 degrees and 3 % in MNI space, as registration leaves it. Without it positions move by
  whole voxels only, which costs nothing: interpolation on a CPU costs as much as half a training step, and phantoms
  are rendered in many positions to begin with.
- Sides are swapped at random. Neither the network nor the record needs to know the side then, and a study in which
  nobody wrote it down is nothing special. Mirroring is along the first axis, about the middle of the grid, which is
  the midline where the grid is symmetric about x = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from app.manifest import Grid

SHIFT_MM, TURN_DEGREES, SCALE, GAIN, LEVEL, GRAIN = 4.0, 5.0, 0.03, 0.08, 0.08, 0.05


@dataclass(frozen=True)
class Change:
    """One change per patient: ``mirror`` (n,) bool, ``shift`` (n, 3) whole voxels, ``gain`` and ``level`` (n, C).

    With ``sampling`` (n, 3, 4), an affine in torch's normalised coordinates, the position changes by that instead of
    by ``shift``, and noise of ``seed`` is added.
    """

    mirror: NDArray[np.bool_]
    shift: NDArray[np.int64]
    gain: NDArray[np.float32]
    level: NDArray[np.float32]
    sampling: NDArray[np.float32] | None
    seed: int


def draw(count: int, channels: int, grid: Grid, rng: np.random.Generator, *, turn: bool) -> Change:
    """Changes for ``count`` patients."""
    reach = np.maximum(np.rint(SHIFT_MM / np.array(grid.spacing_mm)), 1).astype(int)
    return Change(
        mirror=rng.random(count) < 0.5,
        shift=rng.integers(-reach, reach + 1, (count, 3)),
        gain=rng.uniform(1 - GAIN, 1 + GAIN, (count, channels)).astype(np.float32),
        level=rng.uniform(-LEVEL, LEVEL, (count, channels)).astype(np.float32),
        sampling=_draw_sampling(count, grid, rng) if turn else None,
        seed=int(rng.integers(2**62)),
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


def apply(images: Tensor, change: Change) -> Tensor:
    """The changed images (n, C, X, Y, Z). Pure; on the images' device."""
    device = images.device
    moved = torch.empty_like(images)
    edge = int(np.abs(change.shift).max()) if change.sampling is None else 0
    padded = functional.pad(images, (edge,) * 6, "replicate") if edge else images
    for n, (image, mirror, shift) in enumerate(zip(padded, change.mirror, change.shift, strict=True)):
        start = edge - shift if edge else np.zeros(3, np.int64)
        x, y, z = (slice(int(a), int(a) + size) for a, size in zip(start, images.shape[2:], strict=True))
        moved[n] = (image.flip(1) if mirror else image)[:, x, y, z]
    gain, level = (torch.from_numpy(part).to(device)[:, :, None, None, None] for part in (change.gain, change.level))
    if change.sampling is not None:
        where = functional.affine_grid(
            torch.from_numpy(change.sampling).to(device), list(images.shape), align_corners=True
        )
        moved = functional.grid_sample(moved, where, padding_mode="border", align_corners=True)
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(change.seed))
        moved = moved + GRAIN * noise.to(device)
    return moved * gain + level
