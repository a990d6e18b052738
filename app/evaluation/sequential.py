"""Interim looks at one measure that keep its error rate over all looks.

Design notes:
- AUC: bounds by alpha spending (Lan & DeMets, Biometrika 1983;70:659) with the O'Brien-Fleming-type function, at the
  share of the planned patients. A sequence of AUCs has independent increments (Tang et al., Biometrics 2008;64:1137).
  Its information grows with the patients, so the bounds need no answer.
- The interval of a look is the repeated confidence interval (Jennison & Turnbull, J R Stat Soc B 1989;51:305).
- Gain of the Brier score: the empirical-Bernstein confidence sequence of Waudby-Smith & Ramdas (J R Stat Soc B
  2024;86:1, theorem 2), the class of Howard et al. (Ann Stat 2021;49:1055). It is exact at any number of patients.
- ``alpha`` is the error on one side of the margin. An interval has the level 1 - 2 alpha over all looks together.
- ``python -m bench site_trust`` prints the error rates of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from app.evaluation import metrics
from app.evaluation.metrics import Array, Estimate, Labels

POINTS = 1501  # of the grid of each density
WIDEST = 8.0  # standard errors; a bound beyond is never crossed
LARGEST_BET = 0.5
LEAST_TAIL = 1e-9  # of a bound, for quantiles that stay finite


class TrialMeasure(StrEnum):
    """Primary measure of a trial."""

    AUC = "auc"
    BRIER_GAIN = "brier-gain"

    @property
    def method(self) -> str:
        """Method of the looks."""
        if self is TrialMeasure.AUC:
            return "alpha spending (Lan & DeMets 1983, O'Brien-Fleming type), DeLong's variance in log-odds"
        return "empirical-Bernstein confidence sequence (Waudby-Smith & Ramdas 2024)"


class LookVerdict(StrEnum):
    """What a look says of the margin."""

    ABOVE = "above"
    BELOW = "below"
    CONTINUE = "continue"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class LookPlan:
    """Planned looks.

    Attributes:
        measure: Primary measure.
        margin: Value of the measure that the version must exceed.
        alpha: Error on one side of the margin, over all looks.
        looks: Patients with a known outcome at each look, ascending; the last is the size of the trial.
        reference: Probability that every patient gets from the comparator of the Brier score.
    """

    measure: TrialMeasure
    margin: float
    alpha: float
    looks: tuple[int, ...]
    reference: float = 0.5

    @property
    def size(self) -> int:
        """Planned number of patients with a known outcome."""
        return self.looks[-1]


@dataclass(frozen=True)
class Look:
    """Result of one look; ``bound`` is in standard errors, None for a confidence sequence."""

    patients: int
    events: int
    estimate: Estimate
    bound: float | None
    verdict: LookVerdict


def spent(alpha: float, time: float) -> float:
    """Error spent at a share ``time`` of the planned patients, by the O'Brien-Fleming-type function."""
    if time <= 0:
        return 0.0
    return float(2 * stats.norm.sf(stats.norm.isf(alpha / 2) / np.sqrt(min(time, 1.0))))


@lru_cache(maxsize=256)
def bounds(alpha: float, times: tuple[float, ...]) -> tuple[float, ...]:
    """Bounds of the standardised statistic at each look, in standard errors.

    Args:
        alpha: Error on one side.
        times: Patients at each look as a share of the planned ones, ascending; the information grows with them.
    """
    found: list[float] = []
    points, density = np.zeros(1), np.ones(1)  # of the score; before the first look, a point mass at 0
    weights, before, used = np.ones(1), 0.0, 0.0
    for time in times:
        step = float(np.sqrt(time - before))
        due = spent(alpha, time) - used
        bound = _solve(due, points, weights * density, time, step)
        found.append(bound)
        grid = np.linspace(-WIDEST * np.sqrt(time), bound * np.sqrt(time), POINTS)
        kernel = stats.norm.pdf((grid[:, None] - points[None]) / step) / step
        points, density = grid, kernel @ (weights * density)
        weights = np.full(POINTS, grid[1] - grid[0])
        weights[[0, -1]] /= 2
        before, used = time, used + due
    return tuple(found)


