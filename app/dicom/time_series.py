"""CT perfusion over time: acquisition times, time points in series of their own, and one regular time axis.

Design notes:
- The time of a slice is its acquisition time, never its instance number.
- A moving table (shuttle, toggling) acquires positions at different times, and protocols change their interval. Such
  series are interpolated linearly, once, on one time axis for all positions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.dicom.errors import refused
from app.dicom.frames import Frame
from app.dicom.stacks import Stack
from app.dicom.words import names

__all__ = ["TimePlan", "joined", "plan_times", "time_name"]

INTERVAL_S = (0.2, 10.0)  # between two time points
_HALF_DAY_S = 43_200
_EVEN = 0.05  # times that differ by less than this share of the interval are equal
_MAPS = frozenset({"tmax", "cbf", "cbv", "mtt", "other map", "projection", "processed"})


def joined(stacks: Sequence[Stack], least: int) -> list[Stack]:
    """Join series that are one time point each; all other stacks are returned as they are.

    Args:
        stacks: the stacks of a study.
        least: smallest number of time points.

    Returns:
        The stacks; joined ones have the facts of the first series.
    """
    families: dict[tuple[object, ...], list[Stack]] = defaultdict(list)
    for stack in stacks:
        if stack.placed and stack.times == 1 and stack.positions > 1 and not names(stack.facts.description) & _MAPS:
            families[_family(stack)].append(stack)
    merged: dict[int, Stack] = {}
    for family in families.values():
        frames = tuple(frame for stack in family for frame in stack.frames)
        if len(family) < least or time_name([[stack.frames[0] for stack in family]]) is None:
            continue
        whole = Stack(family[0].facts, frames, series=tuple(stack.facts.uid for stack in family))
        merged |= {id(stack): whole for stack in family}
    result: list[Stack] = []
    for stack in stacks:
        one = merged.get(id(stack), stack)
        if not any(one is known for known in result):
            result.append(one)
    return result


def _family(stack: Stack) -> tuple[object, ...]:
    frame = stack.frames[0]
    first = tuple(round(part, 1) for part in stack.groups[0][0].position or ())
    return (stack.facts.modality, frame.rows, frame.columns, frame.spacing, first, stack.positions, frame.kernel)


def time_name(groups: Iterable[Sequence[Frame]]) -> str | None:
    """Attribute whose times differ between all slices of each position, by a plausible interval; None if none does."""
    found = list(groups)
    for name in _names(found):
        steps = [np.diff(np.sort([frame.times_s[name] for frame in group])) for group in found if len(group) > 1]
        if steps and all(step.min() > 0 for step in steps):
            median = float(np.median(np.concatenate(steps)))
            if INTERVAL_S[0] <= median <= INTERVAL_S[1]:
                return name
    return None


def _names(groups: Sequence[Sequence[Frame]]) -> list[str]:
    everywhere = set.intersection(*(set(frame.times_s) for group in groups for frame in group)) if groups else set()
    return [name for name in (groups[0][0].times_s if groups else ()) if name in everywhere]


@dataclass(frozen=True, eq=False)
class TimePlan:
    """Time axis of a series, and its slices in the order of time.

    Attributes:
        groups: slices at each position, in the order of time.
        times_s: times of these slices, s, from the first slice of the series.
        axis_s: (t,) times of the volumes.
        interval_s: distance of the volumes.
        resampled: whether the slices were acquired at other times than those of the volumes.
    """

    groups: list[list[Frame]]
    times_s: list[NDArray[np.float64]]
    axis_s: NDArray[np.float64]
    interval_s: float
    resampled: bool

    def at_position(self, number: int, slices: NDArray[Any]) -> NDArray[Any]:
        """Values (..., t) at the times of the volumes from the slices (..., n) of one position."""
        if not self.resampled:
            return slices
        times = self.times_s[number]
        below = np.clip(np.searchsorted(times, self.axis_s + 1e-9, side="right") - 1, 0, len(times) - 2)
        share = np.clip((self.axis_s - times[below]) / (times[below + 1] - times[below]), 0, 1).astype(np.float32)
        values = np.asarray(slices, np.float32)
        return values[..., below] * (1 - share) + values[..., below + 1] * share


def plan_times(groups: list[list[Frame]]) -> TimePlan:
    """Plan the time axis of a perfusion series.

    Args:
        groups: slices at each position.

    Returns:
        The plan.

    Raises:
        InvalidDicom: the slices have no acquisition times, or the positions have too different numbers of them.
    """
    name = time_name(groups)
    if name is None:
        raise refused(
            "The slices of the perfusion series have no acquisition times that differ. Send the series as NIfTI with "
            "its time step."
        )
    times = [_unwrapped(np.array([frame.times_s[name] for frame in group])) for group in groups]
    orders = [np.argsort(each) for each in times]
    ordered = [[group[number] for number in order] for group, order in zip(groups, orders, strict=True)]
    times = [each[order] for each, order in zip(times, orders, strict=True)]
    start = min(float(each[0]) for each in times)
    times = [each - start for each in times]
    counts = {len(each) for each in times}
    if min(counts) < max(counts) - 2 or min(counts) < 3:
        raise refused("Time points of the perfusion series are missing at some positions. Send the whole series.")
    interval = float(np.median(np.concatenate([np.diff(each) for each in times])))
    first, last = max(float(each[0]) for each in times), min(float(each[-1]) for each in times)
    even = len(counts) == 1 and all(
        np.abs(each - (times[0][0] + interval * np.arange(len(each)))).max() <= _EVEN * interval for each in times
    )
    if even:
        regular: NDArray[np.float64] = interval * np.arange(counts.pop(), dtype=np.float64)
        return TimePlan(ordered, times, regular, interval, resampled=False)
    axis = np.asarray(first + interval * np.arange(int((last - first) / interval + 1e-6) + 1), np.float64)
    return TimePlan(ordered, times, axis, interval, resampled=True)


def _unwrapped(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Times without a date that pass midnight: those after midnight belong to the next day."""
    if np.ptp(times) <= _HALF_DAY_S:
        return times
    return np.where(times < times.max() - _HALF_DAY_S, times + 2 * _HALF_DAY_S, times)
