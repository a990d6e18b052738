"""The four figures of an evaluation: ROC, precision-recall, calibration and decision curve, as SVG, PNG and JSON.

Design notes:
- Equal numbers give equal bytes (app/reporting/drawing.py).
- ``curves.py`` computes the numbers; the JSON file beside each figure holds them.
- Colours are Okabe and Ito's (2008), which colour-blind people can distinguish. The legend below the axes names every
  curve and band.
- A band is drawn for one model only: overlapping bands cannot be read. The JSON file has the bands of all models.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from app.core import json_text
from app.evaluation import curves
from app.evaluation.clusters import Clusters
from app.evaluation.curves import Curve
from app.evaluation.metrics import Array, Labels, auc, average_precision, wilson
from app.reporting.drawing import GRID_LINE, INK, MUTED, Drawing

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LEFT, TOP, SIDE = 64.0, 72.0, 400.0  # pixels
LINE = 18.0  # pixels of a line of the legend
LEAST_REACH = 0.2  # of the threshold axis of a decision curve
Curves = Mapping[str, Array]
Range = tuple[float, float]
_ENDS: Array = np.array([0.0, 1.0])


class _Plot:
    """Square axes on a drawing with a legend of ``lines`` lines below them."""

    def __init__(
        self,
        title: str,
        labels: Labels,
        across: str,
        up: str,
        lines: int,
        *,
        x: Range = (0, 1),
        y: Range = (0, 1),
        unit: str = " %",
    ) -> None:
        self.drawing = Drawing(LEFT + SIDE + 24, TOP + SIDE + 56 + LINE * lines, title)
        self.drawing.text(LEFT, 22, title, size=10.5)
        about = f"{len(labels)} patients, {int(labels.sum())} with the outcome"
        self.drawing.text(LEFT, 40, about, size=8, colour=MUTED)
        self.axes = self.drawing.axes(LEFT, TOP, SIDE, SIDE)
        self.axes.set(xlim=x, ylim=y, xlabel=across)
        self.axes.set_title(up, loc="left", x=-40 / SIDE, size=8.5)
        self.axes.set_xticks(ticks(*x), [f"{100 * value:.3g} %" for value in ticks(*x)])
        self.axes.set_yticks(ticks(*y), [f"{100 * value:.3g}{unit}" for value in ticks(*y)])
        self.axes.grid(visible=True)
        self.axes.tick_params(length=0)
        self.axes.spines[:].set_color(GRID_LINE)

    def curve(self, x: Array, y: Array, label: str, colour: str, width: float = 1.6) -> None:
        """Draw a line that the legend names."""
        self.axes.plot(x, y, color=colour, lw=width, label=label)

    def band(self, curve: Curve, colour: str) -> None:
        """Fill the band of a curve."""
        if curve.low is not None and curve.high is not None:
            self.axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.18, lw=0)

    def finished(self) -> Drawing:
        """The drawing with its legend."""
        handles, labels = self.axes.get_legend_handles_labels()
        place = 14 / self.drawing.width, 8 / self.drawing.height
        self.drawing.figure.legend(
            handles, labels, loc="lower left", bbox_to_anchor=place, borderaxespad=0, borderpad=0
        )
        return self.drawing


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between ``low`` and ``high``, at most eight."""
    size = 10.0 ** np.floor(np.log10(high - low))
    step = next(s for s in size * np.array([0.1, 0.2, 0.25, 0.5, 1, 2]) if (high - low) / s < 7.5)
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    return [n * step for n in range(first, last + 1)]


def roc(labels: Labels, models: Curves) -> Drawing:
    """Draw sensitivity over 1 - specificity."""
    lines = len(models) + 1
    plot = _Plot("Receiver operating characteristic", labels, "1 - specificity", "sensitivity", lines)
    for (name, probabilities), colour in zip(models.items(), COLOURS, strict=False):
        curve = curves.roc(labels, probabilities)
        plot.curve(curve.x, curve.y, f"{name}: AUC {auc(labels, probabilities):.3f}", colour)
    plot.curve(_ENDS, _ENDS, "chance", MUTED, 0.8)
    return plot.finished()


def precision_recall(labels: Labels, models: Curves) -> Drawing:
    """Draw positive predictive value over sensitivity; the flat line is the prevalence."""
    names = "recall (sensitivity)", "precision (positive predictive value)"
    plot = _Plot("Precision and recall", labels, *names, len(models) + 1)
    for (name, probabilities), colour in zip(models.items(), COLOURS, strict=False):
        curve = curves.precision_recall(labels, probabilities)
        plot.curve(curve.x, curve.y, f"{name}: AUPRC {average_precision(labels, probabilities):.3f}", colour)
    prevalence = float(labels.mean())
    plot.curve(_ENDS, np.array([prevalence, prevalence]), f"prevalence, {100 * prevalence:.1f} %", MUTED, 0.8)
    return plot.finished()


