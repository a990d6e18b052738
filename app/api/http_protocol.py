"""Limits one TCP connection and answers what is not valid HTTP.

Design notes:
- It extends uvicorn's h11 protocol with a deadline for the request head, a deadline for reading the response,
  and a maximum number of connections. An idle or slow client cannot hold a connection.
- Invalid HTTP gets a problem document with the usual headers; a head that is too large gets 431.
- If a response has already started, the connection is closed, because a second response could be used for smuggling.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.api import problems
from app.api.middleware import HEADERS
from app.core.config import Settings
from app.sdk.errors import BadRequest, HeadersTooLarge, HeadersTooLate, RlvoError

log = logging.getLogger("rlvo.http")

_TOO_LARGE = 431


class Connection(H11Protocol):
    """A connection with three limits; `protocol` sets them from the settings."""

    settings: ClassVar[Settings]

    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            log.warning(
                "closed a new connection: the limit of %d connections is reached", self.settings.max_connections
            )
            transport.abort()
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            self._head_arrived()
        elif self._head_timer is None:
            self._expect_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.settings.stall_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - our problem document replaces it
        reason = sys.exception()
        if isinstance(reason, h11.RemoteProtocolError) and reason.error_status_hint == _TOO_LARGE:
            self._refuse(
                HeadersTooLarge("The head of a request may have at most 64 KiB. Send fewer or shorter headers.")
            )
        else:
            self._refuse(BadRequest("The request is not valid HTTP/1.1. Check its framing and its headers."))

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(self.settings.header_timeout, self._head_timed_out)

    def _head_arrived(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_timed_out(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._refuse(
                HeadersTooLate(f"The head of a request must arrive within {self.settings.header_timeout:g} seconds.")
            )

    def _refuse(self, error: RlvoError) -> None:
        """Sends the problem document if no response has started, and closes the connection."""
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
        self.transport.close()


def protocol(settings: Settings) -> type[H11Protocol]:
    """Returns the connection class with the limits of ``settings``, for ``uvicorn.Config(http=...)``."""
    return type("BoundedConnection", (Connection,), {"settings": settings})
