"""Rules learnt from single folds must serve the folds' mean."""

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
NOISE = 0.9  # standard deviation of what one fold alone believes


@pytest.fixture(scope="module")
def trial() -> Trial:
    """Labels, out-of-fold logits (NaN where fresh) and each fold's logits (NaN where developed on) of folds that share
    what they know and each add a noise of their own; too sharp by a third, as networks are.
    """
    rng = np.random.default_rng(5)
    known = rng.normal(-2, 1.1, DEVELOP + FRESH)
    labels = (rng.random(len(known)) < expit(known)).astype(np.int64)
    said = 1.33 * (known + rng.normal(0, NOISE, (FOLDS, len(known))))
    own = rng.integers(0, FOLDS, len(known))
    out_of_fold = said[own, np.arange(len(known))]
    out_of_fold[DEVELOP:] = np.nan
    said[:, :DEVELOP] = np.nan
    return labels, out_of_fold, said


def _fresh(trial: Trial, learnt: calibration.Rules) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    labels, _, each = trial
    line = learnt.calibration
    return labels[DEVELOP:], metrics.probabilities_of(each[:, DEVELOP:].mean(0), line.slope, line.intercept)


def test_the_noise_of_a_fold_is_measured_without_labels(trial: Trial) -> None:
    assert calibration.fold_noise(trial[2]) == pytest.approx((1.33 * NOISE) ** 2, rel=0.03)
    assert calibration.fold_noise(trial[2][:1]) == 0.0
    assert calibration.fold_noise(np.full((4, 3), np.nan)) == 0.0


def test_the_ensemble_is_calibrated_and_its_sets_cover_as_they_say(trial: Trial) -> None:
    labels, out_of_fold, each = trial
    learnt = ModelScores(out_of_fold, each, ()).rules(labels, np.arange(DEVELOP))
    fresh, chances = _fresh(trial, learnt)
    assert metrics.calibration_line(fresh, chances) == pytest.approx((1, 0), abs=0.06)
    assert metrics.calibration_error(fresh, chances) < 0.01
    quantiles = learnt.conformal
    assert (chances[fresh == 1] >= quantiles.quantile_positive).mean() == pytest.approx(quantiles.level, abs=0.02)
    assert (1 - chances[fresh == 0] >= quantiles.quantile_negative).mean() == pytest.approx(quantiles.level, abs=0.02)


def test_rules_of_single_folds_would_be_too_timid(trial: Trial) -> None:
    labels, out_of_fold, _ = trial
    fresh, chances = _fresh(trial, calibration.rules(labels[:DEVELOP], out_of_fold[:DEVELOP]))
    assert metrics.calibration_line(fresh, chances)[0] > 1.2


def test_the_threshold_is_the_ensemble_s_own(trial: Trial) -> None:
    labels, out_of_fold, each = trial
    learnt = ModelScores(out_of_fold, each, ()).rules(labels, np.arange(DEVELOP))
    fresh, chances = _fresh(trial, learnt)
    best = metrics.best_f1_threshold(fresh, chances)
    here, there = (metrics.f1(fresh, chances >= value) for value in (learnt.threshold.value, best))
    assert here == pytest.approx(there, abs=0.01)


def test_one_fold_is_left_as_it_is() -> None:
    labels, logits = np.array([0, 0, 1, 1]), np.array([-1.0, 0.5, 0.2, 2.0])
    assert calibration.as_ensemble(labels, logits, 0.7, 1) == pytest.approx(logits)
