"""From a raw CT perfusion series to its maps.

Steps: voxels averaged to about 2 mm; every frame moved onto the first; the mean of the frames before the bolus taken
off; arterial input and venous output found; the curves smoothed in space, within the brain only; deconvolved.

Notable choices:
- The maps are on the working grid of about 2 mm: CT perfusion noise leaves nothing finer, and it is 20 times quicker.
- A head that moved too much, a bolus that was cut short or an unclear artery give flags, and maps all the same.
- Tmax is of the deconvolved residue, so it holds half the transit time of plug flow as well as the delay: normal tissue
  lies at 1-3 s (docs/imaging.md has the errors against known residues).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import ndimage

from app.imaging.io.nifti import Volume
from app.imaging.perfusion import aif
from app.imaging.perfusion.deconvolution import KAPPA, haemodynamics
from app.imaging.registration import brain_mask
from app.imaging.resample import shrink
from app.sdk.errors import GeometryMismatch, InvalidVolume
from app.sdk.types import Flag, Input

__all__ = ["PerfusionMaps", "deconvolve"]

_WORKING_MM: Final = 2.0
_SMOOTH_MM: Final = 5.0
"""Full width at half maximum of the smoothing before deconvolution."""

_LEAST_FRAMES: Final = 8
_LEAST_S: Final = 20.0
_STEP_S: Final = (0.2, 6.0)
_TISSUE_HU: Final = (18.0, 90.0)
"""Brain, however swollen; below it is cerebrospinal fluid, where a delay would be one of noise."""

_VESSEL_HU: Final = (-20.0, 130.0)
_VESSEL_MARGIN_MM: Final = 3.0
_VESSEL_CBV: Final = 9.0
"""mL / 100 g above which a voxel is a vessel, and left out before its neighbours are smoothed with it."""

_LEAST_ML: Final = 20.0


@dataclass(frozen=True)
class PerfusionMaps:
    """Four maps on one grid of about 2 mm, 0 outside the brain, and what was doubtful about them."""

    cbf: Volume  # mL / 100 g / min
    cbv: Volume  # mL / 100 g
    mtt: Volume  # s
    tmax: Volume  # s
    flags: tuple[Flag, ...]

    def by_input(self) -> dict[Input, Volume]:
        """The maps under the names that they would be uploaded by."""
        return {Input.CBF: self.cbf, Input.CBV: self.cbv, Input.MTT: self.mtt, Input.TMAX: self.tmax}


def deconvolve(series: Volume, mni_from_world: np.ndarray) -> PerfusionMaps:
    """Flow, volume, transit time and delay of a series.

    :param series: (X, Y, Z, T) HU, with its time step
    :param mni_from_world: (4, 4) the series' RAS+ mm -> MNI152 mm, which tells where the brain is
    :raises InvalidVolume: the series has no usable time axis
    :raises GeometryMismatch: it does not show the brain
    """
    step_s = _step_s(series)
    frames, affine = _working(series)
    frames, moved_mm = aif.correct_motion(frames, _edges(affine))

    depth = brain_mask.distance(affine, frames.shape[:3], mni_from_world)
    plain = frames[..., :2].mean(axis=-1)
    calm = ndimage.gaussian_filter(plain, [_SMOOTH_MM / 2 / 2.3548 / edge for edge in _edges(affine)])
    tissue = (depth < 0) & _between(calm, _TISSUE_HU)
    if np.count_nonzero(tissue) * abs(np.linalg.det(affine[:3, :3])) < _LEAST_ML * 1000:
        raise GeometryMismatch("ctp: the series does not show the brain where the other volumes have it")
    before = aif.baseline_frames(frames, tissue)
    frames -= frames[..., :before].mean(axis=-1, keepdims=True)

    beside_bone = ndimage.binary_dilation(plain > _VESSEL_HU[1])
    inside = (depth < _VESSEL_MARGIN_MM) & _between(plain, _VESSEL_HU) & ~beside_bone
    vessels = aif.find(frames, inside, before=before)
    tissue &= _blood_volume(frames, vessels.arterial) < _VESSEL_CBV
    found = haemodynamics(_smoothed(frames, tissue, _edges(affine)), vessels.arterial, step_s)
    cbf, cbv, mtt, tmax = (
        Volume(_filled(tissue, values), affine) for values in (found.cbf, found.cbv, found.mtt, found.tmax)
    )
    return PerfusionMaps(cbf, cbv, mtt, tmax, (*_moved(moved_mm), *vessels.flags))


def _step_s(series: Volume) -> float:
    step_s, frames = series.time_step_s, series.shape[3]
    if step_s is None or not _STEP_S[0] <= step_s <= _STEP_S[1]:
        raise InvalidVolume("ctp: the header's time step must be the seconds from frame to frame, 0.2 to 6")
    if frames < _LEAST_FRAMES or frames * step_s < _LEAST_S:
        raise InvalidVolume("ctp: the series is shorter than the passage of a bolus, 20 s and 8 frames")
    return step_s


def _working(series: Volume) -> tuple[np.ndarray, np.ndarray]:
    """The series in HU, (x, y, z, T) float32 in blocks of about 2 mm, and the blocks' affine."""
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
    """CBV in mL / 100 g by the ratio of areas, (x, y, z)."""
    volume: np.ndarray = 100 * KAPPA * frames.sum(axis=-1) / arterial.sum()
    return volume


def _smoothed(frames: np.ndarray, tissue: np.ndarray, edges_mm: tuple[float, float, float]) -> np.ndarray:
    """The tissue's curves, (N, T), each the Gaussian-weighted mean of the tissue around it."""
    sigma = [_SMOOTH_MM / 2.3548 / edge for edge in edges_mm]
    weight = ndimage.gaussian_filter(tissue.astype(np.float32), sigma)[tissue]
    curves = np.empty((np.count_nonzero(tissue), frames.shape[3]), np.float32)
    for frame in range(frames.shape[3]):
        spread = ndimage.gaussian_filter(np.where(tissue, frames[..., frame], 0), sigma)
        curves[:, frame] = spread[tissue] / weight
    return curves


def _filled(tissue: np.ndarray, values: np.ndarray) -> np.ndarray:
    volume = np.zeros(tissue.shape, np.float32, order="F")
    volume[tissue] = values
    return volume


def _moved(mm: float) -> tuple[Flag, ...]:
    if mm <= aif.MOVED_MM:
        return ()
    return (Flag(code="ctp-motion", detail=f"ctp: the head moved by up to {mm:.0f} mm during the series; corrected"),)
