"""Metrics of predicted probabilities: discrimination, calibration, decisions, and their uncertainty.

Design notes:
- AUC is the Mann-Whitney statistic; ties count half. Its variance and paired comparison are DeLong's (Biometrics
  1988;44:837), by mid-ranks (Sun & Xu, IEEE SPL 2014).
- The bootstrap is stratified by label, so that the prevalence does not change.
- Calibration slope and intercept come from an unpenalised logistic regression of the outcome on the log-odds.
- Conformal quantiles are class-conditional split-conformal: each class is covered at the level.
- Labels are (n,) 0/1; scores, logits and probabilities are (n,).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import floor

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq, minimize
from scipy.special import expit, logit

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def auc(labels: Labels, scores: Array) -> float:
    """Area under the ROC curve; 0.5 if there is only one class."""
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return 0.5
    ranks = stats.rankdata(scores)
    return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def average_precision(labels: Labels, scores: Array) -> float:
    """Area under the precision-recall curve, as the step-wise sum."""
    order = np.argsort(-scores, kind="stable")
    hits = labels[order] == 1
    if not hits.any():
        return 0.0
    # Equal scores are one threshold; precision is taken at the last of them.
    last = np.append(np.diff(scores[order]) != 0, True)
    true_positives = np.cumsum(hits)[last]
    precision = true_positives / (np.flatnonzero(last) + 1)
    return float((np.diff(true_positives, prepend=0) * precision).sum() / hits.sum())


def brier(labels: Labels, probabilities: Array) -> float:
    """Mean squared error of the probabilities."""
    return float(((probabilities - labels) ** 2).mean())


def calibration_error(labels: Labels, probabilities: Array, bins: int = 10) -> float:
    """Expected calibration error, in bins with equal numbers of patients."""
    order = np.argsort(probabilities, kind="stable")
    gaps = [
        len(part) * abs(labels[part].mean() - probabilities[part].mean())
        for part in np.array_split(order, bins)
        if len(part)
    ]
    return float(sum(gaps) / len(labels))


def platt(labels: Labels, logits: Array) -> tuple[float, float]:
    """Slope and intercept of log-odds = slope * logit + intercept, by maximum likelihood."""
    # Standardised logits: the fit converges for any level and scale of the logits.
    middle, scale = float(logits.mean()), float(logits.std()) or 1.0
    standard = (logits - middle) / scale

    def loss(parameters: Array) -> tuple[float, Array]:
        odds = parameters[0] * standard + parameters[1]
        error = expit(odds) - labels
        value = np.logaddexp(0, odds).mean() - (labels * odds).mean()
        return float(value), np.array([(error * standard).mean(), error.mean()])

    fitted = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS", options={"gtol": 1e-7})
    slope = float(fitted.x[0]) / scale
    return slope, float(fitted.x[1]) - slope * middle


def intercept_at(labels: Labels, offsets: Array) -> float:
    """Intercept that makes the mean of expit(offset + intercept) over ``offsets`` (n,) equal to the prevalence.

    It is the maximum-likelihood intercept of a logistic regression whose other terms are fixed.
    """
    prevalence = float(labels.mean())
    if prevalence in (0.0, 1.0):
        return float(np.copysign(np.inf, prevalence - 0.5))
    middle = float(logit(prevalence))
    # The mean is monotonic in the intercept, and the root is between these bounds.
    low, high = middle - float(offsets.max()) - 1e-6, middle - float(offsets.min()) + 1e-6
    return float(brentq(lambda intercept: float(expit(offsets + intercept).mean()) - prevalence, low, high, xtol=1e-12))


def calibration_line(labels: Labels, probabilities: Array) -> tuple[float, float]:
    """Calibration slope and intercept: 1 and 0 for a perfect model."""
    return platt(labels, logit(np.clip(probabilities, 1e-6, 1 - 1e-6)))


def f1(labels: Labels, decided: NDArray[np.bool_]) -> float:
    """Harmonic mean of sensitivity and positive predictive value."""
    hits = int((decided & (labels == 1)).sum())
    wrong = int((decided & (labels == 0)).sum()) + int((~decided & (labels == 1)).sum())
    return 2 * hits / (2 * hits + wrong) if hits else 0.0


def best_f1_threshold(labels: Labels, probabilities: Array) -> float:
    """Threshold with the largest F1, half-way between two neighbouring probabilities."""
    order = np.argsort(-probabilities, kind="stable")
    hits = np.cumsum(labels[order])
    scores = 2 * hits / (np.arange(1, len(order) + 1) + labels.sum())
    best = int(scores.argmax())
    ordered = probabilities[order]
    after = ordered[best + 1] if best + 1 < len(ordered) else 0.0
    return float(np.clip((ordered[best] + after) / 2, 1e-6, 1 - 1e-6))


def conformal_thresholds(labels: Labels, probabilities: Array, level: float) -> tuple[float, float]:
    """Least probability of the true class that covers ``level`` of each class: (of class 0, of class 1)."""
    quantiles = []
    for value, true_class in ((0, 1 - probabilities), (1, probabilities)):
        ordered = np.sort(true_class[labels == value])
        # With n calibration patients the k-th smallest, k = floor((n + 1) (1 - level)), covers at least ``level``.
        # The fraction is exact: in floating point, 10 * (1 - 0.9) is less than 1.
        rank = floor((len(ordered) + 1) * (1 - Fraction(str(level))))
        quantiles.append(float(ordered[rank - 1]) if rank >= 1 else 0.0)
    return quantiles[0], quantiles[1]


@dataclass(frozen=True)
class Estimate:
    """A number and its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


