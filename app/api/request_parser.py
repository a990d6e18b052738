"""Parses the requests of one connection, limits what the parsing of each request costs, and frames the responses.

Design notes:
- It extends the parser of h11, which limits the bytes of a head only while the head is incomplete, and which limits
  neither the lines of a head nor the number of chunks.
- A chunk costs the same time whatever its size. After `CHUNKS_PER_TURN` chunks the parser pauses; `http_protocol`
  continues it later, so that the event loop serves other connections in between.
- h11 receives the bytes in slices, so that a complete head or trailer section cannot be longer than its limit.
- The head of a response is sent together with the first bytes of its body. A client of a proxy such as Caddy stops an
  upload as soon as it reads the head of a refusal; the proxy then closes our connection, and a body that had not
  arrived by then would be lost.
"""

from __future__ import annotations

import re

import h11

from app.sdk.errors import BadRequest, HeadersTooLarge, RlvoError

MAX_HEAD_BYTES = 64 * 1024
MAX_HEAD_LINES = 128
MAX_CHUNK_LINE = 256  # bytes of the size of a chunk with its extensions
MAX_TRAILER_LINES = 16
SMALL_CHUNKS = 16_384  # chunks that a body may have whatever their size
BYTES_PER_CHUNK = 1024  # mean size of all further chunks
CHUNKS_PER_TURN = 8

_SLICE = 64 * 1024
_BLANK_LINE = re.compile(rb"\n\r?\n")
_CHUNK_LINE = re.compile(rb"(?:\r?\n)?([^\r\n]+)\r\n")
_LAST_CHUNK = re.compile(rb"0+(?![0-9A-Fa-f])")


class RequestRefusedError(h11.RemoteProtocolError):
    """The request breaks a limit of the parser or is of another protocol version; ``error`` is for the caller."""

    def __init__(self, error: RlvoError) -> None:
        super().__init__(error.detail, error_status_hint=error.status)
        self.error = error


class RequestParser(h11.Connection):
    """The parser of one connection.

    Attributes:
        interrupted: True if the parser paused because of `CHUNKS_PER_TURN`, not because it needs data.
        body_bytes: Bytes of the present body that have been parsed.
        body_length: Bytes of the whole present body, or None if it is chunked.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self.interrupted = False
        self.body_bytes = 0
        self.body_length: int | None = 0
        self._pending = bytearray()
        self._chunks = 0
        self._chunks_left = CHUNKS_PER_TURN
        self._between_chunks = False
        self._in_trailers = False
        self._response_head: list[bytes] = []

    @property
    def unparsed(self) -> bytes:
        """The bytes that were received and not parsed yet."""
        return self.trailing_data[0] + bytes(self._pending)

    def begin_turn(self) -> None:
        """Allows `CHUNKS_PER_TURN` further chunks."""
        self._chunks_left = CHUNKS_PER_TURN
        self.interrupted = False

    def receive_data(self, data: bytes) -> None:
        """Stores bytes of the client until `next_event` parses them."""
        self._pending += data

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Returns the next event, or PAUSED after `CHUNKS_PER_TURN` chunks. Raises RequestRefusedError."""
        while True:
            if self._chunks_left <= 0:
                self.interrupted = True
                return h11.PAUSED
            if self.their_state is h11.IDLE:
                self._check_head()
            elif self._between_chunks:
                self._check_chunk_line()
            event = super().next_event()
            if event is not h11.NEED_DATA or not self._pending:
                self._count(event)
                return event
            super().receive_data(bytes(self._pending[:_SLICE]))
            del self._pending[:_SLICE]

    def send_with_data_passthrough(self, event: h11.Event) -> list[bytes] | None:
        """Returns the pieces to write for an event; those of the head of a response follow with its body."""
        pieces = super().send_with_data_passthrough(event)
        if isinstance(event, h11.Response):
            self._response_head = pieces or []
            return []
        if pieces is not None:
            pieces, self._response_head = self._response_head + pieces, []
        return pieces

    def _check_head(self) -> None:
        received = self.trailing_data[0]
        blank = _BLANK_LINE.search(received)
        end = blank.end() if blank else len(received)
        if end > MAX_HEAD_BYTES or received.count(b"\n", 0, end) > MAX_HEAD_LINES:
            raise RequestRefusedError(
                HeadersTooLarge(
                    f"The head of a request may have at most {MAX_HEAD_BYTES // 1024} KiB and {MAX_HEAD_LINES} lines. "
                    "Send fewer or shorter headers."
                )
            )

    def _check_chunk_line(self) -> None:
        received = self.trailing_data[0]
        start = 0
        if not self._in_trailers:
            line = _CHUNK_LINE.match(received)
            if (len(line[1]) if line else len(received)) > MAX_CHUNK_LINE:
                raise RequestRefusedError(BadRequest("The size of a chunk of the body is not valid, or too long."))
            if line is None:
                return
            if not _LAST_CHUNK.match(line[1]):
                self._between_chunks = False  # h11 takes this line now, even if no byte of the chunk has arrived
                return
            self._in_trailers, start = True, line.end()
        if received.count(b"\n", start) > MAX_TRAILER_LINES and not received.startswith((b"\r\n", b"\n"), start):
            blank = _BLANK_LINE.search(received, start)
            if received.count(b"\n", start, blank.end() if blank else len(received)) > MAX_TRAILER_LINES:
                raise RequestRefusedError(BadRequest(f"A body may have at most {MAX_TRAILER_LINES} trailers."))

    def _count(self, event: object) -> None:
        if isinstance(event, h11.Request):
            self._begin_body(event)
        elif isinstance(event, h11.EndOfMessage):
            self._between_chunks = self._in_trailers = False
        elif isinstance(event, h11.Data):
            self.body_bytes += len(event.data)
            if event.chunk_end:  # not chunk_start: h11 omits it if size and data arrive apart
                self._chunks += 1
                self._chunks_left -= 1
            self._between_chunks = event.chunk_end
            if self._chunks > SMALL_CHUNKS + self.body_bytes // BYTES_PER_CHUNK:
                raise RequestRefusedError(
                    BadRequest(
                        "The body has too many small chunks. Send it with a Content-Length, or in chunks of at least "
                        f"{BYTES_PER_CHUNK} bytes."
                    )
                )

    def _begin_body(self, request: h11.Request) -> None:
        headers = dict(request.headers)  # h11 keeps one Content-Length
        chunked = b"transfer-encoding" in headers
        self.body_bytes = self._chunks = 0
        self.body_length = None if chunked else int(headers.get(b"content-length", 0))
        self._between_chunks, self._in_trailers = chunked, False
        if request.http_version[:2] != b"1.":
            raise RequestRefusedError(BadRequest("This service supports HTTP/1.1 and HTTP/1.0 only."))
        if chunked and request.http_version < b"1.1":  # RFC 9112, 6.1: the framing may be faulty
            raise RequestRefusedError(BadRequest("An HTTP/1.0 request cannot have a Transfer-Encoding. Use HTTP/1.1."))
