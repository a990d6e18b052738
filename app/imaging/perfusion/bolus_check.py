"""Check that a CT perfusion series is a scan of a bolus: its frames, their order and the seconds between them.

Design notes:
- ``check_frames`` looks at the frames before they are registered, ``check_bolus`` at the curves before deconvolution.
- Contrast rises faster than it falls, leaves some contrast behind, and reaches the sagittal sinus after the arteries.
  One missing sign is a flag, because a cut bolus lacks one too; two are the mark of reversed frames.
- An injection lasts 5 to 10 s, and the bolus becomes wider in heart and lungs. A narrower curve has a wrong time step.
  The intervals may differ in two phases; the bolus lies in the first.
- docs/input-checks.md states each limit with its measured distribution.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np

from app.imaging.io.nifti import Volume
from app.imaging.perfusion.aif import BolusCurves
from app.sdk.errors import FieldError, InvalidVolume
from app.sdk.types import Flag, Input

__all__ = ["check_bolus", "check_frames", "with_interval"]

_CLIP_HU: Final = (-100.0, 300.0)
_MIN_LIKENESS: Final = 0.5  # correlation with the median frame; above 0.9 in valid series, also with motion
_MIN_SLICES: Final = 4  # fewer slices cannot tell time from z

_LOW_SHARE: Final = 0.15  # the part of a curve below this share of its peak is left out of its skewness
_MIN_SKEWNESS: Final = -0.1  # 0.2 to 0.8 in valid series, the negative of that in reversed ones
_MIN_RISE: Final = -0.1  # last minus first value of the brain, in peaks; 0 and more in valid series
_MIN_DELAY_S: Final = -0.5  # sinus minus arteries; 3 to 8 s in valid series
_CUT_SHARE: Final = 0.4  # last value of the artery over its peak; recirculation leaves up to 0.25
_CUT_BRAIN_SHARE: Final = 0.75  # the same for the mean of the brain; 0.1 to 0.5 in valid series
_WIDTH_S: Final = (4.5, 25.0)  # full width at half maximum of the artery
_POSSIBLE_WIDTH_S: Final = (1.5, 60.0)

_MIN_VESSEL_SHARE: Final = 0.2  # a curve of a vessel has at least this share of the height of the artery
_PER_VESSEL: Final = 10
_ARTERIES_MM: Final = ((-50.0, 50.0), (-30.0, 35.0), (-25.0, 20.0))  # carotid terminus, M1, M2 in MNI space
_SINUS_MM: Final = ((-9.0, 9.0), (-115.0, -70.0), (-10.0, 65.0))  # back of the superior sagittal sinus, torcular

_INTERVAL_TOLERANCE: Final = 0.02
_HEADER_STEP_FLAGS: Final = ("time-step-unknown", "time-step-default", "time-unit-assumed")


def with_interval(series: Volume, seconds: float) -> Volume:
    """The series with the interval that the caller sent, and a flag if the header gives another one."""
    flags = [flag for flag in series.flags if flag.code not in _HEADER_STEP_FLAGS]
    header_s = series.time_step_s
    stated = header_s is not None and len(flags) == len(series.flags)
    if stated and header_s is not None and abs(header_s - seconds) > _INTERVAL_TOLERANCE * seconds:
        detail = "the time step of the header differs from the interval that was sent, which was used"
        flags.append(_flag("ctp-interval-differs", detail))
    return dataclasses.replace(series, time_step_s=seconds, flags=tuple(flags))


def check_frames(frames: np.ndarray) -> tuple[Flag, ...]:
    """Check the frames of a series.

    Args:
        frames: (X, Y, Z, T) HU, block means of about 2 mm.

    Raises:
        InvalidVolume: the fourth axis is not time, or a frame does not show the head.
    """
    shown = np.clip(frames[::2, ::2], *_CLIP_HU)
    slices, count = shown.shape[2:]
    if slices >= _MIN_SLICES and count >= _MIN_SLICES:
        over_time = np.abs(shown[..., 3 * count // 4] - shown[..., count // 4]).mean()
        over_z = np.abs(shown[:, :, 3 * slices // 4] - shown[:, :, slices // 4]).mean()
        if over_time > over_z:
            raise _refuse("its third axis looks like time, and its fourth like slices: write the axes as X, Y, Z, T")
    median = np.median(shown[::2, ::2], axis=-1).ravel()
    flat = shown[::2, ::2].reshape(-1, count)
    spread = flat.std(axis=0)
    likeness = np.zeros(count)
    filled = spread > 1e-3
    if filled.any() and median.std() > 1e-3:
        centred = flat[:, filled] - flat[:, filled].mean(axis=0)
        likeness[filled] = (median - median.mean()) @ centred / (len(median) * median.std() * spread[filled])
    if (likeness < _MIN_LIKENESS).any():
        raise _refuse("a frame is empty, or does not show the head like the others: export the series again")
    seen = {shown[..., frame].tobytes() for frame in range(count)}
    if len(seen) < count:
        detail = "some frames are identical, so the times of the frames are doubtful: export the series again"
        return (_flag("ctp-frames-repeated", detail),)
    return ()


def check_bolus(
    enhancement: np.ndarray, vessels: np.ndarray, mni_from_voxel: np.ndarray, curves: BolusCurves, step_s: float
) -> tuple[Flag, ...]:
    """Check the shape and the order of the bolus.

    Args:
        enhancement: (X, Y, Z, T) HU above the baseline.
        vessels: (X, Y, Z) bool, where vessels are looked for.
        mni_from_voxel: (4, 4), voxel -> MNI152 mm; it locates arteries and sinus.
        curves: the selected artery and vein.
        step_s: seconds from one frame to the next.

    Raises:
        InvalidVolume: the frames are reversed, or the width of the bolus is impossible.
    """
    if any(flag.code == "aif-doubtful" for flag in curves.flags):
        return ()  # without an artery, there is no bolus whose shape could be judged
    reversed_signs = _reversed_signs(enhancement, vessels, mni_from_voxel, curves, step_s)
    if reversed_signs > 1:
        raise _refuse("the contrast leaves before it arrives: send the frames in the order of the scan")
    whole = enhancement[vessels].mean(axis=0)
    ended = _ends_below(curves.arterial, _CUT_SHARE) and _ends_below(whole, _CUT_BRAIN_SHARE)
    if not ended or int(curves.arterial.argmax()) < 2:
        detail = "the series starts or ends within the bolus, so flow and delays are wrong: send all frames"
        return (_flag("bolus-cut", detail),)
    width = _width(curves.arterial) * step_s
    if not _POSSIBLE_WIDTH_S[0] < width < _POSSIBLE_WIDTH_S[1]:
        raise _refuse(
            "the bolus in the arteries is far narrower or wider than 5 to 20 s: correct the time step of the header, "
            "or send the seconds between the frames as ctp_interval_s"
        )
    flags = []
    if reversed_signs:
        detail = (
            "the contrast falls faster than it rises, or starts high; check the order of the frames and their start"
        )
        flags.append(_flag("bolus-doubtful", detail))
    if not _WIDTH_S[0] < width < _WIDTH_S[1]:
        detail = (
            "the bolus in the arteries is narrower or wider than usual; check the time step, or send the seconds "
            "between the frames as ctp_interval_s"
        )
        flags.append(_flag("ctp-interval-doubtful", detail))
    return tuple(flags)


def _reversed_signs(
    enhancement: np.ndarray, vessels: np.ndarray, mni_from_voxel: np.ndarray, curves: BolusCurves, step_s: float
) -> int:
    """Number of signs, of three, that the frames run backwards."""
    skewness = (_skewness(curves.arterial) + _skewness(curves.venous)) / 2
    whole = enhancement[vessels].mean(axis=0)
    rise = (whole[-2:].mean() - whole[:2].mean()) / max(float(np.ptp(whole)), 1e-6)
    ended = _ends_below(curves.arterial, _CUT_SHARE)  # a bolus that is cut off has no tail
    delay_s = _sinus_delay(enhancement, vessels, mni_from_voxel, curves.arterial.max() / curves.scale) * step_s
    return int(ended and skewness < _MIN_SKEWNESS) + int(rise < _MIN_RISE) + int(delay_s < _MIN_DELAY_S)


def _ends_below(curve: np.ndarray, share: float) -> bool:
    """Whether the last two values of a curve are below a share of its peak."""
    return bool(curve[-2:].mean() < share * curve.max())


def _skewness(curve: np.ndarray) -> float:
    """Skewness of the first pass, with the curve as weights; positive if it rises faster than it falls."""
    weight = np.maximum(curve - _LOW_SHARE * curve.max(), 0)
    weight = weight / weight.sum()
    times = np.arange(len(curve))
    centred = times - weight @ times
    spread = float(weight @ centred**2)
    return float(weight @ centred**3) / spread**1.5 if spread > 1e-6 else 0.0


def _width(curve: np.ndarray) -> float:
    """Full width at half maximum around the peak, in frames, by linear interpolation."""
    peak, half = int(curve.argmax()), float(curve.max()) / 2
    left, right = peak, peak
    while left > 0 and curve[left] > half:
        left -= 1
    while right < len(curve) - 1 and curve[right] > half:
        right += 1
    before = left + (half - curve[left]) / max(curve[left + 1] - curve[left], 1e-6) if curve[left] < half else left
    after = right - (half - curve[right]) / max(curve[right - 1] - curve[right], 1e-6) if curve[right] < half else right
    return float(after - before)


def _sinus_delay(enhancement: np.ndarray, vessels: np.ndarray, mni_from_voxel: np.ndarray, height: float) -> float:
    """Frames from the bolus in the arteries of the skull base to that in the sagittal sinus; 0 if one is not shown."""
    times = []
    index = np.argwhere(vessels)
    at = index @ mni_from_voxel[:3, :3].T + mni_from_voxel[:3, 3]
    for box in (_ARTERIES_MM, _SINUS_MM):
        within = np.all([(at[:, axis] > low) & (at[:, axis] < high) for axis, (low, high) in enumerate(box)], axis=0)
        curves = enhancement[tuple(index[within].T)]
        if not len(curves):
            return 0.0
        peaks = curves.max(axis=1)
        strongest = curves[np.argsort(peaks)[-_PER_VESSEL:]].mean(axis=0)
        if strongest.max() < _MIN_VESSEL_SHARE * height:
            return 0.0
        weight = np.maximum(strongest - 0.5 * strongest.max(), 0)
        times.append(float(weight @ np.arange(len(weight)) / weight.sum()))
    return times[1] - times[0]


def _refuse(detail: str) -> InvalidVolume:
    return InvalidVolume(f"{Input.CTP}: {detail}", errors=[FieldError(Input.CTP, detail)])


def _flag(code: str, detail: str) -> Flag:
    return Flag(code=code, detail=f"{Input.CTP}: {detail}")
