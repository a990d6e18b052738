"""Distances of a patient's input statistics from those of the training patients, and what is unusual in words.

Design notes:
- A statistic becomes a normal score by the quantiles of the training patients, so skewed ones need no transform.
- Each group of statistics has one squared Mahalanobis distance of its scores, and a limit of its own. A missing
  statistic is left out of it, which makes the distance smaller.
- The module knows how distances are measured; app/training/input_limits.py learns the quantiles and the limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.core.display_names import channel_label
from app.registry.manifest import SCORES, InputGroup
from app.sdk.errors import ModelNotReady
from app.sdk.types import Channel

Array = NDArray[np.float64]
TWO_MAPS = "tmax+rcbf"
HARMLESS = 1.0  # largest score in a direction that is never unusual
_NOT_HIGH = ("likeness", "pattern")  # an image that is very like the mean head is not unusual
_NOT_LOW = ("no-data", "asymmetry", "delayed", "low")
LEAST_SCORE, MOST_NAMED = 2.5, 2  # score from which a second statistic is named, and number of named ones of a group

_WORDS: Mapping[str, str] = {
    "no-data": "share of the brain without data",
    "p10": "10th percentile in the brain",
    "median": "median in the brain",
    "p90": "90th percentile in the brain",
    "deep-p10": "10th percentile deep in the brain",
    "deep-p90": "90th percentile deep in the brain",
    "texture": "fine texture",
    "asymmetry": "difference between the sides",
    "likeness": "likeness to the mean training head",
    "pattern": "likeness of fine structures to the mean training head",
    "delayed": "volume with Tmax > 6 s",
    "low": "volume with relative CBF < 0.3",
    "vessels volume": "volume of the arteries",
    "vessels thickness": "mean share of a voxel that the arteries fill",
    "ncct+cta likeness": "correlation of their values",
    "ncct+cta difference": "difference of their tissue",
    "cta+vessels contrast": "contrast of the arteries",
    "tmax+rcbf likeness": "correlation of delay and flow",
    "tmax+rcbf overlap": "overlap",
}
"""Statistics in words, by name, or by group and name where the name alone does not say it."""
_UNITS = {"ncct": "HU", "cta": "HU", "tmax": "s", "ncct+cta difference": "HU", "cta+vessels contrast": "HU"}
_RATIOS, _VOLUMES = ("likeness", "thickness", "pattern", "overlap"), ("volume", "delayed", "low")
_SIGNED = ("likeness", "pattern", "difference", "contrast")
_CHECKS: Mapping[str, str] = {
    "ncct": "check its unit, field of view, position and artefacts, and that it is a CT without contrast",
    "cta": "check its unit, field of view, position and artefacts, and that it is a CT angiogram",
    "vessels": "check that the mask shows the arteries, in their place",
    "tmax": "check that the map is Tmax in seconds, its noise and its field of view",
    "rcbf": "check that the map is CBF, its noise and its field of view",
    "ncct+cta": "check that each is what its field says, and of the same patient",
    "cta+vessels": "check the contrast and the phase of the CTA, and the mask",
    "tmax+rcbf": "check that the maps are not exchanged, and of the same series",
}


@dataclass(frozen=True)
class Unusual:
    """A group beyond its limit, and its statistics that are farthest from the training patients, (name, value, score).

    ``ratio``: squared distance over the limit.
    """

    group: InputGroup
    ratio: float
    farthest: tuple[tuple[str, float, float], ...]

    def describe(self) -> str:
        """Which input, what is unusual in which direction, the usual range, and what to check."""
        name = self.group.name
        inputs = " and ".join(channel_label(channel) for channel in name.split("+"))
        if all(SCORES[0] <= score <= SCORES[-1] for _, _, score in self.farthest):
            statistic, value, _ = self.farthest[0]
            most = f"{self._value(statistic, value)}, usual {self._usual(statistic)}"
            return f"{inputs}: values that are usual alone are unusual together, most of all {most}; {_CHECKS[name]}"
        return f"{inputs}: {', '.join(self._part(*one) for one in self.farthest)}; {_CHECKS[name]}"

    def _part(self, statistic: str, value: float, score: float) -> str:
        direction = "high" if score > 0 else "low"
        return f"{self._value(statistic, value)} is {direction} (usual {self._usual(statistic)})"

    def _value(self, statistic: str, value: float) -> str:
        full = f"{self.group.name} {statistic}"
        return f"{_WORDS.get(full) or _WORDS[statistic]} {_number(value, full)}"

    def _usual(self, statistic: str) -> str:
        """The range of the training patients without the lowest and the highest hundredth."""
        low, *_, high = self.group.knots[statistic]
        low = low if statistic in _SIGNED else max(low, 0.0)
        high = min(high, 1.0) if statistic == "no-data" or statistic in _RATIOS else high
        full = f"{self.group.name} {statistic}"
        return f"{_number(low, full)} to {_number(high, full)}"


def _number(value: float, full: str) -> str:
    """Value of the statistic ``full``, a group and a name, with its unit."""
    group, _, name = full.partition(" ")
    if name == "no-data":
        return f"{100 * value:.0f} %"
    if name in _VOLUMES:
        return f"{value:.0f} mL"
    unit = "" if name in _RATIOS else _UNITS.get(full, _UNITS.get(group, ""))
    return f"{value:.0f} {unit}" if unit == "HU" else f"{value:.2g} {unit}".strip()


def check(groups: Sequence[InputGroup]) -> None:
    """Check that this release measures every statistic of the version. Raises ModelNotReady."""
    for group in groups:
        for name in group.knots:
            if group.name not in _CHECKS or not (name in _WORDS or f"{group.name} {name}" in _WORDS):
                raise ModelNotReady(f"The manifest names the input statistic {group.name} {name}, unknown here.")


def scores(knots: Sequence[float] | Array, values: Array) -> Array:
    """Normal scores (n,) of values (n,); the line between the last two knots goes on beyond them."""
    x, z = np.asarray(knots, np.float64), np.asarray(SCORES)
    inside = np.interp(values, x, z)
    below = z[0] + (values - x[0]) * (z[1] - z[0]) / (x[1] - x[0])
    above = z[-1] + (values - x[-1]) * (z[-1] - z[-2]) / (x[-1] - x[-2])
    result: Array = np.where(values < x[0], below, np.where(values > x[-1], above, inside))
    return result


def group_scores(group: InputGroup, values: Array) -> Array:
    """Scores (n, k) of the statistics (n, k) of a group, in the order of its knots; NaN where one is missing."""
    columns = []
    for (name, knots), column in zip(group.knots.items(), values.T, strict=True):
        score = scores(knots, column)
        if name in _NOT_HIGH and group.name != TWO_MAPS:
            score = np.minimum(score, HARMLESS)
        if name in _NOT_LOW or (group.name, name) == (Channel.TMAX, "p90"):
            score = np.maximum(score, -HARMLESS)
        columns.append(score)
    return np.column_stack(columns)


def squared_distance(score: Array, correlation: Array) -> float:
    """Squared Mahalanobis distance of scores (k,), NaN where a statistic is missing, with a correlation (k, k)."""
    known = np.isfinite(score)
    if not known.any():
        return 0.0
    return float(score[known] @ np.linalg.solve(correlation[np.ix_(known, known)], score[known]))


def unusual(groups: Sequence[InputGroup], measured: Mapping[str, Mapping[str, float]]) -> list[Unusual]:
    """Groups of statistics beyond their limit, the farthest first.

    Args:
        groups: Quantiles, correlations and limits of the version.
        measured: Statistics by group and name, as ``input_statistics.measure`` returns them.
    """
    found = []
    for group in groups:
        own = measured.get(group.name, {})
        values = np.array([own.get(name, np.nan) for name in group.knots])
        score = group_scores(group, values[None])[0]
        distance = squared_distance(score, np.asarray(group.correlation))
        if distance <= group.limit:
            continue
        order = np.argsort(-np.abs(np.nan_to_num(score)))
        names = list(group.knots)
        far = [
            (names[n], float(values[n]), float(score[n])) for n in order[:MOST_NAMED] if abs(score[n]) >= LEAST_SCORE
        ]
        first = int(order[0])
        far = far or [(names[first], float(values[first]), float(score[first]))]
        found.append(Unusual(group, distance / max(group.limit, 1e-9), tuple(far)))
    return sorted(found, key=lambda one: -one.ratio)
