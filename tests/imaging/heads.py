"""Synthetic heads in MNI space with a known ground truth: skull, brain, arteries, a bolus. HU, RAS+ mm."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from app.imaging.io.nifti import Volume
from app.imaging.perfusion.deconvolution import KAPPA
from app.imaging.registration import brain_mask

AIR, SKIN, BONE, FLUID, TISSUE = -1000.0, 40.0, 1000.0, 10.0, 35.0

# Half of a tree, mirrored to the other side: corners of each branch in MNI mm, and its radius.
BRANCHES = (
    (((13, -4, -45), (16, 4, -30), (14, 8, -22), (15, 3, -14)), 2.2),  # carotid siphon
    (((15, 3, -14), (24, 4, -14), (38, 0, -15)), 1.4),  # M1
    (((38, 0, -15), (44, -4, -2), (50, -8, 14), (56, -12, 34)), 1.0),  # superior M2
    (((38, 0, -15), (44, -20, -8), (50, -40, 8), (50, -60, 28)), 0.9),  # inferior M2
    (((15, 3, -14), (6, 18, -12), (3, 30, 0), (3, 35, 20), (3, 10, 42)), 0.9),  # A1, A2
    (((0, -22, -45), (0, -26, -28), (0, -24, -14)), 1.6),  # basilar
    (((0, -24, -14), (12, -26, -12), (22, -50, -4), (18, -80, 2)), 0.9),  # posterior cerebral
)


@dataclass(frozen=True)
class Angiogram:
    """A CTA, the NCCT of the same head, the mask of the vessels, and the centre line (n, 3) mm of each branch."""

    cta: Volume
    ncct: Volume
    vessels: np.ndarray
    lines: list[np.ndarray]


def grid(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> np.ndarray:
    """Affine of a grid that is centred on the head."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = np.array([0.0, -18.0, 5.0]) - np.array(spacing) * (np.array(shape) - 1) / 2
    return affine


def tissues(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """A head without contrast, (X, Y, Z) HU."""
    depth = brain_mask.distance(affine, shape, np.eye(4))
    values: np.ndarray = np.select([depth < 0, depth < 3, depth < 10, depth < 17], [TISSUE, FLUID, BONE, SKIN], AIR)
    return values


def ct(affine: np.ndarray, shape: tuple[int, int, int], *, noise: float = 0.0, seed: int = 0) -> Volume:
    return stored(tissues(affine, shape), affine, noise=noise, seed=seed)


def stored(values: np.ndarray, affine: np.ndarray, *, noise: float = 0.0, seed: int = 0) -> Volume:
    """Values as a scanner writes them: int16, with noise that is correlated as by a reconstruction kernel."""
    if noise:
        grain = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(values.shape), 0.6)
        values = values + noise * grain / grain.std()
    return Volume(np.asfortranarray(np.round(values), dtype=np.int16), affine)


def angiogram(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], *, noise: float = 15.0, contrast: float = 350.0
) -> Angiogram:
    affine = grid(shape, spacing)
    plain = tissues(affine, shape)
    lines = [_line(np.array(corners, float) * [side, 1, 1]) for corners, _ in BRANCHES for side in (1, -1)]
    radii = [radius for _, radius in BRANCHES for _ in (1, -1)]
    depth = np.full(shape, np.inf)
    for line, radius in zip(lines, radii, strict=True):
        _carve(depth, line, radius, np.array(spacing), affine)
    share = np.clip(0.5 - depth / np.mean(spacing), 0, 1)
    filled = plain * (1 - share) + contrast * share
    return Angiogram(
        stored(filled, affine, noise=noise), stored(plain, affine, noise=noise / 3, seed=1), depth < 0, lines
    )


def _line(corners: np.ndarray) -> np.ndarray:
    parts = [
        start + (end - start) * np.linspace(0, 1, max(2, int(np.linalg.norm(end - start) / 0.3)))[:, None]
        for start, end in itertools.pairwise(corners)
    ]
    return np.concatenate(parts)


