from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn import metrics as oracle

from app.evaluation import metrics

RNG = np.random.default_rng(4)
LABELS = (RNG.random(600) < 0.2).astype(np.int64)
SCORES = LABELS * 0.8 + RNG.normal(0, 1, 600)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=2, max_size=60))
def test_auc_and_average_precision_are_sklearn_s_with_ties(pairs: list[tuple[int, int]]) -> None:
    labels, scores = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], float)
    if len(np.unique(labels)) < 2:
        assert metrics.auc(labels, scores) == 0.5
        return
    assert metrics.auc(labels, scores) == pytest.approx(oracle.roc_auc_score(labels, scores))
    assert metrics.average_precision(labels, scores) == pytest.approx(oracle.average_precision_score(labels, scores))


def test_brier_is_sklearn_s() -> None:
    chances = expit(SCORES)
    assert metrics.brier(LABELS, chances) == pytest.approx(oracle.brier_score_loss(LABELS, chances))


def test_platt_finds_the_line_that_made_the_labels() -> None:
    logits = RNG.normal(0, 2, 40_000)
    labels = (RNG.random(40_000) < expit(0.7 * logits - 1.2)).astype(np.int64)
    assert metrics.platt(labels, logits) == pytest.approx((0.7, -1.2), abs=0.04)


def test_calibration_of_true_chances_is_perfect() -> None:
    chances = RNG.uniform(0.02, 0.6, 40_000)
    labels = (RNG.random(40_000) < chances).astype(np.int64)
    assert metrics.calibration_line(labels, chances) == pytest.approx((1, 0), abs=0.06)
    assert metrics.calibration_error(labels, chances) < 0.01


def test_the_best_threshold_beats_every_other() -> None:
    chances = expit(SCORES)
    best = metrics.f1(LABELS, chances >= metrics.best_f1_threshold(LABELS, chances))
    assert best == pytest.approx(max(metrics.f1(LABELS, chances >= t) for t in chances))
    assert best == pytest.approx(oracle.f1_score(LABELS, chances >= metrics.best_f1_threshold(LABELS, chances)))


def test_conformal_sets_cover_each_class_on_new_patients() -> None:
    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = (RNG.random(n) < 0.2).astype(np.int64)
        return labels, expit(labels + RNG.normal(-1, 1, n))

    negative, positive = metrics.conformal_thresholds(*draw(4000), level=0.9)
    labels, chances = draw(40_000)
    assert (chances[labels == 1] >= positive).mean() == pytest.approx(0.9, abs=0.025)
    assert (1 - chances[labels == 0] >= negative).mean() == pytest.approx(0.9, abs=0.025)


def test_few_patients_exclude_nothing() -> None:
    assert metrics.conformal_thresholds(np.array([0, 1]), np.array([0.4, 0.6]), level=0.9) == (0.0, 0.0)


def test_delong_agrees_with_the_bootstrap() -> None:
    other = SCORES + RNG.normal(0, 0.7, len(SCORES))
    found = metrics.delong(LABELS, SCORES, other)
    rng, drawn = np.random.default_rng(2), []
    classes = [np.flatnonzero(value == LABELS) for value in (0, 1)]
    for _ in range(500):
        rows = np.concatenate([rng.choice(own, len(own)) for own in classes])
        drawn.append(metrics.auc(LABELS[rows], SCORES[rows]) - metrics.auc(LABELS[rows], other[rows]))
    assert found.difference == pytest.approx(metrics.auc(LABELS, SCORES) - metrics.auc(LABELS, other))
    assert (found.high - found.low) / 3.92 == pytest.approx(np.std(drawn), rel=0.15)
    assert 0 < found.p < 1


def test_a_model_is_no_better_than_itself() -> None:
    assert metrics.delong(LABELS, SCORES, SCORES).p == 1.0


def test_bootstrap_holds_the_value() -> None:
    found = metrics.bootstrap(metrics.auc, LABELS, SCORES, rounds=200)
    assert found.low < found.value == metrics.auc(LABELS, SCORES) < found.high


def test_treating_nobody_gains_nothing_and_all_gains_the_prevalence() -> None:
    threshold = np.array([1e-9])
    assert metrics.net_benefit(LABELS, np.zeros(600), threshold) == pytest.approx(0)
    assert metrics.net_benefit(LABELS, np.ones(600), threshold) == pytest.approx(LABELS.mean())
