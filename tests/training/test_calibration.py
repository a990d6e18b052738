"""Rules that are learnt from single folds and applied to the mean of the folds."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from app.evaluation import metrics
from app.training import calibration
from app.training.results_table import ModelScores

Trial = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]

FOLDS = 4
DEVELOP, FRESH = 20_000, 40_000
NOISE = 0.9  # standard deviation of the noise of one fold


@pytest.fixture(scope="module")
def trial() -> Trial:
    """Labels (n,), out-of-fold logits (n,), NaN on fresh rows, and logits (folds, n), NaN on development rows.

    The folds share the true logit, add independent noise, and are overconfident by the factor 1.33.
    """
    rng = np.random.default_rng(5)
    truth = rng.normal(-2, 1.1, DEVELOP + FRESH)
    labels = (rng.random(len(truth)) < expit(truth)).astype(np.int64)
    logits = 1.33 * (truth + rng.normal(0, NOISE, (FOLDS, len(truth))))
    own = rng.integers(0, FOLDS, len(truth))
    out_of_fold = logits[own, np.arange(len(truth))]
    out_of_fold[DEVELOP:] = np.nan
    logits[:, :DEVELOP] = np.nan
    return labels, out_of_fold, logits


def _fresh(trial: Trial, rules: calibration.Rules) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    labels, _, each = trial
    return labels[DEVELOP:], rules.probabilities(each[:, DEVELOP:].mean(0))


def test_noise_of_a_fold_is_estimated_without_labels(trial: Trial) -> None:
    assert calibration.fold_noise(trial[2]) == pytest.approx((1.33 * NOISE) ** 2, rel=0.03)
    assert calibration.fold_noise(trial[2][:1]) == 0.0
    assert calibration.fold_noise(np.full((4, 3), np.nan)) == 0.0


def test_ensemble_is_calibrated_and_conformal_sets_cover_their_level(trial: Trial) -> None:
    labels, out_of_fold, each = trial
    rules = ModelScores(out_of_fold, each, ()).rules(labels, np.arange(DEVELOP))
    fresh, probabilities = _fresh(trial, rules)
    assert metrics.calibration_line(fresh, probabilities) == pytest.approx((1, 0), abs=0.06)
    assert metrics.calibration_error(fresh, probabilities) < 0.01
    quantiles = rules.conformal
    assert (probabilities[fresh == 1] >= quantiles.quantile_positive).mean() == pytest.approx(quantiles.level, abs=0.02)
    assert (1 - probabilities[fresh == 0] >= quantiles.quantile_negative).mean() == pytest.approx(
        quantiles.level, abs=0.02
    )


def test_rules_without_correction_are_underconfident(trial: Trial) -> None:
    labels, out_of_fold, _ = trial
    fresh, probabilities = _fresh(trial, calibration.rules(labels[:DEVELOP], out_of_fold[:DEVELOP]))
    assert metrics.calibration_line(fresh, probabilities)[0] > 1.2


def test_threshold_is_best_for_the_ensemble(trial: Trial) -> None:
    labels, out_of_fold, each = trial
    rules = ModelScores(out_of_fold, each, ()).rules(labels, np.arange(DEVELOP))
    fresh, probabilities = _fresh(trial, rules)
    best = metrics.best_f1_threshold(fresh, probabilities)
    here, there = (metrics.f1(fresh, probabilities >= value) for value in (rules.threshold.value, best))
    assert here == pytest.approx(there, abs=0.01)


def test_logits_of_one_fold_are_unchanged() -> None:
    labels, logits = np.array([0, 0, 1, 1]), np.array([-1.0, 0.5, 0.2, 2.0])
    assert calibration.as_ensemble(labels, logits, 0.7, 1) == pytest.approx(logits)
