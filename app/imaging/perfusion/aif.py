"""Motion correction, arterial input function (AIF) and venous output function (VOF) of a CT perfusion series.

Design notes:
- Motion is one small rigid movement per frame, by least squares on the gradient of the first frame. Values are clipped
  to 0 to 600 HU, so that the skull dominates and contrast has little influence.
- AIF: of the strongest curves inside the skull, those that are early, narrow and smooth.
- VOF: the largest area, not earlier than the AIF. The superior sagittal sinus has no partial-volume effect, so the AIF
  is scaled to the area of the VOF (Konstas et al., AJNR 2009;30:662).
- A poor series gives flags, not errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import ndimage

from app.sdk.types import Flag, Input

__all__ = ["BolusCurves", "baseline_frames", "correct_motion", "select_curves"]

MOTION_FLAG_MM: Final = 3.0  # movement 80 mm from the centre that sets a flag; smaller motion is corrected too
_CORRECTED_MM: Final = 0.3
_MOTION_MM: Final = 4.0  # sampling for the estimate of motion: six parameters need no finer grid
_RADIUS_MM: Final = 80.0
_CANDIDATES: Final = 0.02
_ARTERIES: Final = 10
_VEINS: Final = 10
_VEIN_WIDTHS: Final = 3.0  # largest width of a venous curve, in widths of the arterial curve


@dataclass(frozen=True)
class BolusCurves:
    """AIF and VOF, (T,) HU above the baseline; ``arterial`` is multiplied by ``scale`` (area of the VOF / the AIF)."""

    arterial: np.ndarray
    venous: np.ndarray
    scale: float
    flags: tuple[Flag, ...]


def baseline_frames(series: np.ndarray, brain: np.ndarray) -> int:
    """Number of frames (at least 1) before the bolus, by the mean curve of ``series`` (X, Y, Z, T) in the brain."""
    curve = series[brain].mean(axis=0, dtype=np.float64)
    smooth = ndimage.uniform_filter1d(curve, 3, mode="nearest")
    lowest = np.median(smooth[: max(2, len(smooth) // 8)])
    arrived = np.flatnonzero(smooth - lowest > 0.1 * (smooth.max() - lowest))
    return max(1, int(arrived[0]) - 1) if arrived.size else 1


def select_curves(enhancement: np.ndarray, inside: np.ndarray, *, baseline: int) -> BolusCurves:
    """Select the arterial input and the venous output.

    Args:
        enhancement: (X, Y, Z, T) HU above the baseline.
        inside: (X, Y, Z) bool, search region: inside the skull, without bone.
        baseline: number of frames before the bolus.
    """
    curves = enhancement[inside].astype(np.float32)
    height = curves.max(axis=1)
    # The edge of moved bone stays bright; enhancement by the bolus washes out.
    washed_out = curves[:, -3:].mean(axis=1) < 0.5 * height
    washed_out = washed_out if washed_out.any() else np.ones_like(washed_out)
    candidates = curves[washed_out & (height >= np.quantile(height[washed_out], 1 - _CANDIDATES))]
    height = candidates.max(axis=1)
    area = np.maximum(candidates, 0).sum(axis=1)
    time = (candidates.clip(0) * np.arange(candidates.shape[1])).sum(axis=1) / area
    width = area / height
    roughness = np.abs(np.diff(candidates, n=2, axis=1)).sum(axis=1) / height

    # Most candidates are not arteries. Robust z-scores make the traits comparable at any dose and frame rate.
    score = robust_z(height) - robust_z(time) - robust_z(width) - robust_z(roughness)
    best = np.argsort(score)[-min(_ARTERIES, len(score)) :]
    arterial = candidates[best].mean(axis=0)

    later = np.flatnonzero((time >= np.median(time[best])) & (width < _VEIN_WIDTHS * np.median(width[best])))
    largest = later[np.argsort(area[later])[-min(_VEINS, len(later)) :]] if later.size else best
    venous = candidates[largest].mean(axis=0)
    scale = float(np.clip(venous.clip(0).sum() / arterial.clip(0).sum(), 1.0, 5.0))

    flags = []
    noise = float(candidates[:, :baseline].std()) if baseline > 1 else 0.0
    if arterial.max() < max(5 * noise, 2 * float(np.median(curves.max(axis=1)))):
        flags.append(_flag("aif-doubtful", "no clear arterial curve in the CT perfusion series"))
    if venous.max() < arterial.max() or int(venous.argmax()) < int(arterial.argmax()):
        detail = "no venous curve larger and later than the arterial one; CBF and CBV may be off by a common factor"
        flags.append(_flag("vof-doubtful", detail))
    whole = curves.mean(axis=0)
    if whole[-3:].mean() > 0.5 * whole.max():
        flags.append(
            _flag("ctp-truncated", "the series ends before the contrast has washed out; delays may be too short")
        )
    if baseline < 2:
        flags.append(_flag("ctp-baseline-short", "the series starts with the bolus; the baseline is one frame only"))
    return BolusCurves(arterial * scale, venous, scale, tuple(flags))


def correct_motion(series: np.ndarray, spacing_mm: tuple[float, float, float]) -> tuple[np.ndarray, float]:
    """Register every frame of ``series`` (X, Y, Z, T), HU, to the first one, in place.

    Returns:
        The series, and the largest movement of a point 80 mm from the centre, mm.
    """
    a, b, c = (max(1, round(_MOTION_MM / edge)) for edge in spacing_mm)
    coarse = series[::a, ::b, ::c]
    steps, edges = np.array([a, b, c], np.float64), np.array(spacing_mm, np.float64)
    fixed = _clipped(coarse[..., 0])
    axes = [np.arange(n) * step * edge for n, step, edge in zip(fixed.shape, steps, edges, strict=True)]
    points = np.stack(np.meshgrid(*(axis - axis.mean() for axis in axes), indexing="ij"), axis=-1)
    slope = _gradient(fixed, steps * edges)
    # A small rigid movement (t, w) displaces x by t + w * x: six unknowns, and one difference in HU per voxel.
    strong = np.linalg.norm(slope, axis=-1)
    used = strong > np.quantile(strong, 0.8)
    design = np.concatenate([slope[used], np.cross(points[used], slope[used])], axis=1)
    solver = np.linalg.pinv(design.T @ design, rcond=1e-6) @ design.T
    middle = (np.array(series.shape[:3]) - 1) / 2

    largest = 0.0
    for frame in range(1, series.shape[3]):
        motion = np.zeros(6)
        coarse_frame = _clipped(coarse[..., frame])
        for _ in range(4):
            moved = (
                _apply_motion(coarse_frame, motion, steps * edges, (np.array(fixed.shape) - 1) / 2)
                if motion.any()
                else coarse_frame
            )
            change = solver @ (fixed - moved)[used]
            motion = motion + change
            if np.abs(change[:3]).max() + _RADIUS_MM * np.abs(change[3:]).max() < 0.05:
                break
        size = float(np.linalg.norm(motion[:3]) + _RADIUS_MM * np.linalg.norm(motion[3:]))
        largest = max(largest, size)
        if size > _CORRECTED_MM:
            series[..., frame] = _apply_motion(series[..., frame], motion, edges, middle)
    return series, largest


def robust_z(trait: np.ndarray) -> np.ndarray:
    """Robust z-score: distance from the median in median absolute deviations, limited to -10 to 10."""
    deviation = trait - np.median(trait)
    z: np.ndarray = np.clip(deviation / max(float(np.median(np.abs(deviation))), 1e-6), -10, 10)
    return z


def _flag(code: str, detail: str) -> Flag:
    return Flag(code=code, detail=f"{Input.CTP}: {detail}")


def _clipped(frame: np.ndarray) -> np.ndarray:
    smooth: np.ndarray = ndimage.gaussian_filter(np.clip(frame, 0, 600).astype(np.float32), 0.7)
    return smooth


def _gradient(frame: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(X, Y, Z, 3) HU per mm; an axis of one slice has no gradient."""
    parts = [
        np.gradient(frame, edges[axis], axis=axis) if frame.shape[axis] > 1 else np.zeros_like(frame)
        for axis in range(3)
    ]
    return np.stack(parts, axis=-1)


def _apply_motion(frame: np.ndarray, motion: np.ndarray, edges: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """The frame at x + t + w * x, with x in mm from ``middle``; linear interpolation, edges repeated."""
    (a, b, c), shift = motion[3:], motion[:3]
    rotation = np.array([[1, -c, b], [c, 1, -a], [-b, a, 1]])
    matrix = rotation * edges[None, :] / edges[:, None]
    offset = middle + shift / edges - matrix @ middle
    result: np.ndarray = ndimage.affine_transform(frame, matrix, offset, order=1, mode="nearest", prefilter=False)
    return result