def bootstrap(
    statistic: Callable[[Labels, Array], float],
    labels: Labels,
    scores: Array,
    *,
    rounds: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Estimate a statistic with its percentile interval over ``rounds`` stratified resamples."""
    rng = np.random.default_rng(seed)
    classes = [np.flatnonzero(labels == value) for value in (0, 1)]
    values = []
    for _ in range(rounds):
        rows = np.concatenate([rng.choice(members, len(members)) for members in classes if len(members)])
        values.append(statistic(labels[rows], scores[rows]))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(statistic(labels, scores), float(low), float(high))


@dataclass(frozen=True)
class Comparison:
    """Difference of two AUCs on the same patients, with its interval and p value."""

    difference: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        return f"{self.difference:+.3f} ({self.low:+.3f} to {self.high:+.3f}), p = {self.p:.2g}"


def delong(labels: Labels, first: Array, second: Array, level: float = 0.95) -> Comparison:
    """Compare two AUCs on the same patients: AUC of ``first`` minus AUC of ``second``."""
    positives, negatives = labels == 1, labels == 0
    m, n = int(positives.sum()), int(negatives.sum())
    by_positive, by_negative, areas = [], [], []
    for scores in (first, second):
        whole = stats.rankdata(scores)
        by_positive.append((whole[positives] - stats.rankdata(scores[positives])) / n)
        by_negative.append(1 - (whole[negatives] - stats.rankdata(scores[negatives])) / m)
        areas.append(float(by_positive[-1].mean()))
    covariance = np.cov(by_positive) / m + np.cov(by_negative) / n
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    difference = areas[0] - areas[1]
    spread = float(np.sqrt(max(variance, 0.0)))
    half = float(stats.norm.ppf((1 + level) / 2)) * spread
    p = float(2 * stats.norm.sf(abs(difference) / spread)) if spread else 1.0
    return Comparison(difference, difference - half, difference + half, p)


def wilson(events: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    share = events / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def net_benefit(labels: Labels, probabilities: Array, thresholds: Array) -> Array:
    """Net benefit per patient of treating above each threshold (Vickers & Elkin 2006)."""
    treated = probabilities[None] >= thresholds[:, None]
    hits = (treated & (labels == 1)).mean(1)
    false = (treated & (labels == 0)).mean(1)
    return np.asarray(hits - false * thresholds / (1 - thresholds))


def probabilities_of(logits: Array, slope: float, intercept: float) -> Array:
    """Calibrated probabilities of mean logits."""
    return np.asarray(expit(slope * logits + intercept))
