"""Figures of a version over time: expected and observed outcomes, and shifts of the inputs.

Design notes:
- Time runs from left to right, one column per window; every figure carries its table.
- A shift's cell is orange for a rise and blue for a fall, darker for a larger shift up to two standard deviations. Its
  number is in the cell, and a significant shift has a frame, so that colour is never the only sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.core.display_names import label, percent, truncated
from app.reporting.drawing import INK, MUTED, Drawing, FigureTable
from app.reporting.figures import GRID_LINE, LOWERS, RAISES

FULL_TINT = 2.0  # shift, in standard deviations, with the darkest colour


@dataclass(frozen=True)
class Point:
    """Shares of one window, None if unknown; ``low`` and ``high`` are the interval of the observed share."""

    name: str
    expected: float
    observed: float | None = None
    low: float = 0.0
    high: float = 0.0
    agreement: float | None = None


def over_time(points: Sequence[Point]) -> Drawing:
    """Draw mean probability, observed share with its interval, and reviewers' agreement, window by window."""
    left, top, height, step = 60.0, 44.0, 240.0, max(64.0, 640.0 / max(len(points), 1))
    width = left + step * len(points)
    drawing = Drawing(width + 20, top + height + 70, "Expected risk, observed outcome and agreement over time")
    drawing.text(left, 24, drawing.title, size=15)

    def y(share: float) -> float:
        return top + height * (1 - share)

    for tenth in range(0, 11, 2):
        drawing.line(left, y(tenth / 10), width, y(tenth / 10), GRID_LINE)
        drawing.text(left - 8, y(tenth / 10) + 4, percent(tenth / 10), size=11, fill=MUTED, anchor="end")
    previous: tuple[float, float] | None = None
    for number, point in enumerate(points):
        x = left + step * (number + 0.5)
        drawing.text(x, top + height + 18, point.name, size=11, fill=MUTED, anchor="middle")
        if point.observed is not None:
            drawing.line(x, y(point.low), x, y(point.high), RAISES, 2)
            drawing.disc(x, y(point.observed), 5, RAISES)
        if point.agreement is not None:
            drawing.ring(x, y(point.agreement), 6, MUTED)
        current = (x, y(point.expected))
        if previous is not None:
            drawing.line(*previous, *current, LOWERS, 2)
        drawing.bar(x - 4, current[1] - 4, 8, 8, LOWERS)
        previous = current
    baseline = top + height + 48
    drawing.bar(left, baseline - 9, 8, 8, LOWERS)
    drawing.text(left + 16, baseline, "expected (mean probability)", size=12, fill=MUTED)
    drawing.disc(left + 216, baseline - 5, 5, RAISES)
    drawing.text(left + 228, baseline, "observed, 95 % interval", size=12, fill=MUTED)
    drawing.ring(left + 402, baseline - 5, 6, MUTED)
    drawing.text(left + 416, baseline, "reviewers agree", size=12, fill=MUTED)
    drawing.table = FigureTable(
        ("From", "Expected", "Observed", "95 % interval", "Agreement"),
        [
            (
                point.name,
                percent(point.expected),
                "" if point.observed is None else percent(point.observed),
                "" if point.observed is None else f"{percent(point.low)} to {percent(point.high)}",
                "" if point.agreement is None else percent(point.agreement),
            )
            for point in points
        ],
    )
    return drawing


@dataclass(frozen=True)
class ShiftRow:
    """A variable's shifts, in training standard deviations, window by window; None without values."""

    name: str
    shifts: Sequence[float | None]
    signals: Sequence[bool]


def shifts(windows: Sequence[str], rows: Sequence[ShiftRow]) -> Drawing:
    """Draw the shifts, one cell for each variable and window."""
    left, top, row_height, step = 240.0, 64.0, 24.0, max(64.0, 640.0 / max(len(windows), 1))
    width, bottom = left + step * len(windows), top + row_height * len(rows)
    drawing = Drawing(width + 20, bottom + 36, "Inputs compared with training patients")
    drawing.text(20, 24, drawing.title, size=15)
    for number, name in enumerate(windows):
        drawing.text(left + step * (number + 0.5), top - 8, name, size=11, fill=MUTED, anchor="middle")
    for number, row in enumerate(rows):
        y = top + row_height * number
        drawing.text(left - 12, y + 16, truncated(label(row.name), 34), anchor="end")
        for window, (shift, signal) in enumerate(zip(row.shifts, row.signals, strict=True)):
            x = left + step * window
            if shift is None:
                drawing.text(x + step / 2, y + 16, "-", size=11, fill=MUTED, anchor="middle")
                continue
            drawing.bar(x + 1, y + 1, step - 2, row_height - 2, _tint(shift))
            drawing.text(x + step / 2, y + 16, f"{shift:+.1f}", size=11, anchor="middle")
            if signal:
                for ends in (
                    (x, y, x + step, y),
                    (x, y + row_height, x + step, y + row_height),
                    (x, y, x, y + row_height),
                    (x + step, y, x + step, y + row_height),
                ):
                    drawing.line(*ends, INK, 2)
    drawing.text(
        20,
        bottom + 24,
        "Difference from the training mean in standard deviations; a frame marks a large, significant shift.",
        size=11,
        fill=MUTED,
    )
    drawing.table = FigureTable(
        ("Variable", *windows),
        [
            (
                label(row.name),
                *(
                    "" if shift is None else f"{shift:+.2f}{' !' if signal else ''}"
                    for shift, signal in zip(row.shifts, row.signals, strict=True)
                ),
            )
            for row in rows
        ],
    )
    return drawing


def _tint(shift: float) -> str:
    """Return a colour from white, for no shift, to two thirds of the full colour; black text stays readable."""
    share = 0.66 * min(abs(shift) / FULL_TINT, 1.0)
    colour = np.frombuffer(bytes.fromhex((RAISES if shift > 0 else LOWERS)[1:]), np.uint8)
    tinted = [round(255 + share * (float(part) - 255)) for part in colour]
    return "#" + bytes(tinted).hex()
