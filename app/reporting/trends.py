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
from matplotlib.patches import Rectangle

from app.core.display_names import label, percent, truncated
from app.reporting.drawing import INK, LOWERS, MUTED, RAISES, Drawing
from app.reporting.tables import FigureTable

FULL_TINT = 2.0  # shift, in standard deviations, with the darkest colour


@dataclass(frozen=True)
class Point:
    """Shares of one window, None if unknown.

    ``low`` and ``high`` are the interval of the observed share, ``limits`` its control limits.
    """

    name: str
    expected: float
    observed: float | None = None
    low: float = 0.0
    high: float = 0.0
    limits: tuple[float, float] | None = None
    agreement: float | None = None


def over_time(points: Sequence[Point]) -> Drawing:
    """Draw mean probability, observed share with its interval, and reviewers' agreement, window by window."""
    left, top, height, step = 60.0, 44.0, 240.0, max(76.0, 640.0 / max(len(points), 1))
    width = step * len(points)
    drawing = Drawing(left + width + 20, top + height + 76, "Expected risk, observed outcome and agreement over time")
    drawing.text(20, 24, drawing.title, size=10.5)
    axes = drawing.axes(left, top, width, height)
    axes.set(xlim=(-0.5, len(points) - 0.5), ylim=(0, 1))
    axes.set_yticks(np.arange(0, 1.1, 0.2), [percent(tenth / 10) for tenth in range(0, 11, 2)])
    axes.set_xticks(range(len(points)), [point.name for point in points])
    axes.tick_params(length=0)
    axes.grid(axis="y")
    axes.plot(
        [point.expected for point in points], "s-", color=LOWERS, label="expected (mean probability)", clip_on=False
    )
    limited = [(place, point.limits) for place, point in enumerate(points) if point.limits is not None]
    if limited:
        axes.bar(
            [place for place, _ in limited],
            [high - low for _, (low, high) in limited],
            bottom=[low for _, (low, _) in limited],
            width=0.5,
            color=LOWERS,
            alpha=0.15,
            label="control limits (3 SD)",
        )
    observed = [(place, point.observed, point) for place, point in enumerate(points) if point.observed is not None]
    axes.errorbar(
        [place for place, _, _ in observed],
        [share for _, share, _ in observed],
        np.maximum([[y - each.low for _, y, each in observed], [each.high - y for _, y, each in observed]], 0),
        fmt="o",
        color=RAISES,
        label="observed, 95 % interval",
        clip_on=False,
    )
    agreed = [(place, point.agreement) for place, point in enumerate(points) if point.agreement is not None]
    axes.plot(
        [place for place, _ in agreed],
        [share for _, share in agreed],
        "o",
        mfc="none",
        mec=MUTED,
        mew=1.6,
        ms=9,
        clip_on=False,
        label="reviewers agree",
    )
    place = left / drawing.width, 8 / drawing.height
    drawing.figure.legend(loc="lower left", bbox_to_anchor=place, ncols=4, labelcolor=MUTED, borderaxespad=0)
    drawing.table = FigureTable(
        ("From", "Expected", "Observed", "95 % interval", "Control limits", "Agreement"),
        [
            (
                point.name,
                percent(point.expected),
                "" if point.observed is None else percent(point.observed),
                "" if point.observed is None else f"{percent(point.low)} to {percent(point.high)}",
                "" if point.limits is None else f"{percent(point.limits[0])} to {percent(point.limits[1])}",
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
    left, top, row_height, step = 250.0, 64.0, 24.0, max(76.0, 640.0 / max(len(windows), 1))
    width, height = step * len(windows), row_height * len(rows)
    drawing = Drawing(left + width + 20, top + height + 36, "Inputs compared with training patients")
    drawing.text(20, 24, drawing.title, size=10.5)
    axes = drawing.axes(left, top, width, max(height, 1.0))
    axes.set(xlim=(-0.5, len(windows) - 0.5), ylim=(max(len(rows), 1) - 0.5, -0.5))
    axes.set_xticks(range(len(windows)), windows)
    axes.set_yticks(range(len(rows)), [truncated(label(row.name), 30) for row in rows])
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.tick_params(axis="y", labelcolor=INK, labelsize=9, pad=8)
    axes.spines[:].set_visible(False)
    for place, row in enumerate(rows):
        for window, (shift, signal) in enumerate(zip(row.shifts, row.signals, strict=True)):
            axes.text(window, place, "-" if shift is None else f"{shift:+.1f}", size=8, ha="center", va="center")
            if shift is not None:
                frame = (INK, 1.6) if signal else ("#ffffff", 1.0)
                corner = window - 0.48, place - 0.44
                axes.add_patch(Rectangle(corner, 0.96, 0.88, fc=_tint(shift), ec=frame[0], lw=frame[1]))
    note = "Difference from the training mean in standard deviations; a frame marks a large, significant shift."
    drawing.text(20, drawing.height - 12, note, size=8, colour=MUTED)
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
