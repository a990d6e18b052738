"""Metrics of predicted probabilities: discrimination, calibration, decisions, and their uncertainty.

Design notes:
- AUC is the Mann-Whitney statistic; ties count half. Its variance and paired comparison are DeLong's (Biometrics
  1988;44:837), by mid-ranks (Sun & Xu, IEEE SPL 2014).
- The bootstrap resamples patients without strata: a resample stratified by label holds the prevalence fixed, and its
  intervals of Brier score and AUPRC are too narrow. ``python -m bench.statistics`` measures every interval's coverage.
- Conformal quantiles are class-conditional split-conformal: each class is covered at the level.
- Labels are (n,) 0/1; scores, logits and probabilities are (n,). ``clusters`` (n,) number the patients if some have
  several studies; see ``clusters.py``.
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

from app.evaluation import clusters as grouped
from app.evaluation.clusters import Clusters
from app.evaluation.equal_probabilities import all_equal, equal_parts, no_line_fits

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
    """Expected calibration error, in bins with about equal numbers of patients (``equal_parts``)."""
    gaps = [
        len(part) * abs(labels[part].mean() - probabilities[part].mean()) for part in equal_parts(probabilities, bins)
    ]
    return float(sum(gaps) / len(labels))


def platt(labels: Labels, logits: Array) -> tuple[float, float]:
    """Slope and intercept of log-odds = slope * logit + intercept, by maximum likelihood."""
    # Standardised logits: the fit converges for any level and scale of the logits.
    middle = float(logits.mean())
    scale = 1.0 if all_equal(logits) else float(logits.std())
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
    return intercept_at_share(float(labels.mean()), offsets)


def intercept_at_share(prevalence: float, offsets: Array) -> float:
    """Intercept as that of ``intercept_at``, for a prevalence."""
    if prevalence in (0.0, 1.0):
        return float(np.copysign(np.inf, prevalence - 0.5))
    middle = float(logit(prevalence))
    # The mean is monotonic in the intercept, and the root is between these bounds.
    low, high = middle - float(offsets.max()) - 1e-6, middle - float(offsets.min()) + 1e-6
    return float(brentq(lambda intercept: float(expit(offsets + intercept).mean()) - prevalence, low, high, xtol=1e-12))


def f1(labels: Labels, decided: NDArray[np.bool_]) -> float:
    """Harmonic mean of sensitivity and positive predictive value."""
    hits = int((decided & (labels == 1)).sum())
    wrong = int((decided & (labels == 0)).sum()) + int((~decided & (labels == 1)).sum())
    return 2 * hits / (2 * hits + wrong) if hits else 0.0


def best_f1_threshold(labels: Labels, probabilities: Array) -> float:
    """Threshold with the largest F1, half-way between two neighbouring probabilities."""
    order = np.argsort(-probabilities, kind="stable")
    ordered = probabilities[order]
    hits = np.cumsum(labels[order])
    # Equal probabilities are decided alike, so only the last of them can be the limit.
    last = np.append(np.diff(ordered) != 0, True)
    scores = np.where(last, 2 * hits / (np.arange(1, len(order) + 1) + labels.sum()), -1)
    best = int(scores.argmax())
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
    """A number and its interval; NaN if it cannot be estimated."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if not np.isfinite([self.value, self.low, self.high]).all():
            return "not estimable"
        between = "-" if self.low >= 0 else " to "
        return f"{self.value:.3f} ({self.low:.3f}{between}{self.high:.3f})"


NOT_ESTIMABLE = Estimate(np.nan, np.nan, np.nan)


def _normal(level: float) -> float:
    return float(stats.norm.ppf((1 + level) / 2))


def _on_log_odds(value: float, center: float, half: float) -> Estimate:
    """Estimate of a share, with an interval of ``center`` and ``half`` width in log-odds."""
    low, high = float(expit(center - half)), float(expit(center + half))
    return Estimate(value, min(low, value), max(high, value))


