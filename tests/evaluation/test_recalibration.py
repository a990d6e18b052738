"""Closed test of a local recalibration: a shift is found and shrunk, its absence is left alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit

from app.evaluation import metrics, recalibration
from app.evaluation.recalibration import Update


def site(count: int, *, shift: float = 0.0, slope: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions, whose true log-odds are ``slope`` times the predicted ones plus ``shift``."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(-1.0, 1.2, count)
    return (rng.random(count) < expit(slope * odds + shift)).astype(np.int64), expit(odds)


@pytest.mark.parametrize(
    ("shift", "slope", "update"), [(0.0, 1.0, Update.NONE), (1.0, 1.0, Update.INTERCEPT), (0.0, 0.4, Update.BOTH)]
)
def test_closed_test_chooses_what_the_site_needs(shift: float, slope: float, update: Update) -> None:
    found = recalibration.recalibrate(*site(1500, shift=shift, slope=slope))
    assert found.update is update
    if update is Update.NONE:
        assert (found.intercept, found.slope) == (0.0, 1.0)
    else:
        assert found.intercept == pytest.approx(shift, abs=0.2)
        assert found.slope == pytest.approx(slope, abs=0.15)
        assert found.estimates[0].low < shift < found.estimates[0].high


def test_studies_of_one_patient_do_not_raise_the_error_of_the_closed_test() -> None:
    """Each study is there three times, at calibrated sites."""
    of = np.repeat(np.arange(200), 3)
    updates, naive = 0, 0
    for seed in range(300):
        labels, probabilities = (np.repeat(one, 3) for one in site(200, seed=seed))
        updates += recalibration.recalibrate(labels, probabilities, clusters=of).update is not Update.NONE
        naive += recalibration.recalibrate(labels, probabilities).update is not Update.NONE
    # Measured: 0.073 with these seeds, 0.039 with 800 others; one study each: 0.067 and 0.035.
    assert updates <= 0.08 * 300
    assert naive > 0.2 * 300  # measured: 0.37


@pytest.mark.parametrize(("shift", "slope"), [(1.0, 1.0), (0.0, 0.4)])
def test_copied_studies_are_recalibrated_as_those_of_one_each(shift: float, slope: float) -> None:
    labels, probabilities = site(600, shift=shift, slope=slope)
    once = recalibration.recalibrate(labels, probabilities)
    labels, probabilities, of = (np.repeat(one, 3) for one in (labels, probabilities, np.arange(600)))
    thrice = recalibration.recalibrate(labels, probabilities, clusters=of)
    assert (thrice.update, thrice.patients, thrice.events) == (once.update, once.patients, once.events)
    assert (thrice.intercept, thrice.slope) == pytest.approx((once.intercept, once.slope), abs=0.05)
    assert thrice.shrinkage == pytest.approx(once.shrinkage, abs=0.05)
    for one, other in zip(thrice.estimates, once.estimates, strict=True):
        assert one.value == pytest.approx(other.value)
        assert one.high - one.low == pytest.approx(other.high - other.low, rel=0.15)
    single = recalibration.recalibrate(labels[::3], probabilities[::3], clusters=np.arange(600))
    assert single.update is once.update


def test_update_helps_on_new_patients_and_keeps_their_order() -> None:
    found = recalibration.recalibrate(*site(200, shift=1.0, slope=0.6))
    labels, probabilities = site(4000, shift=1.0, slope=0.6, seed=9)
    new = found.apply(probabilities)
    assert recalibration.log_loss(labels, new) < recalibration.log_loss(labels, probabilities) - 0.05
    assert metrics.auc(labels, new) == pytest.approx(metrics.auc(labels, probabilities))


def test_few_events_shrink_the_update_more() -> None:
    few, many = (recalibration.recalibrate(*site(count, shift=1.0, seed=4)) for count in (60, 2000))
    assert few.update is many.update is Update.INTERCEPT
    assert few.shrinkage < many.shrinkage < 1
    assert 0 < few.intercept < few.estimates[0].value


def test_update_at_the_limit_of_the_test_is_small() -> None:
    """Else one event more would turn no update into a whole one."""
    x = np.linspace(-2, 1, 400)
    expected = int(expit(x).sum())
    found = []
    for events in range(expected, expected + 60):
        labels = np.zeros(400, np.int64)
        labels[np.argsort(-x + np.random.default_rng(1).logistic(size=400))[:events]] = 1
        found.append(recalibration.recalibrate(labels, expit(x)).intercept)
    assert found[0] == 0
    assert found[-1] > 0.3
    assert np.abs(np.diff(found)).max() < 0.12  # with the degrees of freedom in place of the critical value: 0.2


def test_no_event_is_no_reason_for_an_update() -> None:
    found = recalibration.recalibrate(np.zeros(200, np.int64), np.full(200, 0.3) + np.linspace(0, 0.1, 200))
    assert found.update is Update.NONE


def test_simulated_likelihood_ratios_equal_the_fits() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(-1, 1, 80)
    labels = (rng.random((5, 80)) < expit(x)).astype(np.int64)
    one, both = recalibration._ratios(labels.astype(float), x)
    for row, first, second in zip(labels, one, both, strict=True):
        none = recalibration.logistic.log_likelihood(row, x)
        assert first == pytest.approx(2 * (recalibration._intercept(row, x).log_likelihood - none), abs=1e-6)
        assert second == pytest.approx(2 * (recalibration._both(row, x).log_likelihood - none), abs=1e-6)


def test_level_of_the_joint_test_equals_a_simulation() -> None:
    rng = np.random.default_rng(2)
    first, rest = rng.normal(size=(2, 200_000)) ** 2
    smaller = np.minimum(stats.chi2.sf(first, 1), stats.chi2.sf(first + rest, 2))
    for value in (0.01, 0.04, 0.2):
        assert recalibration._by_chance(value) == pytest.approx((smaller <= value).mean(), abs=0.003)


def test_log_odds_of_the_update_are_a_line() -> None:
    found = recalibration.recalibrate(*site(1500, slope=0.4))
    at = np.array([0.1, 0.5, 0.9])
    assert logit(found.apply(at)) == pytest.approx(found.intercept + found.slope * logit(at))
