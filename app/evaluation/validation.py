"""External validation of predicted probabilities of a binary outcome, for any predictor.

Design notes:
- A patient without an outcome takes part in the flow, in table 1 and in the bounds, and in no other number.
- Every interval has the level 95 %. ``python -m bench.site_trust`` measures their coverage.
- A subgroup or a site with fewer than ``MIN_EVENTS`` patients of either outcome has no scores. A site is pooled from
  ``POOLED_EVENTS`` patients of either outcome on: the normal approximation fails below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from app.core.display_names import NOT_RECORDED
from app.evaluation import clusters as grouped
from app.evaluation import curves, metrics, missing_outcomes, pooling, smooth_calibration
from app.evaluation.baseline_table import Value
from app.evaluation.clusters import Clusters, rarer_outcome
from app.evaluation.metrics import Array, Estimate, Labels
from app.evaluation.missing_outcomes import Bounds
from app.evaluation.pooling import Pooled
from app.evaluation.smooth_calibration import SmoothCalibration
from app.evaluation.subgroups import MIN_EVENTS
from app.sdk.clinical import ClinicalRecord

POOLED_EVENTS = 10
THRESHOLDS = np.array([0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
Texts = NDArray[np.str_]
Scale = Callable[[float], float]
POOLED_SCALES: tuple[tuple[str, Scale, Scale], ...] = (
    ("AUC", lambda v: float(logit(v)), lambda v: float(expit(v))),
    ("O/E", lambda v: float(np.log(v)), lambda v: float(np.exp(v))),
    ("calibration slope", lambda v: v, lambda v: v),
)
"""Each pooled measure with the way to its scale, and back."""


@dataclass(frozen=True)
class Groups:
    """Level (n,) of one variable, and all levels in the order of the report; "" is a missing value."""

    levels: Texts
    order: tuple[str, ...]


@dataclass(frozen=True)
class PredictionTable:
    """Predictions of n patients and what is known of them.

    Attributes:
        probabilities: (n,).
        outcomes: (n,) 0, 1, or NaN if unknown.
        sites: Site (n,); None if the table has none.
        dates: ISO date (n,), "" if unknown; None if the table has none.
        groups: Levels of each variable of the subgroups.
        characteristics: Values (n,) of each variable of table 1.
        kept: (n, 2), whether class 0 and class 1 are in the conformal set; None without sets.
        flow: Steps from the table to the n patients: name and number of patients.
        records: Clinical records (n,), for the published scores; empty if the table has none.
        patients: Patient (n,), "" if unknown, whose studies are one cluster; None if the table has none.
    """

    probabilities: Array
    outcomes: Array
    sites: Texts | None = None
    dates: Texts | None = None
    groups: Mapping[str, Groups] = field(default_factory=dict)
    characteristics: Mapping[str, Sequence[Value]] = field(default_factory=dict)
    kept: NDArray[np.bool_] | None = None
    flow: tuple[tuple[str, int], ...] = ()
    records: tuple[ClinicalRecord, ...] = ()
    patients: Texts | None = None

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def clusters(self) -> Clusters:
        """Patients (n,) as numbers; None if none has several studies. Sites may number their patients alike."""
        if self.patients is None or self.sites is None:
            return grouped.of_patients(self.patients)
        pairs = zip(self.sites.tolist(), self.patients.tolist(), strict=True)
        return grouped.of_patients(np.array([patient and f"{site}\n{patient}" for site, patient in pairs]))

    @property
    def known(self) -> NDArray[np.bool_]:
        """Whether the outcome (n,) is known."""
        return np.asarray(np.isfinite(self.outcomes))


@dataclass(frozen=True)
class Measure:
    """One number of the validation, how it is meant, and its method."""

    key: str
    name: str
    estimate: Estimate
    method: str
    ideal: str = ""

    @property
    def text(self) -> str:
        """Value with its interval, or the value alone."""
        if np.isfinite(self.estimate.value) and not np.isfinite(self.estimate.low):
            return f"{self.estimate.value:.3f}"
        return str(self.estimate)


@dataclass(frozen=True)
class Scores:
    """Scores of some patients; the estimates are None if one outcome is too rare.

    ``errors`` are the standard errors of the AUC's log-odds, of log O/E and of the slope.
    """

    name: str
    patients: int
    events: int
    auc: Estimate | None = None
    observed_expected: Estimate | None = None
    slope: Estimate | None = None
    errors: tuple[float, float, float] = (np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class DecisionRow:
    """Net benefit per patient of acting above a threshold, with its interval, and that of acting on all."""

    threshold: float
    net_benefit: Estimate
    of_all: float


@dataclass(frozen=True)
class PooledMeasure:
    """One measure over the sites, on its own scale; ``tau`` and ``q`` are on the scale of the pooling."""

    measure: str
    sites: int
    mean: Estimate
    prediction: tuple[float, float]
    tau: float
    i2: float
    q: float
    p_equal: float

    @classmethod
    def of(cls, place: int, found: Pooled) -> PooledMeasure:
        """Measure number ``place`` of ``POOLED_SCALES``, from its pooling."""
        measure, _, back = POOLED_SCALES[place]
        mean = Estimate(back(found.mean.value), back(found.mean.low), back(found.mean.high))
        ends = (back(found.prediction[0]), back(found.prediction[1]))
        return cls(measure, found.sites, mean, ends, found.tau, found.i2, found.q, found.p_equal)


@dataclass(frozen=True)
class Validation:
    """Everything that a validation finds; see ``validate``."""

    table: PredictionTable = field(repr=False)
    labels: Labels = field(repr=False)
    probabilities: Array = field(repr=False)
    measures: tuple[Measure, ...]
    smooth: SmoothCalibration | None
    decisions: tuple[DecisionRow, ...]
    threshold: float | None
    at_threshold: tuple[Measure, ...]
    coverage: tuple[Measure, ...]
    level: float | None
    subgroups: tuple[Scores, ...]
    sites: tuple[Scores, ...]
    pooled: tuple[PooledMeasure, ...]
    bounds: tuple[Bounds, ...]


def validate(
    table: PredictionTable,
    *,
    threshold: float | None = None,
    level: float | None = None,
    rounds: int = 1000,
    seed: int = 0,
) -> Validation:
    """Validate the predictions of a table.

    Args:
        table: At least one patient of each outcome.
        threshold: Decision threshold of the probability; None: no decisions.
        level: Nominal coverage of the conformal sets, for the report.
        rounds: Resamples of each bootstrap.
        seed: Seed of the bootstraps and simulations.

    Raises:
        ValueError: If the known outcomes are of one class only.
    """
    known = table.known
    labels, own = table.outcomes[known].astype(np.int64), table.probabilities[known]
    if not 0 < labels.sum() < len(labels):
        raise ValueError("validation needs patients with and patients without the outcome")
    clusters = grouped.chosen(table.clusters, known)
    smooth = smooth_calibration.smooth(labels, own, seed=seed, clusters=clusters)
    sites: tuple[Scores, ...] = ()
    if table.sites is not None:
        order = sorted(set(table.sites[known].tolist()))
        sites = tuple(scores_by_level(table.sites[known], order, labels, own, clusters=clusters))
    return Validation(
        table=table,
        labels=labels,
        probabilities=own,
        measures=tuple(_measures(labels, own, smooth, rounds, seed, clusters)),
        smooth=smooth,
        decisions=_decisions(labels, own, threshold, clusters),
        threshold=threshold,
        at_threshold=() if threshold is None else tuple(decisions_at(labels, own, threshold, clusters)),
        coverage=() if table.kept is None else tuple(_coverage(labels, table.kept[known], clusters)),
        level=level,
        subgroups=tuple(
            one
            for name, group in table.groups.items()
            for one in scores_by_level(
                group.levels[known], group.order, labels, own, prefix=f"{name}: ", clusters=clusters
            )
        ),
        sites=sites,
        pooled=pooled_over([site for site in sites if site.name != NOT_RECORDED]),
        bounds=tuple(
            missing_outcomes.bounds(
                table.probabilities,
                table.outcomes,
                threshold=threshold,
                groups=[
                    *(group.levels for group in table.groups.values()),
                    *([] if table.sites is None else [table.sites]),
                ],
                seed=seed,
                clusters=table.clusters,
            )
        ),
    )


def scores(name: str, labels: Labels, probabilities: Array, clusters: Clusters = None) -> Scores:
    """Scores of some patients (n,), or only their counts if one outcome has fewer than ``MIN_EVENTS``."""
    events = int(labels.sum())
    if rarer_outcome(labels, clusters) < MIN_EVENTS:
        return Scores(name, len(labels), events)
    slope = metrics.calibration_slope(labels, probabilities, clusters=clusters)
    return Scores(
        name,
        len(labels),
        events,
        auc=metrics.auc_estimate(labels, probabilities, by_events=True, clusters=clusters),
        observed_expected=metrics.observed_expected(labels, probabilities, clusters=clusters),
        slope=slope,
        errors=(
            metrics.auc_log_odds_error(labels, probabilities, clusters),
            metrics.observed_expected_error(labels, probabilities, clusters),
            (slope.high - slope.low) / (2 * curves.NORMAL),
        ),
    )


def pooled_over(sites: Sequence[Scores]) -> tuple[PooledMeasure, ...]:
    """Pool AUC, O/E and slope over the sites with ``POOLED_EVENTS`` patients of either outcome."""
    usable = [one for one in sites if min(one.events, one.patients - one.events) >= POOLED_EVENTS]
    result = []
    for place, (_, to, _) in enumerate(POOLED_SCALES):
        pairs = [
            (to(estimate.value), one.errors[place])
            for one in usable
            if (estimate := (one.auc, one.observed_expected, one.slope)[place]) is not None
            and np.isfinite(estimate.value)
        ]
        found = pooling.pool([value for value, _ in pairs], [error for _, error in pairs])
        if found is not None:
            result.append(PooledMeasure.of(place, found))
    return tuple(result)


def _measures(
    labels: Labels, own: Array, smooth: SmoothCalibration | None, rounds: int, seed: int, clusters: Clusters
) -> list[Measure]:
    resampled = metrics.bootstrap(metrics.auc, labels, own, rounds=rounds, seed=seed, clusters=clusters)
    brier = metrics.bootstrap(metrics.brier, labels, own, rounds=rounds, seed=seed, clusters=clusters)
    area = metrics.auc_estimate(labels, own, by_events=True, clusters=clusters)
    large = metrics.calibration_in_the_large(labels, own, clusters=clusters)
    slope = metrics.calibration_slope(labels, own, clusters=clusters)
    ratio = metrics.observed_expected(labels, own, clusters=clusters)
    scaled = metrics.scaled_brier(labels, own, clusters=clusters)
    by, wald, of = ("DeLong 1988", "Wald", "") if clusters is None else ("Obuchowski 1997", "sandwich", " of patients")
    found = [
        Measure("auc", "AUC", area, f"{by}, log-odds", "1"),
        Measure("auc_bootstrap", "AUC, bootstrap interval", resampled, f"{rounds} resamples{of}", "1"),
        Measure("citl", "calibration in the large", large, wald, "0"),
        Measure("slope", "calibration slope", slope, wald, "1"),
        Measure("oe", "O/E", ratio, "delta method, logarithm", "1"),
    ]
    if smooth is not None:
        above = f"at most {smooth.ici_if_calibrated:.3f} in 95 % of calibrated models"
        for key, name, value, method in (
            ("ici", "ICI", smooth.ici, f"Austin & Steyerberg 2019; {above}"),
            ("e50", "E50", smooth.e50, "Austin & Steyerberg 2019"),
            ("e90", "E90", smooth.e90, "Austin & Steyerberg 2019"),
        ):
            found.append(Measure(key, name, _alone(value), method, "0"))
    found += [
        Measure("brier", "Brier score", brier, f"{rounds} resamples{of}", "0"),
        Measure("brier_scaled", "scaled Brier score", scaled, "delta method", "1"),
    ]
    return found


def _alone(value: float) -> Estimate:
    return Estimate(value, np.nan, np.nan)


def _decisions(labels: Labels, own: Array, threshold: float | None, clusters: Clusters) -> tuple[DecisionRow, ...]:
    at = THRESHOLDS if threshold is None else np.unique(np.append(THRESHOLDS, threshold))
    curve = curves.decision(labels, own, at, clusters)
    of_all = metrics.net_benefit(labels, np.ones(len(labels)), at)
    assert curve.low is not None
    assert curve.high is not None
    return tuple(
        DecisionRow(float(t), Estimate(float(v), float(low), float(high)), float(every))
        for t, v, low, high, every in zip(at, curve.y, curve.low, curve.high, of_all, strict=True)
    )


def share(flags: NDArray[np.bool_], clusters: Clusters = None) -> Estimate:
    """Share of true flags (n,) with Wilson's interval; not estimable for none."""
    if not len(flags):
        return metrics.NOT_ESTIMABLE
    return Estimate(float(flags.mean()), *metrics.wilson_of(flags, clusters))


