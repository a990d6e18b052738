"""Compare the parts of one study: do the NCCT, the perfusion maps and the vessel mask belong to the head of the CTA?

Design notes:
- Two CTs of one patient differ by a movement only. The mean distance between the best rigid and the best affine map of
  one to the other shows another length, width or height, and the correlation of bone shows another shape.
- The tissue of a perfusion map lies within the skull. A rigid fit of its outline to the intracranial space of the CT
  shows how far the map is displaced. The fit needs an outline: it is left out for maps without background.
- A mirrored map is displaced unless the head lies straight in its grid; then its outline is its own mirror image.
- Arteries are brighter than the tissue around them. If the voxels of a mask are not bright, and become bright after a
  shift or a reflection, the mask is displaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from app.imaging.io.nifti import Volume
from app.imaging.registration import brain_mask, gauss_newton, template
from app.imaging.registration.align import Coarse, Coregistration
from app.imaging.registration.gauss_newton import UNIT_MM, Points
from app.imaging.resample import resample, shrink

__all__ = ["displacement_mm", "is_other_head", "mask_is_displaced"]

Matrix = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

MAX_MISMATCH_MM: Final = 1.0
MIN_BONE_CORRELATION: Final = 0.93

_OUTLINE_MM: Final = 4.0
_BLUR_MM: Final = 12.0  # of the intracranial space in ``Coarse``
_TISSUE_SHARE: Final = (0.03, 0.85)  # share of the field of view; more or less is not an outline of a brain
_BETTER_FIT: Final = 0.8  # cost after the fit relative to that before it

_BRIGHT_HU: Final = 90.0
_BONE_HU: Final = 700.0
_SAMPLES: Final = 3000


def is_other_head(pair: Coregistration) -> bool:
    """Whether two CTs that were registered rigidly show two heads."""
    return pair.mismatch_mm > MAX_MISMATCH_MM or pair.quality < MIN_BONE_CORRELATION


def displacement_mm(maps: Mapping[Any, Volume], coarse: Coarse) -> float | None:
    """Distance that the tissue of perfusion maps must move to lie in the intracranial space of a CT, mm.

    Args:
        maps: maps on one grid, 0 outside tissue.
        coarse: the intracranial space, in the world frame of the maps.

    Returns:
        The mean over the tissue; 0 if a movement hardly improves the fit; None if the maps show no outline.
    """
    outline = _outline(maps)
    if outline is None:
        return None
    start = outline.voxel_from_unit(np.linalg.inv(coarse.affine))
    image = np.ascontiguousarray(coarse.image[..., [0, 2]])
    _, before = gauss_newton.fit(image, outline, start, rigid=True, steps=0)
    moved, after = gauss_newton.fit(image, outline, start, rigid=True, steps=15, tolerance=0.03)
    if after > _BETTER_FIT * before:
        return 0.0
    at = np.column_stack([outline.coordinates, np.ones(len(outline.coordinates))])[outline.values[:, 0] > 0.5]
    distance = np.linalg.norm(at @ (moved - start).T, axis=1).mean()
    return float(distance * abs(coarse.affine[0, 0]))


def _outline(maps: Mapping[Any, Volume]) -> Points | None:
    """The tissue of maps, blurred as the intracranial space of a CT, as points to fit; None if it has no outline."""
    first = next(iter(maps.values()))
    tissue = np.zeros(first.shape, np.float32, order="F")
    for volume in maps.values():
        tissue[volume.data > 0] = 1
    if not _TISSUE_SHARE[0] < tissue.mean() < _TISSUE_SHARE[1]:
        return None
    x, y, z = (max(1, round(_OUTLINE_MM / edge)) for edge in first.spacing_mm)
    blocks, from_blocks = shrink(tissue, (x, y, z))
    affine = first.affine @ from_blocks
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    filled = np.stack([ndimage.binary_fill_holes(plane) for plane in np.moveaxis(blocks > 0.5, _slices(affine), 0)])
    solid = np.moveaxis(filled, 0, _slices(affine)).astype(np.float32)
    blurred = ndimage.gaussian_filter(solid, template.sigma_of_fwhm(_BLUR_MM) / edges, mode="nearest", truncate=3)
    every = tuple(slice(None, None, max(1, round(8 / edge))) for edge in edges)
    index = np.indices(blurred.shape)[(slice(None), *every)].reshape(3, -1)
    values = np.ascontiguousarray(blurred[every].reshape(-1, 1), np.float32)
    at = (affine[:3, :3] @ index + affine[:3, 3:]).T
    centre = at[values[:, 0] > 0.5].mean(axis=0) if (values > 0.5).any() else at.mean(axis=0)
    return Points(np.ascontiguousarray((at - centre) / UNIT_MM), values, np.ones_like(values), centre)


def _slices(affine: Matrix) -> int:
    """The axis of the axial slices."""
    return int(np.argmax(np.abs(affine[2, :3])))


def mask_is_displaced(mask: Volume, cta: Volume, mni_from_world: Matrix) -> bool:
    """Whether the voxels of a vessel mask are dark on the CTA, but bright after a shift or a reflection.

    Args:
        mask: 1 in vessels.
        cta: HU, in the same world frame.
        mni_from_world: (4, 4), RAS+ mm of both -> MNI152 mm.
    """
    voxels = np.argwhere(mask.data)
    if len(voxels) > _SAMPLES:
        voxels = voxels[np.random.default_rng(0).choice(len(voxels), _SAMPLES, replace=False)]
    world = voxels @ mask.affine[:3, :3].T + mask.affine[:3, 3]
    return False
