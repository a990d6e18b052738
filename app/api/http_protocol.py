"""Limits one TCP connection and answers what is not valid HTTP.

Design notes:
- It extends uvicorn's h11 protocol (docs/decisions/0032) with a deadline for the request head, a deadline for reading
  the response, a maximum number of connections, and the limits of `request_parser`.
- Invalid HTTP gets a problem document with the usual headers. If a response has already started, the connection is
  closed, because a second response could be used for smuggling.
- A body of many small chunks is parsed in turns, so that other connections are served in between.
- After a refusal, the sending side is closed at once. The rest of the request is counted and discarded, not parsed.
- A client that closes only its sending side still gets its response.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
import time
from collections import deque
from typing import Any, ClassVar

import anyio
import h11
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.api import problems
from app.api.connection_limits import ConnectionPlaces
from app.api.middleware import (
    DISCARD,
    DISCARD_BYTES,
    DISCARD_PAUSE_OF_CALLER,
    DISCARD_SECONDS,
    DISCARD_SECONDS_OF_CALLER,
    HEADERS,
)
from app.api.request_parser import RequestParser, RequestRefusedError
from app.core.config import Settings
from app.sdk.errors import BadRequest, HeadersTooLarge, HeadersTooLate, RlvoError

log = logging.getLogger("rlvo.http")

_TOO_LARGE = 431
_TURN_SECONDS = 0.002  # of parsing for interrupted connections, in one turn of the event loop
_LAST_CHUNK = b"0\r\n\r\n"
_EVENTS = b"text/event-stream; charset=utf-8"


class Connection(H11Protocol):
    """A connection with these limits; `protocol` sets the attributes of the class."""

    settings: ClassVar[Settings]
    places: ClassVar[ConnectionPlaces[Connection]]
    turns: ClassVar[ParsingTurns]

    conn: RequestParser
    flow: _HeldFlow
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _discard: _Discard | None = None
    _half_closed = False
    _streams_events = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = RequestParser()
        application = self.app

        async def app(scope: Any, receive: Any, send: Any) -> None:
            async def note_and_send(message: Any) -> None:
                if message["type"] == "http.response.start":
                    self._streams_events = (b"content-type", _EVENTS) in message["headers"]
                await send(message)

            scope["extensions"] = {DISCARD: self.discard}
            await application(scope, receive, note_and_send)

        self.app = app

    @property
    def address(self) -> str:
        """Address of the client, without the port."""
        return self.client[0] if self.client else ""

    @property
    def replaceable(self) -> bool:
        """Whether the connection serves no authenticated request at present."""
        busy = self.cycle is not None and not self.cycle.response_complete
        return not (busy and self.scope["state"].get("admitted"))

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.flow = _HeldFlow(transport)
        has_place, replaced = self.places.enter(self)
        if replaced is not None:
            replaced.transport.abort()
        if has_place:
            self._expect_head()
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.places.leave(self)
        self._head_arrived()
        if self._discard is not None:
            self._discard.complete.set()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._discard is not None:
            self._discard.count(data)
            return
        super().data_received(data)
        self._update_head_timer()

    def handle_events(self) -> None:
        """Parses what has arrived, or a part of it; `ParsingTurns` then continues."""
        if self._discard is not None:
            return
        self.conn.begin_turn()
        super().handle_events()
        if self.conn.interrupted and not self.transport.is_closing():
            self.flow.held = True
            self.turns.add(self)

    def continue_parsing(self) -> None:
        """Parses the next part of what has arrived."""
        if self._discard is not None or self.transport.is_closing():
            return
        self.flow.held = False
        if self.cycle is None or self.cycle.response_complete or len(self.cycle.body) <= HIGH_WATER_LIMIT:
            self.flow.resume_reading()  # else uvicorn resumes when the application has taken the body
        self.handle_events()
        self._update_head_timer()
        if self._half_closed and not self.flow.held:
            self._end_half_closed()

    def eof_received(self) -> bool:  # type: ignore[override] # uvicorn omits the result, which asyncio reads
        """Keeps the connection open until the response to a complete request is sent."""
        self._half_closed = True
        if self._discard is not None:
            self._discard.complete.set()
        elif not self.flow.held:
            self._end_half_closed()
        return not self.transport.is_closing()

    def _end_half_closed(self) -> None:
        """Refuses an incomplete request of a client that sends no more; closes an idle connection or event stream."""
        responding = self.cycle is not None and not self.cycle.response_complete
        if responding and self._streams_events:  # without an end of its own, and closed by most clients in this way
            responding = False
        if self.conn.their_state is h11.SEND_BODY:
            self._refuse(BadRequest("The body is incomplete. Send it with its announced length, or its last chunk."))
        elif not responding and self.conn.unparsed:
            self._refuse(BadRequest("The head of the request is incomplete. End it with an empty line."))
        elif not responding:
            self.transport.close()

    def on_response_complete(self) -> None:
        self.places.used(self)
        super().on_response_complete()
        if self._half_closed and not self.flow.held and not self.transport.is_closing():
            self._end_half_closed()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.settings.stall_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def shutdown(self) -> None:
        """Ends the connection after its response. A refused upload is not read to its end."""
        if self._discard is not None:
            self._discard.complete.set()
        super().shutdown()

    async def discard(self, *, is_caller: bool) -> None:
        """Discards what the client still sends of its body, within limits, and closes the connection.

        Args:
            is_caller: Whether the request had a valid key, or needed none. Such a sender has more time, and its body
                has the limits of any other body.
        """
        if not self.transport.is_closing():
            self.cycle.disconnected = True  # uvicorn must not write after the end of the sending side
            await self._close_after(self._start_to_discard(is_caller=is_caller), is_caller=is_caller)

    async def _close_after(self, discarded: _Discard, *, is_caller: bool = False) -> None:
        """Closes the connection when the rest of the request is discarded, or a limit is reached.

        To close it while bytes are unread would reset it, and the client could lose the response.
        """
        end = anyio.current_time() + (DISCARD_SECONDS_OF_CALLER if is_caller else DISCARD_SECONDS)
        pause = DISCARD_PAUSE_OF_CALLER if is_caller else DISCARD_SECONDS
        before = -1
        while discarded.bytes > before and anyio.current_time() < end and not discarded.complete.is_set():
            before = discarded.bytes
            with anyio.move_on_after(min(pause, end - anyio.current_time())):
                await discarded.complete.wait()
        self.flow.pause_reading()
        self.transport.close()

    def _start_to_discard(self, *, is_caller: bool = False) -> _Discard:
        """Ends the sending side, so that the client sees the end of the response, and discards what still arrives."""
        if not self.transport.is_closing() and self.transport.can_write_eof():
            self.transport.write_eof()
        unparsed = self.conn.unparsed
        left: int | None = None  # unknown: the head is incomplete, or the body is chunked
        if self.conn.their_state is h11.SEND_BODY:
            if self.conn.body_length is not None:
                left = self.conn.body_length - self.conn.body_bytes - len(unparsed)
        elif self.conn.their_state is not h11.IDLE:
            left = 0
        self._discard = _Discard(left, unparsed, self.settings.max_body_bytes if is_caller else DISCARD_BYTES)
        if self._half_closed:
            self._discard.complete.set()
        self.flow.held = False
        self.flow.resume_reading()
        return self._discard

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - our problem document replaces it
        reason = sys.exception()
        if isinstance(reason, RequestRefusedError):
            self._refuse(reason.error, discard=True)
        elif isinstance(reason, h11.RemoteProtocolError) and reason.error_status_hint == _TOO_LARGE:
            self._refuse(HeadersTooLarge("The head of the request is too long. Send fewer or shorter headers."))
        else:
            self._refuse(BadRequest("The request is not valid HTTP/1.1. Check its framing and its headers."))

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(self.settings.header_timeout, self._head_timed_out)

    def _head_arrived(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _update_head_timer(self) -> None:
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            self._head_arrived()
        elif self._head_timer is None:
            self._expect_head()

    def _head_timed_out(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._refuse(
                HeadersTooLate(f"The head of a request must arrive within {self.settings.header_timeout:g} seconds.")
            )

    def _refuse(self, error: RlvoError, *, discard: bool = False) -> None:
        """Sends the problem document if no response has started, and closes the connection.

        With ``discard``, the connection is closed later, so that a client that still sends can read the response.
        """
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            trace_id = secrets.token_hex(16)
            answer = problems.answer(error, trace_id, {**HEADERS, "X-Trace-Id": trace_id, "Connection": "close"})
            head = h11.Response(status_code=error.status, headers=answer.raw_headers, reason=error.title.encode())
            self.transport.write(self.conn.send(head) or b"")
            self.transport.write(self.conn.send(h11.Data(data=bytes(answer.body))) or b"")
            self.transport.write(self.conn.send(h11.EndOfMessage()) or b"")
            log.info("trace=%s - unmatched %d", trace_id, error.status)
            if discard and not self._half_closed:
                task = self.loop.create_task(self._close_after(self._start_to_discard()))
                self.tasks.add(task)  # the server waits for it when it stops
                task.add_done_callback(self.tasks.discard)
                return
        self.transport.close()


class ParsingTurns:
    """Continues the parsing of interrupted connections, one after the other, for a short time per turn of the loop."""

    def __init__(self) -> None:
        self._waiting: deque[Connection] = deque()
        self._scheduled = False

    def add(self, connection: Connection) -> None:
        """Continues ``connection`` in one of the next turns."""
        if connection not in self._waiting:
            self._waiting.append(connection)
        if not self._scheduled:
            self._scheduled = True
            connection.loop.call_soon(self._run)

    def _run(self) -> None:
        end = time.perf_counter() + _TURN_SECONDS
        while self._waiting and time.perf_counter() < end:
            connection = self._waiting.popleft()
            connection.continue_parsing()
        self._scheduled = bool(self._waiting)
        if self._scheduled:
            self._waiting[0].loop.call_soon(self._run)


class _HeldFlow(FlowControl):
    """uvicorn's flow control, which does not resume reading while the parser of the connection is interrupted."""

    held = False

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()


