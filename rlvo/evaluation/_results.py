"""Results of the functions of ``rlvo.evaluation``: small frozen dataclasses, with a data frame where it is natural."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from app.evaluation.curves import CalibrationCurve, Curve
from app.evaluation.metrics import Array, Estimate
from app.evaluation.sample_size import Criterion
from app.evaluation.validation import Measure, PooledMeasure, Scores


def measures_frame(rows: Iterable[tuple[str, Estimate]]) -> pd.DataFrame:
    """One row for each estimate: measure, value, low, high."""
    cells = [(name, one.value, one.low, one.high) for name, one in rows]
    return pd.DataFrame(cells, columns=["measure", "value", "low", "high"])


def scores_frame(rows: Iterable[Scores], name: str) -> pd.DataFrame:
    """One row for each group of patients; NaN where one outcome has too few patients."""
    names = ("auc", "observed_expected", "slope")
    lines = []
    for one in rows:
        line: dict[str, object] = {name: one.name, "patients": one.patients, "events": one.events}
        for key in names:
            estimate: Estimate | None = getattr(one, key)
            for end, column in (("value", key), ("low", f"{key}_low"), ("high", f"{key}_high")):
                line[column] = np.nan if estimate is None else getattr(estimate, end)
        lines.append(line)
    return pd.DataFrame(lines)


@dataclass(frozen=True)
class Discrimination:
    """How well the probabilities tell patients with the outcome from the others.

    Attributes:
        patients: Number of patients.
        events: Patients with the outcome.
        auc: Area under the ROC curve, with DeLong's 95 % interval.
        average_precision: Area under the precision-recall curve, with its 95 % bootstrap interval.
    """

    patients: int
    events: int
    auc: Estimate
    average_precision: Estimate

    def to_frame(self) -> pd.DataFrame:
        """Columns measure, value, low, high."""
        return measures_frame([("AUC", self.auc), ("average precision", self.average_precision)])


@dataclass(frozen=True)
class Calibration:
    """How near the probabilities are to the observed shares.

    Attributes:
        patients: Number of patients.
        events: Patients with the outcome.
        in_the_large: Intercept with the slope fixed at 1, on the log-odds; ideal: 0.
        slope: Calibration slope; ideal: 1.
        observed_expected: Ratio of observed to expected events; ideal: 1.
        ici: Mean distance between the smooth curve and the predictions; NaN if there is no curve.
        e50: Median distance.
        e90: 90 % quantile of the distances.
        ici_if_calibrated: 95 % quantile of the ICI that a calibrated model of the same patients has.
        curve: Smooth observed share over predicted probability (100 points) with its 95 % band; None if the
            probabilities are equal or separate the outcomes.
        tenths: Observed share and Wilson's interval of each tenth of the patients.
    """

    patients: int
    events: int
    in_the_large: Estimate
    slope: Estimate
    observed_expected: Estimate
    ici: float
    e50: float
    e90: float
    ici_if_calibrated: float
    curve: Curve | None = field(repr=False)
    tenths: CalibrationCurve = field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """Columns measure, value, low, high; the distances have no interval."""
        rows = [
            ("calibration in the large", self.in_the_large),
            ("calibration slope", self.slope),
            ("O/E", self.observed_expected),
            *((name, Estimate(value, np.nan, np.nan)) for name, value in self._distances()),
        ]
        return measures_frame(rows)

    def _distances(self) -> list[tuple[str, float]]:
        return [("ICI", self.ici), ("E50", self.e50), ("E90", self.e90)]

    def curve_frame(self) -> pd.DataFrame:
        """Columns predicted, observed, low, high of the smooth curve; no row without a curve."""
        curve = self.curve
        columns = ["predicted", "observed", "low", "high"]
        if curve is None:
            return pd.DataFrame(columns=columns, dtype=np.float64)
        return pd.DataFrame(dict(zip(columns, (curve.x, curve.y, curve.low, curve.high), strict=True)))


@dataclass(frozen=True)
class BrierScore:
    """Mean squared error of the probabilities.

    Attributes:
        patients: Number of patients.
        events: Patients with the outcome.
        score: Brier score with its 95 % bootstrap interval; ideal: 0.
        scaled: 1 minus its ratio to that of the prevalence, with its 95 % interval; ideal: 1.
    """

    patients: int
    events: int
    score: Estimate
    scaled: Estimate

    def to_frame(self) -> pd.DataFrame:
        """Columns measure, value, low, high."""
        return measures_frame([("Brier score", self.score), ("scaled Brier score", self.scaled)])


@dataclass(frozen=True)
class NetBenefit:
    """Net benefit per patient of acting from each threshold on.

    Attributes:
        thresholds: Threshold probabilities (k,).
        value: Net benefit (k,).
        low: Lower end (k,) of its 95 % interval.
        high: Upper end (k,).
        treat_all: Net benefit (k,) of acting on every patient; that of acting on none is 0.
    """

    thresholds: Array
    value: Array
    low: Array
    high: Array
    treat_all: Array

    def to_frame(self) -> pd.DataFrame:
        """Columns threshold, net_benefit, low, high, treat_all."""
        columns = {
            "threshold": self.thresholds,
            "net_benefit": self.value,
            "low": self.low,
            "high": self.high,
            "treat_all": self.treat_all,
        }
        return pd.DataFrame(columns)


@dataclass(frozen=True)
class Decisions:
    """Decisions of acting from one threshold on.

    Attributes:
        threshold: The threshold probability.
        measures: Sensitivity, specificity, positive and negative predictive value, with Wilson's 95 % intervals.
    """

    threshold: float
    measures: tuple[Measure, ...]

    def to_frame(self) -> pd.DataFrame:
        """Columns measure, value, low, high."""
        return measures_frame((one.name, one.estimate) for one in self.measures)


@dataclass(frozen=True)
class Subgroups:
    """Scores of each subgroup.

    Attributes:
        rows: Name, patients, events, AUC, O/E and calibration slope; scores are None if fewer than five patients have
            one of both outcomes.
    """

    rows: tuple[Scores, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row for each subgroup, NaN for a score that is not given."""
        return scores_frame(self.rows, "subgroup")


