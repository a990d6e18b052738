"""CT-like template of the head in MNI space, made from nilearn's bundled brain: the target of ``align``.

Design notes:
- Two images. Bone: from ``DURA_MM`` beyond the MNI152 brain outwards. Non-CSF: 0 in CSF, 1 in tissue and in bone.
- Bone counts only in a band at the edge of the brain, so that scalp and face have no influence.
- The band leaves out thin bone (orbital roof, nose) and places without bone (clivus, sella, foramen magnum).
- Grey matter, white matter and CSF have their Hounsfield units at 120 kV. Non-CSF saturates just above white matter,
  so that cupping below the skull and age have no influence.

Data: ICBM 2009a symmetric, in nilearn's wheel (Fonov et al., NeuroImage 2011); read offline.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from app.imaging import derived_arrays, resample
from app.imaging.registration import brain_mask, gauss_newton
from app.imaging.registration.gauss_newton import UNIT_MM, Points

__all__ = ["BONE_HU", "BOX", "CENTRE_MM", "NON_CSF_HU"]
__all__ += ["clear_maps", "head_points", "intracranial_points", "ramp", "sigma_of_fwhm", "spread_mm", "tissue"]

Floats = npt.NDArray[np.float32]
Matrix = npt.NDArray[Any]

CSF_HU, GREY_HU, WHITE_HU = 8.0, 38.0, 29.0
CENTRE_MM = np.array([0.0, -22.0, 9.5])  # centre of mass of the brain
BOX = ((-92.0, 92.0), (-128.0, 92.0), (-92.0, 104.0))  # MNI millimetres: the brain and 20 mm around it
BAND_MM = (-7.0, 6.0)
DURA_MM = 1.0  # from the edge of the brain to bone; the whole-head CT template fits 0 to 1 mm equally well
BONE_HU = (100.0, 400.0)
NON_CSF_HU = (5.0, 30.0)
"""Ramps from 0 to 1. The ramp of bone ends below the densest bone, so that thin and thick bone count equally."""
NON_CSF_WEIGHT = 0.3


def sigma_of_fwhm(fwhm: float) -> float:
    """Standard deviation of a Gaussian with this full width at half maximum, in the same unit."""
    return fwhm / float(2 * np.sqrt(2 * np.log(2)))


@cache
def head_points(step: int, fwhm_mm: float) -> Points:
    """Bone and non-CSF at points every ``step`` mm in and around the brain, blurred by ``fwhm_mm``."""
    return _kept(_make_head_points, step, fwhm_mm)


@cache
def intracranial_points(step: int, fwhm_mm: float) -> Points:
    """Mask of the brain, and its Hounsfield units / 40, at points every ``step`` mm, blurred by ``fwhm_mm``."""
    return _kept(_make_intracranial_points, step, fwhm_mm)


def _kept(make: Callable[[int, float], Points], step: int, fwhm_mm: float) -> Points:
    code = (Path(str(module.__file__)) for module in (brain_mask, gauss_newton, resample))
    sources = [Path(__file__), *code, *map(brain_mask.template_path, ("t1", "gm", "wm"))]
    name = f"{make.__name__.removeprefix('_make_')}-{step}-{fwhm_mm:.17g}"
    return Points(**derived_arrays.kept(name, sources, lambda: vars(make(step, fwhm_mm))))


def _make_head_points(step: int, fwhm_mm: float) -> Points:
    distance, upward, at = _geometry(step)
    x, y, z = at
    frontal_base = (y > 20) & (z < 0) & (upward < 0.3)
    midline_base = (np.abs(x) < 30) & (z < -10) & (upward < -0.3)
    band = (distance > BAND_MM[0]) & (distance < BAND_MM[1]) & (z > -60) & ~frontal_base & ~midline_base
    interior = (distance < 0) & (z > -45)
    hu, mask, depth = _maps()
    bone = np.clip(depth - DURA_MM + 0.5, 0, 1)
    non_csf = np.where(mask > 0, ramp(hu, NON_CSF_HU), np.float32(1))
    used = band | interior
    channels = [_blurred(channel, fwhm_mm, step)[used] for channel in (bone, non_csf)]
    return _points(at[:, used], channels, [band[used], NON_CSF_WEIGHT * interior[used]])


def _make_intracranial_points(step: int, fwhm_mm: float) -> Points:
    distance, _, at = _geometry(step)
    included = (distance < 12) & (at[2] > -45)
    hu, mask, _ = _maps()
    return _points(at[:, included], [_blurred(values, fwhm_mm, step)[included] for values in (mask, hu / 40)])


def spread_mm() -> Matrix:
    """(3,): standard deviation of the brain's points along MNI axes, millimetres."""
    points = intracranial_points(8, 12.0)
    weights = points.values[:, 0].astype(np.float64)
    centred = points.coordinates - np.average(points.coordinates, axis=0, weights=weights)
    spread: Matrix = np.sqrt(np.average(centred**2, axis=0, weights=weights)) * UNIT_MM
    return spread


