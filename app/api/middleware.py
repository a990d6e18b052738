"""The one layer in front of every route: trace, caller, limits, headers. Plain ASGI, before any body is read.

Notable choices:
- Who may call is settled on path and headers alone (security.py); a refused upload is never received into anything.
- A body is bounded twice: by what it claims (Content-Length) and by what arrives; and it has an absolute deadline
  and may not fall silent.
- A refusal is sent at once, while the client may still be sending. What follows is read and dropped for a moment, so
  that the client reads our answer instead of a broken connection; then the connection is closed.
- HEAD is GET without its body, on every address.
- What nobody foresaw is a 500 that says nothing of itself; the log has the trace and no value that was submitted.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
from dataclasses import dataclass, field

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import problems
from app.api.auth import authorise
from app.api.dependencies import Services
from app.core import logging as logs
from app.core import tracing
from app.core.tracing import Span
from app.sdk.errors import BadRequest, ExpectationFailed, InternalError, RlvoError, TooLarge, UploadTimeout

log = logging.getLogger("rlvo.http")

SUBMIT = "/v1/predictions"
_INFER = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/infer")
INSECURE_WARNING = '199 rlvo "No API keys are asked for: whoever reaches this address may use it"'

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; connect-src 'self' blob: data:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

_LINGER_SECONDS = 2.0
_LINGER_BYTES = 64 * 1024 * 1024


class Middleware:
    """Lets a request through to ``app`` with ``state.trace_id`` and ``state.caller`` set, or answers it itself."""

    def __init__(self, app: ASGIApp, *, services: Services) -> None:
        self.app = app
        self.services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        state = scope.setdefault("state", {})
        parent = tracing.trace_context_of(headers.get("traceparent", ""))
        with self.services.traces.span(scope["method"], parent, server=True) as span:
            state["place"] = span.place
            with logs.bound_fields(trace=span.place.trace):
                await self._through(scope, receive, send, headers, span)

    async def _through(self, scope: Scope, receive: Receive, send: Send, headers: Headers, span: Span) -> None:
        state = scope["state"]
        state["trace_id"] = trace_id = span.place.trace
        settings = self.services.settings
        body = _Body(receive, self._limit(scope["path"]), settings.receive_timeout, settings.stall_timeout)
        open_door = not settings.keys_required
        reply = _Reply(send, trace_id, body, head=scope["method"] == "HEAD", open_door=open_door)
        if reply.head:
            scope["method"] = "GET"
        # A range may be ignored (RFC 9110, 14.2), and what we serve is read whole; so no odd one gets anywhere.
        scope["headers"] = [header for header in scope["headers"] if header[0] not in (b"range", b"if-range")]
        started = time.perf_counter()
        with self.services.metrics.in_flight():
            try:
                body.expect(headers)
                _check_expectation(headers)
                state["caller"] = caller = await authorise(self.services, scope, headers)
                if caller and caller.max_body:
                    body.limit = min(body.limit, caller.max_body)
                    body.expect(headers)
                await self.app(scope, body.receive, reply.send)
            except RlvoError as error:
                await self._refuse(error, scope, reply)
            except ClientDisconnect:
                log.info("the client went away")
            except Exception as error:  # noqa: BLE001 - the last net of the process; nothing of it may reach the caller
                log.error("trace=%s %s", trace_id, _without_values(error))
                await self._refuse(InternalError("The service failed; its log has this trace."), scope, reply)
            finally:
                self._record(scope, reply, time.perf_counter() - started, span)
        await self._finish(headers, body, reply)

    def _limit(self, path: str) -> int:
        settings = self.services.settings
        return settings.max_body_bytes if path == SUBMIT or _INFER.fullmatch(path) else settings.max_json_bytes

    async def _refuse(self, error: RlvoError, scope: Scope, reply: _Reply) -> None:
        if not reply.started:
            await problems.answer(error, reply.trace_id, path=scope["path"])(scope, _nothing, reply.send)

    async def _finish(self, headers: Headers, body: _Body, reply: _Reply) -> None:
        """Ends the answer; before that, lets a client that is still sending come to its end."""
        if reply.held is None:
            return
        if not body.complete and headers.get("expect", "").lower() != "100-continue":
            await body.drop()
        await reply.end()

    def _record(self, scope: Scope, reply: _Reply, seconds: float, span: Span) -> None:
        elsewhere = "/static" if scope["path"].startswith("/static/") else "unmatched"
        route = getattr(scope.get("route"), "path", elsewhere)
        method = "HEAD" if reply.head else scope["method"]
        self.services.metrics.request(method if method in _METHODS else "other", route, reply.status, seconds)
        log.info("%s %s %d %.1f ms", method[:8], route, reply.status, 1000 * seconds)
        span.note(route=route, status=reply.status)
        if reply.status >= 500:
            span.fail(str(reply.status))


_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"}


@dataclass
class _Body:
    """A request's body on its way in: counted, timed, and known to be complete or not."""

    source: Receive
    limit: int
    timeout: float
    stall: float
    received: int = 0
    complete: bool = False
    _deadline: float = field(init=False)

    def __post_init__(self) -> None:
        self._deadline = anyio.current_time() + self.timeout

    def expect(self, headers: Headers) -> None:
        """Judges what the headers claim. Raises TooLarge, BadRequest."""
        claims = headers.getlist("content-length")
        if claims and not (len(claims) == 1 and claims[0].isascii() and claims[0].isdigit()):
            raise BadRequest("Content-Length must be one number.")
        if claims and (len(claims[0]) > 18 or int(claims[0]) > self.limit):
            raise self._too_large()
        if claims and "transfer-encoding" in headers:  # RFC 9112, 6.1: perhaps smuggling
            raise BadRequest("A request has a Content-Length or a Transfer-Encoding, not both.")
        self.complete = claims == ["0"] or not (claims or "transfer-encoding" in headers)

    async def receive(self) -> Message:
        if self.complete:  # what follows is only the news of a disconnect
            return await self.source()
        with anyio.move_on_after(min(self._deadline - anyio.current_time(), self.stall)) as scope:
            message = await self.source()
        if scope.cancelled_caught:
            raise UploadTimeout(
                f"The body must arrive within {self.timeout:g} seconds, without a silence of {self.stall:g} seconds; "
                "send it again on a faster line."
            )
        self._count(message)
        if self.received > self.limit:
            raise self._too_large()
        return message

    async def drop(self) -> None:
        """Reads and forgets what still comes, for a moment."""
        with anyio.move_on_after(_LINGER_SECONDS):
            bound = self.received + _LINGER_BYTES
            while not self.complete and self.received < bound:
                self._count(await self.source())

    def _count(self, message: Message) -> None:
        self.received += len(message.get("body", b""))
        self.complete = message["type"] == "http.disconnect" or not message.get("more_body", False)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"This address takes bodies of at most {self.limit} bytes.")


