"""What a CT perfusion series shows before any deconvolution: does the head hold still, and where does the bolus pass?

Notable choices:
- Motion is found frame by frame as a small rigid movement, by least squares on the image's own gradient. The grey
  levels are cut at 0 and 600 HU, so that the skull carries the estimate and contrast hardly matters.
- Arterial input: among the strongest curves inside the skull, those that come early, are narrow, and are smooth.
- Venous output: the largest area, no earlier than the artery. It is wider than a voxel (the superior sagittal sinus),
  so it tells the true height of the bolus: the arterial curve is scaled to the venous one's area, which undoes the
  partial volume of a small artery (Konstas et al., AJNR 2009;30:662).
- Nothing here fails on a poor series: it is flagged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import ndimage

from app.sdk.types import Flag, Input

__all__ = ["Bolus", "baseline_frames", "correct_motion", "find"]

MOVED_MM: Final = 3.0
"""Movement of a point 80 mm from the head's centre that is worth a flag; it is corrected all the same."""

_CORRECTED_MM: Final = 0.3
_MOTION_MM: Final = 4.0
"""Sampling that motion is estimated at: coarse, since six numbers are wanted of a hundred thousand voxels."""

_RADIUS_MM: Final = 80.0
_CANDIDATES: Final = 0.02
_ARTERIES: Final = 10
_VEINS: Final = 10
_VEIN_WIDTHS: Final = 3.0
"""How many times longer than the artery a vein may be bright."""


@dataclass(frozen=True)
class Bolus:
    """The input and output of the brain's vessels, (T,) HU over the baseline each; ``arterial`` is scaled already."""

    arterial: np.ndarray
    venous: np.ndarray
    scale: float
    flags: tuple[Flag, ...]


