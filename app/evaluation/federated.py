"""Maximum likelihood over several sites, each of which gives only sums over its patients.

Design notes:
- A logistic regression (with offset and ridge penalty) needs in each Newton step the gradient and the information
  matrix, and both are sums over the patients. The sum over the sites is that of one table, so the fit is the same
  (Wu et al., GLORE, J Am Med Inform Assoc 2012;19:758).
- A step that lowers the penalised likelihood is halved, which one more round finds out.
- A site refuses parameters at which few patients carry the weight: their sums would describe single patients. It also
  counts the numbers that it gave. As long as they are fewer than the unknown values of its patients, the equations do
  not determine these values. Both rules are necessary, not a proof that nothing can be learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from scipy.special import expit

from app.evaluation import logistic
from app.evaluation.metrics import Array, Labels

CLOSE = 1e-7
"""Largest change of a parameter at which the fit ends; Newton's next change is about its square."""
EFFECTIVE = 20.0
"""Fewest effective patients (Kish) of the weights p (1 - p)."""
LARGEST = 30.0
"""Absolute value of a parameter beyond which the outcomes count as separated."""


@dataclass(frozen=True)
class Contribution:
    """Sums over the patients of one site, or of several, at given parameters (k,).

    Attributes:
        log_likelihood: Log-likelihood.
        gradient: Its gradient (k,).
        information: Negative Hessian (k, k).
    """

    log_likelihood: float
    gradient: Array
    information: Array

    def __add__(self, other: Contribution) -> Contribution:
        return Contribution(
            self.log_likelihood + other.log_likelihood,
            self.gradient + other.gradient,
            self.information + other.information,
        )


@dataclass(frozen=True)
class Fit:
    """State of a fit between two rounds.

    Attributes:
        parameters: Parameters (k,) that the sites evaluate next.
        base: Best parameters (k,) so far.
        value: Penalised log-likelihood at ``base``; None: it must be computed again.
        covariance: Inverse of the penalised information at ``base``.
        done: Whether ``parameters`` are the estimate.
    """

    parameters: Array
    base: Array
    value: float | None
    covariance: Array
    done: bool = False

    @classmethod
    def start(cls, parameters: Sequence[float]) -> Fit:
        """Fit before the first round."""
        at = np.asarray(parameters, np.float64)
        return cls(at, at, None, np.full((len(at), len(at)), np.nan))


def contribution(design: Array, labels: Labels, offset: Array, parameters: Array) -> Contribution:
    """Sums of one site.

    Args:
        design: (n, k) columns.
        labels: (n,) 0/1.
        offset: (n,) fixed part of the log-odds.
        parameters: (k,).

    Raises:
        ValueError: At these parameters few patients would carry the sums.
    """
    odds = design @ parameters + offset
    expected = expit(odds)
    weights = expected * (1 - expected)
    effective = float(weights.sum() ** 2 / max((weights**2).sum(), 1e-300))
    if effective < EFFECTIVE:
        raise ValueError(
            f"at these parameters {effective:.1f} patients carry the sums, and {EFFECTIVE:.0f} are needed: "
            "the sums would describe single patients"
        )
    return Contribution(
        log_likelihood=logistic.log_likelihood(labels, odds),
        gradient=np.asarray(design.T @ (labels - expected)),
        information=np.asarray((design.T * weights) @ design),
    )


def total(contributions: Sequence[Contribution]) -> Contribution:
    """Sum over the sites."""
    return reduce(lambda one, other: one + other, contributions)


def advance(fit: Fit, found: Contribution, penalty: Array) -> Fit:
    """Make one Newton step from the sums at ``fit.parameters``.

    Args:
        fit: State before the round.
        found: Sums of all sites.
        penalty: Ridge penalty (k,) of half the squared parameters.

    Raises:
        ValueError: The outcomes are separated, or the design is singular.
    """
    at = fit.parameters
    value = found.log_likelihood - float((penalty * at**2).sum()) / 2
    if fit.value is not None and value < fit.value - 1e-9 * (1 + abs(fit.value)):
        return replace(fit, parameters=(fit.base + at) / 2)
    information = found.information + np.diag(penalty)
    try:
        covariance = np.asarray(np.linalg.inv(information), np.float64)
    except np.linalg.LinAlgError:
        covariance = np.full_like(information, np.nan)
    step = covariance @ (found.gradient - penalty * at)
    if not np.isfinite(step).all() or np.abs(at + step).max() > LARGEST:
        raise ValueError("the sum of the sites has no estimate: the outcomes are separated, or columns are equal")
    done = bool(np.abs(step).max() <= CLOSE)
    return Fit(at + step, at, value, covariance, done)


def numbers(columns: Sequence[int]) -> int:
    """Numbers that a site gives in one round, for fits of these numbers of parameters."""
    return sum(1 + k + k * (k + 1) // 2 for k in columns)


def least_patients(columns: Sequence[int], values: int, rounds: int) -> int:
    """Patients from which the numbers of all rounds are fewer than the unknown values of the patients.

    Args:
        columns: Parameters of each fit.
        values: Unknown values of one patient: its outcome and its columns.
        rounds: Rounds.
    """
    return -(-rounds * numbers(columns) // values)
