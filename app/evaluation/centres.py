"""Pools the aggregates of several sites: random effects, heterogeneity, and internal-external cross-validation.

Design notes:
- AUC, O/E and slope are pooled as in ``rlvo validate`` (Debray et al., BMJ 2017;356:i6460).
- Internal-external cross-validation leaves out each site in turn (Steyerberg & Harrell, J Clin Epidemiol 2016;69:245):
  the others are pooled, and the site is compared with their prediction interval. The recalibration of the others is
  applied to the site.
- The recalibration of several sites is one Newton step from the predictions as they are: the sums of their derivatives
  are those of one table. Its gain at another site is that site's log-likelihood to second order. Both are near the
  exact ones for a small update; ``app.evaluation.federated`` gives the exact fit, by more rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from app.evaluation import pooling
from app.evaluation.aggregate import Aggregate, Measured
from app.evaluation.curves import NORMAL
from app.evaluation.metrics import Array, Estimate
from app.evaluation.pooling import Pooled
from app.evaluation.validation import POOLED_SCALES, PooledMeasure

START = np.array([0.0, 1.0])
"""Intercept and slope of the predictions as they are."""
WORST = 1e10
"""Condition of the information beyond which intercept and slope cannot be told apart."""
MEASURES = tuple(name for name, _, _ in POOLED_SCALES)


@dataclass(frozen=True)
class Centre:
    """AUC, O/E and slope of one site with their 95 % intervals; None if not estimable."""

    site: str
    patients: int
    events: int
    estimates: tuple[Estimate | None, Estimate | None, Estimate | None]


@dataclass(frozen=True)
class LeftOut:
    """One site against the others.

    Attributes:
        site: The site.
        predictions: 95 % prediction intervals of the site's AUC, O/E and slope, from the other sites and its own error;
            None if fewer than three sites are left.
        inside: Whether the site's own estimate lies in it.
        intercept: Intercept of the other sites' recalibration; NaN without one.
        slope: Its slope.
        gain: Log-loss per patient at this site that the other sites' recalibration saves; negative: it costs.
    """

    site: str
    predictions: tuple[tuple[float, float] | None, ...]
    inside: tuple[bool | None, ...]
    intercept: float
    slope: float
    gain: float


@dataclass(frozen=True)
class Centres:
    """What the aggregates of several sites say together.

    ``recalibration`` is intercept and slope over all sites with their intervals; None if they cannot be told apart.
    """

    centres: tuple[Centre, ...]
    pooled: tuple[PooledMeasure, ...]
    left_out: tuple[LeftOut, ...]
    recalibration: tuple[Estimate, Estimate] | None

    @property
    def patients(self) -> int:
        """Patients of all sites."""
        return sum(one.patients for one in self.centres)

    @property
    def events(self) -> int:
        """Patients of all sites with the outcome."""
        return sum(one.events for one in self.centres)


def pool(aggregates: Sequence[Aggregate]) -> Centres:
    """Pool the aggregates of k sites on one predictor.

    Raises:
        ValueError: Two aggregates are of one site, or of different predictors.
    """
    check(aggregates)
    pooled = enumerate(_pooled(aggregates))
    return Centres(
        centres=tuple(_centre(one) for one in aggregates),
        pooled=tuple(PooledMeasure.of(place, found) for place, found in pooled if found is not None),
        left_out=tuple(_left_out(aggregates, place) for place in range(len(aggregates))),
        recalibration=_recalibration(aggregates),
    )


def check(aggregates: Sequence[Aggregate]) -> None:
    """Check that the aggregates are of different sites and of one predictor.

    Raises:
        ValueError: They are not.
    """
    names = [one.site.casefold() for one in aggregates]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two aggregates are of the same site: {', '.join(repeated)}; give one of each site")
    predictors = {(one.predictor, one.predictor_digest) for one in aggregates}
    if len(predictors) > 1:
        shown = ", ".join(sorted({one.predictor for one in aggregates}))
        raise ValueError(f"the aggregates are of different predictors or digests ({shown}); pool each alone")


def _measured(one: Aggregate) -> tuple[Measured | None, Measured | None, Measured | None]:
    """AUC, O/E and slope, each with the error on its scale."""
    return one.auc, one.observed_expected, one.slope


def _information(one: Aggregate) -> Array:
    a, ab, b = one.derivatives.information
    return np.array([[a, ab], [ab, b]])


def _centre(one: Aggregate) -> Centre:
    found: list[Estimate | None] = []
    for measured, (_, to, back) in zip(_measured(one), POOLED_SCALES, strict=True):
        if measured is None:
            found.append(None)
            continue
        middle, half = to(measured.value), NORMAL * measured.error
        found.append(Estimate(measured.value, back(middle - half), back(middle + half)))
    return Centre(one.site, one.patients, one.events, (found[0], found[1], found[2]))


def _pooled(aggregates: Sequence[Aggregate]) -> list[Pooled | None]:
    """Pooled AUC, O/E and slope, each on the scale of the pooling."""
    columns = zip(*(_measured(one) for one in aggregates), strict=True)
    result = []
    for column, (_, to, _) in zip(columns, POOLED_SCALES, strict=True):
        known = [one for one in column if one is not None]
        result.append(pooling.pool([to(one.value) for one in known], [one.error for one in known]))
    return result


def _summed(aggregates: Sequence[Aggregate]) -> tuple[Array, Array] | None:
    """Change of intercept and slope (2,) over the sites, and its covariance (2, 2); None if there is none."""
    information = np.sum([_information(one) for one in aggregates], axis=0)
    if not aggregates or np.linalg.cond(information) > WORST:
        return None
    covariance = np.asarray(np.linalg.inv(information), np.float64)
    gradient = np.sum([one.derivatives.gradient for one in aggregates], axis=0)
    return np.asarray(covariance @ gradient, np.float64), covariance


def _recalibration(aggregates: Sequence[Aggregate]) -> tuple[Estimate, Estimate] | None:
    summed = _summed(aggregates)
    if summed is None:
        return None
    halves = NORMAL * np.sqrt(np.diag(summed[1]))
    estimates = summed[0] + START
    first, second = (Estimate(float(v), float(v - h), float(v + h)) for v, h in zip(estimates, halves, strict=True))
    return first, second


def _left_out(aggregates: Sequence[Aggregate], place: int) -> LeftOut:
    own, others = aggregates[place], [one for at, one in enumerate(aggregates) if at != place]
    predictions: list[tuple[float, float] | None] = []
    inside: list[bool | None] = []
    found: list[Pooled | None] = _pooled(others) if others else [None] * len(POOLED_SCALES)
    for pooled, measured, (_, to, back) in zip(found, _measured(own), POOLED_SCALES, strict=True):
        if pooled is None:
            predictions.append(None)
            inside.append(None)
            continue
        if measured is None:
            predictions.append((back(pooled.prediction[0]), back(pooled.prediction[1])))
            inside.append(None)
            continue
        # The site's estimate varies about its true value, for which the prediction interval is.
        own_half = float(stats.t.ppf(0.975, pooled.sites - 2)) * measured.error
        half = float(np.hypot((pooled.prediction[1] - pooled.prediction[0]) / 2, own_half))
        middle = pooled.mean.value
        predictions.append((back(middle - half), back(middle + half)))
        inside.append(bool(abs(to(measured.value) - middle) <= half))
    summed = _summed(others)
    if summed is None:
        return LeftOut(own.site, tuple(predictions), tuple(inside), np.nan, np.nan, np.nan)
    change = summed[0]
    gain = float(change @ np.asarray(own.derivatives.gradient)) - float(change @ _information(own) @ change) / 2
    intercept, slope = (float(value) for value in change + START)
    return LeftOut(own.site, tuple(predictions), tuple(inside), intercept, slope, gain / own.patients)
