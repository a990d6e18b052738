"""Learn what the input statistics of the training patients are, and beyond which distance an input is unusual.

Design notes:
- Images are measured as they were prepared, without augmentation, which would hide another scale or offset.
- Distances are measured out of sample, as those of the features (``calibration``). All groups get the same share of
  patients beyond their limit, so that together a share of ``BEYOND`` exceeds any of them.
- ``LEAST_SPREAD`` keeps a cohort that is more alike than patients are, such as phantoms without noise in their maps,
  from flagging what a scanner or software changes without any meaning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, norm

from app.imaging.model_grid import ChannelSpec, Grid
from app.inference import input_distance
from app.inference.input_statistics import InputMeter, Statistics
from app.inference.reference_head import ReferenceHead
from app.registry.manifest import SCORES, InputGroup, Knots
from app.training.dataset import Dataset

Array = NDArray[np.float64]

BEYOND = 0.01
MOST_PATIENTS, PARTS = 2048, 4
"""Most patients of the statistics, and parts into which they are divided to find the limits."""
LEAST_PATIENTS = 40  # with a statistic; with fewer, it is not compared
SHRINKAGE = 0.1
LEAST_QUANTILE = 0.99  # of the distance of normal scores; a limit is not lower, so that ``LEAST_SPREAD`` has its effect
LEAST_SPREAD: Mapping[str, Mapping[str, float]] = {
    "ncct": {"p10": 2.0, "median": 2.0, "p90": 3.0, "deep-p10": 2.0, "deep-p90": 2.0, "texture": 1.0, "asymmetry": 1.5},
    "cta": {"p10": 2.0, "median": 2.0, "p90": 5.0, "deep-p10": 2.0, "deep-p90": 3.0, "texture": 1.0, "asymmetry": 3.0},
    "vessels": {"volume": 1.5, "thickness": 0.02, "asymmetry": 0.2},
    "tmax": {"p10": 0.7, "median": 0.7, "p90": 1.0, "texture": 0.4, "asymmetry": 0.4, "delayed": 15.0},
    "rcbf": {"p10": 0.08, "median": 0.08, "p90": 0.1, "texture": 0.05, "asymmetry": 0.05, "low": 15.0},
    "ncct+cta": {"difference": 3.0},
    "cta+vessels": {"contrast": 15.0},
    "tmax+rcbf": {"likeness": 0.2, "overlap": 0.03},
}
"""Smallest standard deviation of a statistic in its unit, by group and name."""
LEAST = {"no-data": 0.03, "likeness": 0.06, "pattern": 0.1}
"""The same of statistics that are not named in ``LEAST_SPREAD``."""


@dataclass(frozen=True)
class _Table:
    """Statistics of one group: ``rows`` (m,) of the patients that have it, ``values`` (m, k), NaN where missing."""

    group: str
    names: tuple[str, ...]
    rows: NDArray[np.int64]
    values: Array

    def of(self, chosen: NDArray[np.bool_]) -> Array:
        """Values of the patients that are True in ``chosen`` (n,)."""
        return self.values[chosen[self.rows]]


def learn(
    data: Dataset,
    rows: NDArray[np.int64],
    channels: Sequence[ChannelSpec],
    grid: Grid,
    reference: ReferenceHead,
    seed: int,
) -> tuple[InputGroup, ...]:
    """Learn the input statistics of the patients ``rows``, relative to the reference head of their version."""
    meter = InputMeter(channels, grid, reference)
    measured = [
        meter.measure(np.asarray(data.images[row], np.float32), data.presence[row])
        for row in np.sort(sample(rows, seed)).tolist()
    ]
    return fit(measured)


def sample(rows: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Draw the patients, at most ``MOST_PATIENTS``, whose statistics are measured."""
    return np.random.default_rng([seed, 12]).permutation(rows)[:MOST_PATIENTS]


