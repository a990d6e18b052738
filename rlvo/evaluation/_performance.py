"""Discrimination, calibration, Brier score and decisions of predicted probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from app.evaluation import curves, metrics, smooth_calibration, validation
from app.evaluation.metrics import Array, Comparison
from rlvo.evaluation import _inputs
from rlvo.evaluation._inputs import Values
from rlvo.evaluation._results import BrierScore, Calibration, Decisions, Discrimination, NetBenefit


def discrimination(
    outcome: Values, probability: Values, *, data: pd.DataFrame | None = None, rounds: int = 1000, seed: int = 0
) -> Discrimination:
    """AUC and average precision.

    The interval of the AUC is DeLong's (Biometrics 1988;44:837) on its log-odds, with Student's t by Satterthwaite. It
    is that of ``rlvo validate``.

    Args:
        outcome: (n,) 0/1, or the name of its column.
        probability: (n,) predicted, 0 to 1, or the name of its column.
        data: Table of the columns that are named.
        rounds: Resamples of the bootstrap of the average precision.
        seed: Seed of the bootstrap.

    Returns:
        Both areas with their 95 % intervals.

    Raises:
        ValueError: A value is missing or out of range, the lengths or indexes differ, all outcomes are equal, or
            ``rounds`` is below 1.
    """
    labels, own = _inputs.labels_and_probabilities(outcome, probability, data)
    return Discrimination(
        patients=len(labels),
        events=int(labels.sum()),
        auc=metrics.auc_estimate(labels, own, by_events=True),
        average_precision=metrics.bootstrap(
            metrics.average_precision, labels, own, rounds=_inputs.rounds_of(rounds), seed=seed, by_events=True
        ),
    )


def compare_auc(outcome: Values, first: Values, second: Values, *, data: pd.DataFrame | None = None) -> Comparison:
    """Difference of two AUCs on the same patients (DeLong, Biometrics 1988;44:837).

    Args:
        outcome: (n,) 0/1, or the name of its column.
        first: (n,) probabilities of the first predictor, or the name of their column.
        second: (n,) probabilities of the second predictor, or the name of their column.
        data: Table of the columns that are named.

    Returns:
        AUC of the first minus that of the second, with its 95 % interval and p value.

    Raises:
        ValueError: As for ``discrimination``.
    """
    _inputs.same_rows(data, ("first", first), ("second", second))
    labels, own = _inputs.labels_and_probabilities(outcome, first, data, name="first")
    _, other = _inputs.labels_and_probabilities(outcome, second, data, name="second")
    return metrics.delong(labels, own, other)


def calibration(
    outcome: Values, probability: Values, *, data: pd.DataFrame | None = None, rounds: int = 200, seed: int = 0
) -> Calibration:
    """Calibration in the large, slope, O/E, and the smooth curve with its distances.

    Intercept and slope are those of Van Calster et al. (J Clin Epidemiol 2016;74:167) with Wald's intervals, O/E has
    the interval of Debray et al. (BMJ 2017;356:i6460), ICI, E50 and E90 are those of Austin & Steyerberg (Stat Med
    2019;38:4051). The curve is a logistic regression on a restricted cubic spline of the log-odds.

    Args:
        outcome: (n,) 0/1, or the name of its column.
        probability: (n,) predicted, 0 to 1, or the name of its column.
        data: Table of the columns that are named.
        rounds: Simulated sets of outcomes for ``ici_if_calibrated``; 0: it is NaN.
        seed: Seed of the simulation.

    Returns:
        All measures, the smooth curve, and the shares in tenths of the patients.

    Raises:
        ValueError: As for ``discrimination``.
    """
    labels, own = _inputs.labels_and_probabilities(outcome, probability, data)
    smooth = smooth_calibration.smooth(labels, own, rounds=_inputs.rounds_of(rounds, 0), seed=seed)
    distances = (np.nan,) * 4 if smooth is None else (smooth.ici, smooth.e50, smooth.e90, smooth.ici_if_calibrated)
    return Calibration(
        len(labels),
        int(labels.sum()),
        metrics.calibration_in_the_large(labels, own),
        metrics.calibration_slope(labels, own),
        metrics.observed_expected(labels, own),
        *distances,
        curve=None if smooth is None else smooth.curve,
        tenths=curves.calibration(labels, own),
    )


def brier_score(
    outcome: Values, probability: Values, *, data: pd.DataFrame | None = None, rounds: int = 1000, seed: int = 0
) -> BrierScore:
    """Brier score, and the Brier score scaled by the prevalence (Steyerberg et al., Epidemiology 2010;21:128).

    Args:
        outcome: (n,) 0/1, or the name of its column.
        probability: (n,) predicted, 0 to 1, or the name of its column.
        data: Table of the columns that are named.
        rounds: Resamples of the bootstrap.
        seed: Seed of the bootstrap.

    Returns:
        Both with their 95 % intervals.

    Raises:
        ValueError: As for ``discrimination``.
    """
    labels, own = _inputs.labels_and_probabilities(outcome, probability, data)
    return BrierScore(
        patients=len(labels),
        events=int(labels.sum()),
        score=metrics.bootstrap(metrics.brier, labels, own, rounds=_inputs.rounds_of(rounds), seed=seed),
        scaled=metrics.scaled_brier(labels, own),
    )


def net_benefit(
    outcome: Values,
    probability: Values,
    thresholds: npt.ArrayLike | pd.Series[Any] = tuple(validation.THRESHOLDS),
    *,
    data: pd.DataFrame | None = None,
) -> NetBenefit:
    """Net benefit of acting from each threshold probability on (Vickers & Elkin, Med Decis Making 2006;26:565).

    The band is Wald's after two true positives and two untreated patients are added (Agresti & Coull 1998).

    Args:
        outcome: (n,) 0/1, or the name of its column.
        probability: (n,) predicted, 0 to 1, or the name of its column.
        thresholds: (k,) between 0 and 1, without both.
        data: Table of the columns that are named.

    Returns:
        Net benefit per patient with its 95 % interval, and that of acting on all.

    Raises:
        ValueError: As for ``discrimination``, or a threshold is not between 0 and 1.
    """
    labels, own = _inputs.labels_and_probabilities(outcome, probability, data)
    at = _thresholds(thresholds)
    curve = curves.decision(labels, own, at)
    assert curve.low is not None
    assert curve.high is not None
    return NetBenefit(at, curve.y, curve.low, curve.high, metrics.net_benefit(labels, np.ones(len(labels)), at))


def decisions(outcome: Values, probability: Values, threshold: float, *, data: pd.DataFrame | None = None) -> Decisions:
    """Sensitivity, specificity and predictive values of acting from one threshold probability on.

    Args:
        outcome: (n,) 0/1, or the name of its column.
        probability: (n,) predicted, 0 to 1, or the name of its column.
        threshold: Between 0 and 1, without both; a probability that is equal to it counts as above.
        data: Table of the columns that are named.

    Returns:
        The shares with Wilson's 95 % intervals.

    Raises:
        ValueError: As for ``net_benefit``.
    """
    labels, own = _inputs.labels_and_probabilities(outcome, probability, data)
    at = float(_thresholds([threshold])[0])
    return Decisions(at, tuple(validation.decisions_at(labels, own, at)))


def _thresholds(values: npt.ArrayLike | pd.Series[Any]) -> Array:
    at = _inputs.numbers(_inputs.column(values, "thresholds", None), "thresholds")
    if not len(at) or not ((at > 0) & (at < 1)).all():
        raise ValueError("thresholds: expected at least one, each between 0 and 1, without both")
    return at
