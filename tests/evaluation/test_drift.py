"""The test of drift keeps its level under continuous looks, and says what it could not have seen."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from app.evaluation import drift
from app.evaluation.drift import ALPHA, RELEVANT


def outcomes(rng: np.random.Generator, patients: int, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes (n,) and probabilities (n,) of a version whose true odds are ``factor`` times its own."""
    probabilities = rng.beta(2, 10, patients)
    return (rng.random(patients) < expit(logit(probabilities) + np.log(factor))).astype(np.int64), probabilities


def test_calibrated_version_alarms_in_few_sequences_however_often_it_is_looked_at() -> None:
    rng = np.random.default_rng(1)
    alarms = sum(drift.drift(*outcomes(rng, 1000)).changed for _ in range(400))
    assert alarms <= ALPHA * 400


@pytest.mark.parametrize(("factor", "within"), [(2.0, 500), (0.4, 700)])
def test_changed_odds_are_found(factor: float, within: int) -> None:
    rng = np.random.default_rng(2)
    found = [drift.drift(*outcomes(rng, within, factor)).crossed for _ in range(100)]
    assert sum(crossed is not None for crossed in found) > 80


def test_evidence_is_the_mean_likelihood_ratio() -> None:
    labels, probabilities = np.array([1, 0]), np.array([0.2, 0.5])
    ratios = []
    for factor in drift.FACTORS:
        changed = expit(logit(probabilities) + np.log(factor))
        ratios.append(changed[0] / 0.2 * (1 - changed[1]) / 0.5)
    assert drift.evidence(labels, probabilities)[-1] == pytest.approx(np.mean(ratios))


def test_certain_probabilities_and_no_patients_give_finite_numbers() -> None:
    assert np.isfinite(drift.evidence(np.array([1, 0, 1]), np.array([0.0, 1.0, 1.0]))).all()
    empty = drift.drift(np.zeros(0, np.int64), np.zeros(0))
    assert (empty.changed, empty.silent, empty.detectable) == (False, True, np.inf)


def test_detectable_ratio_has_the_power_that_is_promised() -> None:
    """Share of samples in which O/E differs from 1 at the level of 5 %, if the truth is the detectable ratio."""
    rng = np.random.default_rng(3)
    probabilities = rng.beta(2, 10, 600)
    ratio = drift.drift(np.zeros(600, np.int64), probabilities).detectable
    assert 1.2 < ratio < RELEVANT
    factor = np.exp(np.linspace(0, 2, 2001))
    means = expit(logit(probabilities)[None] + np.log(factor)[:, None]).mean(axis=1)
    true = expit(logit(probabilities) + np.log(factor[np.argmin(abs(means / probabilities.mean() - ratio))]))
    counts = (rng.random((2000, 600)) < true).sum(axis=1)
    error = np.sqrt((probabilities * (1 - probabilities)).sum()) / probabilities.sum()
    power = (np.log(counts / probabilities.sum()) > 1.96 * error).mean()
    assert power == pytest.approx(0.8, abs=0.06)


def test_control_limits_hold_nearly_all_windows_of_a_calibrated_version() -> None:
    rng = np.random.default_rng(4)
    inside = []
    for _ in range(1000):
        labels, probabilities = outcomes(rng, 120)
        low, high = drift.control_limits(probabilities)
        inside.append(low <= labels.mean() <= high)
    assert np.mean(inside) > 0.99


def test_studies_of_one_patient_do_not_raise_the_error() -> None:
    """Each study is there three times. Taken as patients, they would often be called a change."""
    rng = np.random.default_rng(5)
    alarms, naive, outside, naive_outside = 0, 0, 0, 0
    for _ in range(300):
        labels, probabilities = (np.repeat(one, 3) for one in outcomes(rng, 150))
        of = np.repeat(np.arange(150), 3)
        alarms += drift.drift(labels, probabilities, of).changed
        naive += drift.drift(labels, probabilities).changed
        for clusters in (of, None):
            low, high = drift.control_limits(probabilities, clusters)
            is_outside = not low <= labels.mean() <= high
            outside, naive_outside = outside + (is_outside and clusters is of), naive_outside + is_outside
    assert alarms <= ALPHA * 300
    assert outside <= 0.01 * 300
    assert naive > 0.15 * 300
    assert naive_outside > 0.03 * 300


def test_one_study_of_each_patient_is_the_drift_of_independent_studies() -> None:
    labels, probabilities = outcomes(np.random.default_rng(6), 300, 2.0)
    assert drift.drift(labels, probabilities, np.arange(300)) == drift.drift(labels, probabilities)
    limits = drift.control_limits(probabilities, np.arange(300))
    assert limits == pytest.approx(drift.control_limits(probabilities))


def test_large_evidence_is_a_bound_in_words() -> None:
    found = drift.drift(np.ones(400, np.int64), np.full(400, 0.1))
    assert found.evidence > 1e50
    assert "(evidence over 10,000, limit 20, reached at patient" in found.text