def fit(measured: Sequence[Statistics]) -> tuple[InputGroup, ...]:
    """Quantiles, correlations and limits of every group that enough patients have."""
    tables = [table for group in _groups(measured) if (table := _table(group, measured)) is not None]
    parts = np.arange(len(measured)) % PARTS
    distances = np.full((len(measured), len(tables)), -np.inf)
    for place in range(PARTS):
        for column, table in enumerate(tables):
            group = _fit_group(table, table.of(parts != place))
            own = parts[table.rows] == place
            distances[table.rows[own], column] = _distances(group, table.values[own])
    limits = _limits(distances)
    return tuple(
        _fit_group(table, table.values).model_copy(
            update={"limit": round(max(float(limit), float(chi2.ppf(LEAST_QUANTILE, len(table.names)))), 4)}
        )
        for table, limit in zip(tables, limits, strict=True)
    )


def _groups(measured: Sequence[Statistics]) -> list[str]:
    return list(dict.fromkeys(group for one in measured for group in one))


def _table(group: str, measured: Sequence[Statistics]) -> _Table | None:
    rows = np.array([row for row, one in enumerate(measured) if one.get(group)], np.int64)
    counts = Counter(name for row in rows for name in measured[row][group])
    names = tuple(name for name, count in counts.items() if count >= LEAST_PATIENTS)
    if not names:
        return None
    values = np.array([[measured[row][group].get(name, np.nan) for name in names] for row in rows])
    return _Table(group, names, rows, values)


def _fit_group(table: _Table, values: Array) -> InputGroup:
    knots = {
        name: _knots(values[:, column], LEAST_SPREAD[table.group].get(name) or LEAST[name])
        for column, name in enumerate(table.names)
    }
    group = InputGroup(name=table.group, knots=knots, correlation=_identity(len(knots)), limit=0.0)
    scores = np.nan_to_num(np.clip(input_distance.group_scores(group, values), -4, 4))
    with np.errstate(invalid="ignore"):
        correlation = np.nan_to_num(np.atleast_2d(np.corrcoef(scores.T)))
    correlation = (1 - SHRINKAGE) * correlation
    np.fill_diagonal(correlation, 1.0)
    rounded = tuple(tuple(round(float(x), 5) for x in row) for row in correlation)
    return group.model_copy(update={"correlation": rounded})


def _knots(values: Array, least: float) -> Knots:
    """Quantiles at ``SCORES``, spread about the median to at least ``least`` for each unit of the score."""
    known = values[np.isfinite(values)]
    knots = [float(np.quantile(known, float(norm.cdf(score)))) for score in SCORES]
    middle = len(SCORES) // 2
    for place in range(middle + 1, len(SCORES)):
        step = least * (SCORES[place] - SCORES[place - 1])
        knots[place] = max(knots[place], knots[place - 1] + step)
    for place in range(middle - 1, -1, -1):
        step = least * (SCORES[place + 1] - SCORES[place])
        knots[place] = min(knots[place], knots[place + 1] - step)
    a, b, c, d, e = (round(knot, 4) for knot in knots)
    return a, b, c, d, e


def _distances(group: InputGroup, values: Array) -> Array:
    correlation = np.asarray(group.correlation)
    scores = input_distance.group_scores(group, values)
    return np.array([input_distance.squared_distance(score, correlation) for score in scores])


def _identity(size: int) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(row == column) for column in range(size)) for row in range(size))


def _limits(distances: Array) -> Array:
    """Limits (g,) of distances (n, g), -inf without the group: the same share beyond each, ``BEYOND`` beyond any."""
    low, high = 0.0, BEYOND
    for _ in range(20):
        share = (low + high) / 2
        limits = _at(distances, share)
        if (distances > limits).any(axis=1).mean() > BEYOND:
            high = share
        else:
            low = share
    return _at(distances, low)


def _at(distances: Array, share: float) -> Array:
    columns = [column[np.isfinite(column)] for column in distances.T]
    return np.array([np.quantile(column, 1 - share) for column in columns])
