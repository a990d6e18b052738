"""The four figures of an evaluation: ROC, precision-recall, calibration and decision curve, as SVG, PNG and JSON.

Design notes:
- app/reporting/drawing.py draws them, so that equal numbers give equal bytes and no plotting library is needed.
- ``curves.py`` computes the numbers; the JSON file beside each figure holds them.
- Colours are Okabe and Ito's (2008), which colour-blind people can distinguish. The legend below the axes names every
  curve and band.
- A band is drawn for one model only: overlapping bands cannot be read. The JSON file has the bands of all models.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from app.core import json_text
from app.evaluation import curves
from app.evaluation.curves import Curve
from app.evaluation.metrics import Array, Labels, auc, average_precision, wilson
from app.reporting.drawing import INK, MUTED, Drawing

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GRID = "#e6ebf0"
LEFT, TOP, SIDE = 64.0, 72.0, 400.0
LINE = 18.0  # units between two lines of the legend
LEAST_REACH = 0.2  # of the threshold axis of a decision curve
Curves = Mapping[str, Array]
Range = tuple[float, float]


class _Plot:
    """Square axes on a drawing with a legend below them; converts data coordinates to drawing units."""

    def __init__(
        self, title: str, about: str, across: str, up: str, *, x: Range = (0, 1), y: Range = (0, 1), unit: str = "%"
    ) -> None:
        self.drawing = Drawing(LEFT + SIDE + 24, TOP + SIDE + 66, title)
        self._x, self._y = x, y
        draw = self.drawing
        draw.text(LEFT, 22, title, size=15)
        draw.text(LEFT, 40, about, size=11, fill=MUTED)
        for value in ticks(*x):
            px, zy = self.at(value, y[0])
            draw.line(px, zy, px, TOP, GRID)
            draw.text(px, zy + 18, f"{100 * value:.3g} %", size=11, fill=MUTED, anchor="middle")
        for value in ticks(*y):
            zx, py = self.at(x[0], value)
            draw.line(zx, py, LEFT + SIDE, py, GRID)
            draw.text(
                zx - 8, py + 4, f"{100 * value:.3g}{' %' if unit == '%' else ''}", size=11, fill=MUTED, anchor="end"
            )
        draw.text(LEFT + SIDE / 2, TOP + SIDE + 40, across, size=12, anchor="middle")
        draw.text(LEFT - 40, TOP - 14, up, size=12)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Convert a point to drawing units; a point outside the axes moves to their edge."""
        across = np.clip((x - self._x[0]) / (self._x[1] - self._x[0]), 0, 1)
        up = np.clip((y - self._y[0]) / (self._y[1] - self._y[0]), 0, 1)
        return LEFT + SIDE * float(across), TOP + SIDE * (1 - float(up))

    def curve(self, x: Array, y: Array, colour: str, width: float = 2) -> None:
        points = [self.at(float(a), float(b)) for a, b in zip(x, y, strict=True)]
        for start, end in pairwise(points):
            if start != end:
                self.drawing.line(*start, *end, colour, width)

    def band(self, curve: Curve, colour: str) -> None:
        """Fill the band of a curve."""
        if curve.low is None or curve.high is None:
            return
        there = [self.at(float(a), float(b)) for a, b in zip(curve.x, curve.high, strict=True)]
        back = [self.at(float(a), float(b)) for a, b in zip(curve.x, curve.low, strict=True)]
        self.drawing.polygon([*there, *back[::-1]], colour, 0.18)

    def legend(self, text: str, colour: str, width: float = 3) -> None:
        """Add a line to the legend, which makes the drawing higher."""
        y = self.drawing.height - 2
        self.drawing.line(LEFT, y - 4, LEFT + 20, y - 4, colour, width)
        self.drawing.text(LEFT + 28, y, text, size=12)
        self.drawing.height += LINE


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between ``low`` and ``high``, at most eight."""
    size = 10.0 ** np.floor(np.log10(high - low))
    step = next(s for s in size * np.array([0.1, 0.2, 0.25, 0.5, 1, 2]) if (high - low) / s < 7.5)
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    return [n * step for n in range(first, last + 1)]


def roc(labels: Labels, models: Curves) -> Drawing:
    """Draw sensitivity over 1 - specificity."""
    plot = _Plot("Receiver operating characteristic", _about(labels), "1 - specificity", "sensitivity")
    plot.curve(np.array([0.0, 1.0]), np.array([0.0, 1.0]), MUTED, 1)
    for (name, probabilities), colour in zip(models.items(), COLOURS, strict=False):
        curve = curves.roc(labels, probabilities)
        plot.curve(curve.x, curve.y, colour)
        plot.legend(f"{name}: AUC {auc(labels, probabilities):.3f}", colour)
    plot.legend("chance", MUTED, 1)
    return plot.drawing


def precision_recall(labels: Labels, models: Curves) -> Drawing:
    """Draw positive predictive value over sensitivity; the flat line is the prevalence."""
    plot = _Plot(
        "Precision and recall", _about(labels), "recall (sensitivity)", "precision (positive predictive value)"
    )
    prevalence = float(labels.mean())
    plot.curve(np.array([0.0, 1.0]), np.array([prevalence, prevalence]), MUTED, 1)
    for (name, probabilities), colour in zip(models.items(), COLOURS, strict=False):
        curve = curves.precision_recall(labels, probabilities)
        plot.curve(curve.x, curve.y, colour)
        plot.legend(f"{name}: AUPRC {average_precision(labels, probabilities):.3f}", colour)
    plot.legend(f"prevalence, {100 * prevalence:.1f} %", MUTED, 1)
    return plot.drawing


def calibration(labels: Labels, probabilities: Array, name: str) -> Drawing:
    """Draw the observed share over the predicted probability, in tenths of the patients and as a line with its band."""
    curve = curves.calibration(labels, probabilities)
    bins, line = curve.bins, curve.line
    reach = float(max(probabilities.max(), bins.y.max()))
    ends = (0.0, min(1.0, float(np.ceil(1.05 * reach * 5) / 5)))
    plot = _Plot(f"Calibration of {name}", _about(labels), "predicted probability", "observed share", x=ends, y=ends)
    counts, edges = np.histogram(probabilities, bins=40, range=ends)
    for count, (low, high) in zip(counts, pairwise(edges), strict=True):
        (left, floor), (right, _) = plot.at(low, 0), plot.at(high, 0)
        plot.drawing.bar(left, floor - 60 * count / counts.max(), right - left, 60 * count / counts.max(), "#d5dde5")
    plot.curve(np.array(ends), np.array(ends), MUTED, 1)
    if line is not None:
        plot.band(line, COLOURS[0])
        plot.curve(line.x, line.y, COLOURS[0])
    assert bins.low is not None
    assert bins.high is not None
    for mean, share, below, above in zip(bins.x, bins.y, bins.low, bins.high, strict=True):
        plot.drawing.line(*plot.at(float(mean), float(below)), *plot.at(float(mean), float(above)), INK, 1.5)
        plot.drawing.disc(*plot.at(float(mean), float(share)), 4, INK)
    if line is not None:
        plot.legend("logistic calibration line, band: 95 % interval at each point", COLOURS[0])
    plot.legend("tenths of the patients, with 95 % intervals (Wilson)", INK)
    plot.legend("ideal: observed as predicted", MUTED, 1)
    plot.legend("histogram of the predicted probabilities", "#d5dde5", 8)
    return plot.drawing


def decision_axes(labels: Labels) -> tuple[float, Range]:
    """Highest threshold, and range of the net benefit, of a decision curve; both follow from the prevalence.

    The thresholds reach 2.5 times the prevalence. The net benefit is at most the prevalence, so the axis ends at the
    upper limit of its interval; a fifth of that is shown below 0. All ends are round numbers.
    """
    prevalence = float(labels.mean())
    reach = float(np.clip(np.ceil(25 * prevalence) / 10, LEAST_REACH, 1.0))
    step = 0.01 if prevalence < 0.05 else 0.02 if prevalence < 0.1 else 0.05
    top = float(np.ceil(wilson(int(labels.sum()), len(labels))[1] / step) * step)
    return reach, (-max(float(np.ceil(top / 5 / step)), 1.0) * step, top)


def decision_thresholds(labels: Labels) -> Array:
    """Thresholds (120,) of a decision curve."""
    return np.linspace(0.005, min(decision_axes(labels)[0], 0.99), 120)


def decision(labels: Labels, models: Curves, chosen: str = "") -> Drawing:
    """Draw net benefit over the threshold probability (Vickers & Elkin 2006), with the band of the model ``chosen``."""
    reach, ends = decision_axes(labels)
    thresholds = decision_thresholds(labels)
    up = "net benefit (true positives per 100 patients)"
    plot = _Plot("Decision curve", _about(labels), "threshold probability", up, x=(0, reach), y=ends, unit="")
    drawn = {name: curves.decision(labels, own, thresholds) for name, own in models.items()}
    chosen = chosen or next(iter(models))
    for name, colour in zip(models, COLOURS, strict=False):
        if name == chosen:
            plot.band(drawn[name], colour)
    treat_all = curves.decision(labels, np.ones(len(labels)), thresholds)
    visible = treat_all.y >= ends[0]
    plot.curve(thresholds[visible], treat_all.y[visible], MUTED, 1.5)
    plot.curve(np.array([0.0, reach]), np.zeros(2), INK, 1.5)
    for name, colour in zip(models, COLOURS, strict=False):
        plot.curve(thresholds, drawn[name].y, colour)
        plot.legend(f"{name}; band: 95 % interval at each threshold" if name == chosen else name, colour)
    plot.legend("treat all", MUTED, 1.5)
    plot.legend("treat none", INK, 1.5)
    return plot.drawing


def numbers(labels: Labels, models: Curves) -> dict[str, dict[str, object]]:
    """Numbers of each figure, for every model, by the name of the figure."""
    thresholds = decision_thresholds(labels)
    treat_all = curves.decision(labels, np.ones(len(labels)), thresholds)
    by_figure = {
        "roc": {name: curves.roc(labels, own).document() for name, own in models.items()},
        "precision-recall": {name: curves.precision_recall(labels, own).document() for name, own in models.items()},
        "calibration": {name: curves.calibration(labels, own).document() for name, own in models.items()},
        "decision-curve": {name: curves.decision(labels, own, thresholds).document() for name, own in models.items()}
        | {"treat all": treat_all.document()},
    }
    names = {
        "roc": ("1 - specificity", "sensitivity"),
        "precision-recall": ("sensitivity", "positive predictive value"),
        "calibration": ("predicted probability", "observed share"),
        "decision-curve": ("threshold probability", "net benefit per patient"),
    }
    about = {"patients": len(labels), "events": int(labels.sum()), "level": 0.95}
    return {
        figure: {**about, "x": names[figure][0], "y": names[figure][1], "curves": drawn}
        for figure, drawn in by_figure.items()
    }


def write(folder: Path, labels: Labels, models: Curves, chosen: str) -> list[str]:
    """Write all four figures into a folder, each with a JSON file of its numbers; return their names without suffix.

    ``models`` are calibrated probabilities (n,) by name; ``chosen`` is the model of the calibration figure and of the
    band of the decision curve.
    """
    drawings = {
        "roc": roc(labels, models),
        "precision-recall": precision_recall(labels, models),
        "calibration": calibration(labels, models[chosen], chosen),
        "decision-curve": decision(labels, models, chosen),
    }
    folder.mkdir(parents=True, exist_ok=True)
    documents = numbers(labels, models)
    for name, drawing in drawings.items():
        (folder / f"{name}.svg").write_bytes(drawing.svg())
        (folder / f"{name}.png").write_bytes(drawing.png())
        json_text.write(folder / f"{name}.json", documents[name])
    return list(drawings)


def _about(labels: Labels) -> str:
    return f"{len(labels)} patients, {int(labels.sum())} with the outcome"
