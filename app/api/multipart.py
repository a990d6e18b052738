"""A multipart/form-data body as a stream of events, never held whole.

Notable choices:
- python-multipart's own streaming parser does the parsing; here are the bounds and what form-data means.
- The parser is told nothing of what the parts are for: uploads.py gives it a sink for each part.
- One part at a time, one chunk at a time: a sink that is slow slows the sender down, and nothing is buffered.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.sdk.errors import MalformedMultipart, UnsupportedMedia

# The parser logs the bytes it stumbles over, which are a patient's.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

MAX_HEADERS = 8
MAX_HEADER_BYTES = 2048


@dataclass(frozen=True)
class PartHead:
    """What a part says of itself. ``filename`` is None for a plain field, and never kept."""

    name: str
    filename: str | None


class Sink(Protocol):
    """Where the content of one part goes. Either method may raise to refuse the request."""

    def write(self, chunk: memoryview) -> None: ...

    def close(self) -> None: ...


class FormParser:
    """Feeds a form-data body to sinks, part by part.

    :param content_type: the request's header
    :param open_part: makes the sink of a part from its head, or raises to refuse it
    :raises UnsupportedMedia: the body is not form-data
    :raises MalformedMultipart: from any method, where the body breaks the format
    """

    def __init__(self, content_type: str, open_part: Callable[[PartHead], Sink]) -> None:
        self._open_part = open_part
        self._sink: Sink | None = None
        self._field = bytearray()
        self._value = bytearray()
        self._head: dict[bytes, bytes] = {}
        self._ended = False
        self._parser = MultipartParser(
            _boundary(content_type),
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
            max_header_count=MAX_HEADERS,
            max_header_size=MAX_HEADER_BYTES,
        )

    def write(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise MalformedMultipart("The body does not follow multipart/form-data; check its boundary.") from error

    def close(self) -> None:
        """Call after the last byte. Raises MalformedMultipart where the closing boundary is missing."""
        if not self._ended:
            raise MalformedMultipart("The body ends before its closing boundary; send it again, complete.")

    def _begin(self) -> None:
        self._head = {}

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        name = bytes(self._field).lower()
        if name in self._head:
            raise MalformedMultipart("A part repeats one of its headers.")
        self._head[name] = bytes(self._value)
        self._field.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        self._sink = self._open_part(_part_head(self._head))

    def _data(self, data: bytes, start: int, end: int) -> None:
        assert self._sink is not None
        self._sink.write(memoryview(data)[start:end])

    def _end_part(self) -> None:
        assert self._sink is not None
        self._sink.close()
        self._sink = None

    def _end(self) -> None:
        self._ended = True


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise UnsupportedMedia("Send multipart/form-data, one part per volume.")
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 200:
        raise MalformedMultipart("The Content-Type header must name the boundary.")
    return boundary


def _part_head(headers: dict[bytes, bytes]) -> PartHead:
    disposition, options = parse_options_header(headers.get(b"content-disposition", b"").decode("latin-1"))
    if disposition != b"form-data" or b"name" not in options:
        raise MalformedMultipart("Every part needs a Content-Disposition: form-data header with its name.")
    if headers.get(b"content-transfer-encoding", b"binary").strip().lower() not in (b"binary", b"7bit", b"8bit"):
        raise MalformedMultipart("A part must be sent as it is, without a Content-Transfer-Encoding.")
    filename = options.get(b"filename")
    return PartHead(
        name=options[b"name"].decode("utf-8", "replace"),
        filename=None if filename is None else filename.decode("utf-8", "replace"),
    )
