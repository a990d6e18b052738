"""A picture as a list of shapes, drawn once and written twice: as SVG, and as PNG.

Notable choices:
- Five shapes are all that our figures need, so a figure costs milliseconds where a plotting library costs half a
  second, and the worker that draws it keeps no global state.
- The same figure gives the same bytes: no date, no random ids.
- A drawing can carry what it shows as a table. Its SVG says it as ``<desc>``, a line a row, and the pages set it beside
  the figure: whoever does not see the figure reads the same numbers.
- Coordinates are SVG's user units, y downwards; a text's y is its baseline. PNG has `SCALE` pixels a unit.
- PNG text is set in the face that comes with Pillow, which has ASCII letters only: write figures in them.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SCALE = 1.6
INK, QUIET, PAPER = "#1b2733", "#5b6b7b", "#ffffff"

Anchor = Literal["start", "middle", "end"]
Pixels = NDArray[np.uint8]
"""(rows, columns, 3) RGB, the first row on top."""


class BarShape(NamedTuple):
    x: float
    y: float
    width: float
    height: float
    fill: str


class LineShape(NamedTuple):
    x1: float
    y1: float
    x2: float
    y2: float
    stroke: str
    width: float


class CircleShape(NamedTuple):
    """A disc, or a ring where ``width`` is not 0."""

    x: float
    y: float
    radius: float
    colour: str
    width: float


class TextShape(NamedTuple):
    x: float
    y: float
    content: str
    size: float
    fill: str
    anchor: Anchor


class ImageShape(NamedTuple):
    x: float
    y: float
    width: float
    height: float
    pixels: Pixels


Shape = BarShape | LineShape | CircleShape | TextShape | ImageShape


class FigureTable(NamedTuple):
    """What a drawing shows, in words and numbers; the last column holds the numbers."""

    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


class Drawing:
    """A sheet of paper of ``width`` x ``height`` units; ``title`` is what is read out where nothing is seen."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.shapes: list[Shape] = []
        self.table: FigureTable | None = None

    def bar(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        self.shapes.append(BarShape(x, y, width, height, fill))

    def line(self, x1: float, y1: float, x2: float, y2: float, stroke: str = QUIET, width: float = 1) -> None:
        self.shapes.append(LineShape(x1, y1, x2, y2, stroke, width))

    def disc(self, x: float, y: float, radius: float, fill: str) -> None:
        self.shapes.append(CircleShape(x, y, radius, fill, 0))

    def ring(self, x: float, y: float, radius: float, stroke: str, width: float = 2) -> None:
        self.shapes.append(CircleShape(x, y, radius, stroke, width))

    def text(
        self, x: float, y: float, content: str, *, size: float = 13, fill: str = INK, anchor: Anchor = "start"
    ) -> None:
        self.shapes.append(TextShape(x, y, content, size, fill, anchor))

    def photo(self, x: float, y: float, width: float, height: float, pixels: Pixels) -> None:
        self.shapes.append(ImageShape(x, y, width, height, pixels))

    def svg(self) -> bytes:
        """The drawing as SVG, complete in itself: photos are data URIs."""
        parts = "\n".join(_svg(shape) for shape in self.shapes)
        said = "\n".join(" | ".join(row) for row in (self.table.heads, *self.table.rows)) if self.table else ""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(self.width)} {_n(self.height)}" role="img" '
            f'font-family="Aileron, Helvetica, Arial, sans-serif">\n<title>{escape(self.title)}</title>\n'
            f"<desc>{escape(said)}</desc>\n"
            f'<rect width="100%" height="100%" fill="{PAPER}"/>\n{parts}\n</svg>\n'
        ).encode()

    def png(self) -> bytes:
        """The drawing as PNG, `SCALE` pixels a unit."""
        sheet = Image.new("RGB", (round(SCALE * self.width), round(SCALE * self.height)), PAPER)
        pen = ImageDraw.Draw(sheet)
        for shape in self.shapes:
            _paint(sheet, pen, shape)
        return _packed(np.asarray(sheet))


def _svg(shape: Shape) -> str:
    match shape:
        case BarShape(x, y, width, height, fill):
            return f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" fill="{fill}"/>'
        case LineShape(x1, y1, x2, y2, stroke, width):
            ends = f'x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"'
            return f'<line {ends} stroke="{stroke}" stroke-width="{_n(width)}"/>'
        case CircleShape(x, y, radius, colour, width):
            look = f'fill="none" stroke="{colour}" stroke-width="{_n(width)}"' if width else f'fill="{colour}"'
            return f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}" {look}/>'
        case TextShape(x, y, content, size, fill, anchor):
            place = f'x="{_n(x)}" y="{_n(y)}" font-size="{_n(size)}" fill="{fill}"'
            return f'<text {place} text-anchor="{anchor}">{escape(content)}</text>'
        case ImageShape(x, y, width, height, pixels):
            data = base64.b64encode(_packed(pixels)).decode("ascii")
            place = f'x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}"'
            return f'<image {place} preserveAspectRatio="none" href={quoteattr("data:image/png;base64," + data)}/>'


def _paint(sheet: Image.Image, pen: ImageDraw.ImageDraw, shape: Shape) -> None:
    match shape:
        case BarShape(x, y, width, height, fill):
            left, top = SCALE * x, SCALE * y
            pen.rectangle([left, top, max(left, left + SCALE * width - 1), max(top, top + SCALE * height - 1)], fill)
        case LineShape(x1, y1, x2, y2, stroke, width):
            pen.line([SCALE * x1, SCALE * y1, SCALE * x2, SCALE * y2], stroke, max(1, round(SCALE * width)))
        case CircleShape(x, y, radius, colour, width):
            box = [SCALE * (x - radius), SCALE * (y - radius), SCALE * (x + radius), SCALE * (y + radius)]
            look: dict[str, Any] = {"outline": colour, "width": round(SCALE * width)} if width else {"fill": colour}
            pen.ellipse(box, **look)
        case TextShape(x, y, content, size, fill, anchor):
            pen.text((SCALE * x, SCALE * y), content, fill, _face(SCALE * size), anchor=_ANCHORS[anchor])
        case ImageShape(x, y, width, height, pixels):
            size_in_pixels = round(SCALE * width), round(SCALE * height)
            scaled = Image.fromarray(pixels).resize(size_in_pixels, Image.Resampling.BILINEAR)
            sheet.paste(scaled, (round(SCALE * x), round(SCALE * y)))


_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}


@lru_cache
def _face(size: float) -> Any:
    return ImageFont.load_default(size)


def _packed(pixels: Pixels) -> bytes:
    """A PNG of 8-bit RGB (ISO/IEC 15948), its rows filtered by "Sub"; ISA-L packs it five times as fast as zlib."""
    height, width, _ = pixels.shape
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = 1
    flat = pixels.reshape(height, 3 * width)
    rows[:, 1:4] = flat[:, :3]
    np.subtract(flat[:, 3:], flat[:, :-3], out=rows[:, 4:])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", isal_zlib.compress(rows.data, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", isal_zlib.crc32(name + data))
        for name, data in parts
    )


def _n(value: float) -> str:
    """A coordinate in as few characters as it needs."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