def calibration(labels: Labels, probabilities: Array, name: str, clusters: Clusters = None) -> Drawing:
    """Draw the observed share over the predicted probability, in tenths of the patients and as a line with its band."""
    curve = curves.calibration(labels, probabilities, clusters)
    bins, line = curve.bins, curve.line
    reach = float(max(probabilities.max(), bins.y.max()))
    ends = (0.0, min(1.0, float(np.ceil(1.05 * reach * 5) / 5)))
    across = "predicted probability"
    plot = _Plot(f"Calibration of {name}", labels, across, "observed share", 3 + (line is not None), x=ends, y=ends)
    if line is not None:
        plot.band(line, COLOURS[0])
        plot.curve(line.x, line.y, "logistic calibration line, band: 95 % interval at each point", COLOURS[0])
    assert bins.low is not None
    assert bins.high is not None
    plot.axes.errorbar(
        bins.x,
        bins.y,
        np.maximum([bins.y - bins.low, bins.high - bins.y], 0),
        fmt="o",
        color=INK,
        ms=5,
        lw=1.2,
        label="tenths of the patients, with 95 % intervals (Wilson)",
    )
    plot.curve(np.array(ends), np.array(ends), "ideal: observed as predicted", MUTED, 0.8)
    counts, edges = np.histogram(probabilities, bins=40, range=ends)
    heights = 0.15 * ends[1] * counts / counts.max()
    said = "histogram of the predicted probabilities"
    plot.axes.bar(edges[:-1], heights, np.diff(edges), align="edge", color=GRID_LINE, zorder=1, label=said)
    return plot.finished()


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


def decision(labels: Labels, models: Curves, chosen: str = "", clusters: Clusters = None) -> Drawing:
    """Draw net benefit over the threshold probability (Vickers & Elkin 2006), with the band of the model ``chosen``."""
    reach, ends = decision_axes(labels)
    thresholds = decision_thresholds(labels)
    names = "threshold probability", "net benefit (true positives per 100 patients)"
    plot = _Plot("Decision curve", labels, *names, len(models) + 2, x=(0, reach), y=ends, unit="")
    chosen = chosen or next(iter(models))
    for (name, own), colour in zip(models.items(), COLOURS, strict=False):
        curve = curves.decision(labels, own, thresholds, clusters)
        if name == chosen:
            plot.band(curve, colour)
        said = f"{name}; band: 95 % interval at each threshold" if name == chosen else name
        plot.curve(curve.x, curve.y, said, colour)
    treat_all = curves.decision(labels, np.ones(len(labels)), thresholds)
    plot.curve(thresholds, treat_all.y, "treat all", MUTED, 1.2)
    plot.curve(reach * _ENDS, np.zeros(2), "treat none", INK, 1.2)
    return plot.finished()


def numbers(labels: Labels, models: Curves, clusters: Clusters = None) -> dict[str, dict[str, object]]:
    """Numbers of each figure, for every model, by the name of the figure."""
    thresholds = decision_thresholds(labels)
    treat_all = curves.decision(labels, np.ones(len(labels)), thresholds, clusters)
    by_figure = {
        "roc": {name: curves.roc(labels, own).document() for name, own in models.items()},
        "precision-recall": {name: curves.precision_recall(labels, own).document() for name, own in models.items()},
        "calibration": {name: curves.calibration(labels, own, clusters).document() for name, own in models.items()},
        "decision-curve": {
            name: curves.decision(labels, own, thresholds, clusters).document() for name, own in models.items()
        }
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


def write(folder: Path, labels: Labels, models: Curves, chosen: str, clusters: Clusters = None) -> list[str]:
    """Write all four figures into a folder, each with a JSON file of its numbers; return their names without suffix.

    ``models`` are calibrated probabilities (n,) by name; ``chosen`` is the model of the calibration figure and of the
    band of the decision curve; ``clusters`` (n,) number the patients if some have several studies.
    """
    drawings = {
        "roc": roc(labels, models),
        "precision-recall": precision_recall(labels, models),
        "calibration": calibration(labels, models[chosen], chosen, clusters),
        "decision-curve": decision(labels, models, chosen, clusters),
    }
    folder.mkdir(parents=True, exist_ok=True)
    documents = numbers(labels, models, clusters)
    for name, drawing in drawings.items():
        (folder / f"{name}.svg").write_bytes(drawing.svg())
        (folder / f"{name}.png").write_bytes(drawing.png())
        json_text.write(folder / f"{name}.json", documents[name])
    return list(drawings)
