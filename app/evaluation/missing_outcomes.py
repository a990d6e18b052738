"""What unknown outcomes can change: the extremes over all possible outcomes, and inverse probability weighting.

Design notes:
- The extremes need no assumption. They are the lowest and the highest value over every assignment of outcomes to
  patients without one (Horowitz & Manski, J Am Stat Assoc 2000;95:77).
- The extremes of the AUC are exact. For a given number of events among the unknown patients, the AUC is largest with
  the events at the highest probabilities. Every number is tried.
- The weights are the inverse probability that an outcome is known, by a ridge logistic regression on the predicted
  log-odds and on the given groups (Seaman & White, Stat Methods Med Res 2013;22:278). They assume that nothing else
  decides whether an outcome is known. The interval is the bootstrap's, with the weights fitted again in each resample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import rankdata

from app.evaluation import clusters as grouped
from app.evaluation import logistic
from app.evaluation.clusters import Clusters
from app.evaluation.metrics import Array, Estimate, Labels, auc, brier, net_benefit

RIDGE = 1.0
TRUNCATED = (0.01, 0.99)
"""Quantiles to which the weights are limited (Cole & Hernán, Am J Epidemiol 2008;168:656)."""
ROUNDS = 200
FEWEST = 10
"""Fewest patients of a group that gets a column of its own."""


@dataclass(frozen=True)
class Bounds:
    """A measure of the known patients, its extremes over all unknown outcomes, and its weighted estimate."""

    name: str
    known: float
    low: float
    high: float
    weighted: Estimate | None


def bounds(
    probabilities: Array,
    outcomes: Array,
    *,
    threshold: float | None = None,
    groups: Sequence[NDArray[np.str_]] = (),
    seed: int = 0,
    clusters: Clusters = None,
) -> list[Bounds]:
    """Bounds of n patients; empty if every outcome is known.

    Args:
        probabilities: (n,).
        outcomes: (n,) 0, 1 or NaN if unknown.
        threshold: Decision threshold of the net benefit; None: without it.
        groups: Values (n,) of each variable that may decide whether an outcome is known.
        seed: Seed of the bootstrap.
        clusters: (n,) patients, who are drawn with all own studies.
    """
    known = np.isfinite(outcomes)
    if known.all():
        return []
    labels, own, unknown = outcomes[known].astype(np.int64), probabilities[known], probabilities[~known]
    measures: dict[str, Callable[[Labels, Array], float]] = {
        "outcome share": lambda y, _: float(y.mean()),
        "O/E": lambda y, p: float(y.sum() / p.sum()),
        "AUC": auc,
        "Brier score": brier,
    }
    if threshold is not None:
        at = np.array([threshold])
        measures[f"net benefit at {threshold:g}"] = lambda y, p: float(net_benefit(y, p, at)[0])
    everyone = np.concatenate([own, unknown])

    def value(measure: Callable[[Labels, Array], float], filled: NDArray[np.bool_]) -> float:
        return measure(np.concatenate([labels, filled.astype(np.int64)]), everyone)

    weighted = _weighted(probabilities, outcomes, threshold, _columns(probabilities, groups), seed, clusters)
    result = []
    for name, measure in measures.items():
        if name == "AUC":
            ends = _auc_extremes(labels, own, unknown)
        else:
            if name == "Brier score":
                fillings = [unknown >= 0.5, unknown < 0.5]
            elif threshold is not None and name.startswith("net benefit"):
                fillings = [unknown >= threshold, unknown < threshold]
            else:
                fillings = [np.zeros(len(unknown), bool), np.ones(len(unknown), bool)]
            ends = [value(measure, filled) for filled in fillings]
        result.append(Bounds(name, measure(labels, own), min(ends), max(ends), weighted.get(name)))
    return result


def _auc_extremes(labels: Labels, known: Array, unknown: Array) -> list[float]:
    """Lowest and highest AUC; for a number of events it depends on the sum of their ranks only (Mann-Whitney)."""
    ranks = rankdata(np.concatenate([known, unknown]))
    own, others = ranks[: len(known)], np.sort(ranks[len(known) :])
    added = np.arange(len(others) + 1)
    events = labels.sum() + added
    pairs = events * (len(ranks) - events)
    found = []
    for ordered in (others, others[::-1]):
        total = own[labels == 1].sum() + np.concatenate([[0.0], np.cumsum(ordered)])
        found += [*((total - events * (events + 1) / 2)[pairs > 0] / pairs[pairs > 0])]
    return [float(min(found)), float(max(found))] if found else [0.0, 1.0]


def _columns(probabilities: Array, groups: Sequence[NDArray[np.str_]]) -> Array:
    columns = [np.ones(len(probabilities)), logistic.log_odds(probabilities)]
    for values in groups:
        names, counts = np.unique(values, return_counts=True)
        columns += [(values == name).astype(np.float64) for name in names[counts >= FEWEST][1:]]
    return np.stack(columns, axis=1)


def _weighted(
    probabilities: Array, outcomes: Array, threshold: float | None, columns: Array, seed: int, clusters: Clusters
) -> dict[str, Estimate]:
    """Weighted estimate of each measure with its percentile interval."""
    known = np.isfinite(outcomes)
    if min(known.sum(), (~known).sum()) < FEWEST:
        return {}
    value = _weighted_once(probabilities, outcomes, threshold, columns)
    sampler = grouped.Resampler(len(outcomes), clusters, np.random.default_rng(seed))
    drawn = [
        _weighted_once(probabilities[rows], outcomes[rows], threshold, columns[rows])
        for rows in (sampler.rows() for _ in range(ROUNDS))
    ]
    ends = {name: np.nanquantile([one[name] for one in drawn], [0.025, 0.975]) for name in value}
    return {name: Estimate(value[name], float(ends[name][0]), float(ends[name][1])) for name in value}


def _weighted_once(probabilities: Array, outcomes: Array, threshold: float | None, columns: Array) -> dict[str, float]:
    known = np.isfinite(outcomes)
    ridge = np.full(columns.shape[1], RIDGE)
    ridge[0] = 0.0
    fitted = logistic.fit(columns, known.astype(np.int64), ridge=ridge)
    weights = 1 / expit(columns[known] @ fitted.coefficients)
    weights = np.clip(weights, *np.quantile(weights, TRUNCATED))
    weights /= weights.sum()
    labels, own = outcomes[known], probabilities[known]
    result = {
        "outcome share": float(weights @ labels),
        "O/E": float((weights @ labels) / (weights @ own)),
        "AUC": weighted_auc(labels, own, weights),
        "Brier score": float(weights @ (own - labels) ** 2),
    }
    if threshold is not None:
        treated = own >= threshold
        odds = threshold / (1 - threshold)
        result[f"net benefit at {threshold:g}"] = float(weights @ (treated * (labels - odds * (1 - labels))))
    return result


def weighted_auc(labels: Array, scores: Array, weights: Array) -> float:
    """AUC of weighted patients (n,); ties count half; NaN with one class only."""
    values, place = np.unique(scores, return_inverse=True)
    events = np.bincount(place, weights * labels, len(values))
    others = np.bincount(place, weights * (1 - labels), len(values))
    below = np.cumsum(others) - others
    pairs = events.sum() * others.sum()
    return float((events * (below + others / 2)).sum() / pairs) if pairs > 0 else float("nan")
