"""Read the voxel-to-world affine of a NIfTI file from its qform and sform.

Design notes:
- The sform has priority, as in nibabel and most viewers (ITK prefers the qform). If the two disagree, the volume gets
  the flag ``affine-disagree``.
- A file without both is refused, because left and right would be a guess.
- A file whose affine only scales, with its origin at zero, is refused for the same reason: tools write such an affine
  when they know nothing about the position. A reversed axis is a statement about sides, so such a file is read.
- A shear (gantry tilt) is accepted. An affine that is not finite, flat or out of range is refused.

Source: "METHOD 2" and "METHOD 3" of nifti1.h (https://nifti.nimh.nih.gov).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.imaging.io.limits import Limits, invalid
from app.sdk.types import Flag, Input

__all__ = ["Matrix", "VoxelToWorld", "voxel_to_world"]

Matrix = npt.NDArray[np.float64]

# A smaller disagreement is rounding; a larger one may move a vessel to its neighbour.
_AGREEMENT_MM = 1.0
_ZERO_MM = 1e-5
# Volume of a voxel / product of its edges: 1 for right angles, 0.87 for a gantry tilt of 30 degrees.
_MIN_SQUARENESS = 0.05


@dataclass(frozen=True, eq=False)
class VoxelToWorld:
    """Transform of a file: ``affine`` (4, 4), voxel index -> RAS+ millimetres; ``form``: ``sform`` or ``qform``."""

    affine: Matrix
    form: str
    flags: tuple[Flag, ...]


@np.errstate(all="ignore")  # huge numbers overflow to infinity or NaN, which the checks below refuse
def voxel_to_world(raw: Any, shape: tuple[int, ...], mm: float, *, field: Input, limits: Limits) -> VoxelToWorld:
    """Select and check the transform of a file.

    Args:
        raw: header record with ``pixdim``, ``qform_code``, ``sform_code``, ``quatern``, ``qoffset`` and ``srow``.
        shape: shape of the volume.
        mm: millimetres in one length unit of the file.
        field: the upload field, for the message.
        limits: accepted voxel sizes and distances from the origin.

    Raises:
        InvalidVolume: there is no transform, or it cannot be that of a scan.
    """
    edges = [float(edge) * mm for edge in raw["pixdim"][1:4]]
    if not all(math.isfinite(edge) and edge > 0 for edge in edges):
        raise invalid(field, "has a voxel size that is not above zero: write it again with the true spacing")
    qform_code, sform_code = int(raw["qform_code"]), int(raw["sform_code"])
    if not (0 <= qform_code <= 5 and 0 <= sform_code <= 5):
        raise invalid(field, "has a damaged header: the standard does not define its qform or sform code")
    if qform_code == sform_code == 0:
        raise invalid(field, "has neither qform nor sform, so left and right would be a guess: convert it again")
    qform = _qform(raw, mm) if qform_code else None
    if not sform_code:
        if qform is None:
            raise invalid(field, "has a damaged qform: convert it again from DICOM")
        _check(qform, shape, field, limits)
        return VoxelToWorld(qform, "qform", ())
    sform = _sform(raw, mm)
    if sform is None:
        raise invalid(field, "has a damaged sform: convert it again from DICOM")
    _check(sform, shape, field, limits)
    if qform_code:
        agrees = qform is not None and _distance(sform, qform, shape) <= _AGREEMENT_MM
        other = "qform"
    else:
        agrees = bool(np.allclose(np.linalg.norm(sform[:3, :3], axis=0), edges, rtol=0.01))
        other = "voxel size"
    detail = f"{field.value}: {other} and sform disagree; the sform was used"
    return VoxelToWorld(sform, "sform", () if agrees else (Flag(code="affine-disagree", detail=detail),))


def _sform(raw: Any, mm: float) -> Matrix | None:
    affine = np.eye(4)
    affine[:3] = np.asarray(raw["srow"], np.float64) * mm
    return affine if np.isfinite(affine).all() else None


def _qform(raw: Any, mm: float) -> Matrix | None:
    """Affine from rotation (unit quaternion with implied first component), spacing and sign of the third axis (qfac).

    None if the quaternion is not a rotation, or qfac is not 1 or -1, which readers interpret differently.
    """
    b, c, d = (float(part) for part in raw["quatern"])
    qfac = float(raw["pixdim"][0]) or 1.0  # the standard: 0 counts as 1
    rest = 1.0 - (b * b + c * c + d * d)
    if qfac not in (-1.0, 1.0) or not rest > -1e-4:  # also refuses NaN
        return None
    rounding = 3 * float(np.finfo(raw["quatern"].dtype).eps)  # below it, a half turn, as in nibabel
    a = math.sqrt(rest) if rest >= rounding else 0.0
    norm = math.sqrt(a * a + b * b + c * c + d * d)
    a, b, c, d = a / norm, b / norm, c / norm, d / norm
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.asarray(raw["pixdim"][1:4], np.float64) * (1.0, 1.0, qfac)
    affine[:3, 3] = raw["qoffset"]
    affine[:3] *= mm
    return affine if np.isfinite(affine).all() else None


def _check(affine: Matrix, shape: tuple[int, ...], field: Input, limits: Limits) -> None:
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if not (edges.min() >= limits.min_spacing_mm and edges.max() <= limits.max_spacing_mm):
        possible = f"{limits.min_spacing_mm} to {limits.max_spacing_mm} mm"
        raise invalid(field, f"has a voxel size outside {possible}: check its length unit")
    if not abs(np.linalg.det(affine[:3, :3] / edges)) >= _MIN_SQUARENESS:
        raise invalid(field, "has an affine that makes the volume flat: convert it again from DICOM")
    if (affine.diagonal() > 0).all() and np.abs(affine - np.diag(affine.diagonal())).max() < _ZERO_MM:
        raise invalid(
            field,
            "has an affine that only scales, as tools write without a position, so left and right would be a guess: "
            "convert it again from DICOM",
        )
    if not np.abs(_corners(affine, shape)).max() <= limits.max_distance_mm:
        raise invalid(field, f"lies more than {limits.max_distance_mm:.0f} mm from the origin: check its affine")


def _distance(one: Matrix, other: Matrix, shape: tuple[int, ...]) -> float:
    """Largest distance between the positions of one voxel under two affines, mm; a corner has it."""
    return float(np.linalg.norm(_corners(one, shape) - _corners(other, shape), axis=0).max())


def _corners(affine: Matrix, shape: tuple[int, ...]) -> Matrix:
    """World coordinates of the eight corner voxels, (3, 8)."""
    index = np.stack(np.meshgrid(*((0.0, n - 1.0) for n in shape[:3]))).reshape(3, 8)
    corners: Matrix = affine[:3, :3] @ index + affine[:3, 3:]
    return corners
