"""Cleaning of a perfusion map: every voxel without data becomes 0.

Design notes:
- Perfusion software marks "no data" by 0, by NaN, by a negative number, or by a large one (4095, 60 s).
- A mark is the constant value of the twelve edges of the map's box. No brain reaches an edge of its box.
- A constant negative value near air (-1000) is no mark: it shows that the volume is a CT, which must be refused.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from app.imaging.io.nifti import Volume
from app.sdk.types import Flag, Input

__all__ = ["clean"]

_EDGE_SHARE: Final = 0.8  # share of the edge voxels that must have the value; measured on phantoms: 1.0
_AIR_LIKE: Final = (-5000.0, -10.0)  # negative marks of software (-1, -9999, -32768) lie outside this range
_MIN_DATA: Final = 0.01  # share of voxels that must remain; with fewer, the map is constant, and nothing is cleaned


def clean(volume: Volume, field: Input) -> tuple[Volume, tuple[Flag, ...]]:
    """The map as float32 with 0 in every voxel without data, and a flag if its background has another value than 0.

    Args:
        volume: (X, Y, Z), the map as sent.
        field: the upload field, for the text of the flag.
    """
    values = np.nan_to_num(volume.values(), copy=False, nan=0, posinf=0, neginf=0)
    mark = _background(values)
    if mark == 0 or (mark is not None and _AIR_LIKE[0] < mark < _AIR_LIKE[1]):
        mark = None
    if mark is None or np.mean(values != mark) < _MIN_DATA:
        return Volume(values, volume.affine), ()
    values[values == mark] = 0
    detail = f"{field}: the background of the map is a number other than 0; it was read as no data"
    return Volume(values, volume.affine), (Flag(code="map-background", detail=detail),)


def _background(values: np.ndarray) -> np.float32 | None:
    """Value of the voxels on the edges of the box, if they have one value."""
    planes = [[0, n - 1] for n in values.shape]
    edges = np.concatenate(
        [
            values[np.ix_(planes[0], planes[1])].ravel(),
            values[np.ix_(planes[0], range(values.shape[1]), planes[2])].ravel(),
            values[np.ix_(range(values.shape[0]), planes[1], planes[2])].ravel(),
        ]
    )
    found, counts = np.unique(edges, return_counts=True)
    most = int(counts.argmax())
    return found[most] if counts[most] >= _EDGE_SHARE * edges.size else None
