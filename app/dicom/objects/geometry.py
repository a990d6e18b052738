"""Planes of a volume in patient coordinates, as the functional groups of a multi-frame object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from highdicom import PixelMeasuresSequence, PlaneOrientationSequence, PlanePositionSequence
from numpy.typing import NDArray

__all__ = ["NotRectangular", "Planes", "planes"]

_LPS_FROM_RAS = np.array([-1.0, -1.0, 1.0])
_RIGHT_ANGLE = 1e-3


class NotRectangular(ValueError):
    """The rows and columns of a volume are not at right angles, so DICOM has no frame for them."""


@dataclass(frozen=True, eq=False)
class Planes:
    """Where the planes of a volume lie: arguments of a constructor of highdicom.

    Attributes:
        measures: voxel size.
        orientation: directions of rows and columns, LPS.
        positions: centre of the first voxel of each plane, LPS mm.
    """

    measures: PixelMeasuresSequence
    orientation: PlaneOrientationSequence
    positions: list[PlanePositionSequence]

    def arguments(self) -> dict[str, Any]:
        """The three as keyword arguments."""
        return {
            "pixel_measures": self.measures,
            "plane_orientation": self.orientation,
            "plane_positions": self.positions,
        }


def planes(affine: NDArray[np.float64], count: int) -> Planes:
    """Place the planes of a volume; the third axis may be sheared by a gantry tilt.

    Args:
        affine: (4, 4), voxel index -> RAS+ mm; the first index counts columns, the second rows, the third planes.
        count: number of planes.

    Returns:
        The planes.

    Raises:
        NotRectangular: the first two axes are not at right angles.
    """
    axes = affine[:3, :3] * _LPS_FROM_RAS[:, None]
    edges = np.linalg.norm(axes, axis=0)
    across, down = axes[:, 0] / edges[0], axes[:, 1] / edges[1]
    if abs(float(across @ down)) > _RIGHT_ANGLE:
        raise NotRectangular
    down -= (across @ down) * across
    down /= np.linalg.norm(down)
    apart = float(abs(np.cross(across, down) @ axes[:, 2]))
    origin = affine[:3, 3] * _LPS_FROM_RAS
    return Planes(
        PixelMeasuresSequence(
            pixel_spacing=(_short(edges[1]), _short(edges[0])),
            slice_thickness=_short(apart),
            spacing_between_slices=_short(apart),
        ),
        PlaneOrientationSequence("PATIENT", [_short(part) for part in (*across, *down)]),
        [
            PlanePositionSequence("PATIENT", [_short(part) for part in origin + number * axes[:, 2]])
            for number in range(count)
        ],
    )


def _short(value: float) -> float:
    """A number that a decimal string (16 characters) holds without further rounding."""
    return round(float(value), 8) + 0.0


def frames(data: NDArray[Any]) -> NDArray[Any]:
    """Frames (planes, rows, columns) of a volume (columns, rows, planes)."""
    return np.ascontiguousarray(data.transpose(2, 1, 0))
