"""The report of one prediction as PDF pages: text, tables and figures, each page with the research notice.

Design notes:
- matplotlib writes the PDF, so text stays text. It is imported when a document is made.
- Fonts are those that every PDF reader has. They have the characters of Windows-1252, which our texts use.
- The document has no date of its own and no identity, so it has equal bytes at each call.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import zip_longest
from typing import Any

import numpy as np
from PIL import Image

from app.core.display_names import (
    NO_MAP_NUMBERS,
    flag_text,
    interval_text,
    percent,
    perfusion_value,
    rule_text,
    warnings_first,
)
from app.core.display_names import label as label_of
from app.core.explanation_text import outside_text, side_text
from app.reporting.tables import FigureTable, contribution_table, region_table
from app.sdk.types import NOTICE, Prediction

__all__ = ["pdf"]

_PAGE = (8.27, 11.69)  # A4, inches
_LEFT, _TOP, _BOTTOM = 0.08, 0.93, 0.06  # shares of the page
_FONT, _FIXED_FONT = "Helvetica", "Courier"
_BODY, _HEADING, _FIRST = 9, 12, 13  # points
_CHARACTERS = 98  # of a line of the body
_WIDEST = 36  # characters of a cell in one line
_LINE = 1.45  # distance of lines, font sizes
_FIGURE_DPI = 150


@dataclass(frozen=True)
class _Line:
    text: str
    size: int = _BODY
    bold: bool = False
    fixed: bool = False

    @property
    def height(self) -> float:
        """Share of the page."""
        return self.size * _LINE / 72 / _PAGE[1]


def pdf(prediction: Prediction, figures: Mapping[str, bytes]) -> bytes:
    """Write the report.

    Args:
        prediction: A prediction that succeeded.
        figures: PNG files by caption, in the order of the report.

    Returns:
        A PDF file of A4 pages.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_pdf import PdfPages

    out = BytesIO()
    metadata = {"Title": "rlvo report - research use only", "Creator": "rlvo", "Producer": "rlvo", "CreationDate": None}
    with rc_context({"pdf.use14corefonts": True, "font.family": _FONT}), PdfPages(out, metadata=metadata) as pages:
        page, at = _new_page(), _TOP
        for line in _lines(prediction):
            if at - line.height < _BOTTOM:
                pages.savefig(page)
                page, at = _new_page(), _TOP
            at -= line.height
            family = _FIXED_FONT if line.fixed else _FONT
            weight = "bold" if line.bold else "medium"
            page.text(_LEFT, at, line.text, fontsize=line.size, family=family, weight=weight, parse_math=False)
        pages.savefig(page)
        for caption, png in figures.items():
            pages.savefig(_figure_page(caption, png), dpi=_FIGURE_DPI)
    return out.getvalue()


def _new_page() -> Any:
    from matplotlib.figure import Figure

    page = Figure(figsize=_PAGE)
    page.text(0.5, 0.965, NOTICE, fontsize=10, weight="bold", ha="center", backgroundcolor="#fff3cd", color="#5c4400")
    return page


def _figure_page(caption: str, png: bytes) -> Any:
    page = _new_page()
    page.text(_LEFT, _TOP - 0.01, caption, fontsize=_HEADING, weight="bold", parse_math=False)
    with Image.open(BytesIO(png)) as opened:
        layered = opened.convert("RGBA")
        paper = Image.new("RGB", layered.size, (255, 255, 255))
        paper.paste(layered, mask=layered)
    width = 1 - 2 * _LEFT
    height = min(_TOP - 0.03 - _BOTTOM, width * _PAGE[0] / _PAGE[1] * paper.height / paper.width)
    axes = page.add_axes((_LEFT, _TOP - 0.03 - height, width, height))
    axes.imshow(np.asarray(paper), interpolation="antialiased")
    axes.set_axis_off()
    return page


def _lines(prediction: Prediction) -> Iterator[_Line]:
    yield from _wrapped("Refractory occlusion: report of a prediction", _FIRST, bold=True)
    yield from _wrapped(prediction.summary, _HEADING, bold=True)
    yield _Line("")
    yield from _answer(prediction)
    yield from _remarks(prediction)
    if (attribution := prediction.attribution) is not None:
        yield from _heading("Contributions to the log-odds")
        yield from _wrapped(outside_text(attribution))
        yield from _wrapped(side_text(attribution.affected, prediction.flags))
        yield from _wrapped(f"The contributions add up from {attribution.base:+.3f} to {attribution.total:+.3f}.")
        yield from _table(contribution_table(attribution))
        if regions := region_table(attribution.regions, attribution.total):
            yield from _heading("Image contributions by region")
            yield from _table(regions)
    if prediction.perfusion is not None:
        yield from _heading("CT perfusion")
        numbers = prediction.perfusion.model_dump(exclude_none=True)
        for name, value in numbers.items():
            yield from _wrapped(f"{label_of(name)}: {perfusion_value(name, value)}")
        if not numbers:
            yield from _wrapped(NO_MAP_NUMBERS)
    yield from _heading("Record")
    model = prediction.model
    yield from _wrapped(f"Subject: {prediction.subject or 'not given'}")
    if prediction.accession_number:
        yield from _wrapped(f"Accession number: {prediction.accession_number}")
    yield from _wrapped(f"Prediction {prediction.id}, created {prediction.created.isoformat(timespec='seconds')}")
    yield from _wrapped(f"Model {model.name}@{model.version}, {model.digest}")
    yield from _wrapped(f"Inputs: {', '.join(prediction.inputs)}")


def _answer(prediction: Prediction) -> Iterator[_Line]:
    assert prediction.probability is not None
    text = f"Probability of a refractory large-vessel occlusion: {percent(prediction.probability)}"
    if prediction.interval is not None:
        text += f"; {interval_text(prediction.interval, prediction.folds)}"
    yield from _wrapped(f"{text}.")
    if (decision := prediction.decision) is not None:
        yield from _wrapped(f"Threshold: {percent(decision.threshold)} ({rule_text(decision.rule)}).")


def _remarks(prediction: Prediction) -> Iterator[_Line]:
    yield from _heading("Remarks")
    for flag in warnings_first(prediction.flags):
        yield from _wrapped(f"{flag.severity.capitalize()} - {flag.name}: {flag_text(flag)}")
    if not prediction.flags:
        yield from _wrapped("No value was imputed, and no problem was found.")


def _heading(text: str) -> Iterator[_Line]:
    yield _Line("")
    yield _Line(text, _HEADING, bold=True)


def _wrapped(text: str, size: int = _BODY, *, bold: bool = False) -> Iterator[_Line]:
    text = text.replace(" %", "\N{NO-BREAK SPACE}%")  # a number and its sign stay on one line
    characters = int(_CHARACTERS * _BODY / size * (0.9 if bold else 1))
    for part in textwrap.wrap(text, characters):
        yield _Line(part, size, bold)


def _table(table: FigureTable) -> Iterator[_Line]:
    """Rows in a font of fixed width; the first column is left-aligned, and a long cell goes on in the next line."""
    rows = [table.headers, *table.rows]
    widths = [min(_WIDEST, max(len(row[column]) for row in rows)) for column in range(len(table.headers))]
    for number, row in enumerate(rows):
        wrapped = [textwrap.wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
        for parts in zip_longest(*wrapped, fillvalue=""):
            cells = [
                part.ljust(width) if column == 0 else part.rjust(width)
                for column, (part, width) in enumerate(zip(parts, widths, strict=True))
            ]
            yield _Line("  ".join(cells), 8, bold=number == 0, fixed=True)
