"""A drawing as a list of shapes, written as SVG or PNG.

Design notes:
- Six kinds of shapes are enough for all figures. They are faster than a plotting library and keep no global state.
- The same drawing gives the same bytes: no date, no random ids.
- A drawing can carry its data as a table, for readers who cannot see the figure. The SVG holds it as ``<desc>``.
- Coordinates are SVG user units, y downwards; a text's y is its baseline. PNG has `SCALE` pixels per unit.
- PNG text uses the font of `fonts`, so that it looks the same on each machine. It has Latin and Greek letters.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SCALE = 1.6
FONT = Path(__file__).parent / "fonts" / "DejaVuSansCondensed.ttf"
INK, MUTED, BACKGROUND = "#1b2733", "#5b6b7b", "#ffffff"

Anchor = Literal["start", "middle", "end"]
Pixels = NDArray[np.uint8]  # (rows, columns, 3) RGB; the first row is at the top


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
    """A filled circle, or a ring if ``width`` is not 0."""

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


class PolygonShape(NamedTuple):
    """A filled polygon with the ``opacity`` 0 to 1."""

    points: tuple[tuple[float, float], ...]
    fill: str
    opacity: float


class ImageShape(NamedTuple):
    x: float
    y: float
    width: float
    height: float
    pixels: Pixels


Shape = BarShape | LineShape | CircleShape | TextShape | PolygonShape | ImageShape


class FigureTable(NamedTuple):
    """The data of a drawing; the last column holds the numbers."""

    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


class Drawing:
    """A drawing of ``width`` x ``height`` units; screen readers read ``title``."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.shapes: list[Shape] = []
        self.table: FigureTable | None = None

    def bar(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        self.shapes.append(BarShape(x, y, width, height, fill))

    def line(self, x1: float, y1: float, x2: float, y2: float, stroke: str = MUTED, width: float = 1) -> None:
        self.shapes.append(LineShape(x1, y1, x2, y2, stroke, width))

    def disc(self, x: float, y: float, radius: float, fill: str) -> None:
        self.shapes.append(CircleShape(x, y, radius, fill, 0))

    def ring(self, x: float, y: float, radius: float, stroke: str, width: float = 2) -> None:
        self.shapes.append(CircleShape(x, y, radius, stroke, width))

    def text(
        self, x: float, y: float, content: str, *, size: float = 13, fill: str = INK, anchor: Anchor = "start"
    ) -> None:
        self.shapes.append(TextShape(x, y, content, size, fill, anchor))

    def polygon(self, points: Sequence[tuple[float, float]], fill: str, opacity: float = 1.0) -> None:
        self.shapes.append(PolygonShape(tuple(points), fill, opacity))

    def image(self, x: float, y: float, width: float, height: float, pixels: Pixels) -> None:
        self.shapes.append(ImageShape(x, y, width, height, pixels))

    def svg(self) -> bytes:
        """Return the drawing as self-contained SVG; images are data URIs."""
        parts = "\n".join(_shape_svg(shape) for shape in self.shapes)
        description = "\n".join(" | ".join(row) for row in (self.table.headers, *self.table.rows)) if self.table else ""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_num(self.width)} {_num(self.height)}" role="img" '
            f'font-family="DejaVu Sans Condensed, Helvetica, Arial, sans-serif">\n<title>{escape(self.title)}</title>\n'
            f"<desc>{escape(description)}</desc>\n"
            f'<rect width="100%" height="100%" fill="{BACKGROUND}"/>\n{parts}\n</svg>\n'
        ).encode()

    def png(self) -> bytes:
        """Return the drawing as PNG with `SCALE` pixels per unit."""
        canvas = Image.new("RGB", (round(SCALE * self.width), round(SCALE * self.height)), BACKGROUND)
        draw = ImageDraw.Draw(canvas)
        for shape in self.shapes:
            _draw_shape(canvas, draw, shape)
        return _encode_png(np.asarray(canvas))


def _shape_svg(shape: Shape) -> str:
    match shape:
        case BarShape(x, y, width, height, fill):
            return f'<rect x="{_num(x)}" y="{_num(y)}" width="{_num(width)}" height="{_num(height)}" fill="{fill}"/>'
        case LineShape(x1, y1, x2, y2, stroke, width):
            ends = f'x1="{_num(x1)}" y1="{_num(y1)}" x2="{_num(x2)}" y2="{_num(y2)}"'
            return f'<line {ends} stroke="{stroke}" stroke-width="{_num(width)}"/>'
        case CircleShape(x, y, radius, colour, width):
            style = f'fill="none" stroke="{colour}" stroke-width="{_num(width)}"' if width else f'fill="{colour}"'
            return f'<circle cx="{_num(x)}" cy="{_num(y)}" r="{_num(radius)}" {style}/>'
        case TextShape(x, y, content, size, fill, anchor):
            position = f'x="{_num(x)}" y="{_num(y)}" font-size="{_num(size)}" fill="{fill}"'
            return f'<text {position} text-anchor="{anchor}">{escape(content)}</text>'
        case PolygonShape(points, fill, opacity):
            corners = " ".join(f"{_num(x)},{_num(y)}" for x, y in points)
            return f'<polygon points="{corners}" fill="{fill}" fill-opacity="{_num(opacity)}"/>'
        case ImageShape(x, y, width, height, pixels):
            data = base64.b64encode(_encode_png(pixels)).decode("ascii")
            position = f'x="{_num(x)}" y="{_num(y)}" width="{_num(width)}" height="{_num(height)}"'
            return f'<image {position} preserveAspectRatio="none" href={quoteattr("data:image/png;base64," + data)}/>'


def _draw_shape(canvas: Image.Image, draw: ImageDraw.ImageDraw, shape: Shape) -> None:
    match shape:
        case BarShape(x, y, width, height, fill):
            left, top = SCALE * x, SCALE * y
            draw.rectangle([left, top, max(left, left + SCALE * width - 1), max(top, top + SCALE * height - 1)], fill)
        case LineShape(x1, y1, x2, y2, stroke, width):
            draw.line([SCALE * x1, SCALE * y1, SCALE * x2, SCALE * y2], stroke, max(1, round(SCALE * width)))
        case CircleShape(x, y, radius, colour, width):
            box = [SCALE * (x - radius), SCALE * (y - radius), SCALE * (x + radius), SCALE * (y + radius)]
            style: dict[str, Any] = {"outline": colour, "width": round(SCALE * width)} if width else {"fill": colour}
            draw.ellipse(box, **style)
        case TextShape(x, y, content, size, fill, anchor):
            draw.text((SCALE * x, SCALE * y), content, fill, _font(SCALE * size), anchor=_ANCHORS[anchor])
        case PolygonShape(points, fill, opacity):
            mask = Image.new("L", canvas.size, 0)
            ImageDraw.Draw(mask).polygon([(SCALE * x, SCALE * y) for x, y in points], fill=round(255 * opacity))
            canvas.paste(fill, mask=mask)
        case ImageShape(x, y, width, height, pixels):
            size_in_pixels = round(SCALE * width), round(SCALE * height)
            scaled = Image.fromarray(pixels).resize(size_in_pixels, Image.Resampling.BILINEAR)
            canvas.paste(scaled, (round(SCALE * x), round(SCALE * y)))


_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}


@lru_cache
def _font(size: float) -> Any:
    return ImageFont.truetype(FONT, size)


def _encode_png(pixels: Pixels) -> bytes:
    """Encode 8-bit RGB as PNG (ISO/IEC 15948) with the row filter "Sub"; ISA-L compresses faster than zlib."""
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


def _num(value: float) -> str:
    """Format a coordinate without trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
