"""Logistic regression by Newton's method, with offset, weights and a ridge penalty; returns the covariance.

Design notes:
- scikit-learn's logistic regression has neither an offset nor a covariance, and both are needed here.
- The designs are small (at most some tens of columns), so that the full Hessian is cheap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from app.evaluation.metrics import Array, Labels

MAX_STEPS = 100
TOLERANCE = 1e-10
LARGEST_ODDS = 25.0
"""Log-odds of a fit beyond which the outcomes count as separated."""


@dataclass(frozen=True)
class LogisticFit:
    """Coefficients (k,) and their covariance (k, k); ``converged`` is False for separated outcomes."""

    coefficients: Array
    covariance: Array
    log_likelihood: float
    converged: bool


def log_odds(probabilities: Array) -> Array:
    """Log-odds (n,) of probabilities (n,), which are first moved to 1e-6 to 1 - 1e-6."""
    return np.asarray(logit(np.clip(probabilities, 1e-6, 1 - 1e-6)))


def log_likelihood(labels: Labels | Array, odds: Array) -> float:
    """Log-likelihood of the labels (n,) at the log-odds (n,)."""
    return float((labels * odds - np.logaddexp(0, odds)).sum())


def fit(
    design: Array,
    labels: Labels,
    *,
    offset: Array | None = None,
    weights: Array | None = None,
    ridge: Array | float = 0.0,
) -> LogisticFit:
    """Fit the log-odds ``design @ coefficients + offset`` by maximum (penalised) likelihood.

    Args:
        design: (n, k) columns, with the column of ones if an intercept is wanted.
        labels: (n,) 0/1.
        offset: (n,) fixed part of the log-odds; None: 0.
        weights: (n,) weights of the patients; None: 1.
        ridge: Penalty of half the squared coefficients, (k,) or one number.

    Returns:
        The fit. Its covariance is the inverse of the penalised information.
    """
    count, columns = design.shape
    offset = np.zeros(count) if offset is None else offset
    weights = np.ones(count) if weights is None else weights
    penalty = np.broadcast_to(np.asarray(ridge, np.float64), (columns,))
    beta = np.zeros(columns)

    def objective(candidate: Array) -> float:
        odds = design @ candidate + offset
        return float((weights * (labels * odds - np.logaddexp(0, odds))).sum() - (penalty * candidate**2).sum() / 2)

    value, converged = objective(beta), False
    information = np.eye(columns)
    for _ in range(MAX_STEPS):
        expected = expit(design @ beta + offset)
        gradient = design.T @ (weights * (labels - expected)) - penalty * beta
        information = (design.T * (weights * expected * (1 - expected))) @ design + np.diag(penalty)
        step = np.linalg.lstsq(information, gradient, rcond=None)[0]
        scale = 1.0
        while scale > 1e-8 and objective(beta + scale * step) < value - 1e-12:
            scale /= 2
        beta = beta + scale * step
        change, value = abs(objective(beta) - value), objective(beta)
        if change <= TOLERANCE * (1 + abs(value)):
            converged = bool(np.abs(gradient).max() < 1e-3 * max(1.0, weights.sum()))
            break
    separated = bool(np.abs(design @ beta).max() > LARGEST_ODDS)
    converged = converged and not separated
    covariance = np.asarray(np.linalg.pinv(information, hermitian=True), np.float64)
    return LogisticFit(beta, covariance, value, converged)
