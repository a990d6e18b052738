"""The four figures of an evaluation: ROC, precision-recall, calibration and decision curve, as SVG and PNG.

Design notes:
- app/reporting/drawing.py draws them, so that equal numbers give equal bytes and no plotting library is needed.
- Colours are Okabe and Ito's (2008), which colour-blind people can distinguish; the legend names every curve.
- Calibration is shown in tenths of the patients with Wilson intervals and a histogram of the probabilities, because a
  line alone hides how few patients a bin has.
- Labels are (n,) 0/1, probabilities (n,) by the name of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from app.evaluation.metrics import Array, Labels, auc, average_precision, net_benefit, wilson
from app.reporting.drawing import INK, MUTED, Drawing

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LEFT, TOP, SIDE = 64.0, 44.0, 400.0
BINS = 10
Curves = Mapping[str, Array]


class _Plot:
    """Square axes on a drawing; converts data coordinates to drawing units."""

    def __init__(
        self, title: str, across: str, up: str, *, x: tuple[float, float] = (0, 1), y: tuple[float, float] = (0, 1)
    ) -> None:
        self.drawing = Drawing(LEFT + SIDE + 24, TOP + SIDE + 56, title)
        self._x, self._y = x, y
        self._entries = 0
        draw = self.drawing
        draw.text(LEFT, 24, title, size=15)
        for share in np.linspace(0, 1, 6):
            at_x, at_y = x[0] + share * (x[1] - x[0]), y[0] + share * (y[1] - y[0])
            (px, py), (zx, zy) = self.at(at_x, at_y), self.at(x[0], y[0])
            draw.line(px, zy, px, TOP, "#e6ebf0")
            draw.line(zx, py, LEFT + SIDE, py, "#e6ebf0")
            draw.text(px, zy + 18, f"{at_x:.2g}", size=11, fill=MUTED, anchor="middle")
            draw.text(zx - 8, py + 4, f"{at_y:.2g}", size=11, fill=MUTED, anchor="end")
        draw.text(LEFT + SIDE / 2, TOP + SIDE + 42, across, size=12, anchor="middle")
        draw.text(LEFT, TOP - 6, up, size=12)

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

    def legend(self, text: str, colour: str, *, top: bool = False) -> None:
        """Add a line to the legend, upwards from the lower right corner or downwards from the upper one."""
        right = LEFT + SIDE - 12
        y = TOP + 20 + 18 * self._entries if top else TOP + SIDE - 14 - 18 * self._entries
        self.drawing.text(right - 26, y, text, size=12, anchor="end")
        self.drawing.line(right - 20, y - 4, right, y - 4, colour, 3)
        self._entries += 1


def _steps(labels: Labels, probabilities: Array) -> tuple[Array, Array]:
    """Count true and false positives at every distinct threshold, from 0 up."""
    order = np.argsort(-probabilities, kind="stable")
    hits = np.cumsum(labels[order])
    last = np.append(np.diff(probabilities[order]) != 0, True)
    true = np.concatenate([[0.0], hits[last]])
    false = np.concatenate([[0.0], (np.arange(1, len(labels) + 1) - hits)[last]])
    return true, false


def roc(labels: Labels, models: Curves) -> Drawing:
    """Draw sensitivity over 1 - specificity."""
    plot = _Plot("Receiver operating characteristic", "1 - specificity", "sensitivity")
    plot.curve(np.array([0.0, 1.0]), np.array([0.0, 1.0]), MUTED, 1)
    for (name, probabilities), colour in zip(models.items(), COLOURS, strict=False):
        true, false = _steps(labels, probabilities)
        plot.curve(false / false[-1], true / true[-1], colour)
        plot.legend(f"{name}: AUC {auc(labels, probabilities):.3f}", colour)
    return plot.drawing


def precision_recall(labels: Labels, models: Curves) -> Drawing:
    """Draw positive predictive value over sensitivity; the flat line is the prevalence."""
    plot = _Plot("Precision and recall", "recall (sensitivity)", "precision (positive predictive value)")
    prevalence = float(labels.mean())
    plot.curve(np.array([0.0, 1.0]), np.array([prevalence, prevalence]), MUTED, 1)
    for (name, probabilities), colour in zip(models.items(), COLOURS, strict=False):
        true, false = _steps(labels, probabilities)
        plot.curve(true[1:] / true[-1], true[1:] / (true + false)[1:], colour)
        plot.legend(f"{name}: AUPRC {average_precision(labels, probabilities):.3f}", colour, top=True)
    return plot.drawing


def calibration(labels: Labels, probabilities: Array, name: str) -> Drawing:
    """Draw the observed share over the predicted probability, in tenths of the patients, with 95 % intervals."""
    parts = np.array_split(np.argsort(probabilities, kind="stable"), min(BINS, len(labels)))
    means = np.array([probabilities[part].mean() for part in parts])
    shares = np.array([labels[part].mean() for part in parts])
    ends = (0.0, min(1.0, float(np.ceil(1.05 * max(probabilities.max(), shares.max()) * 5) / 5)))
    plot = _Plot(f"Calibration of {name}", "predicted probability", "observed share", x=ends, y=ends)
    counts, edges = np.histogram(probabilities, bins=40, range=ends)
    for count, (low, high) in zip(counts, pairwise(edges), strict=True):
        (left, floor), (right, _) = plot.at(low, 0), plot.at(high, 0)
        plot.drawing.bar(left, floor - 60 * count / counts.max(), right - left, 60 * count / counts.max(), "#d5dde5")
    plot.curve(np.array(ends), np.array(ends), MUTED, 1)
    for part, mean, share in zip(parts, means, shares, strict=True):
        low, high = wilson(int(labels[part].sum()), len(part))
        plot.drawing.line(*plot.at(float(mean), low), *plot.at(float(mean), high), COLOURS[0], 1.5)
        plot.drawing.disc(*plot.at(float(mean), float(share)), 4, COLOURS[0])
    plot.curve(means, shares, COLOURS[0])
    return plot.drawing


def decision(labels: Labels, models: Curves) -> Drawing:
    """Draw net benefit per patient over the threshold probability of treatment (Vickers & Elkin 2006)."""
    # The axes end at round numbers, with 0 on a grid line; the net benefit is at most the prevalence.
    most = float(np.clip(np.ceil(25 * labels.mean()) / 10, 0.2, 1.0))
    top = float(np.ceil(25 * labels.mean()) / 25)
    thresholds = np.linspace(0.005, min(most, 0.99), 120)
    ends = (-top / 4, top)
    plot = _Plot("Decision curve", "threshold probability", "net benefit per patient", x=(0, most), y=ends)
    treat_all = net_benefit(labels, np.ones(len(labels)), thresholds)
    visible = treat_all >= ends[0]
    plot.curve(thresholds[visible], treat_all[visible], MUTED, 1.5)
    plot.curve(np.array([0.0, most]), np.zeros(2), INK, 1.5)
    for (name, probabilities), colour in zip(models.items(), COLOURS, strict=False):
        plot.curve(thresholds, net_benefit(labels, probabilities, thresholds), colour)
        plot.legend(name, colour, top=True)
    plot.legend("treat all", MUTED, top=True)
    plot.legend("treat none", INK, top=True)
    return plot.drawing


def write(folder: Path, labels: Labels, models: Curves, chosen: str) -> list[str]:
    """Write all four figures into a folder and return their names without suffix.

    ``models`` are calibrated probabilities (n,) by name; ``chosen`` is the model of the calibration figure.
    """
    drawings = {
        "roc": roc(labels, models),
        "precision-recall": precision_recall(labels, models),
        "calibration": calibration(labels, models[chosen], chosen),
        "decision-curve": decision(labels, models),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawing in drawings.items():
        (folder / f"{name}.svg").write_bytes(drawing.svg())
        (folder / f"{name}.png").write_bytes(drawing.png())
    return list(drawings)