class _Reply:
    """An answer on its way out: security headers added, and the very end of a refusal held back for `Middleware._finish`."""

    def __init__(self, send: Send, trace_id: str, body: _Body, *, head: bool, open_door: bool) -> None:
        self._send = send
        self._body = body
        self.trace_id = trace_id
        self.head = head
        self.open_door = open_door
        self.started = False
        self.status = 499
        self.held: Message | None = None
        self._over = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers["X-Trace-Id"] = self.trace_id
            if "Accept-Ranges" in headers:
                headers["Accept-Ranges"] = "none"
            if self.open_door:
                headers["Warning"] = INSECURE_WARNING
            if not self._body.complete:
                headers["Connection"] = "close"
            await self._send(message)
        elif not self._over:
            await self._content(message)

    async def _content(self, message: Message) -> None:
        if self.head:
            self._over = True
            await self._send({"type": "http.response.body"})
        elif self.status >= 400 and not message.get("more_body", False):
            self._over = True
            await self._send({**message, "more_body": True})
            self.held = {"type": "http.response.body"}
        else:
            await self._send(message)

    async def end(self) -> None:
        if self.held is not None:
            await self._send(self.held)


async def _nothing() -> Message:
    """The receive of an answer that needs no request."""
    return {"type": "http.disconnect"}


def _check_expectation(headers: Headers) -> None:
    """Raises ExpectationFailed: whoever expects what we do not know would wait for it in vain."""
    if headers.get("expect", "100-continue").lower() != "100-continue":
        raise ExpectationFailed("The only expectation that this service meets is 100-continue.")


def _without_values(error: BaseException) -> str:
    """Kind and place of an error, without its message, which could hold what was submitted."""
    return f"{type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}"
