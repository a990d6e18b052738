"""Parses a multipart body as a stream, without holding it in memory.

Design notes:
- The streaming parser of python-multipart reads the format; this module adds the limits.
- The parser does not know what the parts mean: its caller gives it a sink for each part.
- It passes one chunk of one part at a time, so a slow sink slows the sender and nothing is buffered.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from app.sdk.errors import MalformedMultipart

# The parser logs bytes that it cannot parse, and these can be data of a patient.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

__all__ = ["MAX_HEADERS", "MAX_HEADER_BYTES", "PartsParser", "Sink", "boundary"]

MAX_HEADERS = 8
MAX_HEADER_BYTES = 2048


class Sink(Protocol):
    """Receives the content of one part. Both methods may raise an error to refuse the request."""

    def write(self, chunk: memoryview) -> None:
        """Takes the next bytes; they are valid during the call only."""

    def close(self) -> None:
        """Marks the part as complete."""


class PartsParser:
    """Writes the parts of a multipart body to sinks.

    Args:
        boundary: The boundary of the parts.
        open_part: Returns the sink of a part with these headers (names in lower case), or raises an error to refuse it.

    Raises:
        MalformedMultipart: The body breaks the format; every method can raise it.
    """

    def __init__(self, boundary: bytes, open_part: Callable[[dict[bytes, bytes]], Sink]) -> None:
        self._open_part = open_part
        self._sink: Sink | None = None
        self._field = bytearray()
        self._value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._ended = False
        self._parser = MultipartParser(
            boundary,
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
        """Parses the next bytes of the body."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise MalformedMultipart("The body is not a valid multipart body. Check its boundary.") from error

    def close(self) -> None:
        """Ends the body. Raises MalformedMultipart if the closing boundary is missing."""
        if not self._ended:
            raise MalformedMultipart("The body ends before its closing boundary. Send the complete body.")

    def _begin(self) -> None:
        self._headers = {}

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        name = bytes(self._field).lower()
        if name in self._headers:
            raise MalformedMultipart("A part has the same header twice.")
        self._headers[name] = bytes(self._value)
        self._field.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        self._sink = self._open_part(self._headers)

    def _data(self, data: bytes, start: int, end: int) -> None:
        assert self._sink is not None
        self._sink.write(memoryview(data)[start:end])

    def _end_part(self) -> None:
        assert self._sink is not None
        self._sink.close()
        self._sink = None

    def _end(self) -> None:
        self._ended = True


def boundary(options: Mapping[bytes, bytes]) -> bytes:
    """The boundary of a body with these parameters of its media type. Raises MalformedMultipart."""
    found = options.get(b"boundary", b"")
    if not 1 <= len(found) <= 200:
        raise MalformedMultipart("The Content-Type header must have a boundary of 1 to 200 characters.")
    return found
