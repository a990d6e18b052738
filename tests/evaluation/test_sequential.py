"""Bounds equal published ones, and looks keep their error rate; plain intervals do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from app.evaluation import sequential
from app.evaluation.sequential import LookPlan, LookVerdict, TrialMeasure

PLAN = LookPlan(TrialMeasure.AUC, 0.7, 0.025, (100, 200, 300, 400))


@pytest.mark.parametrize(
    ("times", "published"),
    [
        # One-sided 0.025, Lan-DeMets O'Brien-Fleming: Jennison & Turnbull 2000, and the R package ldbounds.
        ((0.2, 0.4, 0.6, 0.8, 1.0), (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)),
        ((0.5, 1.0), (2.9626, 1.9686)),
        ((1.0,), (1.9600,)),
    ],
)
def test_bounds_are_the_published_ones(times: tuple[float, ...], published: tuple[float, ...]) -> None:
    assert sequential.bounds(0.025, times) == pytest.approx(published, abs=2e-4)


def test_bounds_are_crossed_by_alpha_of_brownian_motions() -> None:
    """Looks at unequal times, also close together and beyond the planned size."""
    times = (0.3, 0.36, 0.7, 1.0, 1.1)
    limits = np.array(sequential.bounds(0.05, times))
    rng = np.random.default_rng(1)
    steps = np.diff(times, prepend=0.0)
    paths = np.cumsum(rng.normal(0, 1, (200_000, len(times))) * np.sqrt(steps), axis=1) / np.sqrt(times)
    crossed = (paths > limits).any(axis=1).mean()
    assert crossed == pytest.approx(0.05, abs=0.0025)
    assert (paths > stats.norm.isf(0.05)).any(axis=1).mean() > 0.08  # plain looks at the same paths


def test_all_error_is_spent_at_the_planned_size() -> None:
    assert sequential.spent(0.025, 0.0) == 0.0
    assert sequential.spent(0.025, 1.0) == pytest.approx(0.025)
    assert sequential.spent(0.025, 1.4) == pytest.approx(0.025)
    assert 0 < sequential.spent(0.025, 0.5) < 0.0025


def test_looks_at_the_auc_keep_the_error_rate() -> None:
    """At the margin, at most alpha of the trials find the AUC above; ``python -m bench site_trust`` repeats it more."""
    rng, above, plain, repeats = np.random.default_rng(5), 0, 0, 400
    shift = np.sqrt(2) * stats.norm.ppf(PLAN.margin)
    for _ in range(repeats):
        labels = (rng.random(PLAN.size) < 0.16).astype(np.int64)
        own = expit(rng.normal(0, 1, PLAN.size) + labels * shift)
        verdicts = [
            sequential.look(PLAN, labels[:size], own[:size], PLAN.looks[:number]).verdict
            for number, size in enumerate(PLAN.looks)
        ]
        above += LookVerdict.ABOVE in verdicts
        single = replace(PLAN, looks=(100,))  # as if each look were the only one
        plain += any(
            sequential.look(replace(single, looks=(size,)), labels[:size], own[:size]).verdict is LookVerdict.ABOVE
            for size in PLAN.looks
        )
    assert above / repeats <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / repeats)
    assert plain > above
    assert plain / repeats > 0.03


def test_confidence_sequence_holds_at_every_number_together() -> None:
    rng, missed = np.random.default_rng(2), 0
    for _ in range(200):
        values = rng.beta(0.4, 1.6, 400)  # the mean is 0.2
        ends = [sequential.confidence_sequence(values[:count], 0.05, 400) for count in range(1, 401, 3)]
        missed += any(not low <= 0.2 <= high for low, high in ends)
    assert missed / 200 <= 0.1
    low, high = sequential.confidence_sequence(rng.beta(4, 16, 400), 0.05, 400)
    assert low < 0.2 < high
    assert high - low < 0.06


def test_confidence_sequence_without_values_is_everything() -> None:
    assert sequential.confidence_sequence(np.array([]), 0.025, 100) == (0.0, 1.0)


def test_gain_lies_within_its_limits() -> None:
    for reference in (0.02, 0.16, 0.5, 0.9):
        labels = np.array([0, 0, 1, 1])
        gains, low, high = sequential.brier_gains(labels, np.array([0.0, 1.0, 0.0, 1.0]), reference)
        assert low <= gains.min()
        assert gains.max() <= high
        assert gains == pytest.approx([reference**2, reference**2 - 1, (1 - reference) ** 2 - 1, (1 - reference) ** 2])


def test_verdict_of_a_look() -> None:
    rng = np.random.default_rng(3)
    labels = (rng.random(400) < 0.3).astype(np.int64)
    good, bad = expit(2.5 * labels + rng.normal(0, 1, 400)), expit(rng.normal(0, 1, 400))
    assert sequential.look(PLAN, labels, good, PLAN.looks[:3]).verdict is LookVerdict.ABOVE
    assert sequential.look(PLAN, labels, bad, PLAN.looks[:3]).verdict is LookVerdict.BELOW
    near = replace(PLAN, margin=sequential.metrics.auc(labels, good))
    assert sequential.look(near, labels[:100], good[:100]).verdict is LookVerdict.CONTINUE
    assert sequential.look(near, labels, good, PLAN.looks[:3], final=True).verdict is LookVerdict.INCONCLUSIVE
    gain = LookPlan(TrialMeasure.BRIER_GAIN, 0.0, 0.025, (400,), reference=0.3)
    calibrated = expit(6 * labels - 3 + rng.normal(0, 0.3, 400))
    assert sequential.look(gain, labels, calibrated).verdict is LookVerdict.ABOVE
    assert sequential.look(gain, labels, 1 - calibrated).verdict is LookVerdict.BELOW


def test_a_look_without_an_event_decides_nothing() -> None:
    found = sequential.look(PLAN, np.zeros(100, np.int64), np.linspace(0.1, 0.9, 100))
    assert found.verdict is LookVerdict.CONTINUE
    assert (found.estimate.low, found.estimate.high) == (0.0, 1.0)