def tissue() -> tuple[Floats, Matrix]:
    """The brain on CT: (X, Y, Z) HU in 1 mm voxels, 0 outside; and the (4, 4) affine to MNI152 millimetres."""
    return _maps()[0], _affine()


def ramp(hu: Floats, ends: tuple[float, float]) -> Floats:
    """Linear ramp: 0 up to the first of ``ends``, 1 from the second."""
    ramped: Floats = np.clip((hu - np.float32(ends[0])) / np.float32(ends[1] - ends[0]), 0, 1)
    return ramped


def clear_maps() -> None:
    """Free the full-size maps, which are needed only to make the points."""
    _maps.cache_clear()
    _image.cache_clear()


def _points(at: Matrix, channels: list[Floats], weights: list[Matrix] | None = None) -> Points:
    values = np.ascontiguousarray(np.stack(channels, axis=-1), np.float32)
    weighted = np.ones_like(values) if weights is None else np.stack(weights, axis=-1).astype(np.float32)
    return Points(np.ascontiguousarray((at.T - CENTRE_MM) / UNIT_MM), values, weighted, CENTRE_MM)


@cache
def _geometry(step: int) -> tuple[Floats, Floats, Matrix]:
    """Every ``step`` mm: signed distance to the brain, z component of its gradient, and MNI mm (3, X, Y, Z)."""
    affine = _affine()
    full = _maps()[0].shape
    index = np.indices(tuple(len(range(step // 2, n, step)) for n in full)) * step + step // 2
    at = np.tensordot(affine[:3, :3], index, 1) + affine[:3, 3, None, None, None]
    grid = affine @ np.diag([step, step, step, 1.0])
    grid[:3, 3] += affine[:3, :3] @ np.full(3, step // 2)
    distance = brain_mask.distance(grid, index.shape[1:], np.eye(4))
    gradient = np.asarray(np.gradient(ndimage.gaussian_filter(distance, sigma_of_fwhm(8) / step)))
    upward = gradient[2] / np.sqrt((gradient**2).sum(axis=0) + 1e-6)
    return distance, upward, at


def _blurred(values: npt.NDArray[Any], fwhm_mm: float, step: int) -> Floats:
    """Blur, at every ``step``-th voxel; each axis is subsampled before the next one is blurred, to save work."""
    blurred: Floats = np.asarray(values, np.float32)
    for axis in range(3):
        along = ndimage.gaussian_filter1d(blurred, sigma_of_fwhm(fwhm_mm), axis=axis, truncate=3)
        blurred = along[(slice(None),) * axis + (slice(step // 2, None, step),)]
    return blurred


@cache
def _maps() -> tuple[Floats, Floats, Floats]:
    """Hounsfield units of the brain (0 outside), its mask, and the signed distance to its edge, mm; 1 mm voxels."""
    grey, white, t1 = (np.asarray(_image(name).dataobj) for name in ("gm", "wm", "t1"))
    mask = ndimage.binary_fill_holes(t1 > 0).astype(np.float32)
    grey, white = grey.astype(np.float32) / 255, white.astype(np.float32) / 255
    hu = mask * (CSF_HU + (GREY_HU - CSF_HU) * grey + (WHITE_HU - CSF_HU) * white)
    return hu.astype(np.float32), mask, np.asarray(brain_mask.distance(_affine(), mask.shape, np.eye(4)), np.float32)


def _affine() -> Matrix:
    return np.asarray(_image("t1").affine, np.float64)


@cache
def _image(name: str) -> Any:
    return brain_mask.template_image(name)
