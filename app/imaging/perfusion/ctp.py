"""Compute the perfusion maps (CBF, CBV, MTT, Tmax) of a raw CT perfusion series.

Steps: average voxels to about 2 mm; check the frames; register every frame to the first; subtract the mean of the
frames before the bolus; find arterial input and venous output; check the bolus; smooth the curves within the brain;
compute the maps; take the median of the flow over neighbouring voxels, and cut single late values of Tmax.

Design notes:
- The maps have a grid of about 2 mm, because CT perfusion noise leaves no finer detail.
- Large motion, a truncated bolus or an unclear artery give flags, but maps are computed nevertheless.
- Tmax is the time of the peak of the residue. It includes half the transit time of plug flow besides the delay, so
  normal tissue has 1-3 s (docs/imaging.md gives the errors against known residues).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import ndimage

from app.imaging.io.nifti import Volume
from app.imaging.perfusion import aif, bolus_check
from app.imaging.perfusion.deconvolution import KAPPA, haemodynamics
from app.imaging.perfusion.summary import NORMAL_TMAX_S
from app.imaging.registration import brain_mask
from app.imaging.resample import shrink
from app.sdk.errors import GeometryMismatch, InvalidVolume
from app.sdk.types import Flag, Input

__all__ = ["PerfusionMaps", "deconvolve"]

_WORKING_MM: Final = 2.0
_SMOOTH_MM: Final = 5.0  # full width at half maximum of the smoothing before deconvolution
_MIN_FRAMES: Final = 8
_MIN_S: Final = 20.0
_STEP_S: Final = (0.2, 6.0)
_TISSUE_HU: Final = (18.0, 90.0)  # range of brain tissue, also with oedema. CSF is lower; its delay would be noise
_VESSEL_HU: Final = (-20.0, 130.0)
_VESSEL_MARGIN_MM: Final = 3.0
_VESSEL_CBV: Final = 9.0  # mL / 100 g; a voxel with more is a vessel and is excluded before smoothing
_MIDDLE, _TWO_THIRDS = 13, 17  # ranks among the 27 values around a voxel
_MIN_ML: Final = 20.0


@dataclass(frozen=True)
class PerfusionMaps:
    """Four maps on one grid of about 2 mm, 0 outside the brain, and the flags of the series."""

    cbf: Volume  # mL / 100 g / min
    cbv: Volume  # mL / 100 g
    mtt: Volume  # s
    tmax: Volume  # s
    flags: tuple[Flag, ...]

    def by_input(self) -> dict[Input, Volume]:
        """The maps by the name of their upload field."""
        return {Input.CBF: self.cbf, Input.CBV: self.cbv, Input.MTT: self.mtt, Input.TMAX: self.tmax}


def deconvolve(series: Volume, mni_from_world: np.ndarray) -> PerfusionMaps:
    """Compute the maps of a series.

    Args:
        series: (X, Y, Z, T) HU, with its time step.
        mni_from_world: (4, 4), the series' RAS+ mm -> MNI152 mm; it locates the brain.

    Raises:
        InvalidVolume: the series has no usable time axis, or does not show a bolus in the order of time.
        GeometryMismatch: the series does not show the brain.
    """
    step_s = _step_s(series)
    frames, affine = _block_values(series)
    frame_flags = bolus_check.check_frames(frames)
    frames, moved_mm = aif.correct_motion(frames, _edges(affine))

    depth = brain_mask.distance(affine, frames.shape[:3], mni_from_world)
    plain = frames[..., :2].mean(axis=-1)
    smooth = ndimage.gaussian_filter(plain, [_SMOOTH_MM / 2 / 2.3548 / edge for edge in _edges(affine)])
    tissue = (depth < 0) & _between(smooth, _TISSUE_HU)
    if np.count_nonzero(tissue) * abs(np.linalg.det(affine[:3, :3])) < _MIN_ML * 1000:
        raise GeometryMismatch(
            "ctp: the series does not show the brain at the position that the CT has: send it with the scanner's "
            "coordinates"
        )
    baseline = aif.baseline_frames(frames, tissue)
    frames -= frames[..., :baseline].mean(axis=-1, keepdims=True)

    near_bone = ndimage.binary_dilation(plain > _VESSEL_HU[1])
    inside = (depth < _VESSEL_MARGIN_MM) & _between(plain, _VESSEL_HU) & ~near_bone
    vessels = aif.select_curves(frames, inside, baseline=baseline)
    bolus_flags = bolus_check.check_bolus(frames, inside, mni_from_world @ affine, vessels, step_s)
    tissue &= _blood_volume(frames, vessels.arterial) < _VESSEL_CBV
    result = haemodynamics(_smoothed(frames, tissue, _edges(affine)), vessels.arterial, step_s)
    nearest = _nearest(tissue)
    cbf = _median(_volume_of(tissue, result.cbf), tissue, nearest)
    cbv, tmax = _volume_of(tissue, result.cbv), _delay(_volume_of(tissue, result.tmax), nearest)
    mtt = np.divide(60 * cbv, cbf, out=np.zeros_like(cbf), where=cbf > 0)  # central volume theorem
    flags = (*frame_flags, *_motion_flags(moved_mm), *vessels.flags, *bolus_flags)
    return PerfusionMaps(Volume(cbf, affine), Volume(cbv, affine), Volume(mtt, affine), Volume(tmax, affine), flags)


def _step_s(series: Volume) -> float:
    step_s, frames = series.time_step_s, series.shape[3]
    if step_s is None or not _STEP_S[0] <= step_s <= _STEP_S[1]:
        raise InvalidVolume(
            "ctp: the time step must be 0.2 to 6 s from frame to frame: correct it in the header, or send it as "
            "ctp_interval_s"
        )
    if frames < _MIN_FRAMES or frames * step_s < _MIN_S:
        raise InvalidVolume("ctp: the series is shorter than a bolus passage; 20 s and 8 frames are the minimum")
    return step_s


def _block_values(series: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Block means of about 2 mm of the series, (x, y, z, T) float32 HU, and their affine."""
    x, y, z = (max(1, round(_WORKING_MM / edge)) for edge in series.spacing_mm)
    parts = [shrink(series.data[..., frame], (x, y, z)) for frame in range(series.shape[3])]
    frames = np.stack([part for part, _ in parts], axis=-1)
    frames *= np.float32(series.slope)
    frames += np.float32(series.inter)
    return frames, series.affine @ parts[0][1]


