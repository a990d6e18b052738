"""How good probabilities are: discrimination, calibration, decisions, and how sure we may be of each number.

Notable choices:
- AUC is the Mann-Whitney statistic, with ties counted half; its variance and paired comparison are DeLong's (Biometrics
  1988;44:837), by mid-ranks (Sun & Xu, IEEE SPL 2014).
- Bootstrap is stratified by label: the prevalence stays as it is.
- Calibration slope and intercept come from an unpenalised logistic regression of the outcome on the log-odds.
- Conformal quantiles are class-conditional split-conformal: each class is covered at the level on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import minimize
from scipy.special import expit, logit

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def auc(labels: Labels, scores: Array) -> float:
    """Area under the ROC curve; 0.5 where there is one class only."""
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
    # Equal scores are one threshold: precision is read at the last of them.
    last = np.append(np.diff(scores[order]) != 0, True)
    found = np.cumsum(hits)[last]
    precision = found / (np.flatnonzero(last) + 1)
    return float((np.diff(found, prepend=0) * precision).sum() / hits.sum())


def brier(labels: Labels, probabilities: Array) -> float:
    """Mean squared error of the probabilities."""
    return float(((probabilities - labels) ** 2).mean())


def calibration_error(labels: Labels, probabilities: Array, bins: int = 10) -> float:
    """Expected calibration error over bins of equal size."""
    order = np.argsort(probabilities, kind="stable")
    gaps = [
        len(part) * abs(labels[part].mean() - probabilities[part].mean())
        for part in np.array_split(order, bins)
        if len(part)
    ]
    return float(sum(gaps) / len(labels))


def platt(labels: Labels, logits: Array) -> tuple[float, float]:
    """Slope and intercept of log-odds = slope * logit + intercept, by maximum likelihood."""

    def loss(line: Array) -> tuple[float, Array]:
        odds = line[0] * logits + line[1]
        error = expit(odds) - labels
        value = np.logaddexp(0, odds).mean() - (labels * odds).mean()
        return float(value), np.array([(error * logits).mean(), error.mean()])

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS", options={"gtol": 1e-7})
    return float(found.x[0]), float(found.x[1])


def calibration_line(labels: Labels, probabilities: Array) -> tuple[float, float]:
    """Calibration slope and intercept: 1 and 0 for a perfect model."""
    return platt(labels, logit(np.clip(probabilities, 1e-6, 1 - 1e-6)))


def f1(labels: Labels, decided: NDArray[np.bool_]) -> float:
    """Harmonic mean of sensitivity and positive predictive value."""
    hits = int((decided & (labels == 1)).sum())
    wrong = int((decided & (labels == 0)).sum()) + int((~decided & (labels == 1)).sum())
    return 2 * hits / (2 * hits + wrong) if hits else 0.0


def best_f1_threshold(labels: Labels, probabilities: Array) -> float:
    """The threshold with the largest F1, half-way between two neighbouring probabilities."""
    order = np.argsort(-probabilities, kind="stable")
    hits = np.cumsum(labels[order])
    scores = 2 * hits / (np.arange(1, len(order) + 1) + labels.sum())
    place = int(scores.argmax())
    ordered = probabilities[order]
    after = ordered[place + 1] if place + 1 < len(ordered) else 0.0
    return float(np.clip((ordered[place] + after) / 2, 1e-6, 1 - 1e-6))


def conformal_thresholds(labels: Labels, probabilities: Array, level: float) -> tuple[float, float]:
    """Least probability of the true class that keeps ``level`` of each class: (of class 0, of class 1)."""
    found = []
    for value, given in ((0, 1 - probabilities), (1, probabilities)):
        own = np.sort(given[labels == value])
        # With n calibration patients the k-th smallest, k = floor((n + 1) (1 - level)), covers at least ``level``.
        place = int(np.floor((len(own) + 1) * (1 - level)))
        found.append(float(own[place - 1]) if place >= 1 else 0.0)
    return found[0], found[1]


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
    """The statistic with its percentile interval over stratified resamples."""
    rng = np.random.default_rng(seed)
    classes = [np.flatnonzero(labels == value) for value in (0, 1)]
    drawn = []
    for _ in range(rounds):
        rows = np.concatenate([rng.choice(own, len(own)) for own in classes if len(own)])
        drawn.append(statistic(labels[rows], scores[rows]))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(statistic(labels, scores), float(low), float(high))


@dataclass(frozen=True)
class Comparison:
    """AUC of the first minus AUC of the second, on the same patients."""

    difference: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        return f"{self.difference:+.3f} ({self.low:+.3f} to {self.high:+.3f}), p = {self.p:.2g}"


def delong(labels: Labels, first: Array, second: Array, level: float = 0.95) -> Comparison:
    """Paired comparison of two AUCs."""
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
    """The 95 % interval of a share (Wilson 1927)."""
    share = events / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def net_benefit(labels: Labels, probabilities: Array, thresholds: Array) -> Array:
    """Net benefit of acting above each threshold (Vickers & Elkin 2006), per patient."""
    acted = probabilities[None] >= thresholds[:, None]
    hits = (acted & (labels == 1)).mean(1)
    false = (acted & (labels == 0)).mean(1)
    return np.asarray(hits - false * thresholds / (1 - thresholds))


def probabilities_of(logits: Array, slope: float, intercept: float) -> Array:
    """Calibrated probabilities of mean logits."""
    return np.asarray(expit(slope * logits + intercept))
