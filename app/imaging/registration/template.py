"""What a head CT looks like in MNI space, as far as nilearn's bundled brain tells: the target of ``align``.

Notable choices:
- Two images. Bone: from ``DURA_MM`` beyond the MNI152 brain outwards. Matter: 0 in CSF, 1 in tissue and in bone.
- Bone counts in a band about the brain's edge only, so that scalp and face play no part, and not where a CT shows
  otherwise than this rule: the roof of the orbits and the nose, which is thin, and the clivus, the sella and the
  foramen magnum, where the brain does not end at bone. Matter counts inside the brain.
- Grey and white matter and CSF get the Hounsfield units they have at 120 kV. Matter saturates just above white matter,
  so that what a scanner or an age adds to the grey values (cupping below the skull, most of all) changes nothing.

Data: ICBM 2009a symmetric, in nilearn's wheel (Fonov et al., NeuroImage 2011); read offline.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from app.imaging.registration import brain_mask
from app.imaging.registration.gauss_newton import UNIT_MM, Points

__all__ = ["BONE_HU", "BOX", "CENTRE_MM", "MATTER_HU", "forget_maps", "head", "intracranial", "ramp", "sigma", "tissue"]

Floats = npt.NDArray[np.float32]
Matrix = npt.NDArray[Any]

CSF_HU, GREY_HU, WHITE_HU = 8.0, 38.0, 29.0
CENTRE_MM = np.array([0.0, -22.0, 9.5])
"""Centre of mass of the brain."""
BOX = ((-92.0, 92.0), (-128.0, 92.0), (-92.0, 104.0))
"""MNI millimetres: the brain and 20 mm about it."""
BAND_MM = (-7.0, 6.0)
DURA_MM = 1.0
"""From the edge of the brain to bone. The one number tuned on images: the whole-head CT template fits 0 to 1 alike."""
BONE_HU = (100.0, 400.0)
MATTER_HU = (5.0, 30.0)
"""Ramps from 0 to 1. The first ends below the densest bone, so that thin and thick bone count alike."""
MATTER_WEIGHT = 0.3


def sigma(fwhm: float) -> float:
    return fwhm / float(2 * np.sqrt(2 * np.log(2)))


@cache
def head(step: int, fwhm_mm: float) -> Points:
    """Bone and matter at points every ``step`` mm in and about the brain, blurred by ``fwhm_mm``."""
    distance, upward, at = _geometry(step)
    x, y, z = at
    frontal_base = (y > 20) & (z < 0) & (upward < 0.3)
    midline_base = (np.abs(x) < 30) & (z < -10) & (upward < -0.3)
    band = (distance > BAND_MM[0]) & (distance < BAND_MM[1]) & (z > -60) & ~frontal_base & ~midline_base
    brain_itself = (distance < 0) & (z > -45)
    hu, mask, depth = _maps()
    bone = np.clip(depth - DURA_MM + 0.5, 0, 1)
    matter = np.where(mask > 0, ramp(hu, MATTER_HU), np.float32(1))
    used = band | brain_itself
    channels = [_blurred(channel, fwhm_mm, step)[used] for channel in (bone, matter)]
    return _points(at[:, used], channels, [band[used], MATTER_WEIGHT * brain_itself[used]])


@cache
def intracranial(step: int, fwhm_mm: float) -> Points:
    """The brain's mask, and its Hounsfield units over 40, at points every ``step`` mm, blurred by ``fwhm_mm``."""
    distance, _, at = _geometry(step)
    near = (distance < 12) & (at[2] > -45)
    hu, mask, _ = _maps()
    return _points(at[:, near], [_blurred(values, fwhm_mm, step)[near] for values in (mask, hu / 40)])


def tissue() -> tuple[Floats, Matrix]:
    """The brain as a CT would show it, HU on 1 mm voxels, 0 outside; and their affine to MNI152 millimetres."""
    return _maps()[0], _affine()


def ramp(hu: Floats, ends: tuple[float, float]) -> Floats:
    """0 up to the first of ``ends``, 1 from the second on."""
    ramped: Floats = np.clip((hu - np.float32(ends[0])) / np.float32(ends[1] - ends[0]), 0, 1)
    return ramped


def forget_maps() -> None:
    """Free the full-size maps (100 MB) once the points are made."""
    _maps.cache_clear()
    _image.cache_clear()


def _points(at: Matrix, channels: list[Floats], weights: list[Matrix] | None = None) -> Points:
    values = np.ascontiguousarray(np.stack(channels, axis=-1), np.float32)
    weighted = np.ones_like(values) if weights is None else np.stack(weights, axis=-1).astype(np.float32)
    return Points(np.ascontiguousarray((at.T - CENTRE_MM) / UNIT_MM), values, weighted, CENTRE_MM)


@cache
def _geometry(step: int) -> tuple[Floats, Floats, Matrix]:
    """Signed distance to the brain, the upward part of its direction, and (3, X, Y, Z) MNI mm, every ``step`` mm."""
    affine = _affine()
    full = _maps()[0].shape
    index = np.indices(tuple(len(range(step // 2, n, step)) for n in full)) * step + step // 2
    at = np.tensordot(affine[:3, :3], index, 1) + affine[:3, 3, None, None, None]
    grid = affine @ np.diag([step, step, step, 1.0])
    grid[:3, 3] += affine[:3, :3] @ np.full(3, step // 2)
    distance = brain_mask.distance(grid, index.shape[1:], np.eye(4))
    gradient = np.asarray(np.gradient(ndimage.gaussian_filter(distance, sigma(8) / step)))
    upward = gradient[2] / np.sqrt((gradient**2).sum(axis=0) + 1e-6)
    return distance, upward, at


def _blurred(values: npt.NDArray[Any], fwhm_mm: float, step: int) -> Floats:
    """Blurred, at every ``step``-th voxel: an axis that is done is thinned before the next, for a third of the work."""
    blurred: Floats = np.asarray(values, np.float32)
    for axis in range(3):
        along = ndimage.gaussian_filter1d(blurred, sigma(fwhm_mm), axis=axis, truncate=3)
        blurred = along[(slice(None),) * axis + (slice(step // 2, None, step),)]
    return blurred


@cache
def _maps() -> tuple[Floats, Floats, Floats]:
    """Hounsfield units of the brain (0 outside), its mask, and the signed distance to its edge in mm; 1 mm voxels."""
    grey, white, t1 = (np.asarray(_image(name).dataobj) for name in ("gm", "wm", "t1"))
    mask = ndimage.binary_fill_holes(t1 > 0).astype(np.float32)
    grey, white = grey.astype(np.float32) / 255, white.astype(np.float32) / 255
    hu = mask * (CSF_HU + (GREY_HU - CSF_HU) * grey + (WHITE_HU - CSF_HU) * white)
    return hu.astype(np.float32), mask, np.asarray(brain_mask.distance(_affine(), mask.shape, np.eye(4)), np.float32)


def _affine() -> Matrix:
    return np.asarray(_image("t1").affine, np.float64)


@cache
def _image(name: str) -> Any:
    package = find_spec("nilearn")
    if package is None or package.origin is None:
        raise ImportError("nilearn, which carries the MNI152 template, is not installed")
    folder = Path(package.origin).parent / "datasets" / "data"
    return nib.Nifti1Image.from_filename(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")
