"""Refuse a study that contains the same volume twice, because one of the two fields must be wrong."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from app.sdk.errors import FieldError, ImplausibleModality
from app.sdk.types import Input

if TYPE_CHECKING:
    from app.imaging.io.nifti import Volume

__all__ = ["check_bytes", "check_voxels"]

_STEP: Final = 7  # all voxels are compared only if every seventh along each axis is equal


def check_bytes(digests: Mapping[Input, str]) -> None:
    """Refuse two uploads with the same digest.

    Raises:
        ImplausibleModality: two fields have the same bytes.
    """
    for one, other in itertools.combinations(digests, 2):
        if digests[one] == digests[other]:
            raise _refuse(one, other, "the same file")


def check_voxels(volumes: Mapping[Input, Volume]) -> None:
    """Refuse two volumes with the same values, also if their axes are stored in another order.

    Raises:
        ImplausibleModality: two fields have the same voxels.
    """
    for one, other in itertools.combinations(volumes, 2):
        if _equal(volumes[one], volumes[other]):
            raise _refuse(one, other, "the same voxels")


def _equal(one: Volume, other: Volume) -> bool:
    if sorted(one.shape) != sorted(other.shape):
        return False
    first, second = _upright(one), _upright(other)
    if first.shape != second.shape:
        return False
    thin = (slice(None, None, _STEP),) * 3
    return all(np.array_equal(_real(first[part], one), _real(second[part], other)) for part in (thin, ()))


def _upright(volume: Volume) -> np.ndarray:
    """View of the voxels with axes that point right, anterior and superior, as far as the affine is near to that."""
    directions = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    toward = np.argmax(np.abs(directions), axis=0)  # for each axis of the array, its axis of the world
    if len(set(toward)) < 3:
        return volume.data
    flips = tuple(slice(None, None, -1 if directions[world, axis] < 0 else 1) for axis, world in enumerate(toward))
    rest = range(3, volume.data.ndim)
    turned: np.ndarray = volume.data[flips].transpose(*np.argsort(toward), *rest)
    return turned


def _real(stored: np.ndarray, volume: Volume) -> np.ndarray:
    if volume.slope == 1 and volume.inter == 0:
        return stored
    values: np.ndarray = (stored * volume.slope + volume.inter).astype(np.float32)
    return values


def _refuse(one: Input, other: Input, what: str) -> ImplausibleModality:
    detail = f"{one} and {other} contain {what}, so one of them is not what its field claims: send each volume once"
    return ImplausibleModality(detail, errors=[FieldError(one, detail), FieldError(other, detail)])