def auc_log_odds_error(labels: Labels, scores: Array, clusters: Clusters = None) -> float:
    """Standard error of the AUC's log-odds by DeLong or Obuchowski; NaN if it cannot be estimated."""
    area = auc(labels, scores)
    if min(grouped.by_outcome(labels, clusters)) < 2 or not 0 < area < 1:
        return np.nan
    variance = sum(float(part[0, 0]) for part in grouped.auc_covariance(labels, [scores], clusters))
    return float(np.sqrt(max(variance, 0.0)) / (area * (1 - area)))


def auc_estimate(
    labels: Labels, scores: Array, level: float = 0.95, *, by_events: bool = False, clusters: Clusters = None
) -> Estimate:
    """AUC with DeLong's interval in log-odds (Pepe 2003); with several studies of a patient, Obuchowski's.

    With ``by_events``, the quantile is Student's t with the degrees of freedom of Satterthwaite (Biometrics 1946;2:110)
    for the two outcomes, which covers better with few patients of one outcome.

    Where this variance is 0 (perfect separation, or one patient of a class), the interval is Newcombe's method 5
    (Stat Med 2006;25:559).
    """
    positives, negatives = grouped.by_outcome(labels, clusters)
    area = auc(labels, scores)
    if not positives or not negatives:
        return Estimate(area, 0.0, 1.0)
    deviation = 0.0
    if min(positives, negatives) > 1 and 0 < area < 1:
        parts = [float(part[0, 0]) for part in grouped.auc_covariance(labels, [scores], clusters)]
        deviation = float(np.sqrt(max(sum(parts), 0.0)))
    if deviation:
        quantile = _normal(level)
        if by_events:
            spread = parts[0] ** 2 / (positives - 1) + parts[1] ** 2 / (negatives - 1)
            quantile = float(stats.t.ppf((1 + level) / 2, sum(parts[:2]) ** 2 / spread))
        return _on_log_odds(area, float(logit(area)), quantile * deviation / (area * (1 - area)))
    size, pairs = (positives + negatives) / 2, positives * negatives

    def excess(candidate: float) -> float:
        spread = (2 * size - 1 - (3 * size - 3) / ((2 - candidate) * (1 + candidate))) / pairs
        return (area - candidate) ** 2 - _normal(level) ** 2 * candidate * (1 - candidate) * spread

    low = float(brentq(excess, 1e-12, area)) if area > 1e-9 else 0.0
    high = float(brentq(excess, area, 1 - 1e-12)) if area < 1 - 1e-9 else 1.0
    return Estimate(area, low, high)


def bootstrap(
    statistic: Callable[[Labels, Array], float],
    labels: Labels,
    scores: Array,
    *,
    rounds: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    by_events: bool = False,
    clusters: Clusters = None,
) -> Estimate:
    """Estimate a statistic between 0 and 1 with its interval over ``rounds`` plain resamples of the patients.

    A patient is drawn with all own studies (Field & Welsh, J R Stat Soc B 2007;69:369).

    The interval is normal in log-odds, with the SD and the bias of the resamples (Efron & Tibshirani 1993, ch. 10).

    With ``by_events``, the quantile is Student's t with as many degrees of freedom as patients of the rarer outcome,
    less one. It suits a statistic whose precision depends on these patients only, such as the AUPRC.
    """
    rng = np.random.default_rng(seed)
    rarer = min(grouped.by_outcome(labels, clusters))
    value = statistic(labels, scores)
    if rarer < 2:
        return Estimate(value, 0.0, 1.0)
    sampler = grouped.Resampler(len(labels), clusters, rng)
    drawn = (sampler.rows() for _ in range(rounds))
    values = [statistic(labels[rows], scores[rows]) for rows in drawn if 0 < labels[rows].sum() < len(rows)]
    if len(values) < 2 or np.ptp(values) == 0:  # perfect separation, or too few resamples with both outcomes
        return Estimate(value, 0.0, 1.0)
    replicates, center = logit(np.clip(values, 1e-6, 1 - 1e-6)), float(logit(np.clip(value, 1e-6, 1 - 1e-6)))
    quantile = float(stats.t.ppf((1 + level) / 2, rarer - 1)) if by_events else _normal(level)
    bias = float(replicates.mean()) - center
    return _on_log_odds(value, center - bias, quantile * float(replicates.std(ddof=1)))


