"""One TCP connection, before there is a request and where there never will be one.

Notable choices:
- uvicorn's own protocol over h11, with what it leaves open: a request's head must arrive by a deadline, an answer must
  be taken by one, and there is a bound on connections. So nobody holds a connection by doing nothing, or by little.
- What is no HTTP is a problem document like every other error, with the headers that every answer has; a head that is
  too large is 431. Where an answer is under way already, the connection is cut: a second one would be smuggled in.
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
    """A connection under the three bounds, which `protocol` sets."""

    settings: ClassVar[Settings]

    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            log.warning("more than %d connections; one is turned away", self.settings.max_connections)
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
        elif self._deadline is None:
            self._expect_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.settings.stall_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words; ours say more
        reason = sys.exception()
        if isinstance(reason, h11.RemoteProtocolError) and reason.error_status_hint == _TOO_LARGE:
            self._refuse(HeadersTooLarge("The head of a request has at most 64 KiB; send fewer or shorter headers."))
        else:
            self._refuse(BadRequest("The request does not follow HTTP/1.1; check its framing and its headers."))

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(self.settings.header_timeout, self._too_late)

    def _head_arrived(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self._refuse(
                HeadersTooLate(f"The head of a request must arrive within {self.settings.header_timeout:g} seconds.")
            )

    def _refuse(self, error: RlvoError) -> None:
        """Answers what never became a request, and hangs up."""
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
    """The protocol of the service's connections, bounded by ``settings``; for ``uvicorn.Config(http=...)``."""
    return type("BoundedConnection", (Connection,), {"settings": settings})
