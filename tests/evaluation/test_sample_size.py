"""Size of a validation: the examples of pmvalsampsize, and simulations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from typer.testing import CliRunner

from app.cli.__main__ import app
from app.evaluation import metrics, sample_size
from app.evaluation.sample_size import Predictions


@pytest.mark.parametrize(
    ("prevalence", "auc", "mean", "sd", "oe_width", "published"),
    [(0.018, 0.8, -5.0, 2.5, 1.0, (905, 4544, 4252)), (0.2, 0.78, -1.75, 1.22, 0.2, (1538, 2958, 511))],
)
def test_sizes_equal_those_of_pmvalsampsize(
    prevalence: float, auc: float, mean: float, sd: float, oe_width: float, published: tuple[int, int, int]
) -> None:
    """That package simulates a million patients and searches the standard error of O/E in steps of 0.0001."""
    criteria = sample_size.validation(Predictions(mean, sd), prevalence, auc, oe_width=oe_width)
    assert [one.patients for one in criteria] == pytest.approx(published, rel=0.004)


def test_distribution_has_the_wanted_prevalence_and_auc() -> None:
    own = Predictions.of(0.16, 0.73)
    x = np.random.default_rng(1).normal(own.mean, own.sd, 200_000)
    labels = (np.random.default_rng(2).random(len(x)) < expit(x)).astype(np.int64)
    assert labels.mean() == pytest.approx(0.16, abs=0.004)
    assert metrics.auc(labels, x) == pytest.approx(0.73, abs=0.006)


@pytest.mark.parametrize("prevalence", [0.001, 0.999])
def test_distribution_of_a_rare_outcome_has_the_wanted_prevalence_and_auc(prevalence: float) -> None:
    own = Predictions.of(prevalence, 0.8)
    assert (own.prevalence, own.auc) == pytest.approx((prevalence, 0.8), rel=1e-3)


def test_width_that_every_size_has_needs_the_fewest_patients() -> None:
    assert sample_size.area(0.5, 0.99, 0.5) == 2


def test_planned_net_benefit_has_the_wanted_width() -> None:
    own = Predictions.of(0.2, 0.75)
    size = sample_size.net_benefit(own, 0.25, 0.2)
    rng, found = np.random.default_rng(3), []
    for _ in range(600):
        chances = expit(rng.normal(own.mean, own.sd, size))
        labels = (rng.random(size) < chances).astype(np.int64)
        benefit = metrics.net_benefit(labels, chances, np.array([0.25]))[0]
        found.append(benefit / labels.mean())
    assert 2 * 1.96 * np.std(found) == pytest.approx(0.2, rel=0.09)


def test_planned_slope_has_the_wanted_width() -> None:
    own = Predictions.of(0.2, 0.75)
    size = sample_size.slope(own, 0.4)
    rng = np.random.default_rng(4)
    widths = []
    for _ in range(25):
        chances = expit(rng.normal(own.mean, own.sd, size))
        slope = metrics.calibration_slope((rng.random(size) < chances).astype(np.int64), chances)
        widths.append(slope.high - slope.low)
    assert np.mean(widths) == pytest.approx(0.4, rel=0.03)


def test_smaller_width_needs_more_patients() -> None:
    own = Predictions.of(0.16, 0.73)
    assert sample_size.intercept(own, 0.5) > 3.9 * sample_size.intercept(own, 1.0)


def test_command_prints_patients_and_events() -> None:
    result = CliRunner().invoke(app, ["plan", "--prevalence", "0.16", "--auc", "0.73", "--threshold", "0.2"])
    assert result.exit_code == 0, result.output
    assert "standardised net benefit at 0.2" in result.stdout
    assert "Validation: 4772 patients" in result.stdout
    assert CliRunner().invoke(app, ["plan", "--prevalence", "0.16", "--auc", "0.73", "--mean", "1"]).exit_code == 2