def average_precision_estimate(
    labels: Labels, scores: Array, *, rounds: int = 2000, clusters: Clusters = None
) -> Estimate:
    """Area under the precision-recall curve with its bootstrap interval."""
    return bootstrap(average_precision, labels, scores, rounds=rounds, by_events=True, clusters=clusters)


def brier_estimate(labels: Labels, probabilities: Array, *, rounds: int = 2000, clusters: Clusters = None) -> Estimate:
    """Brier score with its bootstrap interval."""
    return bootstrap(brier, labels, probabilities, rounds=rounds, clusters=clusters)


def _log_odds(probabilities: Array) -> Array:
    return np.asarray(logit(np.clip(probabilities, 1e-6, 1 - 1e-6)))


def calibration_slope(
    labels: Labels, probabilities: Array, level: float = 0.95, *, clusters: Clusters = None
) -> Estimate:
    """Slope of the outcome's log-odds by the predicted log-odds, 1 for a calibrated model, with Wald's interval.

    It is not estimable if the probabilities are all equal or separate the outcomes.
    """
    x = _log_odds(probabilities)
    if no_line_fits(labels, x):
        return NOT_ESTIMABLE
    slope, intercept = platt(labels, x)
    expected = expit(slope * x + intercept)
    weights = expected * (1 - expected)
    centred = x - weights @ x / weights.sum()
    information = float(weights @ centred**2)
    error = 1 / float(np.sqrt(information))
    if clusters is not None:
        error = grouped.error_of_mean((labels - expected) * centred, clusters) * len(x) / information
    half = _normal(level) * error
    return Estimate(slope, slope - half, slope + half)


def calibration_in_the_large(
    labels: Labels, probabilities: Array, level: float = 0.95, *, clusters: Clusters = None
) -> Estimate:
    """Intercept of the outcome's log-odds with the slope fixed at 1, with Wald's interval.

    It is 0 for a calibrated model, and positive if the outcome is more frequent than predicted (Van Calster et al.,
    J Clin Epidemiol 2016;74:167).
    """
    x = _log_odds(probabilities)
    intercept = intercept_at(labels, x)
    if not np.isfinite(intercept):
        return NOT_ESTIMABLE
    expected = expit(x + intercept)
    information = float((expected * (1 - expected)).sum())
    error = 1 / float(np.sqrt(information))
    if clusters is not None:
        error = grouped.error_of_mean(labels - expected, clusters) * len(x) / information
    half = _normal(level) * error
    return Estimate(intercept, intercept - half, intercept + half)


def observed_expected(
    labels: Labels, probabilities: Array, level: float = 0.95, *, clusters: Clusters = None
) -> Estimate:
    """Ratio of the observed to the expected number of outcomes, 1 for a calibrated model.

    The interval is that of the ratio of two means, by the delta method on the logarithm, as Debray et al. (BMJ
    2017;356:i6460) pool it. It is not estimable without an outcome.
    """
    share, expected = float(labels.mean()), float(probabilities.mean())
    if share == 0 or expected == 0 or grouped.count(clusters, len(labels)) < 2:
        return NOT_ESTIMABLE
    error = observed_expected_error(labels, probabilities, clusters)
    ratio = share / expected
    return Estimate(ratio, ratio * np.exp(-_normal(level) * error), ratio * np.exp(_normal(level) * error))


