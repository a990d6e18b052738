"""Random changes of position, intensity, noise and side of training images in MNI space.

Design notes:
- ``draw`` draws the random parameters, ``apply`` is pure: the same parameters always make the same images.
- With ``rotate``, half of the patients are rotated, scaled and shifted by amounts that registration leaves. The others
  shift by whole voxels, which needs no interpolation.
- Noise is cut from one fixed tensor at random offsets, because drawing new noise per batch is slow.
- Half of the images are mirrored along the first axis, so that the network does not depend on the side of the
  occlusion. This assumes a grid that is symmetric about x = 0.
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
from app.training.transfer import to_device

SHIFT_MM, ROTATION_DEGREES, SCALE, GAIN, LEVEL, NOISE = 4.0, 5.0, 0.03, 0.08, 0.08, 0.05
ROTATED_SHARE = 0.5  # share of the patients that ``turn`` rotates
NOISE_OFFSETS = 2**20  # possible offsets into the fixed noise


@dataclass(frozen=True)
class AugmentationParameters:
    """Random parameters of n patients.

    ``mirror`` (n,): mirror the first axis; ``shift`` (n, 3) in whole voxels; ``gain`` and ``level`` (n, C): factor and
    offset of the intensities. ``sampling`` (n, 3, 4), an affine in torch's normalised coordinates, replaces ``shift``
    where ``rotated`` (n,); with it all images get noise from the offset ``noise`` (n,) on.
    """

    mirror: NDArray[np.bool_]
    shift: NDArray[np.int64]
    gain: NDArray[np.float32]
    level: NDArray[np.float32]
    sampling: NDArray[np.float32] | None
    rotated: NDArray[np.bool_]
    noise: NDArray[np.int64]


def draw(count: int, channels: int, grid: Grid, rng: np.random.Generator, *, rotate: bool) -> AugmentationParameters:
    """Parameters of ``count`` patients on ``grid``; ``rotate`` adds rotation, scaling and noise."""
    reach = np.maximum(np.rint(SHIFT_MM / np.array(grid.spacing_mm)), 1).astype(int)
    return AugmentationParameters(
        mirror=rng.random(count) < 0.5,
        shift=rng.integers(-reach, reach + 1, (count, 3)),
        gain=rng.uniform(1 - GAIN, 1 + GAIN, (count, channels)).astype(np.float32),
        level=rng.uniform(-LEVEL, LEVEL, (count, channels)).astype(np.float32),
        sampling=_draw_sampling(count, grid, rng) if rotate else None,
        rotated=rng.random(count) < ROTATED_SHARE,
        noise=rng.integers(NOISE_OFFSETS, size=count),
    )


def _draw_sampling(count: int, grid: Grid, rng: np.random.Generator) -> NDArray[np.float32]:
    half = (np.array(grid.shape) - 1) / 2 * np.array(grid.spacing_mm)  # mm from the centre to the outermost voxels
    linear = np.tile(np.eye(3), (count, 1, 1))
    angles = np.radians(rng.uniform(-ROTATION_DEGREES, ROTATION_DEGREES, (count, 3)))
    for axis, (i, j) in enumerate([(1, 2), (2, 0), (0, 1)]):  # small angles: the rotations add up
        linear[:, i, j] -= angles[:, axis]
        linear[:, j, i] += angles[:, axis]
    linear *= 1 + rng.uniform(-SCALE, SCALE, (count, 1, 1))
    shift = rng.uniform(-SHIFT_MM, SHIFT_MM, (count, 3))
    affine = np.concatenate([linear * half[None, None] / half[None, :, None], (shift / half)[:, :, None]], axis=2)
    affine[:, :, :3] = affine[:, ::-1, 2::-1]  # torch orders coordinates from the last axis to the first
    affine[:, :, 3] = affine[:, ::-1, 3]
    return affine.astype(np.float32)


def apply(images: Tensor, change: AugmentationParameters) -> Tensor:
    """Return the augmented images (n, C, X, Y, Z), on the device of ``images``."""
    device = images.device
    result = torch.empty_like(images)
    rotated = np.zeros(len(images), bool) if change.sampling is None else change.rotated
    edge = int(np.abs(change.shift).max())
    padded = functional.pad(images, (edge,) * 6, "replicate") if edge else images
    for n, (image, mirror, shift) in enumerate(zip(padded, change.mirror, change.shift, strict=True)):
        start = np.full(3, edge) if rotated[n] else edge - shift
        x, y, z = (slice(int(a), int(a) + size) for a, size in zip(start, images.shape[2:], strict=True))
        result[n] = (image.flip(1) if mirror else image)[:, x, y, z]
    gain, level = (to_device(part, device)[:, :, None, None, None] for part in (change.gain, change.level))
    if change.sampling is not None:
        rows = to_device(np.flatnonzero(rotated), device)
        if len(rows):
            affine = to_device(change.sampling, device)[rows]
            sample_grid = functional.affine_grid(affine, [len(rows), *images.shape[1:]], align_corners=True)
            result[rows] = functional.grid_sample(result[rows], sample_grid, padding_mode="border", align_corners=True)
        fixed, size = _noise(images[0].numel(), device), images[0].numel()
        for n, start in enumerate(change.noise.tolist()):
            result[n].view(-1).add_(fixed[start : start + size], alpha=NOISE)
    return result * gain + level


@lru_cache(maxsize=4)
def _noise(size: int, device: torch.device) -> Tensor:
    """Fixed noise on ``device``, long enough for images of ``size`` values."""
    return torch.randn(NOISE_OFFSETS + size, generator=torch.Generator().manual_seed(20250114)).to(device)
