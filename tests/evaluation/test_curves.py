"""Curves of an evaluation: their bands cover the truth, their axes follow the prevalence, their numbers are written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image
from scipy.special import expit

from app.evaluation import curves, figures
from app.evaluation.metrics import net_benefit

THRESHOLDS = np.array([0.05, 0.1, 0.2, 0.3])
RNG = np.random.default_rng(3)
SCORES = RNG.normal(0, 1, 400)
LABELS = (RNG.random(400) < expit(-1.9 + SCORES)).astype(np.int64)
PROBABILITIES = expit(-1.9 + 0.7 * SCORES)


def sample(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    scores = rng.normal(0, 1, count)
    return (rng.random(count) < expit(-2 + scores)).astype(np.int64), expit(-2 + 0.7 * scores)


def test_band_of_the_net_benefit_covers_the_population_value() -> None:
    """Measured with 2,000 samples: 0.93 to 0.96 at each threshold (docs/experiments.md)."""
    rng = np.random.default_rng(5)
    truth = net_benefit(*sample(400_000, rng), THRESHOLDS)
    inside = np.zeros(len(THRESHOLDS))
    for _ in range(600):
        curve = curves.decision(*sample(118, rng), THRESHOLDS)
        assert curve.low is not None
        assert curve.high is not None
        inside += (curve.low <= truth) & (truth <= curve.high)
    assert np.all(np.abs(inside / 600 - 0.95) < 0.04)  # 0.02 allowed, and two standard errors of 600 samples


def test_calibration_line_of_a_calibrated_model_is_the_diagonal_within_its_band() -> None:
    line = curves.calibration(LABELS, expit(-1.9 + SCORES)).line
    assert line is not None
    assert line.low is not None
    assert line.high is not None
    inside = (line.low <= line.x) & (line.x <= line.high)
    assert inside.mean() > 0.9
    assert np.all(line.low < line.y)
    assert np.all(line.y < line.high)


def test_patients_with_one_probability_are_in_one_tenth() -> None:
    labels, levels = np.tile(np.repeat([0, 1], 10), 3), np.repeat([0.1, 0.3, 0.7], 20)
    found = curves.calibration(labels, levels)
    assert found.bins.x.tolist() == pytest.approx([0.1, 0.3, 0.7])
    assert found.patients.tolist() == [20, 20, 20]
    assert found.bins.y.tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("probabilities", [np.full(20, 0.2), np.linspace(0.1, 0.9, 20)])
def test_line_is_left_out_if_it_cannot_be_estimated(probabilities: np.ndarray) -> None:
    labels = (np.arange(20) >= 10).astype(np.int64)  # the second model separates the outcomes
    curve = curves.calibration(labels, probabilities)
    assert curve.line is None
    assert curve.patients.sum() == 20
    figures.calibration(labels, probabilities, "a").png()


@pytest.mark.parametrize("prevalence", [0.01, 0.04, 0.08, 0.16, 0.3, 0.5, 0.9])
def test_axes_of_the_decision_curve_follow_the_prevalence(prevalence: float) -> None:
    labels = (np.arange(1000) < 1000 * prevalence).astype(np.int64)
    reach, (bottom, top) = figures.decision_axes(labels)
    assert min(2 * prevalence, 1) <= reach <= max(3 * prevalence + 0.1, 0.2)
    assert top >= prevalence
    assert bottom < 0
    for low, high in ((0.0, reach), (bottom, top)):
        ticks = figures.ticks(low, high)
        assert 3 <= len(ticks) <= 8
        assert ticks == sorted(ticks)
        assert low - 1e-9 <= ticks[0]
        assert ticks[-1] <= high + 1e-9
        assert any(abs(tick) < 1e-9 for tick in ticks)


def test_axes_are_named_in_percent_and_the_legend_names_every_curve() -> None:
    drawing = figures.decision(LABELS, {"one": PROBABILITIES, "other": PROBABILITIES[::-1]}, "other")
    texts = drawing.texts()
    for text in ("threshold probability", "net benefit (true positives per 100 patients)", "10 %", "treat all", "one"):
        assert text in texts
    assert "other; band: 95 % interval at each threshold" in texts
    axes = drawing.figure.axes[0]
    assert [to_hex(band.get_facecolor()) for band in axes.collections] == [figures.COLOURS[1]]
    assert all(line.get_clip_on() for line in axes.lines)


def test_each_figure_has_its_numbers_beside_it(tmp_path: Path) -> None:
    models = {"one": PROBABILITIES, "other": PROBABILITIES[::-1]}
    for name in figures.write(tmp_path, LABELS, models, "one"):
        document = json.loads((tmp_path / f"{name}.json").read_text())
        assert (document["patients"], document["events"]) == (400, int(LABELS.sum()))
        assert set(models) <= set(document["curves"])
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert len(picture.convert("L").getcolors(256) or ()) > 5
    drawn = json.loads((tmp_path / "decision-curve.json").read_text())["curves"]["one"]
    assert drawn["y"] == pytest.approx(net_benefit(LABELS, PROBABILITIES, np.array(drawn["x"])), abs=1e-5)
    assert all(low < y < high for low, y, high in zip(drawn["low"], drawn["y"], drawn["high"], strict=True))
    tenths = json.loads((tmp_path / "calibration.json").read_text())["curves"]["one"]["tenths"]
    assert sum(tenths["events"]) == LABELS.sum()
