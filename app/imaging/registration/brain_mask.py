"""The MNI152 brain mask, on any grid that an alignment relates to MNI space.

Design notes:
- The brain is the non-zero part of nilearn's bundled T1 template (skull-stripped, ICBM 2009a symmetric) at 2 mm.
- It is stored as a signed distance in millimetres, negative inside, so that one interpolation serves every margin.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
from scipy import ndimage

from app.imaging import derived_arrays
from app.imaging.io.nibabel_alone import nibabel as nib
from app.imaging.resample import resample

__all__ = [
    "WILLIS_MM",
    "box",
    "coverage",
    "distance",
    "distance_at",
    "points",
    "template_image",
    "template_path",
    "x_mm",
]

WILLIS_MM: Final = ((-45.0, 45.0), (-45.0, 40.0), (-35.0, 5.0))
"""Box in MNI millimetres that contains the circle of Willis, both M1 segments and the basilar artery."""

_FAR_MM: Final = 100.0
_POINTS_MM: Final = 8.0


def distance(affine: np.ndarray, shape: tuple[int, ...], mni_from_world: np.ndarray) -> np.ndarray:
    """Distance from each voxel to the surface of the brain, MNI millimetres, negative inside.

    Args:
        affine: (4, 4), voxel -> RAS+ mm of the output grid.
        shape: shape of the output grid.
        mni_from_world: (4, 4), the patient's RAS+ mm -> MNI152 mm.

    Returns:
        float32 of ``shape``.
    """
    field, to_mni = _signed_distance()
    return resample(field, np.linalg.inv(to_mni) @ mni_from_world @ affine, shape, fill=_FAR_MM)


def distance_at(points_mm: np.ndarray) -> np.ndarray:
    """Distance from each of the points (n, 3), MNI mm, to the surface of the brain, (n,) mm, negative inside."""
    field, to_mni = _signed_distance()
    voxels = np.rint(_transform_points(np.linalg.inv(to_mni), points_mm)).astype(int)
    known = np.all((voxels >= 0) & (voxels < field.shape), axis=1)
    found = np.full(len(voxels), _FAR_MM, np.float32)
    found[known] = field[tuple(voxels[known].T)]
    return found


def x_mm(affine: np.ndarray, shape: tuple[int, ...], mni_from_world: np.ndarray) -> np.ndarray:
    """MNI x of each voxel, float32 of ``shape``: negative on the patient's left."""
    return mni_mm(affine, shape, mni_from_world, 0)


def mni_mm(affine: np.ndarray, shape: tuple[int, ...], mni_from_world: np.ndarray, axis: int) -> np.ndarray:
    """MNI coordinate of each voxel along one axis (0: x, 1: y, 2: z), float32 of ``shape``."""
    row = (mni_from_world @ affine)[axis].astype(np.float32)
    i, j, k = np.ogrid[tuple(slice(n) for n in shape)]
    values: np.ndarray = (row[0] * i + row[1] * j + row[2] * k + row[3]).astype(np.float32)
    return values


def box(affine: np.ndarray, shape: tuple[int, ...], mni_from_world: np.ndarray, margin_mm: float) -> tuple[slice, ...]:
    """Smallest block of voxels with the brain and a margin, cut at the ends of the grid; it may be empty."""
    world = np.linalg.inv(mni_from_world)
    # The points are 8 mm apart, so the brain may reach that much further.
    grown = points() + (margin_mm + _POINTS_MM) * np.sign(points() - points().mean(axis=0))
    voxels = _transform_points(np.linalg.inv(affine) @ world, np.concatenate([points(), grown]))
    low = np.clip(np.floor(voxels.min(axis=0)), 0, shape).astype(int)
    high = np.clip(np.ceil(voxels.max(axis=0)) + 1, 0, shape).astype(int)
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def coverage(
    affine: np.ndarray, shape: tuple[int, ...], mni_from_world: np.ndarray, part: np.ndarray | None = None
) -> float:
    """Share of the brain's points (or of ``part``, (n, 3) MNI mm) that lies in the field of view of a grid."""
    voxels = _transform_points(np.linalg.inv(mni_from_world @ affine), points() if part is None else part)
    within = np.all((voxels >= -0.5) & (voxels <= np.array(shape[:3]) - 0.5), axis=1)
    return float(within.mean())


@cache
def points() -> np.ndarray:
    """Points of the brain, 8 mm apart, (n, 3) MNI mm."""
    field, affine = _signed_distance()
    step = int(_POINTS_MM / 2)
    return _transform_points(affine, np.argwhere(field[::step, ::step, ::step] < 0) * step)


def _transform_points(matrix: np.ndarray, points_mm: np.ndarray) -> np.ndarray:
    moved: np.ndarray = points_mm @ matrix[:3, :3].T + matrix[:3, 3]
    return moved


def template_path(name: str) -> Path:
    """File of one of the MNI152 maps in nilearn's wheel; see ``template_image``."""
    package = find_spec("nilearn")
    if package is None or package.origin is None:
        raise ImportError("nilearn, which contains the MNI152 template, is not installed: install nilearn")
    folder = Path(package.origin).parent / "datasets" / "data"
    return folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"


def template_image(name: str) -> nib.Nifti1Image:
    """One of the MNI152 maps in nilearn's wheel: ``t1`` (skull-stripped), ``gm`` or ``wm``, 1 mm voxels, 0 to 255."""
    return nib.Nifti1Image.from_filename(template_path(name))


@cache
def _signed_distance() -> tuple[np.ndarray, np.ndarray]:
    """Signed distance (X, Y, Z) float32 at 2 mm, and its affine."""
    arrays = derived_arrays.kept("distance", [Path(__file__), template_path("t1")], _make_signed_distance)
    return np.asfortranarray(arrays["field"]), arrays["affine"]


def _make_signed_distance() -> dict[str, np.ndarray]:
    image = template_image("t1")
    mask = ndimage.binary_fill_holes(np.asarray(image.dataobj)[::2, ::2, ::2] > 0)
    brain = np.pad(mask, 20)  # for distances outside the template
    affine = np.asarray(image.affine, np.float64) @ np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] -= affine[:3, :3] @ np.full(3, 20.0)
    edge = 2.0
    inside = ndimage.distance_transform_edt(brain) * edge
    outside = ndimage.distance_transform_edt(~brain) * edge
    # The surface lies half a voxel from the last voxel inside and from the first one outside.
    field = np.where(brain, edge / 2 - inside, outside - edge / 2)
    return {"field": np.asfortranarray(field, dtype=np.float32), "affine": affine}
