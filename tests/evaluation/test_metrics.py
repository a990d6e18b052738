"""Metrics, compared with scikit-learn, simulation and the bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn import metrics as sklearn

from app.evaluation import metrics

RNG = np.random.default_rng(4)
LABELS = (RNG.random(600) < 0.2).astype(np.int64)
SCORES = LABELS * 0.8 + RNG.normal(0, 1, 600)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=2, max_size=60))
def test_auc_and_average_precision_equal_sklearn_with_ties(pairs: list[tuple[int, int]]) -> None:
    labels, scores = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], float)
    if len(np.unique(labels)) < 2:
        assert metrics.auc(labels, scores) == 0.5
        return
    assert metrics.auc(labels, scores) == pytest.approx(sklearn.roc_auc_score(labels, scores))
    assert metrics.average_precision(labels, scores) == pytest.approx(sklearn.average_precision_score(labels, scores))


def test_brier_score_equals_sklearn() -> None:
    probabilities = expit(SCORES)
    assert metrics.brier(LABELS, probabilities) == pytest.approx(sklearn.brier_score_loss(LABELS, probabilities))


def test_platt_recovers_slope_and_intercept() -> None:
    logits = RNG.normal(0, 2, 40_000)
    labels = (RNG.random(40_000) < expit(0.7 * logits - 1.2)).astype(np.int64)
    assert metrics.platt(labels, logits) == pytest.approx((0.7, -1.2), abs=0.04)


def test_calibration_of_true_probabilities_is_perfect() -> None:
    probabilities = RNG.uniform(0.02, 0.6, 40_000)
    labels = (RNG.random(40_000) < probabilities).astype(np.int64)
    assert metrics.calibration_line(labels, probabilities) == pytest.approx((1, 0), abs=0.06)
    assert metrics.calibration_error(labels, probabilities) < 0.01


def test_best_threshold_has_the_largest_f1() -> None:
    probabilities = expit(SCORES)
    decided = probabilities >= metrics.best_f1_threshold(LABELS, probabilities)
    best = metrics.f1(LABELS, decided)
    assert best == pytest.approx(max(metrics.f1(LABELS, probabilities >= t) for t in probabilities))
    assert best == pytest.approx(sklearn.f1_score(LABELS, decided))


def test_conformal_sets_cover_each_class_on_new_patients() -> None:
    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = (RNG.random(n) < 0.2).astype(np.int64)
        return labels, expit(labels + RNG.normal(-1, 1, n))

    negative, positive = metrics.conformal_thresholds(*draw(4000), level=0.9)
    labels, probabilities = draw(40_000)
    assert (probabilities[labels == 1] >= positive).mean() == pytest.approx(0.9, abs=0.025)
    assert (1 - probabilities[labels == 0] >= negative).mean() == pytest.approx(0.9, abs=0.025)


@pytest.mark.parametrize(("percent", "level"), [(90, 0.9), (95, 0.95), (80, 0.8), (70, 0.7)])
def test_conformal_rank_is_exact_for_every_number_of_patients(percent: int, level: float) -> None:
    """The k-th smallest of n with k = floor((n + 1) (1 - level)), in whole numbers: n + 1 = 10, 20, 30 among them."""
    for count in range(1, 300):
        rank = (count + 1) * (100 - percent) // 100
        ladder = np.arange(1, count + 1) / 1000  # the k-th smallest is k / 1000
        labels = np.repeat([1, 0], count)
        negative, positive = metrics.conformal_thresholds(labels, np.concatenate([ladder, 1 - ladder]), level)
        assert (negative, positive) == pytest.approx((rank / 1000, rank / 1000)), count


def test_few_patients_give_thresholds_of_zero() -> None:
    assert metrics.conformal_thresholds(np.array([0, 1]), np.array([0.4, 0.6]), level=0.9) == (0.0, 0.0)


def test_delong_agrees_with_the_bootstrap() -> None:
    other = SCORES + RNG.normal(0, 0.7, len(SCORES))
    result = metrics.delong(LABELS, SCORES, other)
    rng, differences = np.random.default_rng(2), []
    classes = [np.flatnonzero(value == LABELS) for value in (0, 1)]
    for _ in range(500):
        rows = np.concatenate([rng.choice(members, len(members)) for members in classes])
        differences.append(metrics.auc(LABELS[rows], SCORES[rows]) - metrics.auc(LABELS[rows], other[rows]))
    assert result.difference == pytest.approx(metrics.auc(LABELS, SCORES) - metrics.auc(LABELS, other))
    assert (result.high - result.low) / 3.92 == pytest.approx(np.std(differences), rel=0.15)
    assert 0 < result.p < 1


def test_equal_models_have_p_value_one() -> None:
    assert metrics.delong(LABELS, SCORES, SCORES).p == 1.0


def test_bootstrap_interval_contains_the_value() -> None:
    result = metrics.bootstrap(metrics.auc, LABELS, SCORES, rounds=200)
    assert result.low < result.value == metrics.auc(LABELS, SCORES) < result.high


def test_net_benefit_of_treating_none_is_zero_and_of_all_is_the_prevalence() -> None:
    threshold = np.array([1e-9])
    assert metrics.net_benefit(LABELS, np.zeros(600), threshold) == pytest.approx(0)
    assert metrics.net_benefit(LABELS, np.ones(600), threshold) == pytest.approx(LABELS.mean())
