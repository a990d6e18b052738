"""From slice positions to one affine volume: order, gantry tilt, uneven distances, missing slices.

Design notes:
- The order is that of the positions along the slice normal, never that of instance numbers.
- A gantry tilt moves each slice within its plane. It stays in the affine as a shear; no voxel is resampled for it.
- Slices with uneven distances are interpolated linearly, once, between the true positions of their neighbours.
- A distance is a gap if slices must be missing there. Distance and thickness may change inside a series, so a
  distance is compared with those of slices of the same thickness.

Source: DICOM PS3.3, C.7.6.2.1.1 (image position and orientation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.dicom.errors import refused
from app.dicom.frames import Frame

__all__ = ["SlicePlan", "along_normal", "in_order", "normal", "plan"]

Matrix = NDArray[np.float64]

SAME_POSITION_MM = 0.01
EVEN_MM, EVEN_SHARE = 0.02, 0.01  # distances that differ by less are even
GAP = 1.5  # times the usual distance: a slice is missing
LEAST_STEP_MM = 0.5  # of interpolated slices
MOST_SLICES = 4  # interpolated slices for each slice
OFF_LINE = 0.5  # largest distance of a slice from the line through all slices, in voxels
RIGHT_ANGLE = 0.01
_RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class SlicePlan:
    """How slices in their order become a volume.

    Attributes:
        affine: (4, 4), voxel index -> RAS+ mm; the first index counts columns, the second rows, the third slices.
        positions_mm: (n,) true positions of the given slices along the normal.
        lower, weight: for each slice of the volume, (m,), the given slice below it and the share of the next one; None
            if the given slices are the slices of the volume.
    """

    affine: Matrix
    positions_mm: Matrix
    lower: NDArray[np.intp] | None = None
    weight: Matrix | None = None

    def volume(self, slices: NDArray[Any]) -> NDArray[Any]:
        """Volume (columns, rows, ..., m) of slices (columns, rows, ..., n) in the planned order."""
        if self.lower is None or self.weight is None:
            return slices
        out = np.empty((*slices.shape[:-1], len(self.lower)), np.float32, order="F")
        for target, (below, share) in enumerate(zip(self.lower, self.weight, strict=True)):
            out[..., target] = slices[..., below]
            if share > 0:
                out[..., target] *= np.float32(1 - share)
                out[..., target] += np.float32(share) * slices[..., below + 1]
        return out


def normal(frame: Frame) -> Matrix:
    """Unit normal of a slice, LPS."""
    across, down = np.array(frame.across), np.array(frame.down)
    cross = np.cross(across, down)
    length = float(np.linalg.norm(cross))
    if abs(float(across @ down)) > RIGHT_ANGLE or length == 0:
        raise refused("The rows and columns of a series are not at right angles: send the series as it was acquired.")
    return np.asarray(cross / length, np.float64)


def along_normal(frames: Sequence[Frame]) -> Matrix:
    """Positions (n,) of slices along the normal of the first one, mm."""
    return np.asarray(np.array([frame.position for frame in frames]) @ normal(frames[0]), np.float64)


def in_order(frames: Sequence[Frame]) -> list[Frame]:
    """The slices of one volume by their position along the normal."""
    positions = along_normal(frames)
    return [frames[number] for number in np.argsort(positions, kind="stable")]


def plan(frames: Sequence[Frame]) -> SlicePlan:
    """Plan the volume of slices that are in their order and have different positions.

    Args:
        frames: at least two slices with the same directions and voxel size, as ``in_order`` returns them.

    Returns:
        The plan.

    Raises:
        InvalidDicom: slices are missing, or they do not lie one above the other.
    """
    positions = along_normal(frames)
    distances = np.diff(positions)
    _check_gaps(frames, positions, distances)
    places = np.array([frame.position for frame in frames])
    step = (places[-1] - places[0]) / (positions[-1] - positions[0])  # LPS mm for one mm along the normal; a shear
    offsets = places - (places[0] + np.outer(positions - positions[0], step))
    spacing = frames[0].spacing or (1.0, 1.0)
    if np.linalg.norm(offsets, axis=1).max() > max(OFF_LINE * min(spacing), SAME_POSITION_MM):
        detail = "The slices of a series do not lie on one line: the table or the field of view moved between them."
        raise refused(f"{detail} Send a reconstruction with one field of view.")
    mean = float(distances.mean())
    if np.abs(distances - mean).max() <= max(EVEN_MM, EVEN_SHARE * mean):
        return SlicePlan(_affine(frames[0], step * mean), positions)
    length = float(positions[-1] - positions[0])
    apart = max(float(distances.min()), LEAST_STEP_MM, length / (MOST_SLICES * len(frames)))
    count = int(np.ceil(length / apart - EVEN_SHARE)) + 1
    apart = length / (count - 1)
    targets = positions[0] + apart * np.arange(count)
    lower = np.clip(np.searchsorted(positions, targets + 1e-9, side="right") - 1, 0, len(frames) - 2)
    weight = np.clip((targets - positions[lower]) / distances[lower], 0, 1)
    return SlicePlan(_affine(frames[0], step * apart), positions, lower, weight)


def _affine(frame: Frame, step: Matrix) -> Matrix:
    between_rows, between_columns = frame.spacing or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3, 0] = np.array(frame.across) * between_columns
    affine[:3, 1] = np.array(frame.down) * between_rows
    affine[:3, 2] = step
    affine[:3, 3] = frame.position
    return np.asarray(_RAS_FROM_LPS @ affine, np.float64)


def _check_gaps(frames: Sequence[Frame], positions: Matrix, distances: Matrix) -> None:
    thickness = np.array([frame.thickness or 0.0 for frame in frames])
    pairs = np.maximum(thickness[1:], thickness[:-1])
    missing: list[float] = []
    for number, distance in enumerate(distances):
        usual = _usual(distances[np.abs(pairs - pairs[number]) < SAME_POSITION_MM], float(pairs[number]))
        if distance > GAP * usual + EVEN_MM:
            count = max(1, round(distance / usual) - 1)
            missing += [float(positions[number] + distance * (k + 1) / (count + 1)) for k in range(count)]
    if missing:
        shown = ", ".join(f"{position:.2f}" for position in missing[:20])
        more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
        raise refused(
            f"Slices are missing at {shown}{more} mm along the slice normal. Send the whole series; if it was acquired "
            "so, send another series."
        )


def _usual(distances: Matrix, thickness: float) -> float:
    """Usual distance of slices of one thickness: the median if most are even, else at least the thickness."""
    median = float(np.median(distances))
    even = np.abs(distances - median) <= max(EVEN_MM, EVEN_SHARE * median)
    if len(distances) > 2 and even.mean() >= 0.7:
        return median
    return max(median, thickness)
