"""Random-effects pooling of performance over sites, with a prediction interval for a new site.

Design notes:
- Method of Debray et al. (BMJ 2017;356:i6460): AUC is pooled as log-odds, O/E as logarithm.
- The variance between sites is the REML estimate. The interval of the mean is that of Hartung and Knapp (Stat Med
  2001;20:3875), not narrower than the normal one. The prediction interval uses Student's t, k - 2 degrees of freedom
  (Higgins et al., J R Stat Soc A 2009;172:137).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import minimize_scalar

from app.evaluation.metrics import Array, Estimate

FEWEST_SITES = 3
"""Sites without which no prediction interval exists."""


@dataclass(frozen=True)
class Pooled:
    """Pooled mean of k sites.

    Attributes:
        sites: Number of sites k.
        mean: Mean with its 95 % interval.
        prediction: 95 % prediction interval of a new site.
        tau: SD between the sites, on the scale on which they are pooled.
        i2: Share of the variance that is between the sites (Higgins & Thompson, Stat Med 2002;21:1539).
        q: Cochran's Q, the weighted squared distance of the sites from their fixed-effect mean.
        p_equal: p value of Q, of "all sites have the same value".
    """

    sites: int
    mean: Estimate
    prediction: tuple[float, float]
    tau: float
    i2: float
    q: float
    p_equal: float


def pool(values: Sequence[float], errors: Sequence[float], level: float = 0.95) -> Pooled | None:
    """Pool the estimates (k,) with their standard errors (k,); None if fewer than three can be pooled."""
    y, s = np.asarray(values, np.float64), np.asarray(errors, np.float64)
    usable = np.isfinite(y) & np.isfinite(s) & (s > 0)
    y, s = y[usable], s[usable]
    count = len(y)
    if count < FEWEST_SITES:
        return None
    tau2 = _reml(y, s**2)
    weights = 1 / (s**2 + tau2)
    mean = float((weights * y).sum() / weights.sum())
    spread = float((weights * (y - mean) ** 2).sum() / (count - 1))
    error = float(np.sqrt(max(spread, 1.0) / weights.sum()))
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * error
    ahead = float(stats.t.ppf((1 + level) / 2, count - 2)) * float(np.sqrt(tau2 + error**2))
    fixed = 1 / s**2
    typical = (count - 1) * fixed.sum() / (fixed.sum() ** 2 - (fixed**2).sum())
    q = float((fixed * (y - (fixed * y).sum() / fixed.sum()) ** 2).sum())
    return Pooled(
        sites=count,
        mean=Estimate(mean, mean - half, mean + half),
        prediction=(mean - ahead, mean + ahead),
        tau=float(np.sqrt(tau2)),
        i2=float(tau2 / (tau2 + typical)),
        q=q,
        p_equal=float(stats.chi2.sf(q, count - 1)),
    )


def _reml(y: Array, variances: Array) -> float:
    """REML estimate of the variance between sites."""

    def loss(tau2: float) -> float:
        weights = 1 / (variances + tau2)
        mean = (weights * y).sum() / weights.sum()
        return float(-np.log(weights).sum() + np.log(weights.sum()) + (weights * (y - mean) ** 2).sum())

    top = float(max(10 * y.var(), 1e-8))
    found = minimize_scalar(loss, bounds=(0.0, top), method="bounded", options={"xatol": 1e-10 + 1e-7 * top})
    return float(found.x) if loss(float(found.x)) < loss(0.0) else 0.0