def decisions_at(labels: Labels, own: Array, threshold: float, clusters: Clusters = None) -> list[Measure]:
    """Sensitivity, specificity and predictive values of acting from a probability on, with Wilson's intervals."""
    decided, event = own >= threshold, labels == 1
    parts = (
        ("sensitivity", "sensitivity", decided, event),
        ("specificity", "specificity", ~decided, ~event),
        ("ppv", "positive predictive value", event, decided),
        ("npv", "negative predictive value", ~event, ~decided),
    )
    return [_share(key, name, np.asarray(flags), np.asarray(of), clusters) for key, name, flags, of in parts]


def _share(key: str, name: str, flags: NDArray[np.bool_], of: NDArray[np.bool_], clusters: Clusters) -> Measure:
    """Share of the flags (n,) among the studies ``of`` (n,)."""
    own, studies = grouped.chosen(clusters, of), int(of.sum())
    patients = f"{grouped.count(own, studies)} patients" + ("" if own is None else f", {studies} studies")
    return Measure(key, name, share(flags[of], own), f"Wilson, {patients}")


def _coverage(labels: Labels, kept: NDArray[np.bool_], clusters: Clusters) -> list[Measure]:
    every = np.ones(len(labels), bool)
    parts = [
        ("coverage_0", "coverage of patients without the outcome", kept[:, 0], labels == 0),
        ("coverage_1", "coverage of patients with the outcome", kept[:, 1], labels == 1),
        ("both", "sets of both classes", kept.all(axis=1), every),
        ("empty", "empty sets", ~kept.any(axis=1), every),
    ]
    return [_share(key, name, np.asarray(flags), of, clusters) for key, name, flags, of in parts]


def scores_by_level(
    values: Texts, order: Sequence[str], labels: Labels, own: Array, *, prefix: str = "", clusters: Clusters = None
) -> list[Scores]:
    """Scores of the patients of each level that occurs, in this order; ``values``: level (n,), "" if unknown."""
    found = []
    for level in order:
        if (inside := values == level).any():
            of = grouped.chosen(clusters, inside)
            found.append(scores(f"{prefix}{level or NOT_RECORDED}", labels[inside], own[inside], of))
    return found
