"""Find missing slices in a CT: a jump between two neighbouring slices that is much larger than those around it.

Design notes:
- Slices that were lost in a transfer are stacked without a gap, so the header looks right and the head is too short.
- The mean absolute difference of neighbouring slices changes slowly along a head. A jump is compared with the largest
  of the six differences around it. In-plane means over 5 mm remove noise.
- Only slices at the level of the brain are compared: the vertex ends abruptly, and so do shoulders.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from app.imaging.registration.align import BODY_HU, RegistrationImage
from app.imaging.resample import shrink
from app.sdk.types import Flag, Input

__all__ = ["check"]

_IN_PLANE_MM: Final = 5.0
_END_MM: Final = 5.0
_AROUND: Final = 3
_MIN_JUMP_HU: Final = 2.0
_MAX_RATIO: Final = 2.0


def check(head: RegistrationImage, name: Input) -> tuple[Flag, ...]:
    """``slices-missing`` if a head CT seems to lack slices, or has empty ones, inside the head."""
    jumps, empty = _differences(head)
    if not empty and largest_ratio(jumps) < _MAX_RATIO:
        return ()
    detail = f"{name}: slices are missing or empty inside the head, or the head moved there; send the whole series"
    return (Flag(code="slices-missing", detail=detail),)


def largest_ratio(jumps: np.ndarray) -> float:
    """Largest ratio of a difference, (n,), to the largest of the six around it, none of which is 0.

    The first and the last three differences are left out: at the end of a tilted series a part of the slice is empty.
    """
    largest = 0.0
    for k in range(_AROUND, len(jumps) - _AROUND):
        around = np.concatenate([jumps[k - _AROUND : k], jumps[k + 1 : k + 1 + _AROUND]])
        if around.all():
            largest = max(largest, float(jumps[k] / max(around.max(), _MIN_JUMP_HU)))
    return largest


def _differences(head: RegistrationImage) -> tuple[np.ndarray, bool]:
    """Mean absolute difference of neighbouring slices of the brain, (n,) HU; whether the body has an empty slice."""
    axis = int(np.argmax(np.abs(head.affine[2, :3])))
    edges = np.linalg.norm(head.affine[:3, :3], axis=0)
    x, y, z = (1 if other == axis else max(1, round(_IN_PLANE_MM / edges[other])) for other in range(3))
    planes = np.moveaxis(shrink(head.hu, (x, y, z))[0], axis, 0)
    planes = planes.reshape(len(planes), -1)
    body = planes > BODY_HU
    filled = np.flatnonzero(body.any(axis=1))
    empty = bool(len(filled)) and not bool(body[filled[0] : filled[-1]].any(axis=1).all())
    brain = _brain_slices(head, axis)
    planes, body = planes[brain], body[brain]
    if len(planes) < 2:
        return np.zeros(0), empty
    either = body[1:] | body[:-1]
    jumps: np.ndarray = (np.abs(np.diff(planes, axis=0)) * either).sum(axis=1) / np.maximum(either.sum(axis=1), 1)
    return jumps, empty


def _brain_slices(head: RegistrationImage, axis: int) -> slice:
    """Slices between the lowest and the highest of the intracranial space, except for ``_END_MM`` at both ends."""
    if head.coarse is None:
        return slice(0, 0)
    inside = np.argwhere(head.coarse.image[..., 0] > 0.5)
    voxel_from_coarse = np.linalg.inv(head.affine) @ head.coarse.affine
    along = inside @ voxel_from_coarse[axis, :3] + voxel_from_coarse[axis, 3]
    end = _END_MM / float(np.linalg.norm(head.affine[:3, axis]))
    return slice(max(0, int(np.ceil(along.min() + end))), max(0, int(along.max() - end) + 1))
