"""Two plots of a validation as SVG text: the smooth calibration curve, and the forest plot of the subgroups."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

import numpy as np

from app.evaluation.metrics import Array, Estimate
from app.evaluation.smooth_calibration import SmoothCalibration

SIDE, LEFT, TOP = 360.0, 56.0, 16.0
BLUE, INK, MUTED, GRID = "#0072b2", "#1b2733", "#5b6b7b", "#e6ebf0"
ROW, PLOT = 20.0, 260.0


def calibration(smooth: SmoothCalibration, probabilities: Array) -> str:
    """Plot the observed over the predicted probability with its 95 % band, and the histogram of the predictions."""
    curve = smooth.curve
    assert curve.low is not None
    assert curve.high is not None

    def at(x: float, y: float) -> str:
        return f"{LEFT + SIDE * x:.1f},{TOP + SIDE * (1 - y):.1f}"

    marks = []
    for value in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        x, y = LEFT + SIDE * value, TOP + SIDE * (1 - value)
        marks.append(_line(x, TOP, x, TOP + SIDE, GRID) + _line(LEFT, y, LEFT + SIDE, y, GRID))
        marks.append(
            _text(x, TOP + SIDE + 16, f"{value:.1f}", "middle") + _text(LEFT - 6, y + 4, f"{value:.1f}", "end")
        )
    counts, edges = np.histogram(probabilities, bins=50, range=(0, 1))
    for count, low in zip(counts, edges, strict=False):
        height = 50 * count / counts.max()
        marks.append(
            f'<rect x="{LEFT + SIDE * low:.1f}" y="{TOP + SIDE - height:.1f}" width="{SIDE / 50:.1f}" '
            f'height="{height:.1f}" fill="#d5dde5"/>'
        )
    band = [at(x, y) for x, y in zip(curve.x, curve.high, strict=True)]
    band += [at(x, y) for x, y in zip(curve.x[::-1], curve.low[::-1], strict=True)]
    marks.append(f'<polygon points="{" ".join(band)}" fill="{BLUE}" fill-opacity="0.2"/>')
    marks.append(_line(LEFT, TOP + SIDE, LEFT + SIDE, TOP, MUTED))
    line = " ".join(at(x, y) for x, y in zip(curve.x, curve.y, strict=True))
    marks.append(f'<polyline points="{line}" fill="none" stroke="{BLUE}" stroke-width="2"/>')
    marks.append(_text(LEFT + SIDE / 2, TOP + SIDE + 34, "predicted probability", "middle"))
    marks.append(
        f'<text transform="translate(14 {TOP + SIDE / 2:.0f}) rotate(-90)" text-anchor="middle">observed share</text>'
    )
    return _svg(LEFT + SIDE + 16, TOP + SIDE + 44, "Smooth calibration curve with 95 % band", marks)


def forest(rows: Sequence[tuple[str, Estimate | None]], reference: float, title: str) -> str:
    """Plot one estimate with its interval in each line; ``reference`` is the value of all patients."""
    known = [one for _, one in rows if one is not None and np.isfinite([one.low, one.high]).all()]
    low = min([reference, *(one.low for one in known)])
    high = max([reference, *(one.high for one in known)])
    low, high = low - 0.02 * (high - low) - 1e-9, high + 0.02 * (high - low) + 1e-9
    start = 200.0

    def across(value: float) -> float:
        return start + PLOT * (value - low) / (high - low)

    bottom = TOP + ROW * len(rows)
    marks = [_line(across(reference), TOP, across(reference), bottom, MUTED)]
    for number, (name, one) in enumerate(rows):
        y = TOP + ROW * (number + 0.5)
        marks.append(_text(start - 8, y + 4, name if len(name) < 32 else f"{name[:29]}...", "end"))
        if one is None or not np.isfinite([one.low, one.high]).all():
            marks.append(_text(start + PLOT + 8, y + 4, "too few"))
            continue
        marks.append(_line(across(one.low), y, across(one.high), y, BLUE))
        marks.append(f'<circle cx="{across(one.value):.1f}" cy="{y:.1f}" r="4" fill="{BLUE}"/>')
        marks.append(_text(start + PLOT + 8, y + 4, f"{one.value:.2f} ({one.low:.2f}-{one.high:.2f})"))
    marks.append(_text(across(reference), bottom + 16, f"all: {reference:.2f}", "middle"))
    return _svg(start + PLOT + 140, bottom + 26, title, marks)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, content: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def _svg(width: float, height: float, title: str, marks: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'width="{width:.0f}" font-family="sans-serif" font-size="11" fill="{INK}">'
        f"<title>{escape(title)}</title>{''.join(marks)}</svg>"
    )
