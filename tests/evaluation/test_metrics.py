"""Metrics, compared with scikit-learn, simulation and the bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn import metrics as sklearn

from app.evaluation import metrics
from app.evaluation.equal_probabilities import equal_parts

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
    assert metrics.calibration_slope(labels, probabilities).value == pytest.approx(1, abs=0.06)
    assert metrics.calibration_in_the_large(labels, probabilities).value == pytest.approx(0, abs=0.06)
    assert metrics.calibration_error(labels, probabilities) < 0.01


def test_best_threshold_has_the_largest_f1() -> None:
    probabilities = expit(SCORES)
    decided = probabilities >= metrics.best_f1_threshold(LABELS, probabilities)
    best = metrics.f1(LABELS, decided)
    assert best == pytest.approx(max(metrics.f1(LABELS, probabilities >= t) for t in probabilities))
    assert best == pytest.approx(sklearn.f1_score(LABELS, decided))


def test_best_threshold_decides_equal_probabilities_alike() -> None:
    labels = np.array([1, 1, 0, 0, 0, 0, 0, 0, 1, 0])
    probabilities = np.array([0.9, *[0.5] * 7, 0.4, 0.1])
    threshold = metrics.best_f1_threshold(labels, probabilities)
    reached = metrics.f1(labels, probabilities >= threshold)
    assert reached == max(metrics.f1(labels, probabilities >= own) for own in probabilities)


def test_calibration_error_of_equal_probabilities_does_not_follow_the_order_of_the_table() -> None:
    labels = np.repeat([0, 1], 50)
    assert metrics.calibration_error(labels, np.full(100, 0.5)) == 0
    levels = np.repeat([0.2, 0.4, 0.6], 40)
    outcomes = (np.random.default_rng(0).random(120) < levels).astype(np.int64)
    gaps = [abs(outcomes[levels == level].mean() - level) for level in (0.2, 0.4, 0.6)]
    for order in (np.arange(120), np.lexsort((outcomes, levels)), np.lexsort((-outcomes, levels))):
        assert metrics.calibration_error(outcomes[order], levels[order]) == pytest.approx(np.mean(gaps))


@pytest.mark.parametrize("count", [3, 10, 57, 100])
def test_parts_of_different_probabilities_have_equal_sizes(count: int) -> None:
    probabilities = np.random.default_rng(count).random(count)
    parts = equal_parts(probabilities, 10)
    expected = np.array_split(np.argsort(probabilities), min(count, 10))
    assert [part.tolist() for part in parts] == [part.tolist() for part in expected]


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


ESTIMATES = {
    "auc": metrics.auc_estimate,
    "auprc": lambda labels, scores: metrics.average_precision_estimate(labels, scores, rounds=200),
    "brier": lambda labels, scores: metrics.brier_estimate(labels, scores, rounds=200),
    "slope": metrics.calibration_slope,
    "in the large": metrics.calibration_in_the_large,
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_interval_covers_the_population_value_as_often_as_it_says(name: str) -> None:
    """120 samples of 118 patients (`python -m bench.statistics` measures more): a nominal 95 % covers 88 % or more."""

    def draw(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        truth = rng.normal(-1.86, 0.8, count)
        return (rng.random(count) < expit(truth)).astype(np.int64), expit(truth + rng.normal(0, 0.5, count))

    rng = np.random.default_rng(16)
    value = (metrics.brier if name == "brier" else metrics.average_precision)(*draw(rng, 200_000))
    if name not in ("brier", "auprc"):
        value = ESTIMATES[name](*draw(rng, 200_000)).value
    estimates = [ESTIMATES[name](*draw(rng, 118)) for _ in range(120)]
    assert np.mean([estimate.low <= value <= estimate.high for estimate in estimates]) >= 0.88
    assert all(estimate.low <= estimate.value <= estimate.high for estimate in estimates)


@pytest.mark.parametrize("events", [1, 2, 3, 19])
@pytest.mark.parametrize("order", [1, -1, 0])
def test_intervals_of_few_patients_stay_within_their_range(events: int, order: int) -> None:
    """Perfect, reversed and equal scores of 20 patients: intervals stay in [0, 1], and differences in [-1, 1]."""
    labels = (np.arange(20) < events).astype(np.int64)
    scores = expit(order * (labels * 2.0 - 1) + 1e-3 * order * np.arange(20))
    for name in ("auc", "auprc", "brier"):
        estimate = ESTIMATES[name](labels, scores)
        assert 0 <= estimate.low <= estimate.value + 1e-9 <= estimate.high + 1e-9 <= 1 + 1e-9, name
    for other in (scores, 1 - scores, np.full(20, 0.3), np.random.default_rng(1).random(20)):
        result = metrics.delong(labels, scores, other)
        assert -1 <= result.low <= result.difference <= result.high <= 1
        assert "nan" not in str(result)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_difference_of_two_aucs_never_leaves_its_range(rows: list[tuple[int, int, int]]) -> None:
    labels, first, second = (np.array(column) for column in zip(*rows, strict=True))
    result = metrics.delong(labels, first.astype(float), second.astype(float))
    assert -1 <= result.low <= result.difference <= result.high <= 1


def test_difference_without_variance_has_no_p_value() -> None:
    labels = np.array([0, 0, 1, 1])
    result = metrics.delong(labels, labels * 1.0, 1.0 - labels)
    assert str(result) == "+1.000 (-1.000 to +1.000), p not estimable"


def test_calibration_slope_of_constant_or_separating_probabilities_is_not_estimable() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    rounded = 0.4 + np.array([0, 2e-16, 0, 0, 2e-16])
    for probabilities in (np.full(5, 0.4), rounded, labels * 0.5 + 0.2):
        assert str(metrics.calibration_slope(labels, probabilities)) == "not estimable"
        assert np.isfinite(metrics.calibration_in_the_large(labels, probabilities).value)
    assert np.isfinite(metrics.calibration_slope(labels, np.array([0.1, 0.2, 0.5, 0.3, 0.6])).value)


def test_calibration_in_the_large_keeps_the_slope_at_one() -> None:
    """Too extreme probabilities of the right level: the slope shows it. Shifted ones: the intercept shows it."""
    rng = np.random.default_rng(3)
    truth = rng.normal(-1.9, 1, 40_000)
    labels = (rng.random(40_000) < expit(truth)).astype(np.int64)
    assert metrics.calibration_in_the_large(labels, expit(truth - 0.7)).value == pytest.approx(0.7, abs=0.06)
    assert metrics.calibration_slope(labels, expit(truth - 0.7)).value == pytest.approx(1, abs=0.06)
    assert metrics.calibration_slope(labels, expit(1.5 * truth)).value == pytest.approx(1 / 1.5, abs=0.05)


def test_note_on_multiplicity_is_for_several_comparisons() -> None:
    assert metrics.multiplicity_note(1) == metrics.multiplicity_note(0) == ""
    assert metrics.multiplicity_note(9).startswith("9 comparisons: p values")
    assert "0.0056" in metrics.multiplicity_note(9)


def test_net_benefit_of_treating_none_is_zero_and_of_all_is_the_prevalence() -> None:
    threshold = np.array([1e-9])
    assert metrics.net_benefit(LABELS, np.zeros(600), threshold) == pytest.approx(0)
    assert metrics.net_benefit(LABELS, np.ones(600), threshold) == pytest.approx(LABELS.mean())


def test_interval_of_an_auc_with_few_events_is_wider_by_the_degrees_of_freedom() -> None:
    few, many = slice(0, 60), slice(0, 600)
    widths = []
    for rows in (few, many):
        plain = metrics.auc_estimate(LABELS[rows], SCORES[rows])
        by_events = metrics.auc_estimate(LABELS[rows], SCORES[rows], by_events=True)
        assert by_events.value == plain.value
        widths.append((by_events.high - by_events.low) / (plain.high - plain.low))
    assert widths[0] > 1.03
    assert 1 < widths[1] < 1.01
