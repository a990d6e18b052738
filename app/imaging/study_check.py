"""Compare the parts of one study: do the NCCT and the perfusion maps belong to the head of the CTA?

Design notes:
- Two CTs of one patient differ by a movement only. The mean distance between the best rigid and the best affine map of
  one to the other shows another length, width or height, and the correlation of bone shows another shape.
- A skull is not exactly symmetric. If the asymmetry of bone and of CSF is opposite in two CTs of one head, one of them
  is a mirror image. In a head that is symmetric, as a phantom, nothing is found.
- Ventricles differ between patients more than skulls do. CSF around them is compared after the registration.
- The tissue of a perfusion map lies within the skull. A rigid fit of its outline to the intracranial space of the CT
  shows how far the map is displaced. The fit needs an outline: it is left out for maps without background.
- A mirrored map is displaced unless the head lies straight in its grid; then its outline is its own mirror image.
- The size of the outline is not compared: every software draws it differently, and a craniectomy dents the skull.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from app.imaging import morphology
from app.imaging.io.nifti import Volume
from app.imaging.registration import gauss_newton, template
from app.imaging.registration.align import POOR_QUALITY, Coarse, Coregistration, RegistrationImage
from app.imaging.registration.gauss_newton import UNIT_MM, Points
from app.imaging.registration.skull_strip import OUTSIDE
from app.imaging.resample import shrink
from app.sdk.types import Flag, Input

__all__ = [
    "MAX_DISPLACEMENT_MM",
    "check_inside",
    "check_maps",
    "displacement_mm",
    "is_mirrored",
    "is_other_head",
    "ventricle_correlation",
]

Matrix = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

MAX_MISMATCH_MM: Final = 1.0
MIN_BONE_CORRELATION: Final = 0.93

MAX_MIRRORED: Final = -0.5  # correlation of the asymmetry of bone, and of CSF
_CSF_MM: Final = 3.0
_FLUID_TO_BRAIN_HU: Final = (-20.0, 60.0)  # without contrast, calcium and fat
_VENTRICLES_BOX: Final = ((-39.0, 39.0), (-69.0, 45.0), (-15.0, 42.0))  # MNI mm
_MAX_GRAIN_HU: Final = 3.5  # above it, noise hides the ventricles
MIN_VENTRICLES: Final = 0.85  # correlation of CSF
_ASYMMETRY_MM: Final = 6.0
_ASYMMETRY_BOX: Final = ((-81.0, 81.0), (-111.0, 81.0), (-33.0, 81.0))  # symmetric about x = 0, MNI mm
_OUTLINE_MM: Final = 4.0
_BLUR_MM: Final = 12.0  # of the intracranial space in ``Coarse``
_TISSUE_SHARE: Final = (0.03, 0.85)  # share of the field of view; more or less is not an outline of a brain
_BETTER_FIT: Final = 0.8  # cost after the fit relative to that before it
_MAGNIFICATIONS: Final = (1.0, 1.02, 1.04, 1.06, 1.08, 1.1, 1.12)  # intracranial space relative to the brain, atrophy
MAX_DISPLACEMENT_MM: Final = 5.0


def is_mirrored(ncct: RegistrationImage, cta: RegistrationImage, cta_from_ncct: Matrix, mni_from_cta: Matrix) -> bool:
    """Whether one of two CTs of a head is a mirror image of the other, by the sign of their asymmetry.

    Args:
        ncct: one CT.
        cta: the other CT.
        cta_from_ncct: (4, 4), RAS+ mm of the one -> of the other.
        mni_from_cta: (4, 4), RAS+ mm of the other -> MNI152 mm.
    """
    world_from_mni = np.linalg.inv(mni_from_cta)
    one, one_seen = _asymmetry(ncct, np.linalg.inv(cta_from_ncct) @ world_from_mni)
    other, other_seen = _asymmetry(cta, world_from_mni)
    seen = one_seen & other_seen
    if not seen.any():
        return False
    return all(_correlation(a[seen], b[seen]) < MAX_MIRRORED for a, b in zip(one, other, strict=True))


def ventricle_correlation(
    ncct: RegistrationImage, cta: RegistrationImage, cta_from_ncct: Matrix, mni_from_cta: Matrix
) -> float:
    """Correlation of CSF around the ventricles in two CTs of a head, -1 to 1; arguments as in ``is_mirrored``.

    1 if the ventricles are not in the field of view of both, or if one is too noisy.
    """
    world_from_mni = np.linalg.inv(mni_from_cta)
    one = _csf(ncct, np.linalg.inv(cta_from_ncct) @ world_from_mni)
    other = _csf(cta, world_from_mni)
    return _correlation(one, other) if one is not None and other is not None else 1.0


def check_inside(
    ncct: RegistrationImage, cta: RegistrationImage, pair: Coregistration, mni_from_cta: Matrix
) -> tuple[Flag, ...]:
    """Compare what two CTs of one head show inside the skull; arguments as in ``is_mirrored``.

    Returns:
        ``orientation-doubtful`` if they are mirror images of each other; ``study-mismatch`` if the ventricles differ.
    """
    if pair.quality < POOR_QUALITY:
        return ()
    matrices = pair.fixed_from_moving, mni_from_cta
    if is_mirrored(ncct, cta, *matrices):
        detail = "ncct: it is a mirror image of the cta, so left and right are exchanged in one of them"
        return (Flag(code="orientation-doubtful", detail=detail),)
    if not is_other_head(pair) and ventricle_correlation(ncct, cta, *matrices) < MIN_VENTRICLES:
        detail = "ncct: its ventricles have another size or shape than those of the cta"
        return (Flag(code="study-mismatch", detail=detail),)
    return ()


def _csf(head: RegistrationImage, world_from_mni: Matrix) -> Floats | None:
    """Share of CSF on a grid around the ventricles, blurred; None if noisy or not in the field of view."""
    axes = [np.arange(low, high + _CSF_MM, _CSF_MM) for low, high in _VENTRICLES_BOX]
    grid = np.diag([_CSF_MM, _CSF_MM, _CSF_MM, 1.0])
    grid[:3, 3] = [axis[0] for axis in axes]
    hu = head.resampled(world_from_mni @ grid, tuple(len(axis) for axis in axes))
    if (hu <= OUTSIDE).any():
        return None
    grey = np.clip(hu, *_FLUID_TO_BRAIN_HU)
    if np.median(np.abs(grey - ndimage.gaussian_filter(grey, 1.0))) > _MAX_GRAIN_HU:
        return None
    blurred: Floats = ndimage.gaussian_filter(1 - template.ramp(hu, template.NON_CSF_HU), 1.0)
    return blurred


def _asymmetry(head: RegistrationImage, world_from_mni: Matrix) -> tuple[list[Floats], npt.NDArray[np.bool_]]:
    """Difference between the sides of bone and of non-CSF on a grid around the midplane, and where both are in view."""
    axes = [np.arange(low, high + _ASYMMETRY_MM, _ASYMMETRY_MM) for low, high in _ASYMMETRY_BOX]
    grid = np.diag([_ASYMMETRY_MM, _ASYMMETRY_MM, _ASYMMETRY_MM, 1.0])
    grid[:3, 3] = [axis[0] for axis in axes]
    hu = head.resampled(world_from_mni @ grid, tuple(len(axis) for axis in axes))
    seen = hu > OUTSIDE
    ramps = [template.ramp(hu, ends) for ends in (template.BONE_HU, template.NON_CSF_HU)]
    smooth = [ndimage.gaussian_filter(values, 1.0) for values in ramps]
    return [values - values[::-1] for values in smooth], seen & seen[::-1]


def _correlation(one: Floats, other: Floats) -> float:
    """Pearson's correlation; 0 if either is constant."""
    spread = float(one.std()) * float(other.std())
    return float(np.mean((one - one.mean()) * (other - other.mean()))) / spread if spread else 0.0


