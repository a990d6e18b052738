"""The ASGI middleware in front of all routes: trace, authentication, body limits and response headers.

Design notes:
- Authentication uses path and headers only, so the body of a refused upload is never stored.
- A body is limited by its Content-Length and by the bytes that arrive, by a total time and by a stall time.
- A refusal is sent before the body has arrived, and the rest of the body is discarded (docs/decisions/0030).
- The requests in progress of a caller are limited, so that one caller cannot use up the connections.
- HEAD is answered as GET without a body, on every address.
- An unexpected error gives a 500 without details. The log has its trace id and no submitted value.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import cors, problems, request_headers
from app.api.auth import LOCAL, authorise, key_needed
from app.api.dependencies import Services
from app.api.login import content_policy
from app.core import logging as app_logging
from app.core import tracing
from app.core.tracing import Span
from app.database.api_keys import Caller
from app.sdk.errors import BadRequest, InternalError, RlvoError, TooLarge, UploadTimeout

log = logging.getLogger("rlvo.http")

SUBMIT = "/v1/predictions"
STORE = "/dicomweb/studies"
_INFER = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/infer")
INSECURE_WARNING = '199 rlvo "No API key is required for this request"'
UNCHECKED_WARNING = '199 rlvo "No API key is required for this request, and the one that was sent is not checked"'

HEADERS = {
    "Content-Security-Policy": content_policy(),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

DISCARD = "rlvo.discard"  # extension of the ASGI scope: a function that discards the rest of the request
DISCARD_SECONDS = 2.0  # of a sender without a key
DISCARD_SECONDS_OF_CALLER = 30.0
DISCARD_PAUSE_OF_CALLER = 10.0  # without a byte; a busy client may stop for a few seconds in the middle of a request
DISCARD_BYTES = 64 * 1024 * 1024  # of a sender without a key
_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"}


class Middleware:
    """Passes a request on to ``app`` with ``state.trace_id`` and ``state.caller`` set, or refuses it."""

    def __init__(self, app: ASGIApp, *, services: Services) -> None:
        self.app = app
        self.services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection; a websocket is closed, because the service has none."""
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
            state["trace_context"] = span.trace_context
            with app_logging.bound_fields(trace=span.trace_context.trace):
                await self._handle(scope, receive, send, headers, span)

    async def _handle(self, scope: Scope, receive: Receive, send: Send, headers: Headers, span: Span) -> None:
        state = scope["state"]
        state["trace_id"] = trace_id = span.trace_context.trace
        settings = self.services.settings
        body = _RequestBody(receive, self._limit(scope["path"]), settings.receive_timeout, settings.stall_timeout)
        warning = "" if key_needed(settings, scope, headers) else _key_warning(headers)
        response = _Response(send, trace_id, body, head=scope["method"] == "HEAD", warning=warning)
        if response.head:
            scope["method"] = "GET"
        scope["headers"] = request_headers.merged(scope["headers"])
        headers = Headers(scope=scope)
        origin = cors.allowed_origin(settings, scope, headers)
        response.more = cors.response_headers(origin)
        started = time.perf_counter()
        with self.services.metrics.in_flight():
            try:
                body.check_headers(headers)
                request_headers.check(headers, has_body=not body.complete)
                if (answer := cors.preflight(scope, headers, origin)) is not None:
                    await answer(scope, _receive_nothing, response.send)
                    return
                state["caller"] = caller = await authorise(self.services, scope, headers)
                if caller and caller.max_body:
                    body.limit = min(body.limit, caller.max_body)
                    body.check_headers(headers)
                with self._admitted(scope, caller):
                    await self.app(scope, body.receive, response.send)
            except RlvoError as error:
                await self._refuse(error, scope, response)
            except ClientDisconnect:
                log.info("the client closed the connection")
            except Exception as error:  # noqa: BLE001 - no unexpected error may reach the caller
                log.error("trace=%s %s", trace_id, _traceback(error))
                message = "The service failed. Send the trace_id to its operator, who finds the error in the log."
                await self._refuse(InternalError(message), scope, response)
            finally:
                self._record(scope, response, time.perf_counter() - started, span)
        await self._finish(scope, headers, body, response)

    @contextmanager
    def _admitted(self, scope: Scope, caller: Caller | None) -> Iterator[None]:
        """Counts an authenticated request as in progress; `http_protocol` closes no connection that serves one."""
        if caller is None:
            yield
            return
        address = (scope.get("client") or ("",))[0]
        with self.services.requests_in_progress.admitted(address if caller is LOCAL else caller.identity):
            scope["state"]["admitted"] = True
            try:
                yield
            finally:
                scope["state"]["admitted"] = False

    def _limit(self, path: str) -> int:
        settings = self.services.settings
        large = path in (SUBMIT, STORE) or _INFER.fullmatch(path)
        return settings.max_body_bytes if large else settings.max_json_bytes

    async def _refuse(self, error: RlvoError, scope: Scope, response: _Response) -> None:
        if not response.started:
            problem = problems.answer(error, response.trace_id, path=scope["path"])
            await problem(scope, _receive_nothing, response.send)

    async def _finish(self, scope: Scope, headers: Headers, body: _RequestBody, response: _Response) -> None:
        """Ends a held response, after reading what the client still sends."""
        if response.held is None:
            return
        if not body.complete:
            if (discard := scope.get("extensions", {}).get(DISCARD)) is not None:
                await discard(is_caller=scope["state"].get("caller") is not None)
            elif headers.get("expect", "").lower() != "100-continue":
                await body.discard()
        await response.end()

    def _record(self, scope: Scope, response: _Response, seconds: float, span: Span) -> None:
        """Writes the metrics, the log line and the span of a request."""
        default = "/static" if scope["path"].startswith("/static/") else "unmatched"
        route = getattr(scope.get("route"), "path", default)
        method = "HEAD" if response.head else scope["method"]
        label = method if method in _METHODS else "other"
        self.services.metrics.observe_request(label, route, response.status, seconds)
        log.info("%s %s %d %.1f ms", method[:8], route, response.status, 1000 * seconds)
        span.note(route=route, status=response.status)
        if response.status >= 500:
            span.fail(str(response.status))


