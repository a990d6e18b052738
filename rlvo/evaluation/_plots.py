"""Plots on matplotlib axes: ROC, calibration, net benefit, and forest plot.

Design notes:
- Every function takes ``ax``, draws on it and returns it; without it, on the axes of a new figure.
- A second call on the same axes adds another predictor. Colours are Okabe and Ito's (2008), which colour-blind people
  can distinguish; the legend names every line and band.
- The style of matplotlib is that of the caller; only colours and line widths are set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes

from app.evaluation import curves, metrics
from app.evaluation.figures import COLOURS, decision_axes, decision_thresholds
from app.evaluation.metrics import Array, Estimate
from app.reporting.drawing import GRID_LINE, INK, MUTED
from rlvo.evaluation import _inputs, _performance
from rlvo.evaluation._inputs import Values
from rlvo.evaluation._results import PooledSites, Subgroups

_ENDS: Array = np.array([0.0, 1.0])
_IDEAL, _ALL, _NONE = "ideal: observed as predicted", "treat all", "treat none"
_PREDICTOR = "predictor"
"""Group id of one line of each predictor, by which the next one gets another colour."""
_FOREST = {"auc": "AUC", "observed_expected": "O/E", "slope": "calibration slope"}


def plot_roc(
    outcome: Values, probability: Values, *, data: pd.DataFrame | None = None, label: str = "", ax: Axes | None = None
) -> Axes:
    """Plot sensitivity over 1 - specificity; the legend has the AUC with its 95 % interval.

    Args:
        outcome: (n,) 0/1, or the name of its column.
        probability: (n,) predicted, 0 to 1, or the name of its column.
        data: Table of the columns that are named.
        label: Name of the predictor in the legend.
        ax: Axes to draw on; None: those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: As for ``discrimination``.
    """
    labels, own = _inputs.labels_and_probabilities(outcome, probability, data)
    axes, colour = _start(ax, "1 - specificity", "sensitivity")
    _reference(axes, _ENDS, _ENDS, "chance")
    curve = curves.roc(labels, own)
    named = f"{label}: " if label else ""
    said = f"{named}AUC {metrics.auc_estimate(labels, own, by_events=True)}"
    axes.plot(curve.x, curve.y, color=colour, label=said, gid=_PREDICTOR)
    return _finished(axes, "lower right")


def plot_calibration(
    outcome: Values, probability: Values, *, data: pd.DataFrame | None = None, label: str = "", ax: Axes | None = None
) -> Axes:
    """Plot the smooth observed share over the predicted probability with its 95 % band, and tenths of the patients.

    The bars at the bottom are the histogram of the predictions. Without a smooth curve only the tenths are drawn.

    Args:
        outcome: (n,) 0/1, or the name of its column.
        probability: (n,) predicted, 0 to 1, or the name of its column.
        data: Table of the columns that are named.
        label: Name of the predictor in the legend.
        ax: Axes to draw on; None: those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: As for ``discrimination``.
    """
    found = _performance.calibration(outcome, probability, data=data, rounds=0)
    own = _inputs.shares(probability, "probability", data)
    axes, colour = _start(ax, "predicted probability", "observed share")
    _reference(axes, _ENDS, _ENDS, _IDEAL)
    named = f"{label}: " if label else ""
    if (curve := found.curve) is not None and curve.low is not None and curve.high is not None:
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.18, lw=0)
        axes.plot(curve.x, curve.y, color=colour, label=f"{named}smooth curve, band: 95 % interval at each point")
    tenths = found.tenths.bins
    assert tenths.low is not None
    assert tenths.high is not None
    ends = np.maximum([tenths.y - tenths.low, tenths.high - tenths.y], 0)
    said = f"{named}tenths of the patients, with 95 % intervals (Wilson)"
    axes.errorbar(tenths.x, tenths.y, ends, fmt="o", color=colour, ms=4, lw=1, label=said, gid=_PREDICTOR)
    counts, edges = np.histogram(own, bins=40, range=(0, 1))
    axes.bar(edges[:-1], 0.12 * counts / counts.max(), np.diff(edges), align="edge", color=colour, alpha=0.25, zorder=1)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    return _finished(axes, "upper left")


def plot_net_benefit(
    outcome: Values,
    probability: Values,
    thresholds: npt.ArrayLike | None = None,
    *,
    data: pd.DataFrame | None = None,
    label: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Plot the net benefit over the threshold probability with its 95 % band, and that of acting on all and on none.

    Args:
        outcome: (n,) 0/1, or the name of its column.
        probability: (n,) predicted, 0 to 1, or the name of its column.
        thresholds: (k,) threshold probabilities; None: up to 2.5 times the prevalence.
        data: Table of the columns that are named.
        label: Name of the predictor in the legend.
        ax: Axes to draw on; None: those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: As for ``net_benefit``.
    """
    labels, _ = _inputs.labels_and_probabilities(outcome, probability, data)
    at = decision_thresholds(labels) if thresholds is None else thresholds
    found = _performance.net_benefit(outcome, probability, at, data=data)
    axes, colour = _start(ax, "threshold probability", "net benefit per patient")
    _reference(axes, found.thresholds, found.treat_all, _ALL)
    _reference(axes, found.thresholds, np.zeros(len(found.thresholds)), _NONE, INK)
    named = f"{label}: " if label else ""
    axes.fill_between(found.thresholds, found.low, found.high, color=colour, alpha=0.18, lw=0)
    said = f"{named}net benefit, band: 95 % interval at each threshold"
    axes.plot(found.thresholds, found.value, color=colour, label=said, gid=_PREDICTOR)
    axes.set(xlim=(0, float(found.thresholds.max())), ylim=decision_axes(labels)[1])
    return _finished(axes, "upper right")


