"""Plots of rlvo.evaluation: axes in, axes out, and the style of the caller stays."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes

import rlvo.evaluation as ev
from app.evaluation.figures import COLOURS
from app.evaluation.metrics import NOT_ESTIMABLE, Estimate

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(1)
PROBABILITY = RNG.random(300)
OUTCOME = (RNG.random(300) < PROBABILITY).astype(int)
PLOTS: dict[str, Callable[..., Axes]] = {
    "roc": ev.plot_roc,
    "calibration": ev.plot_calibration,
    "net benefit": ev.plot_net_benefit,
}


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    with matplotlib.rc_context({"backend": "agg"}):
        yield
        pyplot.close("all")


def labels(axes: Axes) -> list[str]:
    return axes.get_legend_handles_labels()[1]


@pytest.mark.parametrize("name", PLOTS)
def test_axes_go_in_and_come_out(name: str) -> None:
    figure, axes = pyplot.subplots()
    assert PLOTS[name](OUTCOME, PROBABILITY, ax=axes) is axes
    assert PLOTS[name](OUTCOME, PROBABILITY).figure is not figure
    assert len(pyplot.get_fignums()) == 2
    figure.canvas.draw()


@pytest.mark.parametrize("name", PLOTS)
def test_a_second_predictor_has_another_colour_and_one_reference(name: str) -> None:
    axes = PLOTS[name](OUTCOME, PROBABILITY, label="first")
    once = labels(axes)
    PLOTS[name](OUTCOME, PROBABILITY**2, label="second", ax=axes)
    named = [text for text in labels(axes) if text.startswith(("first", "second"))]
    assert len(labels(axes)) == len(once) + len(named) // 2
    used = {str(line.get_color()) for line in axes.get_lines()} & set(COLOURS)
    assert used == set(COLOURS[:2])


def test_plots_show_the_numbers() -> None:
    roc = ev.plot_roc(OUTCOME, PROBABILITY)
    assert f"AUC {ev.discrimination(OUTCOME, PROBABILITY).auc}" in labels(roc)
    benefit = ev.plot_net_benefit(OUTCOME, PROBABILITY, [0.2, 0.4])
    (line,) = [line for line in benefit.get_lines() if line.get_gid() == "predictor"]
    assert np.array(line.get_ydata()).tolist() == ev.net_benefit(OUTCOME, PROBABILITY, [0.2, 0.4]).value.tolist()


def test_calibration_without_a_curve_shows_the_tenths() -> None:
    axes = ev.plot_calibration([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])
    assert labels(axes) == ["ideal: observed as predicted", "tenths of the patients, with 95 % intervals (Wilson)"]


def test_forest_names_what_is_too_small_and_shows_the_mean_of_sites() -> None:
    rows = [("large", Estimate(0.7, 0.6, 0.8)), ("small", None), ("none", NOT_ESTIMABLE)]
    axes = ev.plot_forest(rows)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["large", "small", "none"]
    assert [text.get_text() for text in axes.texts] == ["too few", "too few"]
    sites = ev.pool_sites(OUTCOME, PROBABILITY, np.resize(["a", "b", "c"], 300))
    pooled = ev.plot_forest(sites, "slope")
    assert pooled.get_yticklabels()[-1].get_text() == "mean of 3 sites"
    assert pooled.get_xlabel() == "calibration slope"


def test_an_import_leaves_the_style_of_a_notebook_as_it_is() -> None:
    code = """
import matplotlib
from matplotlib import font_manager
style, fonts = dict(matplotlib.rcParams), list(font_manager.fontManager.ttflist)
import rlvo.evaluation
import app.training.score
assert style == dict(matplotlib.rcParams)
assert fonts == list(font_manager.fontManager.ttflist)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