@dataclass
class _RequestBody:
    """A request body: counts the bytes, limits the time, and knows whether the body is complete."""

    source: Receive
    limit: int
    timeout: float
    stall: float
    received: int = 0
    complete: bool = False
    _deadline: float = field(init=False)

    def __post_init__(self) -> None:
        self._deadline = anyio.current_time() + self.timeout

    def check_headers(self, headers: Headers) -> None:
        """Raises TooLarge or BadRequest if the headers announce a body that cannot be accepted."""
        lengths = headers.getlist("content-length")
        if lengths and not (len(lengths) == 1 and lengths[0].isascii() and lengths[0].isdigit()):
            raise BadRequest("Content-Length must be one number.")
        if lengths and (len(lengths[0]) > 18 or int(lengths[0]) > self.limit):
            raise self._too_large()
        if lengths and "transfer-encoding" in headers:  # RFC 9112, 6.1: may be request smuggling
            raise BadRequest("Send either a Content-Length or a Transfer-Encoding, not both.")
        self.complete = lengths == ["0"] or not (lengths or "transfer-encoding" in headers)

    async def receive(self) -> Message:
        """The ASGI ``receive`` of the route. Raises UploadTimeout, TooLarge."""
        if self.complete:  # only a disconnect can follow
            return await self.source()
        with anyio.move_on_after(min(self._deadline - anyio.current_time(), self.stall)) as scope:
            message = await self.source()
        if scope.cancelled_caught:
            raise UploadTimeout(
                f"The body must arrive within {self.timeout:g} seconds, without a pause of {self.stall:g} seconds. "
                "Send it again over a faster connection."
            )
        self._count(message)
        if self.received > self.limit:
            raise self._too_large()
        return message

    async def discard(self) -> None:
        """Reads the rest of the body without using it, within a limit of time and bytes."""
        with anyio.move_on_after(DISCARD_SECONDS):
            limit = self.received + DISCARD_BYTES
            while not self.complete and self.received < limit:
                self._count(await self.source())

    def _count(self, message: Message) -> None:
        self.received += len(message.get("body", b""))
        self.complete = message["type"] == "http.disconnect" or not message.get("more_body", False)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"This address accepts bodies of at most {self.limit} bytes. Send less.")


def _key_warning(headers: Headers) -> str:
    """Warning of a request that needs no key; one with a key learns that a wrong key would be answered too."""
    return UNCHECKED_WARNING if {"authorization", "x-api-key"} & set(headers) else INSECURE_WARNING


class _Response:
    """A response that is being sent: adds the headers, and holds back the end of an error response.

    `Middleware._finish` sends the end, so that the server keeps the connection open until then.
    """

    def __init__(self, send: Send, trace_id: str, body: _RequestBody, *, head: bool, warning: str) -> None:
        self._send = send
        self._body = body
        self.trace_id = trace_id
        self.head = head
        self._warning = warning
        self.started = False
        self.status = 499
        self.held: Message | None = None
        self.more: dict[str, str] = {}
        self._ended = False

    async def send(self, message: Message) -> None:
        """The ASGI ``send`` of the route."""
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers["X-Trace-Id"] = self.trace_id
            if self.more:
                headers.update(self.more)
                headers.add_vary_header("Origin")
            if "Accept-Ranges" in headers:
                headers["Accept-Ranges"] = "none"
            if self._warning:
                headers["Warning"] = self._warning
            if not self._body.complete:
                headers["Connection"] = "close"
            await self._send(message)
        elif not self._ended:
            await self._send_body(message)

    async def _send_body(self, message: Message) -> None:
        if self.head:
            self._ended = True
            await self._send({"type": "http.response.body"})
        elif self.status >= 400 and not message.get("more_body", False):
            self._ended = True
            await self._send({**message, "more_body": True})
            self.held = {"type": "http.response.body"}
        else:
            await self._send(message)

    async def end(self) -> None:
        """Sends the part that was held back."""
        if self.held is not None:
            await self._send(self.held)


async def _receive_nothing() -> Message:
    """The ASGI ``receive`` of a response that reads no request."""
    return {"type": "http.disconnect"}


def _traceback(error: BaseException) -> str:
    """The type and the stack of an error, without its message, which could contain submitted values."""
    return f"{type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}"