def plot_forest(
    rows: Subgroups | PooledSites | Sequence[tuple[str, Estimate | None]],
    measure: str = "auc",
    *,
    reference: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot one estimate with its 95 % interval in each line; groups that are too small are named as such.

    Args:
        rows: Result of ``subgroups`` or ``pool_sites``, or names and estimates. For sites, the pooled mean and the
            prediction interval of a new site (thin line) follow.
        measure: ``auc``, ``observed_expected`` or ``slope`` of groups and sites.
        reference: Value of a vertical line; None: the ideal of O/E and slope, and no line for others.
        ax: Axes to draw on; None: those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: There is no row, or no such measure.
    """
    if measure not in _FOREST:
        raise ValueError(f"measure: expected {', '.join(_FOREST)}")
    lines, name = _forest_lines(rows, measure)
    if not lines:
        raise ValueError("rows: there is nothing to plot")
    axes, colour = _start(ax, name, "")
    if reference is None and name in (_FOREST["observed_expected"], _FOREST["slope"]):
        reference = 1.0
    if reference is not None:
        axes.axvline(reference, color=MUTED, lw=0.8)
    for place, (_, one, ahead) in enumerate(lines):
        if one is None or not np.isfinite([one.value, one.low, one.high]).all():
            axes.text(0.02, place, "too few", transform=axes.get_yaxis_transform(), va="center", color=MUTED)
            continue
        if ahead is not None:
            axes.plot(ahead, [place, place], color=INK, lw=0.8)
        axes.plot([one.low, one.high], [place, place], color=colour if ahead is None else INK, lw=1.8)
        axes.plot([one.value], [place], "o" if ahead is None else "D", color=colour if ahead is None else INK, ms=5)
    axes.set_yticks(range(len(lines)), [text for text, _, _ in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    return axes


_Place = Literal["lower right", "upper left", "upper right"]
_Line = tuple[str, Estimate | None, tuple[float, float] | None]


def _forest_lines(
    rows: Subgroups | PooledSites | Sequence[tuple[str, Estimate | None]], measure: str
) -> tuple[list[_Line], str]:
    """Name, estimate and prediction interval of each line, and the name of the axis."""
    if isinstance(rows, Subgroups | PooledSites):
        groups = rows.rows if isinstance(rows, Subgroups) else rows.sites
        lines: list[_Line] = [(f"{one.name} (n = {one.patients})", getattr(one, measure), None) for one in groups]
        pooled = rows.pooled if isinstance(rows, PooledSites) else ()
        for whole in pooled:
            if whole.measure == _FOREST[measure]:
                lines.append((f"mean of {whole.sites} sites", whole.mean, whole.prediction))
        return lines, _FOREST[measure]
    return [(text, one, None) for text, one in rows], "estimate"


def _start(ax: Axes | None, across: str, up: str) -> tuple[Axes, str]:
    """The axes with their names and grid, and the colour of the next predictor on them."""
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots(layout="constrained")[1]
    colour = COLOURS[sum(line.get_gid() == _PREDICTOR for line in ax.get_lines()) % len(COLOURS)]
    ax.set(xlabel=across, ylabel=up)
    ax.grid(visible=True, color=GRID_LINE)
    ax.set_axisbelow(True)
    return ax, colour


def _reference(axes: Axes, x: Array, y: Array, label: str, colour: str = MUTED) -> None:
    """Draw a line of comparison, once on the same axes."""
    if label not in axes.get_legend_handles_labels()[1]:
        axes.plot(x, y, color=colour, lw=0.8, label=label)


def _finished(axes: Axes, place: _Place) -> Axes:
    axes.legend(loc=place, fontsize="small", frameon=False)
    return axes
