"""The four figures of a report: ROC, precision and recall, calibration, decision curve. Each as SVG and as PNG.

Notable choices:
- Drawn by the report room's own few shapes: the same numbers give the same bytes, and no plotting library is needed.
- Colours are Okabe and Ito's (2008), told apart by the colour-blind; every curve is also named beside its number.
- Calibration is shown in tenths of the patients with Wilson intervals, over a histogram of the answers: a line without
  them hides how few patients a bin has.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from app.evaluation.metrics import Array, Labels, auc, average_precision, net_benefit, wilson
from app.reporting.drawing import INK, QUIET, Drawing

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LEFT, TOP, SIDE = 64.0, 44.0, 400.0
BINS = 10
Curves = Mapping[str, Array]


class _Plot:
    """A square of axes on a sheet; data coordinates to units."""

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
            draw.text(px, zy + 18, f"{at_x:.2g}", size=11, fill=QUIET, anchor="middle")
            draw.text(zx - 8, py + 4, f"{at_y:.2g}", size=11, fill=QUIET, anchor="end")
        draw.text(LEFT + SIDE / 2, TOP + SIDE + 42, across, size=12, anchor="middle")
        draw.text(LEFT, TOP - 6, up, size=12)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies on the sheet; what is outside the axes lies on their edge."""
        across = np.clip((x - self._x[0]) / (self._x[1] - self._x[0]), 0, 1)
        up = np.clip((y - self._y[0]) / (self._y[1] - self._y[0]), 0, 1)
        return LEFT + SIDE * float(across), TOP + SIDE * (1 - float(up))

    def curve(self, x: Array, y: Array, colour: str, width: float = 2) -> None:
        points = [self.at(float(a), float(b)) for a, b in zip(x, y, strict=True)]
        for start, end in pairwise(points):
            if start != end:
                self.drawing.line(*start, *end, colour, width)

    def legend(self, words: str, colour: str, *, top: bool = False) -> None:
        """The next line of the legend, from the lower right corner upwards or from the upper one downwards."""
        right = LEFT + SIDE - 12
        y = TOP + 20 + 18 * self._entries if top else TOP + SIDE - 14 - 18 * self._entries
        self.drawing.text(right - 26, y, words, size=12, anchor="end")
        self.drawing.line(right - 20, y - 4, right, y - 4, colour, 3)
        self._entries += 1


def _steps(labels: Labels, chances: Array) -> tuple[Array, Array]:
    """True and false positives, each from 0 up, at every distinct threshold."""
    order = np.argsort(-chances, kind="stable")
    hits = np.cumsum(labels[order])
    last = np.append(np.diff(chances[order]) != 0, True)
    true = np.concatenate([[0.0], hits[last]])
    false = np.concatenate([[0.0], (np.arange(1, len(labels) + 1) - hits)[last]])
    return true, false


def roc(labels: Labels, models: Curves) -> Drawing:
    """Sensitivity over 1 - specificity."""
    plot = _Plot("Receiver operating characteristic", "1 - specificity", "sensitivity")
    plot.curve(np.array([0.0, 1.0]), np.array([0.0, 1.0]), QUIET, 1)
    for (name, chances), colour in zip(models.items(), COLOURS, strict=False):
        true, false = _steps(labels, chances)
        plot.curve(false / false[-1], true / true[-1], colour)
        plot.legend(f"{name}: AUC {auc(labels, chances):.3f}", colour)
    return plot.drawing


def precision_recall(labels: Labels, models: Curves) -> Drawing:
    """Positive predictive value over sensitivity; the flat line is the prevalence."""
    plot = _Plot("Precision and recall", "recall (sensitivity)", "precision (positive predictive value)")
    base = float(labels.mean())
    plot.curve(np.array([0.0, 1.0]), np.array([base, base]), QUIET, 1)
    for (name, chances), colour in zip(models.items(), COLOURS, strict=False):
        true, false = _steps(labels, chances)
        plot.curve(true[1:] / true[-1], true[1:] / (true + false)[1:], colour)
        plot.legend(f"{name}: AUPRC {average_precision(labels, chances):.3f}", colour, top=True)
    return plot.drawing


def calibration(labels: Labels, chances: Array, name: str) -> Drawing:
    """Observed share over predicted probability, in tenths of the patients, with 95 % Wilson intervals."""
    parts = np.array_split(np.argsort(chances, kind="stable"), min(BINS, len(labels)))
    means = np.array([chances[part].mean() for part in parts])
    shares = np.array([labels[part].mean() for part in parts])
    ends = (0.0, min(1.0, float(np.ceil(1.05 * max(chances.max(), shares.max()) * 5) / 5)))
    plot = _Plot(f"Calibration of {name}", "predicted probability", "observed share", x=ends, y=ends)
    counts, edges = np.histogram(chances, bins=40, range=ends)
    for count, (low, high) in zip(counts, pairwise(edges), strict=True):
        (left, floor), (right, _) = plot.at(low, 0), plot.at(high, 0)
        plot.drawing.bar(left, floor - 60 * count / counts.max(), right - left, 60 * count / counts.max(), "#d5dde5")
    plot.curve(np.array(ends), np.array(ends), QUIET, 1)
    for part, mean, share in zip(parts, means, shares, strict=True):
        low, high = wilson(int(labels[part].sum()), len(part))
        plot.drawing.line(*plot.at(float(mean), low), *plot.at(float(mean), high), COLOURS[0], 1.5)
        plot.drawing.disc(*plot.at(float(mean), float(share)), 4, COLOURS[0])
    plot.curve(means, shares, COLOURS[0])
    return plot.drawing


def decision(labels: Labels, models: Curves) -> Drawing:
    """Net benefit per patient over the probability above which one would act (Vickers & Elkin 2006)."""
    # Ends that are round numbers, with 0 on a line of the grid: nobody gains more than the prevalence.
    most = float(np.clip(np.ceil(25 * labels.mean()) / 10, 0.2, 1.0))
    top = float(np.ceil(25 * labels.mean()) / 25)
    thresholds = np.linspace(0.005, min(most, 0.99), 120)
    ends = (-top / 4, top)
    plot = _Plot("Decision curve", "act above this probability", "net benefit per patient", x=(0, most), y=ends)
    everybody = net_benefit(labels, np.ones(len(labels)), thresholds)
    shown = everybody >= ends[0]
    plot.curve(thresholds[shown], everybody[shown], QUIET, 1.5)
    plot.curve(np.array([0.0, most]), np.zeros(2), INK, 1.5)
    for (name, chances), colour in zip(models.items(), COLOURS, strict=False):
        plot.curve(thresholds, net_benefit(labels, chances, thresholds), colour)
        plot.legend(name, colour, top=True)
    plot.legend("treat all", QUIET, top=True)
    plot.legend("treat none", INK, top=True)
    return plot.drawing


def write(folder: Path, labels: Labels, models: Curves, chosen: str) -> list[str]:
    """All four into the folder; their names without ending. ``models``: (n,) calibrated probabilities by name."""
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