def is_other_head(pair: Coregistration) -> bool:
    """Whether two CTs that were registered rigidly show two heads."""
    return pair.mismatch_mm > MAX_MISMATCH_MM or pair.quality < MIN_BONE_CORRELATION


def displacement_mm(maps: Mapping[Input, Volume], coarse: Coarse) -> float | None:
    """Mean distance that the tissue of perfusion maps must move to fit the intracranial space of a CT, mm.

    An atrophied brain is smaller than the space, and a slab of it fits better towards the vertex, where the space is
    narrow. So the tissue is first magnified as fits best in its place.

    Args:
        maps: maps on one grid, 0 outside tissue.
        coarse: the intracranial space, in the world frame of the maps.

    Returns:
        0 if a movement hardly improves the fit; None if the maps show no outline.
    """
    outline = _outline(maps)
    if outline is None:
        return None
    unmagnified = outline.voxel_from_unit(np.linalg.inv(coarse.affine))
    image = np.ascontiguousarray(coarse.image[..., [0, 2]])
    before, start = np.inf, unmagnified
    for magnification in _MAGNIFICATIONS:
        magnified = unmagnified * [magnification, magnification, magnification, 1]
        _, cost = gauss_newton.fit(image, outline, magnified, rigid=True, steps=0)
        if cost < before:
            before, start = cost, magnified
    moved, after = gauss_newton.fit(image, outline, start, rigid=True, steps=15, tolerance=0.03)
    if after > _BETTER_FIT * before:
        return 0.0
    tissue = outline.coordinates[outline.values[:, 0] > 0.5]
    at = np.column_stack([tissue, np.ones(len(tissue))])
    return float(np.linalg.norm(at @ (moved - start).T, axis=1).mean() * abs(coarse.affine[0, 0]))


