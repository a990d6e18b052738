"""A matplotlib figure with a title and a table, written as SVG or PNG.

Design notes:
- Processes that draw nothing must not import this module, because matplotlib takes long to load.
- The same figure gives the same bytes: a fixed salt of ids, no date, and the fonts that matplotlib brings.
- Letters of an SVG are outlines, so a figure looks the same on each machine. Its title and table are in it as text.
- Sizes are pixels of a screen; a PNG has `SCALE` times as many.
"""

from __future__ import annotations

import io
import re
from functools import cache
from typing import Any
from xml.sax.saxutils import escape

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text

from app.reporting.tables import FigureTable

__all__ = ["BACKGROUND", "GRID_LINE", "INK", "LOWERS", "MUTED", "RAISES", "Drawing", "FigureTable"]

SCALE = 1.6
INK, MUTED, BACKGROUND, GRID_LINE = "#1b2733", "#5b6b7b", "#ffffff", "#d5dde5"
RAISES, LOWERS = "#d55e00", "#0072b2"  # Okabe and Ito (2008): colour-blind people can distinguish them
_DPI = 100
_SVG_TAG = re.compile(rb"<svg [^>]*>")

_STYLE: Any = {  # the keys have literal types
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # a name may have a dollar sign
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": GRID_LINE,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "rlvo",
    "svg.fonttype": "path",
}


@cache
def _set_style() -> None:
    """Set the style of this process when it first draws; an import alone leaves the plots of a notebook as they are."""
    matplotlib.rcParams.update(_STYLE)
    # Fonts of the machine are left out, so that two machines draw the same letters.
    own = matplotlib.get_data_path()
    font_manager.fontManager.ttflist = [font for font in font_manager.fontManager.ttflist if font.fname.startswith(own)]


class Drawing:
    """A figure of ``width`` x ``height`` pixels; screen readers read ``title``.

    Attributes:
        figure: The figure of matplotlib.
        table: The data of the figure.
    """

    def __init__(self, width: float, height: float, title: str) -> None:
        _set_style()
        self.width, self.height, self.title = width, height, title
        self.table: FigureTable | None = None
        self.figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=BACKGROUND)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes at a place in pixels; ``top`` is measured from the upper edge."""
        bottom = 1 - (top + height) / self.height
        return self.figure.add_axes((left / self.width, bottom, width / self.width, height / self.height))

    def text(self, left: float, baseline: float, content: str, *, size: float = 8.5, colour: str = INK) -> Text:
        """Write a text at a place in pixels, measured from the upper left corner."""
        place = left / self.width, 1 - baseline / self.height
        return self.figure.text(*place, content, size=size, color=colour, va="baseline")

    def key(self, left: float, baseline: float, note: str) -> None:
        """Write what the two colours mean, and ``note``."""
        self.figure.legend(
            handles=[Patch(color=RAISES, label="raises the probability"), Patch(color=LOWERS, label="lowers it")],
            loc="lower left",
            bbox_to_anchor=(left / self.width, 1 - (baseline + 3) / self.height),
            ncols=2,
            labelcolor=MUTED,
            borderpad=0,
            borderaxespad=0,
            handlelength=1.0,
            columnspacing=1.2,
        )
        self.text(left + 262, baseline, note, colour=MUTED)

    def texts(self) -> list[str]:
        """All texts of the figure that a reader sees."""
        texts = [text for text in self.figure.findobj(Text) if isinstance(text, Text) and text.get_visible()]
        return [text.get_text() for text in texts if text.get_text()]

    def svg(self) -> bytes:
        """Return the figure as self-contained SVG, with its title, and its table as ``<desc>``."""
        data = self._written("svg", {"Date": None, "Creator": None, "Format": None, "Type": None})
        tag = _SVG_TAG.search(data)
        assert tag is not None
        rows = (self.table.headers, *self.table.rows) if self.table else ()
        description = "\n".join(" | ".join(row) for row in rows)
        head = f' role="img">\n<title>{escape(self.title)}</title>\n<desc>{escape(description)}</desc>'
        return tag.group()[:-1] + head.encode() + data[tag.end() :]

    def png(self) -> bytes:
        """Return the figure as PNG with `SCALE` times as many pixels as its size."""
        return self._written("png", {"Software": None}, dpi=SCALE * _DPI)

    def _written(self, form: str, metadata: dict[str, None], dpi: float = _DPI) -> bytes:
        out = io.BytesIO()
        self.figure.savefig(out, format=form, metadata=metadata, dpi=dpi)
        return out.getvalue()