class _Discard:
    """The rest of a request that is discarded: counts its bytes and knows when it is complete.

    Args:
        body_left: Bytes that the body still has, or None if it is chunked.
        tail: The bytes that arrived before and were not parsed.
        most: Bytes that are read at most.

    Attributes:
        bytes: Bytes that were discarded.
        complete: Set when the request is complete, or the limit is reached.
    """

    def __init__(self, body_left: int | None, tail: bytes, most: int) -> None:
        self.complete = asyncio.Event()
        self.bytes = 0
        self._most = most
        self._body_left = body_left
        self._tail = tail[-len(_LAST_CHUNK) :]
        self.count(b"")

    def count(self, data: bytes) -> None:
        """Counts further bytes of the client."""
        self.bytes += len(data)
        if self._body_left is None:
            self._tail = (self._tail + data[-len(_LAST_CHUNK) :])[-len(_LAST_CHUNK) :]
            ended = self._tail == _LAST_CHUNK
        else:
            self._body_left -= len(data)
            ended = self._body_left <= 0
        if ended or self.bytes >= self._most:
            self.complete.set()


def protocol(settings: Settings) -> type[H11Protocol]:
    """Returns the connection class with the limits of ``settings``, for ``uvicorn.Config(http=...)``."""
    places = ConnectionPlaces[Connection](settings.max_connections)
    members: dict[str, Any] = {"settings": settings, "places": places, "turns": ParsingTurns()}
    return type("BoundedConnection", (Connection,), members)