def observed_expected_error(labels: Labels, probabilities: Array, clusters: Clusters = None) -> float:
    """Standard error of the logarithm of O/E."""
    return grouped.error_of_mean(labels / labels.mean() - probabilities / probabilities.mean(), clusters)


def scaled_brier(labels: Labels, probabilities: Array, level: float = 0.95, *, clusters: Clusters = None) -> Estimate:
    """Brier score scaled to 0 for the prevalence and 1 for certainty (Steyerberg et al., Epidemiology 2010;21:128).

    The interval is normal, by the delta method. It is not estimable with one class only.
    """
    share = float(labels.mean())
    spread = share * (1 - share)
    if spread == 0:
        return NOT_ESTIMABLE
    errors = (probabilities - labels) ** 2
    score = float(errors.mean())
    influence = -(errors - score) / spread + score * (1 - 2 * share) * (labels - share) / spread**2
    half = _normal(level) * grouped.error_of_mean(influence, clusters)
    value = 1 - score / spread
    return Estimate(value, value - half, value + half)


@dataclass(frozen=True)
class Comparison:
    """Difference of two AUCs on the same patients, with its interval and p value."""

    difference: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        p = f"p = {self.p:.2g}" if np.isfinite(self.p) else "p not estimable"
        return f"{self.difference:+.3f} ({self.low:+.3f} to {self.high:+.3f}), {p}"


def delong(
    labels: Labels, first: Array, second: Array, level: float = 0.95, *, clusters: Clusters = None
) -> Comparison:
    """Compare two AUCs on the same patients: AUC of ``first`` minus AUC of ``second``, within -1 and 1.

    With several studies of a patient the variance is that of Obuchowski (1997). If a class has fewer than two patients,
    or two different AUCs have no variance, every difference is possible: the interval is -1 to 1, and p is NaN.
    """
    difference = auc(labels, first) - auc(labels, second)
    if min(grouped.by_outcome(labels, clusters)) < 2:
        return Comparison(difference, -1.0, 1.0, np.nan)
    of_positives, of_negatives, of_both = grouped.auc_covariance(labels, [first, second], clusters)
    covariance = of_positives + of_negatives + of_both
    spread = float(np.sqrt(max(float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]), 0.0)))
    if not spread:
        return Comparison(difference, -1.0, 1.0, np.nan) if difference else Comparison(0.0, 0.0, 0.0, 1.0)
    half = _normal(level) * spread
    p = float(2 * stats.norm.sf(abs(difference) / spread))
    return Comparison(difference, max(difference - half, -1.0), min(difference + half, 1.0), p)


def multiplicity_note(comparisons: int) -> str:
    """Sentence on the p values of several comparisons; empty for one."""
    if comparisons < 2:
        return ""
    return (
        f"{comparisons} comparisons: p values and intervals are not adjusted for multiplicity. To keep the chance of "
        f"any false difference below 5 %, read p below {0.05 / comparisons:.2g} as a difference (Bonferroni)."
    )


def wilson(events: float, count: float, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); ``count`` may be an effective number, with ``events`` of the same."""
    share = events / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def wilson_of(flags: NDArray[np.bool_], clusters: Clusters = None) -> tuple[float, float]:
    """95 % interval of the share of true flags (n,), with the effective number of independent patients."""
    effect = grouped.design_effect(flags.astype(np.float64), clusters)
    return wilson(int(flags.sum()) / effect, len(flags) / effect)


def net_benefit(labels: Labels, probabilities: Array, thresholds: Array) -> Array:
    """Net benefit per patient of treating above each threshold (Vickers & Elkin 2006)."""
    treated = probabilities[None] >= thresholds[:, None]
    hits = (treated & (labels == 1)).mean(1)
    false = (treated & (labels == 0)).mean(1)
    return np.asarray(hits - false * thresholds / (1 - thresholds))


def probabilities_of(logits: Array, slope: float, intercept: float) -> Array:
    """Calibrated probabilities of mean logits."""
    return np.asarray(expit(slope * logits + intercept))