def _edges(affine: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(edge) for edge in np.linalg.norm(affine[:3, :3], axis=0))
    return x, y, z


def _between(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    inside: np.ndarray = (values > limits[0]) & (values < limits[1])
    return inside


def _blood_volume(frames: np.ndarray, arterial: np.ndarray) -> np.ndarray:
    """(x, y, z): CBV in mL / 100 g, by the ratio of the areas."""
    volume: np.ndarray = 100 * KAPPA * frames.sum(axis=-1) / arterial.sum()
    return volume


def _smoothed(frames: np.ndarray, tissue: np.ndarray, edges_mm: tuple[float, float, float]) -> np.ndarray:
    """(N, T): curves of the tissue, each the Gaussian-weighted mean of the tissue around it."""
    sigma = [_SMOOTH_MM / 2.3548 / edge for edge in edges_mm]
    weight = ndimage.gaussian_filter(tissue.astype(np.float32), sigma)[tissue]
    curves = np.empty((np.count_nonzero(tissue), frames.shape[3]), np.float32)
    for frame in range(frames.shape[3]):
        spread = ndimage.gaussian_filter(np.where(tissue, frames[..., frame], 0), sigma)
        curves[:, frame] = spread[tissue] / weight
    return curves


def _volume_of(tissue: np.ndarray, values: np.ndarray) -> np.ndarray:
    volume = np.zeros(tissue.shape, np.float32, order="F")
    volume[tissue] = values
    return volume


def _nearest(tissue: np.ndarray) -> tuple[np.ndarray, ...]:
    """Indices of the nearest voxel of the tissue, for each voxel; each voxel itself if there is no tissue."""
    outside = ~tissue if tissue.any() else np.zeros_like(tissue)
    return tuple(ndimage.distance_transform_edt(outside, return_distances=False, return_indices=True))


def _median(values: np.ndarray, tissue: np.ndarray, nearest: tuple[np.ndarray, ...]) -> np.ndarray:
    """Median of 3 x 3 x 3 voxels.

    A single voxel of a low flow is as uncertain as the step from normal flow to the limit of the core. The median keeps
    the edges of a core, and smoothing does not.
    """
    return np.asfortranarray(np.where(tissue, _ranked(values, nearest, _MIDDLE), 0))


def _delay(tmax: np.ndarray, nearest: tuple[np.ndarray, ...]) -> np.ndarray:
    """Tmax, where a late voxel is not later than two thirds of its 3 x 3 x 3 voxels.

    Noise makes single curves late rather than early. The median would take the edges of a small lesion, where less than
    half of the neighbours are late. Early voxels stay: in a penumbra, many of them have a low flow by noise alone, and
    the limit of Tmax keeps them out of the core.
    """
    usual = _ranked(tmax, nearest, _TWO_THIRDS)
    return np.asfortranarray(np.where(tmax > NORMAL_TMAX_S, np.minimum(tmax, usual), tmax))


def _ranked(values: np.ndarray, nearest: tuple[np.ndarray, ...], rank: int) -> np.ndarray:
    """The value of this rank of 3 x 3 x 3 voxels; one outside the tissue counts as the ``nearest`` inside."""
    filtered: np.ndarray = ndimage.rank_filter(values[nearest], rank, size=3)
    return filtered


def _motion_flags(mm: float) -> tuple[Flag, ...]:
    if mm <= aif.MOTION_FLAG_MM:
        return ()
    return (Flag(code="ctp-motion", detail=f"ctp: the head moved by up to {mm:.0f} mm; motion was corrected"),)
