"""Numbers of the four figures of an evaluation: ROC, precision-recall, calibration and decision curve.

Design notes:
- Labels are (n,) 0/1, probabilities (n,). Every band is pointwise, with the level 95 %.
- The band of a net benefit is Wald's interval after two true positives and two untreated patients are added, as Agresti
  and Coull (Am Stat 1998;52:119) do for a share. The plain bootstrap covers too little where few patients are treated
  (docs/experiments.md). The rules of the model stay fixed.
- The calibration line is logistic: the outcome's log-odds are linear in the predicted log-odds (Cox 1958; Van Calster
  et al., J Clin Epidemiol 2016;74:167). Its band is Wald's, by the delta method. Tenths of the patients, with Wilson
  intervals, show where a line does not fit.
- ``clusters`` (n,) number the patients if some have several studies; the bands are then those of ``clusters.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from app.evaluation import clusters as grouped
from app.evaluation.clusters import Clusters
from app.evaluation.equal_probabilities import equal_parts, no_line_fits
from app.evaluation.metrics import Array, Labels, net_benefit, platt, wilson_of

BINS = 10
PSEUDO = 2  # half the squared normal quantile
NORMAL = 1.959964


@dataclass(frozen=True)
class Curve:
    """Points (k,) of a curve, and its band (k,) if it has one."""

    x: Array
    y: Array
    low: Array | None = None
    high: Array | None = None

    def document(self) -> dict[str, list[float]]:
        """The points as lists for JSON."""
        parts = {"x": self.x, "y": self.y, "low": self.low, "high": self.high}
        return {name: [round(float(v), 6) for v in values] for name, values in parts.items() if values is not None}


@dataclass(frozen=True)
class CalibrationCurve:
    """Observed share over predicted probability.

    Attributes:
        bins: Mean probability, observed share and Wilson's interval of each tenth of the patients. Patients with one
            probability are in one part, so that there can be fewer than ten.
        patients: Patients (k,) of each tenth.
        events: Patients (k,) with the outcome of each tenth.
        line: Logistic calibration line with its band; None if it cannot be estimated.
    """

    bins: Curve
    patients: Labels
    events: Labels
    line: Curve | None

    def document(self) -> dict[str, object]:
        """The numbers as lists for JSON."""
        bins = self.bins.document() | {"patients": self.patients.tolist(), "events": self.events.tolist()}
        return {"tenths": bins, "line": self.line and self.line.document()}


def roc(labels: Labels, probabilities: Array) -> Curve:
    """Sensitivity over 1 - specificity at every distinct threshold."""
    true, false = _steps(labels, probabilities)
    return Curve(false / false[-1], true / true[-1])


def precision_recall(labels: Labels, probabilities: Array) -> Curve:
    """Positive predictive value over sensitivity at every distinct threshold."""
    true, false = _steps(labels, probabilities)
    return Curve(true[1:] / true[-1], true[1:] / (true + false)[1:])


def calibration(labels: Labels, probabilities: Array, clusters: Clusters = None) -> CalibrationCurve:
    """Observed share over predicted probability, in tenths of the patients and as a line; see ``equal_parts``."""
    parts = equal_parts(probabilities, BINS)
    events = np.array([int(labels[part].sum()) for part in parts])
    sizes = np.array([len(part) for part in parts])
    ends = np.array([wilson_of(labels[part] == 1, grouped.chosen(clusters, part)) for part in parts])
    means = np.array([probabilities[part].mean() for part in parts])
    return CalibrationCurve(
        Curve(means, events / sizes, ends[:, 0], ends[:, 1]), sizes, events, _line(labels, probabilities, clusters)
    )


def decision(labels: Labels, probabilities: Array, thresholds: Array, clusters: Clusters = None) -> Curve:
    """Net benefit per patient over ``thresholds`` (k,) with its band (Vickers & Elkin 2006)."""
    treated = probabilities[None] >= thresholds[:, None]
    odds = thresholds / (1 - thresholds)
    count = len(labels) + 2 * PSEUDO
    hits = ((treated & (labels == 1)).sum(axis=1) + PSEUDO) / count
    false = (treated & (labels == 0)).sum(axis=1) / count
    middle = hits - odds * false
    half = NORMAL * np.sqrt(np.maximum(hits + odds**2 * false - middle**2, 0) / count)
    if clusters is not None:
        gains = treated * (labels - odds[:, None] * (1 - labels))
        half = half * np.sqrt([grouped.design_effect(gain, clusters) for gain in gains])
    return Curve(thresholds, net_benefit(labels, probabilities, thresholds), middle - half, middle + half)


def _steps(labels: Labels, probabilities: Array) -> tuple[Array, Array]:
    """True and false positives at every distinct threshold, from 0 up."""
    order = np.argsort(-probabilities, kind="stable")
    hits = np.cumsum(labels[order])
    last = np.append(np.diff(probabilities[order]) != 0, True)
    true = np.concatenate([[0.0], hits[last]])
    false = np.concatenate([[0.0], (np.arange(1, len(labels) + 1) - hits)[last]])
    return true, false


def _line(labels: Labels, probabilities: Array, clusters: Clusters) -> Curve | None:
    """Logistic calibration line with Wald's band; None if the probabilities are equal or separate the outcomes."""
    x = np.asarray(logit(np.clip(probabilities, 1e-6, 1 - 1e-6)))
    if no_line_fits(labels, x):
        return None
    slope, intercept = platt(labels, x)
    expected = expit(slope * x + intercept)
    weights = expected * (1 - expected)
    design = np.stack([np.ones_like(x), x])
    covariance = np.linalg.inv((design * weights) @ design.T)
    covariance = grouped.sandwich(np.asarray(covariance, np.float64), (design * (labels - expected)).T, clusters)
    at = np.linspace(x.min(), x.max(), 100)
    rows = np.stack([np.ones_like(at), at])
    half = NORMAL * np.sqrt(np.einsum("ik,ij,jk->k", rows, covariance, rows))
    odds = slope * at + intercept
    return Curve(expit(at), expit(odds), expit(odds - half), expit(odds + half))
