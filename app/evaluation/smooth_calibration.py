"""Smooth calibration curve with its band, and the distances ICI, E50 and E90.

Design notes:
- The smoother is a logistic regression of the outcome on a restricted cubic spline of the predicted log-odds (Harrell,
  Regression Modeling Strategies, 2nd ed. 2015, sections 2.4.6 and 10.5). Knots are at Harrell's quantiles.
- The spline has five knots if the rarer outcome has 100 patients or more, three from 20 on, and is a line below. With
  few patients a free curve follows chance (Van Calster et al., J Clin Epidemiol 2016;74:167).
- The band is Wald's at each point, on the log-odds; with several studies of a patient, with the sandwich variance.
- ICI is the mean distance between curve and prediction over the patients, E50 its median, E90 its 90 % quantile (Austin
  & Steyerberg, Stat Med 2019;38:4051). They are above 0 also for a calibrated model. Their 95 % quantile for a
  calibrated model of the same patients is given beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from app.evaluation import clusters as grouped
from app.evaluation import logistic
from app.evaluation.clusters import Clusters
from app.evaluation.curves import NORMAL, Curve
from app.evaluation.equal_probabilities import all_equal
from app.evaluation.metrics import Array, Labels

KNOTS = {5: (0.05, 0.275, 0.5, 0.725, 0.95), 3: (0.1, 0.5, 0.9)}
FIVE_FROM, THREE_FROM = 100, 20
"""Patients of the rarer outcome from which a spline has five and three knots."""
FEWEST = 2
"""Patients of the rarer outcome without which there is no curve."""
POINTS = 100


@dataclass(frozen=True)
class SmoothCalibration:
    """Smooth calibration curve, and the distances between observed and predicted probability.

    Attributes:
        curve: Observed over predicted probability, 100 points between the 1 % and the 99 % quantile, with a 95 % band.
        knots: Number of knots of the spline; 0: a line.
        ici: Mean distance.
        e50: Median distance.
        e90: 90 % quantile of the distances.
        ici_if_calibrated: 95 % quantile of the ICI if the predictions were right.
    """

    curve: Curve
    knots: int
    ici: float
    e50: float
    e90: float
    ici_if_calibrated: float


def smooth(
    labels: Labels, probabilities: Array, *, rounds: int = 200, seed: int = 0, clusters: Clusters = None
) -> SmoothCalibration | None:
    """Smooth calibration of n patients; None if the probabilities are equal or the outcomes can be separated.

    Args:
        labels: (n,) 0/1.
        probabilities: (n,).
        rounds: Simulated sets of outcomes for ``ici_if_calibrated``.
        seed: Seed of these.
        clusters: (n,) patients; see ``clusters.py``.
    """
    rarer = int(min(labels.sum(), len(labels) - labels.sum()))
    x = logistic.log_odds(probabilities)
    if rarer < FEWEST or all_equal(x):
        return None
    wanted = 5 if rarer >= FIVE_FROM else 3 if rarer >= THREE_FROM else 0
    knots = np.unique(np.quantile(x, KNOTS[wanted])) if wanted else np.empty(0)
    if len(knots) < 3:
        knots = np.empty(0)
    design = _design(x, knots)
    fitted = logistic.fit(design, labels)
    if not fitted.converged:
        return None
    distances = _distances(fitted, design, probabilities)
    at = np.linspace(float(np.quantile(x, 0.01)), float(np.quantile(x, 0.99)), POINTS)
    rows = _design(at, knots)
    odds = rows @ fitted.coefficients
    residuals = (labels - expit(design @ fitted.coefficients))[:, None]
    covariance = grouped.sandwich(fitted.covariance, design * residuals, clusters)
    half = NORMAL * np.sqrt(np.maximum(np.einsum("ni,ij,nj->n", rows, covariance, rows), 0))
    rng = np.random.default_rng(seed)
    simulated = []
    for _ in range(rounds):
        drawn = (rng.random(len(labels)) < probabilities).astype(np.int64)
        if 0 < drawn.sum() < len(drawn):
            simulated.append(float(_distances(logistic.fit(design, drawn), design, probabilities).mean()))
    return SmoothCalibration(
        curve=Curve(expit(at), expit(odds), expit(odds - half), expit(odds + half)),
        knots=len(knots),
        ici=float(distances.mean()),
        e50=float(np.median(distances)),
        e90=float(np.quantile(distances, 0.9)),
        ici_if_calibrated=float(np.quantile(simulated, 0.95)) if simulated else np.nan,
    )


def _distances(fitted: logistic.LogisticFit, design: Array, probabilities: Array) -> Array:
    return np.asarray(np.abs(expit(design @ fitted.coefficients) - probabilities))


def _design(x: Array, knots: Array) -> Array:
    """Columns 1, x and the restricted cubic terms of x (n,) (Harrell 2015, equation 2.25)."""
    columns = [np.ones_like(x), x]
    if len(knots):
        last, before = knots[-1], knots[-2]
        scale = (last - knots[0]) ** 2

        def cubed(knot: float) -> Array:
            return np.asarray(np.maximum(x - knot, 0) ** 3)

        for knot in knots[:-2]:
            inner = cubed(before) * (last - knot) / (last - before) - cubed(last) * (before - knot) / (last - before)
            columns.append((cubed(knot) - inner) / scale)
    return np.stack(columns, axis=1)