def _carve(depth: np.ndarray, line: np.ndarray, radius: float, spacing: np.ndarray, affine: np.ndarray) -> None:
    """Lower ``depth`` to the distance from the wall of a tube, near the tube."""
    reach = np.ceil((radius + 1) / spacing).astype(int)
    for centre in (line - affine[:3, 3]) / spacing:
        low = np.maximum(np.floor(centre).astype(int) - reach, 0)
        high = np.minimum(np.floor(centre).astype(int) + reach + 2, depth.shape)
        if (high <= low).any():
            continue
        block = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        at = np.stack(np.meshgrid(*(np.arange(s.start, s.stop) for s in block), indexing="ij"), axis=-1)
        depth[block] = np.minimum(depth[block], np.linalg.norm((at - centre) * spacing, axis=-1) - radius)


# The bolus ----------------------------------------------------------------------------------------------------------

FINE_S = 0.02


def gamma_variate(times: np.ndarray, *, start: float = 10.0, height: float = 300.0) -> np.ndarray:
    """An arterial curve (a = 3, b = 1.5 s), as in the digital perfusion phantom of Wu et al. 2003."""
    since = np.clip(times - start, 0, None)
    curve: np.ndarray = height * since**3 * np.exp(-since / 1.5) / (4.5**3 * np.exp(-3))
    return curve


def tissue_curve(times: np.ndarray, *, cbf: float, mtt: float, delay: float, plug: bool) -> np.ndarray:
    """Enhancement of tissue with a known residue: exponential, or a box (plug flow)."""
    fine = np.arange(0, times[-1] + 1, FINE_S)
    since = fine - delay
    residue = ((since >= 0) & (since < mtt)) if plug else (since >= 0) * np.exp(-np.clip(since, 0, None) / mtt)
    curve = np.convolve(gamma_variate(fine), residue)[: fine.size] * FINE_S * cbf / (6000 * KAPPA)
    return np.interp(times, fine, curve)


NORMAL, PENUMBRA, CORE = 1, 2, 3
HAEMODYNAMICS = {NORMAL: (50.0, 4.0, 0.0), PENUMBRA: (20.0, 9.0, 6.0), CORE: (4.0, 9.0, 8.0)}
"""CBF in mL / 100 g / min, MTT in s, delay in s of each part of the series."""


def territories(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Labels of a stroke in the left hemisphere: a core of radius 20 mm within a penumbra of radius 35 mm."""
    i, j, k = np.indices(shape)
    at = np.stack([i, j, k], axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    away = np.linalg.norm(at - [-38.0, -15.0, 20.0], axis=-1)
    inside = brain_mask.distance(affine, shape, np.eye(4)) < 0
    parts = [inside & (away < 20), inside & (away < 35) & (at[..., 0] < -3), inside]
    labels: np.ndarray = np.select(parts, [CORE, PENUMBRA, NORMAL])
    return labels


def series(
    shape: tuple[int, int, int] = (64, 76, 16),
    spacing: tuple[float, float, float] = (2.8, 2.8, 5.0),
    *,
    step_s: float = 1.5,
    frames: int = 40,
    noise: float = 2.0,
    core: tuple[float, float, float] = HAEMODYNAMICS[CORE],
    plug: bool = False,
) -> tuple[Volume, np.ndarray]:
    """A CT perfusion series (X, Y, Z, T), and the labels of its territories.

    The artery is a partial-volume voxel row at 60 % of the true height, the vein the back of the sagittal sinus.
    """
    affine = grid(shape, spacing)
    affine[2, 3] += 15.0
    labels = territories(affine, shape)
    plain = tissues(affine, shape)
    times = np.arange(frames) * step_s
    values = np.repeat(plain[..., None], frames, axis=-1).astype(np.float32)
    for label, (cbf, mtt, delay) in (HAEMODYNAMICS | {CORE: core}).items():
        values[labels == label] += tissue_curve(times, cbf=cbf, mtt=mtt, delay=delay, plug=plug)

    i, j, k = np.indices(shape)
    x, y, z = (np.stack([i, j, k], axis=-1) @ affine[:3, :3].T + affine[:3, 3]).transpose(3, 0, 1, 2)
    artery = (np.abs(x - 20) < 10) & (np.abs(y - 2) < 2.9) & (np.abs(z + 12) < 3)
    vein = (np.abs(x) < 4.5) & (np.abs(y + 92) < 5) & (np.abs(z - 20) < 20)
    values[artery] = TISSUE + 0.6 * gamma_variate(times)
    values[vein] = TISSUE + gamma_variate(times, start=15.0)
    values += noise * np.random.default_rng(3).standard_normal(values.shape, np.float32)
    return Volume(np.asfortranarray(np.round(values), dtype=np.int16), affine, time_step_s=step_s), labels