def _solve(due: float, points: Array, mass: Array, time: float, step: float) -> float:
    """Bound that ``due`` of the ``mass`` (n,) at the scores ``points`` (n,) crosses after one more step."""

    def excess(bound: float) -> float:
        return float(mass @ stats.norm.sf((bound * np.sqrt(time) - points) / step)) - due

    return WIDEST if excess(WIDEST) >= 0 else float(brentq(excess, -WIDEST, WIDEST, xtol=1e-9))


def confidence_sequence(values: Array, alpha: float, size: int) -> tuple[float, float]:
    """Interval of the mean of ``values`` (n,) within 0 and 1, at every n together; narrowest near ``size`` values.

    The level is 1 - 2 ``alpha``. The order of the values is that in which they became known.
    """
    if not len(values):
        return 0.0, 1.0
    counts = np.arange(1, len(values) + 1)
    means = (0.5 + np.cumsum(values)) / (counts + 1)
    earlier = np.concatenate([[0.5], means[:-1]])
    variances = (0.25 + np.cumsum((values - means) ** 2)) / (counts + 1)
    known = np.concatenate([[0.25], variances[:-1]])
    bets = np.minimum(np.sqrt(2 * np.log(1 / alpha) / (known * size)), LARGEST_BET)
    total = float(bets.sum())
    center = float(bets @ values) / total
    half = (np.log(1 / alpha) + float((values - earlier) ** 2 @ (-np.log1p(-bets) - bets))) / total
    return max(0.0, center - half), min(1.0, center + half)


def brier_gains(labels: Labels, probabilities: Array, reference: float) -> tuple[Array, float, float]:
    """Gain of each patient (n,) against the comparator, and the smallest and largest gain that is possible."""
    gains = (reference - labels) ** 2 - (probabilities - labels) ** 2
    return gains, -(1 - min(reference, 1 - reference) ** 2), max(reference, 1 - reference) ** 2


def look(
    plan: LookPlan, labels: Labels, probabilities: Array, earlier: Sequence[int] = (), *, final: bool = False
) -> Look:
    """Evaluate one look.

    Args:
        plan: The planned looks.
        labels: Outcomes (n,), in the order in which they became known.
        probabilities: Sealed answers (n,).
        earlier: Patients at the looks before, ascending; each saw the first of these patients.
        final: Whether no look follows.
    """
    bound: float | None = None
    if plan.measure is TrialMeasure.AUC:
        bound, estimate = _area(plan, labels, probabilities, earlier)
    else:
        gains, low, high = brier_gains(labels, probabilities, plan.reference)
        ends = confidence_sequence((gains - low) / (high - low), plan.alpha, plan.size)
        estimate = Estimate(float(gains.mean()), *(low + (high - low) * end for end in ends))
    return Look(len(labels), int(labels.sum()), estimate, bound, _verdict(plan, estimate, final=final))


def look_bound(plan: LookPlan, patients: int, earlier: Sequence[int]) -> float:
    """Bound of a look at the AUC, in standard errors; it needs neither an answer nor an outcome."""
    sizes = (*(size for size in earlier if size < patients), patients)
    return bounds(plan.alpha, tuple(size / plan.size for size in sizes))[-1]


def _area(plan: LookPlan, labels: Labels, probabilities: Array, earlier: Sequence[int]) -> tuple[float, Estimate]:
    bound = look_bound(plan, len(labels), earlier)
    level = 1 - 2 * max(float(stats.norm.sf(bound)), LEAST_TAIL)
    return bound, metrics.auc_estimate(labels, probabilities, level, by_events=True)


def _verdict(plan: LookPlan, estimate: Estimate, *, final: bool) -> LookVerdict:
    if estimate.low > plan.margin:
        return LookVerdict.ABOVE
    if estimate.high < plan.margin:
        return LookVerdict.BELOW
    return LookVerdict.INCONCLUSIVE if final or not np.isfinite(estimate.low) else LookVerdict.CONTINUE
