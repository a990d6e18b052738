"""Patients that an external validation or a recalibration needs for a wanted precision.

Design notes:
- The criteria are those of Riley et al. (Stat Med 2021;40:4230; BMJ 2024;384:e074821): the width of the 95 % interval
  of O/E, calibration slope, AUC and standardised net benefit.
- The predicted log-odds are assumed to be normal. Integrals are by Gauss-Hermite quadrature, or sums on a fine grid
  (AUC, sensitivity, specificity); no simulation is needed.
- A recalibration needs as many patients as fix the new intercept (the slope is fixed at 1), and the slope.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import asinh, ceil, sqrt

import numpy as np
from scipy import stats
from scipy.optimize import brentq
from scipy.special import expit

from app.evaluation.metrics import Array

NORMAL = 1.959964
NODES = 200


@dataclass(frozen=True)
class Criterion:
    """One criterion: what is estimated, the wanted width of its 95 % interval, and the patients that it needs."""

    name: str
    width: float
    patients: int


@dataclass(frozen=True)
class Predictions:
    """Normal distribution of the predicted log-odds."""

    mean: float
    sd: float

    @classmethod
    def of(cls, prevalence: float, auc: float) -> Predictions:
        """Return the distribution that gives this prevalence and AUC to a calibrated model."""

        def at(sd: float) -> Predictions:
            mean = brentq(lambda m: cls(float(m), sd).prevalence - prevalence, -100, 100, xtol=1e-10)
            return cls(float(mean), sd)

        return at(float(brentq(lambda sd: at(float(sd)).auc - auc, 1e-3, 12, xtol=1e-8)))

    @property
    def prevalence(self) -> float:
        """Mean probability."""
        x, weights = self._points()
        return float(weights @ expit(x))

    @property
    def auc(self) -> float:
        """AUC of a calibrated model with these predictions."""
        x = np.linspace(self.mean - 9 * self.sd, self.mean + 9 * self.sd, 4001)
        density = stats.norm.pdf(x, self.mean, self.sd)
        events, others = density * expit(x), density * expit(-x)
        below = np.cumsum(others) - others / 2
        return float((events @ below) / (events.sum() * others.sum()))

    def information(self, intercept: float = 0.0, slope: float = 1.0) -> tuple[float, float, float]:
        """Information of one patient on the intercept, on both, and on the slope."""
        x, weights = self._points()
        p = expit(intercept + slope * x)
        own = weights * p * (1 - p)
        return float(own.sum()), float(own @ x), float(own @ x**2)

    def above(self, threshold: float) -> tuple[float, float]:
        """Sensitivity and specificity of the decision at a probability."""
        limit = float(np.log(threshold / (1 - threshold)))
        x = np.linspace(self.mean - 9 * self.sd, self.mean + 9 * self.sd, 20_001)
        density = stats.norm.pdf(x, self.mean, self.sd)
        events, others = density * expit(x), density * expit(-x)
        return float(events[x >= limit].sum() / events.sum()), float(others[x < limit].sum() / others.sum())

    def _points(self) -> tuple[Array, Array]:
        nodes, weights = _nodes()
        return self.mean + self.sd * nodes, weights


@lru_cache(maxsize=1)
def _nodes() -> tuple[Array, Array]:
    """Nodes and weights (``NODES``,) of the standard normal distribution."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    return nodes, weights / weights.sum()


def observed_expected(prevalence: float, width: float) -> int:
    """Patients for an interval of O/E = 1 with this width (Riley et al. 2021)."""
    error = asinh(width / 2) / NORMAL
    return ceil((1 - prevalence) / (prevalence * error**2))


def slope(predictions: Predictions, width: float) -> int:
    """Patients for an interval of the calibration slope with this width (Riley et al. 2021)."""
    a, ab, b = predictions.information()
    return ceil(a / ((a * b - ab**2) * (width / (2 * NORMAL)) ** 2))


def area(prevalence: float, auc: float, width: float) -> int:
    """Patients for an interval of the AUC with this width, by Newcombe's variance (Stat Med 2006;25:559)."""

    def error(count: float) -> float:
        rest = (1 - auc) / (2 - auc) + auc / (1 + auc)
        variance = auc * (1 - auc) * (1 + (count / 2 - 1) * rest) / (count**2 * prevalence * (1 - prevalence))
        return 2 * NORMAL * sqrt(variance) - width

    return 2 if error(2) <= 0 else ceil(brentq(error, 2, 1e9))


def net_benefit(predictions: Predictions, threshold: float, width: float) -> int:
    """Patients for an interval of the standardised net benefit with this width (Riley et al. 2021)."""
    prevalence = predictions.prevalence
    sensitivity, specificity = predictions.above(threshold)
    odds = (1 - prevalence) / prevalence * threshold / (1 - threshold)
    variance = (
        sensitivity * (1 - sensitivity) / prevalence
        + odds**2 * specificity * (1 - specificity) / (1 - prevalence)
        + odds**2 * (1 - specificity) ** 2 / (prevalence * (1 - prevalence))
    )
    return ceil(variance / (width / (2 * NORMAL)) ** 2)


def intercept(predictions: Predictions, width: float) -> int:
    """Patients for an interval of the new intercept with this width, the slope fixed at 1."""
    return ceil(1 / (predictions.information()[0] * (width / (2 * NORMAL)) ** 2))


def validation(
    predictions: Predictions,
    prevalence: float,
    auc: float,
    *,
    oe_width: float = 0.2,
    slope_width: float = 0.2,
    auc_width: float = 0.1,
    threshold: float | None = None,
    benefit_width: float = 0.2,
) -> list[Criterion]:
    """Return the criteria of a validation; the largest number of patients is the size of the study."""
    found = [
        Criterion("O/E", oe_width, observed_expected(prevalence, oe_width)),
        Criterion("calibration slope", slope_width, slope(predictions, slope_width)),
        Criterion("AUC", auc_width, area(prevalence, auc, auc_width)),
    ]
    if threshold is not None:
        size = net_benefit(predictions, threshold, benefit_width)
        found.append(Criterion(f"standardised net benefit at {threshold:g}", benefit_width, size))
    return found


def recalibration(
    predictions: Predictions, *, intercept_width: float = 1.0, slope_width: float = 0.8
) -> list[Criterion]:
    """Return the criteria of a recalibration: patients for a new intercept, and for a new intercept and slope."""
    return [
        Criterion("recalibration: intercept", intercept_width, intercept(predictions, intercept_width)),
        Criterion("recalibration: intercept and slope", slope_width, slope(predictions, slope_width)),
    ]
