"""Local recalibration of predicted probabilities: closed test among none, intercept, and intercept and slope.

Design notes:
- The closed testing procedure is that of Vergouwe et al. (Stat Med 2017;36:4529), without re-estimation of single
  coefficients. First, no update is tested against both updates, by the smaller p value of the two. If one of them
  fits better, intercept and slope are tested against the intercept alone (one degree of freedom).
- With fewer than ``EXACT_BELOW`` patients of the rarer outcome and a p value near the level, the first test draws
  outcomes from the predictions, because the likelihood ratio exceeds its chi-squared distribution with few events. Its
  level is 4 %, so that about 5 % of calibrated models at most are updated.
- The chosen update is shrunk by (LR - c) / LR. With c = df this is the factor of van Houwelingen & le Cessie (Stat Med
  1990;9:1303). Here c is the critical value of the likelihood ratio: an update is made only above it, so its estimate
  is too large on average. An update at the limit of the test is then none, and one with many events is whole.
- With several studies of a patient, the likelihood ratios of the intercept, and of the slope beside it, are divided by
  their design effects: the sandwich variance of the coefficient over that of independent studies, at least 1 (Rao &
  Scott, Ann Stat 1984;12:46). Events are patients.
- An update never has a negative slope, so that the order of patients is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from scipy import stats
from scipy.special import expit

from app.evaluation import logistic, metrics
from app.evaluation.clusters import Clusters, by_outcome, count, rarer_outcome, sandwich
from app.evaluation.metrics import Array, Estimate, Labels

LEVEL = 0.04
DRAWS = 499
EXACT_BELOW = 50
"""Patients of the rarer outcome below which the first test draws outcomes."""
FEWEST_EVENTS = 3
"""Patients of the rarer outcome without which nothing is updated."""
NORMAL = 1.959964


class Update(StrEnum):
    """What an update changes."""

    NONE = "none"
    INTERCEPT = "intercept"
    BOTH = "intercept and slope"


@dataclass(frozen=True)
class Recalibration:
    """An update of predicted log-odds: new log-odds = intercept + slope * log-odds.

    Attributes:
        update: What the closed test chose.
        intercept: Intercept after shrinkage.
        slope: Slope after shrinkage.
        estimates: Intercept and slope before shrinkage, with their 95 % intervals.
        shrinkage: Share of the estimated update that is applied.
        p_any: p value of no update.
        p_slope: p value of intercept and slope against the intercept alone; NaN if it was not tested.
        patients: Patients of the fit.
        events: Patients of the fit with the outcome.
    """

    update: Update
    intercept: float
    slope: float
    estimates: tuple[Estimate, Estimate]
    shrinkage: float
    p_any: float
    p_slope: float
    patients: int
    events: int

    def apply(self, probabilities: Array) -> Array:
        """Recalibrated probabilities (n,)."""
        if self.update is Update.NONE:
            return probabilities
        return np.asarray(expit(self.intercept + self.slope * logistic.log_odds(probabilities)))


def recalibrate(
    labels: Labels,
    probabilities: Array,
    *,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
    clusters: Clusters = None,
) -> Recalibration:
    """Choose and fit the update of n studies.

    Args:
        labels: (n,) 0/1.
        probabilities: (n,) predicted.
        level: Level of both tests.
        draws: Simulated sets of outcomes of the first test.
        seed: Seed of these.
        clusters: Patients (n,) if some have several studies.
    """
    x = logistic.log_odds(probabilities)
    none = logistic.log_likelihood(labels, x)
    one, both = _intercept(labels, x), _both(labels, x)
    if clusters is not None:
        none, one, both = _of_patients(labels, x, (none, one, both), clusters)
    rarer = rarer_outcome(labels, clusters)
    ratios = (2 * (one.log_likelihood - none), 2 * (both.log_likelihood - none))
    p_any = _p_any(x, probabilities, ratios, rarer, draws, seed)
    patients = count(clusters, len(labels))
    return _chosen(none, one, both, (patients, by_outcome(labels, clusters)[0]), p_any, level, rarer)


def of_fits(
    none: float,
    one: logistic.LogisticFit,
    both: logistic.LogisticFit,
    patients: int,
    events: int,
    *,
    level: float = LEVEL,
) -> Recalibration:
    """Choose the update from fits, without the patients: the same as ``recalibrate`` of them.

    Args:
        none: Log-likelihood of the predictions as they are.
        one: Fit of the intercept.
        both: Fit of intercept and slope.
        patients: Patients of the fits.
        events: Patients with the outcome.
        level: Level of both tests.

    Raises:
        ValueError: Fewer than ``EXACT_BELOW`` patients have the rarer outcome; the test would need the patients.
    """
    rarer = min(events, patients - events)
    if rarer < EXACT_BELOW:
        raise ValueError(
            f"{rarer} of {patients} patients have the rarer outcome, and the test on sums needs {EXACT_BELOW}: "
            f"{EXACT_BELOW - rarer} more"
        )
    ratios = (2 * (one.log_likelihood - none), 2 * (both.log_likelihood - none))
    return _chosen(none, one, both, (patients, events), _approximate_p(ratios), level, rarer)


def _chosen(
    none: float,
    one: logistic.LogisticFit,
    both: logistic.LogisticFit,
    counts: tuple[int, int],
    p_any: float,
    level: float,
    rarer: int,
) -> Recalibration:
    """Closed test and shrinkage; ``counts``: all patients, and those with the outcome; ``rarer``: of the rarer one."""
    patients, events = counts
    p_slope = float("nan")
    update = Update.NONE
    if p_any <= level and rarer >= FEWEST_EVENTS and both.converged:
        p_slope = float(stats.chi2.sf(max(2 * (both.log_likelihood - one.log_likelihood), 0.0), 1))
        update = Update.BOTH if p_slope <= level and both.coefficients[1] > 0 else Update.INTERCEPT
    intercept, slope, shrinkage = 0.0, 1.0, 0.0
    if update is not Update.NONE:
        fitted = both if update is Update.BOTH else one
        free = 2 if update is Update.BOTH else 1
        gained = 2 * (fitted.log_likelihood - none)
        shrinkage = max(1 - float(stats.chi2.isf(level, free)) / gained, 0.0) if gained > 0 else 0.0
        estimated = float(fitted.coefficients[1]) if update is Update.BOTH else 1.0
        intercept, slope = shrinkage * float(fitted.coefficients[0]), 1 + shrinkage * (estimated - 1)
        if not shrinkage:
            update = Update.NONE
    return Recalibration(
        update=update,
        intercept=intercept,
        slope=slope,
        estimates=_estimates(update, one, both),
        shrinkage=shrinkage,
        p_any=p_any,
        p_slope=p_slope,
        patients=patients,
        events=events,
    )


def log_loss(labels: Labels, probabilities: Array) -> float:
    """Mean negative log-likelihood per patient."""
    return -logistic.log_likelihood(labels, logistic.log_odds(probabilities)) / len(labels)


def _intercept(labels: Labels, x: Array) -> logistic.LogisticFit:
    return logistic.fit(np.ones((len(x), 1)), labels, offset=x)


def _both(labels: Labels, x: Array) -> logistic.LogisticFit:
    return logistic.fit(np.stack([np.ones_like(x), x], axis=1), labels)


def _of_patients(
    labels: Labels, x: Array, fits: tuple[float, logistic.LogisticFit, logistic.LogisticFit], clusters: Labels
) -> tuple[float, logistic.LogisticFit, logistic.LogisticFit]:
    """Log-likelihoods over their design effects, from 0 without an update on, and fits with sandwich covariances."""
    none, one, both = fits
    ones = np.ones_like(x)[:, None]
    found = []
    for fit, design, offset in ((one, ones, x), (both, np.column_stack([ones, x]), 0.0)):
        errors = labels - expit(design @ fit.coefficients + offset)
        covariance = sandwich(fit.covariance, design * errors[:, None], clusters)
        effect = max(float(covariance[-1, -1] / fit.covariance[-1, -1]), 1.0)
        found.append((covariance, effect))
    (of_one, first), (of_both, second) = found
    gained = (one.log_likelihood - none) / first
    further = (both.log_likelihood - one.log_likelihood) / second
    return (
        0.0,
        replace(one, log_likelihood=gained, covariance=of_one),
        replace(both, log_likelihood=gained + further, covariance=of_both),
    )


def _estimates(update: Update, one: logistic.LogisticFit, both: logistic.LogisticFit) -> tuple[Estimate, Estimate]:
    """Intercept and slope of the chosen update, of both without an update."""
    fitted = one if update is Update.INTERCEPT else both
    found = []
    for value, variance in zip(fitted.coefficients, np.diag(fitted.covariance), strict=True):
        half = NORMAL * float(np.sqrt(max(variance, 0.0)))
        found.append(Estimate(float(value), float(value) - half, float(value) + half))
    return found[0], found[1] if len(found) > 1 else Estimate(1.0, 1.0, 1.0)


def _p_any(x: Array, probabilities: Array, ratios: tuple[float, float], rarer: int, draws: int, seed: int) -> float:
    """P value of "no update", by the smaller p value of the tests of the intercept and of intercept and slope.

    Args:
        x: Predicted log-odds (n,).
        probabilities: Predicted (n,).
        ratios: Likelihood ratios of the intercept, and of intercept and slope, against none.
        rarer: Patients of the rarer outcome.
        draws: Simulated sets of outcomes.
        seed: Seed of these.
    """
    smaller, rough = _smaller(ratios), _approximate_p(ratios)
    if rarer >= EXACT_BELOW or not LEVEL / 8 < rough < 4 * LEVEL:  # the approximation is enough
        return rough
    rng = np.random.default_rng(seed)
    drawn = (rng.random((draws, len(x))) < probabilities).astype(np.float64)
    one, both = _ratios(drawn, x)
    found = np.minimum(stats.chi2.sf(one, 1), stats.chi2.sf(both, 2))
    return float((1 + (found <= smaller * (1 + 1e-9)).sum()) / (draws + 1))


def _smaller(ratios: tuple[float, float]) -> float:
    return float(min(stats.chi2.sf(ratios[0], 1), stats.chi2.sf(ratios[1], 2)))


def _approximate_p(ratios: tuple[float, float]) -> float:
    """P value of "no update" by the chi-squared distributions of the likelihood ratios."""
    return _by_chance(_smaller(ratios))


def _by_chance(smaller: float) -> float:
    """Chance that the smaller of both p values is at most ``smaller``; the ratios are A and A + B, chi-squared each."""
    second = stats.chi2.isf(smaller, 2)
    at = (np.arange(200) + 0.5) / 200 * (1 - smaller)  # A below its own critical value
    ones = stats.chi2.ppf(at, 1)
    return float(1 - (stats.chi2.cdf(second - ones, 1)).mean() * (1 - smaller))


def _ratios(labels: Array, x: Array, steps: int = 8) -> tuple[Array, Array]:
    """Likelihood ratios (r,) of the intercept, and of both, against none, for r sets of outcomes (r, n)."""
    middle = x.mean()
    z = x - middle
    a, b = np.full(len(labels), middle), np.ones(len(labels))
    for _ in range(steps):
        expected = expit(a[:, None] + b[:, None] * z)
        error, weight = labels - expected, expected * (1 - expected)
        s0, s1, s2 = weight.sum(1), weight @ z, weight @ z**2
        g0, g1 = error.sum(1), error @ z
        det = np.maximum(s0 * s2 - s1**2, 1e-9)
        a = a + np.clip((s2 * g0 - s1 * g1) / det, -1, 1)
        b = b + np.clip((s0 * g1 - s1 * g0) / det, -1, 1)
    none = np.logaddexp(0, x).sum()
    odds = a[:, None] + b[:, None] * z
    both = (labels * (odds - x) - np.logaddexp(0, odds)).sum(1) + none
    events, place = np.unique(labels.sum(1), return_inverse=True)
    shift = np.array([metrics.intercept_at_share(count / len(x), x) for count in events])
    shift = np.clip(shift, -20, 20)
    one = events * shift - np.logaddexp(0, x + shift[:, None]).sum(1) + none
    return np.asarray(2 * np.maximum(one, 0))[place], np.asarray(2 * np.maximum(both, 0))
