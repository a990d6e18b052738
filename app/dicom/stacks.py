"""Series as stacks: the slices of a series that share directions, voxel size and kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np

from app.dicom.errors import refused
from app.dicom.frames import Frame, Instance, SeriesFacts
from app.dicom.geometry import SAME_POSITION_MM, along_normal, normal

__all__ = ["Stack", "make_stacks", "positions_of"]

_AXIAL = 0.8  # cosine of the angle between slice normal and the patient's axis; a gantry tilt is at most 30 degrees
_PARTING_TYPES = ("LOCALIZER", "MIP", "PROJECTION IMAGE", "MPR", "REFORMATTED")


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices of one series, or of several if each of them is one time point.

    Attributes:
        facts: facts of the series; of the first one if there are several.
        frames: the slices, unordered; objects without an image have none.
        objects: number of files that are not images.
        part: 1, 2, ... if the series has several stacks.
        series: UIDs of all series of the stack.
    """

    facts: SeriesFacts
    frames: tuple[Frame, ...]
    objects: int = 0
    part: int | None = None
    series: tuple[str, ...] = field(default=())

    @property
    def placed(self) -> bool:
        """Whether the slices have positions."""
        return bool(self.frames) and self.frames[0].placed

    @cached_property
    def groups(self) -> list[list[Frame]]:
        """The slices at each position, in the order of the positions."""
        return positions_of(self.frames)

    @property
    def positions(self) -> int:
        """Number of different positions."""
        return len(self.groups) if self.placed else 0

    @property
    def times(self) -> int:
        """Number of slices at a position; the median of all positions."""
        return int(np.median([len(group) for group in self.groups])) if self.placed else 0

    @property
    def axial(self) -> bool:
        """Whether the slices are axial, with any gantry tilt."""
        return self.placed and abs(float(normal(self.frames[0])[2])) >= _AXIAL

    @cached_property
    def extent_mm(self) -> float:
        """Distance of the first and last position."""
        return float(np.ptp(along_normal([group[0] for group in self.groups]))) if self.placed else 0.0

    @property
    def heights_mm(self) -> tuple[float, float]:
        """Lowest and highest position along the patient's axis (LPS z)."""
        heights = [frame.position[2] for frame in self.frames if frame.position is not None]
        return min(heights, default=0.0), max(heights, default=0.0)

    @property
    def distance_mm(self) -> float:
        """Mean distance of neighbouring positions."""
        return self.extent_mm / max(self.positions - 1, 1)

    @property
    def types(self) -> frozenset[str]:
        """Values of Image Type of any slice."""
        return frozenset(each for frame in self.frames for each in frame.image_type)


def positions_of(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Group slices by their position along the normal, in its order."""
    along = along_normal(frames)
    order = np.argsort(along, kind="stable")
    groups = [[frames[order[0]]]]
    for before, after in pairwise(order):
        if along[after] - along[before] > SAME_POSITION_MM:
            groups.append([])
        groups[-1].append(frames[after])
    return groups


def make_stacks(instances: Iterable[Instance]) -> list[Stack]:
    """Group the instances of a study into stacks; the same file twice counts once.

    Args:
        instances: all instances of the study.

    Returns:
        The stacks, in the order of series number and part.

    Raises:
        InvalidDicom: two different files have the same SOP Instance UID.
    """
    known: dict[str, str] = {}
    frames: dict[tuple[object, ...], list[Frame]] = defaultdict(list)
    objects: dict[str, int] = defaultdict(int)
    facts: dict[str, SeriesFacts] = {}
    for instance in instances:
        if known.setdefault(instance.uid, instance.digest) != instance.digest:
            raise refused("Two different files have the same SOP Instance UID: export the study again.")
        series = facts.setdefault(instance.series.uid, instance.series)
        if _seen(known, instance):
            continue
        if not instance.frames:
            objects[series.uid] += 1
        for frame in instance.frames:
            frames[_key(series.uid, frame)].append(frame)
    stacks = []
    for uid, series in facts.items():
        own = [tuple(each) for key, each in frames.items() if key[0] == uid]
        for number, each in enumerate(own, start=1):
            stacks.append(Stack(series, each, part=number if len(own) > 1 else None, series=(uid,)))
        if objects[uid]:
            stacks.append(Stack(series, (), objects[uid], series=(uid,)))
    return sorted(stacks, key=lambda stack: (stack.facts.number is None, stack.facts.number or 0, stack.part or 0))


def _seen(known: dict[str, str], instance: Instance) -> bool:
    """Whether this file was counted before; marks it as counted."""
    mark = f"counted {instance.uid}"
    return known.setdefault(mark, str(instance.file)) != str(instance.file)


def _key(uid: str, frame: Frame) -> tuple[object, ...]:
    if not frame.placed:
        return (uid, None)
    directions = tuple(round(part, 3) + 0.0 for part in (*(frame.across or ()), *(frame.down or ())))
    spacing = tuple(round(edge, 4) for edge in frame.spacing or ())
    kinds = tuple(kind for kind in _PARTING_TYPES if kind in frame.image_type)
    return (uid, frame.rows, frame.columns, directions, spacing, kinds, frame.kernel)
