"""How a version fares over time: what was expected and what came of it, and how far today's patients have moved.

Notable choices:
- Time runs from left to right, a column a window; every figure carries its table.
- A shift's cell is orange where the variable rose and blue where it fell, the deeper the farther, up to two standard
  deviations; its number stands in it, and a frame is drawn around what is no accident. Colour is never alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.core.display_names import label, percent, shortened
from app.reporting.drawing import INK, QUIET, Drawing, FigureTable
from app.reporting.figures import FAINT, LOWERS, RAISES

DEEPEST = 2.0


@dataclass(frozen=True)
class Point:
    """One window: shares, None where nothing is known. ``low`` and ``high``: of what was observed."""

    name: str
    expected: float
    observed: float | None = None
    low: float = 0.0
    high: float = 0.0
    agreement: float | None = None


def over_time(points: Sequence[Point]) -> Drawing:
    """Mean probability, observed share with its interval, and agreement, window by window."""
    left, top, height, step = 60.0, 44.0, 240.0, max(64.0, 640.0 / max(len(points), 1))
    width = left + step * len(points)
    drawing = Drawing(width + 20, top + height + 70, "Expected, observed and agreed over time")
    drawing.text(left, 24, drawing.title, size=15)

    def y(share: float) -> float:
        return top + height * (1 - share)

    for tenth in range(0, 11, 2):
        drawing.line(left, y(tenth / 10), width, y(tenth / 10), FAINT)
        drawing.text(left - 8, y(tenth / 10) + 4, percent(tenth / 10), size=11, fill=QUIET, anchor="end")
    before: tuple[float, float] | None = None
    for number, point in enumerate(points):
        x = left + step * (number + 0.5)
        drawing.text(x, top + height + 18, point.name, size=11, fill=QUIET, anchor="middle")
        if point.observed is not None:
            drawing.line(x, y(point.low), x, y(point.high), RAISES, 2)
            drawing.disc(x, y(point.observed), 5, RAISES)
        if point.agreement is not None:
            drawing.ring(x, y(point.agreement), 6, QUIET)
        here = (x, y(point.expected))
        if before is not None:
            drawing.line(*before, *here, LOWERS, 2)
        drawing.bar(x - 4, here[1] - 4, 8, 8, LOWERS)
        before = here
    baseline = top + height + 48
    drawing.bar(left, baseline - 9, 8, 8, LOWERS)
    drawing.text(left + 16, baseline, "expected (mean probability)", size=12, fill=QUIET)
    drawing.disc(left + 216, baseline - 5, 5, RAISES)
    drawing.text(left + 228, baseline, "observed, 95 % interval", size=12, fill=QUIET)
    drawing.ring(left + 402, baseline - 5, 6, QUIET)
    drawing.text(left + 416, baseline, "reviewers agree", size=12, fill=QUIET)
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
    """A variable's shifts, in training standard deviations, window by window; None where nobody has it."""

    name: str
    shifts: Sequence[float | None]
    signals: Sequence[bool]


def shifts(windows: Sequence[str], rows: Sequence[ShiftRow]) -> Drawing:
    """A cell for each variable and window."""
    left, top, high, step = 240.0, 64.0, 24.0, max(64.0, 640.0 / max(len(windows), 1))
    width, bottom = left + step * len(windows), top + high * len(rows)
    drawing = Drawing(width + 20, bottom + 36, "Inputs against the training patients")
    drawing.text(20, 24, drawing.title, size=15)
    for number, name in enumerate(windows):
        drawing.text(left + step * (number + 0.5), top - 8, name, size=11, fill=QUIET, anchor="middle")
    for number, row in enumerate(rows):
        y = top + high * number
        drawing.text(left - 12, y + 16, shortened(label(row.name), 34), anchor="end")
        for window, (shift, signal) in enumerate(zip(row.shifts, row.signals, strict=True)):
            x = left + step * window
            if shift is None:
                drawing.text(x + step / 2, y + 16, "-", size=11, fill=QUIET, anchor="middle")
                continue
            drawing.bar(x + 1, y + 1, step - 2, high - 2, _tint(shift))
            drawing.text(x + step / 2, y + 16, f"{shift:+.1f}", size=11, anchor="middle")
            if signal:
                for ends in (
                    (x, y, x + step, y),
                    (x, y + high, x + step, y + high),
                    (x, y, x, y + high),
                    (x + step, y, x + step, y + high),
                ):
                    drawing.line(*ends, INK, 2)
    drawing.text(
        20,
        bottom + 24,
        "Standard deviations of training from its mean; framed: large, and no accident.",
        size=11,
        fill=QUIET,
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
    """From white at no shift to two thirds of the full colour, so that black text stays readable."""
    share = 0.66 * min(abs(shift) / DEEPEST, 1.0)
    colour = np.frombuffer(bytes.fromhex((RAISES if shift > 0 else LOWERS)[1:]), np.uint8)
    light = [round(255 + share * (float(part) - 255)) for part in colour]
    return "#" + bytes(light).hex()
