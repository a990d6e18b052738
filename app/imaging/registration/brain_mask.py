"""The MNI152 brain, on any grid that an alignment ties to it.

Notable choices:
- The brain is where nilearn's bundled T1 template (skull-stripped, ICBM 2009a symmetric; in the wheel, no download) is
  not zero, holes filled, at 2 mm.
- It is kept as a signed distance in millimetres, negative inside, so that one interpolation answers "within so many
  millimetres of the brain" for any margin.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np
from scipy import ndimage

from app.imaging.resample import resample

__all__ = ["WILLIS_MM", "box", "coverage", "distance", "points", "x_mm"]

WILLIS_MM: Final = ((-45.0, 45.0), (-45.0, 40.0), (-35.0, 5.0))
"""A box in MNI millimetres that holds the circle of Willis, both M1 segments, and the basilar artery."""

_TEMPLATE: Final = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
_FAR_MM: Final = 100.0
_POINTS_MM: Final = 8.0


def distance(affine: np.ndarray, shape: tuple[int, ...], mni_from_world: np.ndarray) -> np.ndarray:
    """Millimetres (of MNI space) to the brain's surface at each voxel, negative inside.

    :param affine: (4, 4) voxel -> RAS+ mm of the grid asked for
    :param mni_from_world: (4, 4) the patient's RAS+ mm -> MNI152 mm
    :return: float32 of ``shape``
    """
    field, to_mni = _field()
    return resample(field, np.linalg.inv(to_mni) @ mni_from_world @ affine, shape, fill=_FAR_MM)


def x_mm(affine: np.ndarray, shape: tuple[int, ...], mni_from_world: np.ndarray) -> np.ndarray:
    """MNI x of each voxel, float32 of ``shape``: negative on the patient's left."""
    row = (mni_from_world @ affine)[0].astype(np.float32)
    i, j, k = np.ogrid[tuple(slice(n) for n in shape)]
    values: np.ndarray = (row[0] * i + row[1] * j + row[2] * k + row[3]).astype(np.float32)
    return values


def box(affine: np.ndarray, shape: tuple[int, ...], mni_from_world: np.ndarray, margin_mm: float) -> tuple[slice, ...]:
    """The smallest block of voxels that holds the brain and a margin, cut at the grid's ends; may be empty."""
    world = np.linalg.inv(mni_from_world)
    # The points are 8 mm apart, so the brain may reach that much further.
    grown = points() + (margin_mm + _POINTS_MM) * np.sign(points() - points().mean(axis=0))
    voxels = _apply(np.linalg.inv(affine) @ world, np.concatenate([points(), grown]))
    low = np.clip(np.floor(voxels.min(axis=0)), 0, shape).astype(int)
    high = np.clip(np.ceil(voxels.max(axis=0)) + 1, 0, shape).astype(int)
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def coverage(
    affine: np.ndarray, shape: tuple[int, ...], mni_from_world: np.ndarray, part: np.ndarray | None = None
) -> float:
    """Which share of the brain's points (or of ``part``, (n, 3) MNI mm) lies in the field of view of a grid."""
    voxels = _apply(np.linalg.inv(mni_from_world @ affine), points() if part is None else part)
    within = np.all((voxels >= -0.5) & (voxels <= np.array(shape[:3]) - 0.5), axis=1)
    return float(within.mean())


@cache
def points() -> np.ndarray:
    """The brain as points 8 mm apart, (n, 3) MNI mm."""
    field, affine = _field()
    step = int(_POINTS_MM / 2)
    return _apply(affine, np.argwhere(field[::step, ::step, ::step] < 0) * step)


def _apply(matrix: np.ndarray, at: np.ndarray) -> np.ndarray:
    moved: np.ndarray = at @ matrix[:3, :3].T + matrix[:3, 3]
    return moved


@cache
def _field() -> tuple[np.ndarray, np.ndarray]:
    """Signed distance (X, Y, Z) float32 at 2 mm, and its affine."""
    package = find_spec("nilearn")
    if package is None or package.origin is None:
        raise ImportError("nilearn, which carries the MNI152 template, is not installed")
    image = nib.Nifti1Image.from_filename(Path(package.origin).parent / _TEMPLATE)
    fine = ndimage.binary_fill_holes(np.asarray(image.dataobj)[::2, ::2, ::2] > 0)
    brain = np.pad(fine, 20)  # room for distances outside
    affine = np.asarray(image.affine, np.float64) @ np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] -= affine[:3, :3] @ np.full(3, 20.0)
    edge = 2.0
    inside = ndimage.distance_transform_edt(brain) * edge
    outside = ndimage.distance_transform_edt(~brain) * edge
    # Half a voxel each way: the surface lies between the last voxel inside and the first one outside.
    field = np.where(brain, edge / 2 - inside, outside - edge / 2)
    return np.asfortranarray(field, dtype=np.float32), affine