def _outline(maps: Mapping[Input, Volume]) -> Points | None:
    """The tissue of maps, blurred as the intracranial space of a CT, as points to fit; None if it has no outline."""
    first = next(iter(maps.values()))
    tissue = np.zeros(first.shape, np.float32, order="F")
    for volume in maps.values():
        if volume.shape == first.shape:
            tissue[volume.data > 0] = 1
    if not _TISSUE_SHARE[0] < tissue.mean() < _TISSUE_SHARE[1]:
        return None
    x, y, z = (max(1, round(_OUTLINE_MM / edge)) for edge in first.spacing_mm)
    blocks, from_blocks = shrink(tissue, (x, y, z))
    affine = first.affine @ from_blocks
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    filled = morphology.fill_slices(np.moveaxis(blocks > 0.5, _slices(affine), 0))
    solid = np.moveaxis(filled, 0, _slices(affine)).astype(np.float32)
    blurred = ndimage.gaussian_filter(solid, template.sigma_of_fwhm(_BLUR_MM) / edges, mode="nearest", truncate=3)
    every = tuple(slice(None, None, max(1, round(8 / edge))) for edge in edges)
    index = np.indices(blurred.shape)[(slice(None), *every)].reshape(3, -1)
    values = np.ascontiguousarray(blurred[every].reshape(-1, 1), np.float32)
    at = (affine[:3, :3] @ index + affine[:3, 3:]).T
    if not (values > 0.5).any():
        return None
    centre = at[values[:, 0] > 0.5].mean(axis=0)
    return Points(np.ascontiguousarray((at - centre) / UNIT_MM), values, np.ones_like(values), centre)


def _slices(affine: Matrix) -> int:
    """The axis of the axial slices."""
    return int(np.argmax(np.abs(affine[2, :3])))


def check_maps(maps: Mapping[Input, Volume], coarse: Coarse | None) -> tuple[Flag, ...]:
    """``perfusion-misplaced`` if perfusion maps are displaced or turned against the CT that they belong to."""
    distance = displacement_mm(maps, coarse) if coarse is not None else None
    if distance is None or distance <= MAX_DISPLACEMENT_MM:
        return ()
    detail = "perfusion: the tissue of the maps lies beside the brain of the CT, or is mirrored"
    return (Flag(code="perfusion-misplaced", detail=detail),)