@dataclass(frozen=True)
class PooledSites:
    """Scores of each site, and their random-effects mean.

    Attributes:
        sites: Scores of each site.
        pooled: AUC, O/E and calibration slope: mean with its 95 % interval, 95 % prediction interval of a new site,
            SD between sites (tau), I squared, Cochran's Q and its p value.
    """

    sites: tuple[Scores, ...]
    pooled: tuple[PooledMeasure, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row for each pooled measure."""
        rows = [
            {
                "measure": one.measure,
                "sites": one.sites,
                "mean": one.mean.value,
                "low": one.mean.low,
                "high": one.mean.high,
                "prediction_low": one.prediction[0],
                "prediction_high": one.prediction[1],
                "tau": one.tau,
                "i2": one.i2,
                "q": one.q,
                "p_equal": one.p_equal,
            }
            for one in self.pooled
        ]
        return pd.DataFrame(rows)

    def sites_frame(self) -> pd.DataFrame:
        """One row for each site, NaN for a score that is not given."""
        return scores_frame(self.sites, "site")


@dataclass(frozen=True)
class SampleSize:
    """Patients that a study needs.

    Attributes:
        criteria: Criteria of a validation: name, width of the 95 % interval, patients.
        recalibration: Those of a recalibration.
        patients: Patients of the validation: the largest of ``criteria``.
        events: Those of them who are expected to have the outcome.
    """

    criteria: tuple[Criterion, ...]
    recalibration: tuple[Criterion, ...]
    patients: int
    events: int

    def to_frame(self) -> pd.DataFrame:
        """Columns criterion, width, patients."""
        rows = [(one.name, one.width, one.patients) for one in (*self.criteria, *self.recalibration)]
        return pd.DataFrame(rows, columns=["criterion", "width", "patients"])
