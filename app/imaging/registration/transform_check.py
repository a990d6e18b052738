"""Judge the registration of a head to MNI space: refuse one that no adult head has, flag one that is doubtful.

Design notes:
- The start search of ``align`` assumes the header's axes. If the fit is not clearly good, or the head is turned far,
  this module also tries the other 23 orientations along the axes. A better fit there means that the header is wrong.
- An image of a head is nearly its own mirror image. So a mirror image is found as a head that stands upside down or
  faces backwards; a swap of left and right alone cannot be seen in one head.
- Sizes and shears are those of the intracranial space relative to the template, along the axes of the head.
- docs/input-checks.md gives the distributions behind the limits.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from app.imaging.registration import align, brain_mask
from app.imaging.registration.align import Alignment, RegistrationImage
from app.sdk.errors import FieldError, GeometryMismatch
from app.sdk.types import Flag, Input

__all__ = ["Transform", "along_axes", "check", "measure"]

Matrix = npt.NDArray[Any]

_CLEAR_QUALITY: Final = 0.9  # no head in a wrong orientation comes near it
_CLEAR_TURN: Final = 35.0
_BETTER_COST: Final = 0.95
_BETTER_QUALITY: Final = 0.03
_MAX_TURN: Final = (60.0, 70.0)  # degrees from the header: doubtful, impossible
_VOLUME: Final = ((0.55, 1.40), (0.45, 1.75))  # of the template's intracranial volume: (doubtful), (impossible)
_EDGE: Final = ((0.79, 1.18), (0.65, 1.35))  # length, width or height relative to the template's
_PROPORTION: Final = ((0.82, 1.22), (0.70, 1.40))  # one of them relative to another
_SHEAR: Final = (0.09, 0.20)
_WHOLE: Final = 0.9  # share of the brain in the field of view

_RESEND: Final = "convert the DICOM series again (for example with dcm2niix) and send that"


@dataclass(frozen=True)
class Transform:
    """Parts of a registration.

    Attributes:
        edges: (3,), width, length and height of the intracranial space relative to the template's.
        shear: largest shear between two of these axes.
        turn: angle between the axes of the head and those of the header, degrees.
    """

    edges: Matrix
    shear: float
    turn: float

    @property
    def volume(self) -> float:
        """Intracranial volume relative to the template's, about."""
        return float(np.prod(self.edges))

    @property
    def proportion(self) -> float:
        """Of the largest edge to the smallest."""
        return float(self.edges.max() / self.edges.min())


def measure(mni_from_world: Matrix) -> Transform:
    """Split a registration (4, 4) into a rotation and the size and shear of the head, by polar decomposition."""
    u, stretch, v = np.linalg.svd(np.linalg.inv(mni_from_world[:3, :3]))
    head = v.T @ np.diag(stretch) @ v
    cosine = (np.trace(u @ v) - 1) / 2
    shear = np.abs(head[np.triu_indices(3, 1)]).max() / np.cbrt(np.prod(stretch))
    return Transform(np.diag(head), float(shear), float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))))


def check(head: RegistrationImage, alignment: Alignment, name: Input) -> tuple[Flag, ...]:
    """Flags for the registration of a head CT; none for a poor one, which says so itself.

    Raises:
        GeometryMismatch: the head lies along other axes than the header says, or has an impossible size.
    """
    found = measure(alignment.mni_from_world)
    if alignment.quality < _CLEAR_QUALITY or found.turn > _CLEAR_TURN:
        other = _other_orientation(head, alignment)
        if other is not None:
            alignment, found = other, measure(other.mni_from_world)
    if alignment.poor:
        return ()
    whole = brain_mask.coverage(head.affine, head.hu.shape, alignment.mni_from_world) >= _WHOLE
    return (*_orientation(found, name), *_size(found, name, whole=whole))


def _other_orientation(head: RegistrationImage, alignment: Alignment) -> Alignment | None:
    """A clearly better alignment that starts from another orientation along the axes; None without one."""
    if head.coarse is None:
        return None
    start, cost = align.best_start(head.coarse, _ORIENTATIONS, apart=16, kept=2)
    if cost > _BETTER_COST * head.start_cost:
        return None
    other = align.refine(head, start)
    return other if other.quality > alignment.quality + _BETTER_QUALITY else None


def _orientation(found: Transform, name: Input) -> tuple[Flag, ...]:
    doubtful, impossible = _MAX_TURN
    if found.turn > impossible:
        raise GeometryMismatch(
            f"{name}: the head does not lie as the header says (it faces another way, stands upside down, or its "
            f"slices are in reverse order), so left and right are unknown: {_RESEND}",
            errors=[FieldError(name, "the axes of the head contradict the header")],
        )
    if found.turn > doubtful:
        detail = f"{name}: the head is turned by about {found.turn:.0f} degrees against its header; check its axes"
        return (Flag(code="orientation-doubtful", detail=detail),)
    return ()


def _size(found: Transform, name: Input, *, whole: bool) -> tuple[Flag, ...]:
    def outside(limits: tuple[tuple[float, float], tuple[float, float]], level: int, *values: float) -> bool:
        low, high = limits[level]
        return any(not low < value < high for value in values)

    def unusual(level: int) -> bool:
        return (
            outside(_VOLUME, level, found.volume)
            or outside(_EDGE, level, *found.edges)
            or outside(_PROPORTION, level, found.proportion)
            or found.shear > _SHEAR[level]
        )

    if unusual(1):
        raise GeometryMismatch(
            f"{name}: the head has a size or shape that no adult head has, so its voxel size or slice spacing is "
            f"wrong: {_RESEND}",
            errors=[FieldError(name, "the size or shape of the head is impossible")],
        )
    if whole and unusual(0):  # the height of a head that is cut off is uncertain
        detail = f"{name}: the head has an unusual size or shape; check the voxel size, slice spacing and gantry tilt"
        return (Flag(code="head-size-implausible", detail=detail),)
    return ()


def along_axes() -> list[Matrix]:
    """The 23 rotations, other than none, that map axes to axes."""
    turned = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            matrix = np.eye(3)[list(order)] * np.array(signs)[:, None]
            if np.linalg.det(matrix) > 0 and np.trace(matrix) < 3:
                turned.append(matrix)
    return turned


_ORIENTATIONS: Final = along_axes()