def baseline_frames(series: np.ndarray, brain: np.ndarray) -> int:
    """How many first frames (at least 1) come before the bolus, by the mean curve of the brain.

    :param series: (X, Y, Z, T) HU
    :param brain: (X, Y, Z) bool
    """
    curve = series[brain].mean(axis=0, dtype=np.float64)
    smooth = ndimage.uniform_filter1d(curve, 3, mode="nearest")
    floor = np.median(smooth[: max(2, len(smooth) // 8)])
    arrived = np.flatnonzero(smooth - floor > 0.1 * (smooth.max() - floor))
    return max(1, int(arrived[0]) - 1) if arrived.size else 1


def find(enhancement: np.ndarray, inside: np.ndarray, *, before: int) -> Bolus:
    """Choose the arterial input and the venous output.

    :param enhancement: (X, Y, Z, T) HU over the baseline
    :param inside: (X, Y, Z) bool, where a vessel may be looked for: within the skull, bone left out
    :param before: frames before the bolus
    """
    curves = enhancement[inside].astype(np.float32)
    height = curves.max(axis=1)
    # The edge of a bone that moved is bright for good; what a bolus made bright darkens again.
    passing = curves[:, -3:].mean(axis=1) < 0.5 * height
    passing = passing if passing.any() else np.ones_like(passing)
    candidates = curves[passing & (height >= np.quantile(height[passing], 1 - _CANDIDATES))]
    height = candidates.max(axis=1)
    area = np.maximum(candidates, 0).sum(axis=1)
    time = (candidates.clip(0) * np.arange(candidates.shape[1])).sum(axis=1) / area
    width = area / height
    rough = np.abs(np.diff(candidates, n=2, axis=1)).sum(axis=1) / height

    # Most candidates are neither: each trait counts by how far it is from the crowd, whatever the dose and frame rate.
    merit = robust_z(height) - robust_z(time) - robust_z(width) - robust_z(rough)
    best = np.argsort(merit)[-min(_ARTERIES, len(merit)) :]
    arterial = candidates[best].mean(axis=0)

    later = np.flatnonzero((time >= np.median(time[best])) & (width < _VEIN_WIDTHS * np.median(width[best])))
    largest = later[np.argsort(area[later])[-min(_VEINS, len(later)) :]] if later.size else best
    venous = candidates[largest].mean(axis=0)
    scale = float(np.clip(venous.clip(0).sum() / arterial.clip(0).sum(), 1.0, 5.0))

    flags = []
    noise = float(candidates[:, :before].std()) if before > 1 else 0.0
    if arterial.max() < max(5 * noise, 2 * float(np.median(curves.max(axis=1)))):
        flags.append(_flag("aif-doubtful", "no clear arterial curve in the CT perfusion series"))
    if venous.max() < arterial.max() or int(venous.argmax()) < int(arterial.argmax()):
        flags.append(
            _flag(
                "vof-doubtful",
                "no venous curve larger and later than the arterial one; CBF and CBV may be off by a common factor",
            )
        )
    whole = curves.mean(axis=0)
    if whole[-3:].mean() > 0.5 * whole.max():
        flags.append(_flag("ctp-truncated", "the series ends before the contrast has left; delays may be cut short"))
    if before < 2:
        flags.append(_flag("ctp-baseline-short", "the series starts with the bolus; the baseline rests on one frame"))
    return Bolus(arterial * scale, venous, scale, tuple(flags))


def correct_motion(series: np.ndarray, spacing_mm: tuple[float, float, float]) -> tuple[np.ndarray, float]:
    """Move every frame onto the first one.

    :param series: (X, Y, Z, T) HU; changed in place where a frame has moved
    :param spacing_mm: voxel edges
    :return: the series, and the largest movement, in mm at 80 mm from the centre
    """
    a, b, c = (max(1, round(_MOTION_MM / edge)) for edge in spacing_mm)
    thin = series[::a, ::b, ::c]
    steps, edges = np.array([a, b, c], np.float64), np.array(spacing_mm, np.float64)
    fixed = _levels(thin[..., 0])
    axes = [np.arange(n) * step * edge for n, step, edge in zip(fixed.shape, steps, edges, strict=True)]
    points = np.stack(np.meshgrid(*(axis - axis.mean() for axis in axes), indexing="ij"), axis=-1)
    slope = _gradient(fixed, steps * edges)
    # A rigid movement by t and w displaces x by t + w * x: six unknowns for one brightness difference per voxel.
    strong = np.linalg.norm(slope, axis=-1)
    used = strong > np.quantile(strong, 0.8)
    design = np.concatenate([slope[used], np.cross(points[used], slope[used])], axis=1)
    solver = np.linalg.pinv(design.T @ design, rcond=1e-6) @ design.T
    middle = (np.array(series.shape[:3]) - 1) / 2

    largest = 0.0
    for frame in range(1, series.shape[3]):
        move = np.zeros(6)
        thinned = _levels(thin[..., frame])
        for _ in range(4):
            moved = _moved(thinned, move, steps * edges, (np.array(fixed.shape) - 1) / 2) if move.any() else thinned
            change = solver @ (fixed - moved)[used]
            move = move + change
            if np.abs(change[:3]).max() + _RADIUS_MM * np.abs(change[3:]).max() < 0.05:
                break
        size = float(np.linalg.norm(move[:3]) + _RADIUS_MM * np.linalg.norm(move[3:]))
        largest = max(largest, size)
        if size > _CORRECTED_MM:
            series[..., frame] = _moved(series[..., frame], move, edges, middle)
    return series, largest


def robust_z(trait: np.ndarray) -> np.ndarray:
    """How far each value is from the median, in median absolute deviations, at most 10."""
    apart = trait - np.median(trait)
    standing: np.ndarray = np.clip(apart / max(float(np.median(np.abs(apart))), 1e-6), -10, 10)
    return standing


def _flag(code: str, detail: str) -> Flag:
    return Flag(code=code, detail=f"{Input.CTP}: {detail}")


def _levels(frame: np.ndarray) -> np.ndarray:
    smooth: np.ndarray = ndimage.gaussian_filter(np.clip(frame, 0, 600).astype(np.float32), 0.7)
    return smooth


def _gradient(frame: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(X, Y, Z, 3) HU per mm; an axis of one slice has no gradient."""
    parts = [
        np.gradient(frame, edges[axis], axis=axis) if frame.shape[axis] > 1 else np.zeros_like(frame)
        for axis in range(3)
    ]
    return np.stack(parts, axis=-1)


def _moved(frame: np.ndarray, move: np.ndarray, edges: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """The frame read at x + t + w * x, x in mm from the middle: linear, edges repeated."""
    (a, b, c), shift = move[3:], move[:3]
    turn = np.array([[1, -c, b], [c, 1, -a], [-b, a, 1]])
    matrix = turn * edges[None, :] / edges[:, None]
    offset = middle + shift / edges - matrix @ middle
    result: np.ndarray = ndimage.affine_transform(frame, matrix, offset, order=1, mode="nearest", prefilter=False)
    return result
