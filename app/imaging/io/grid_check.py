"""Check by their headers that volumes share one grid: a vessel mask with its CTA, perfusion maps with each other.

Imports numpy only, because the API process uses it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from app.imaging.io.header import Header
from app.sdk.errors import FieldError, GeometryMismatch
from app.sdk.types import Input

TOLERANCE_MM = 0.5  # largest distance between equal corners of two grids: the rounding of float32 headers
_SHARED = ((Input.CTA, Input.VESSELS), (Input.TMAX, Input.CBF, Input.CBV, Input.MTT))


def check(headers: Mapping[Input, Header]) -> None:
    """Raise GeometryMismatch, which names both volumes, if two volumes that must share a grid do not."""
    for group in _SHARED:
        sent = [name for name in group if name in headers]
        for other in sent[1:]:
            _compare(sent[0], headers[sent[0]], other, headers[other])


def _compare(first: Input, one: Header, other: Input, two: Header) -> None:
    if one.shape != two.shape:
        difference = f"{first.upper()} is {_times(one.shape)}, {other.upper()} {_times(two.shape)} voxels"
    elif (apart := _apart(one, two)) > TOLERANCE_MM:
        difference = f"{first.upper()} and {other.upper()} have equal shapes but are up to {apart:.1f} mm apart"
    else:
        return
    errors = [FieldError(other.value, f"must lie on the grid of {first.value}")]
    raise GeometryMismatch(
        f"{difference}: resample {other.value} onto {first.value}'s grid, or send it again.", errors=errors
    )


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _apart(one: Header, two: Header) -> float:
    """Largest distance between equal corners of two grids of one shape, millimetres."""
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, n - 1) for n in one.shape[:3]))])
    return float(np.linalg.norm(corners @ (one.affine - two.affine).T[:, :3], axis=1).max())
