"""A real HTTP server that answers by a script, and both clients behind one blocking face."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from app.sdk import AsyncClient, Client, RlvoError

KEPT = 1024 * 1024  # bytes of a request's body; what is beyond is read and dropped
PREDICTION = {
    "id": "01",
    "status": "queued",
    "model": {"name": "m", "version": "1.0.0", "digest": "sha256:0"},
    "created": "2026-01-01T00:00:00Z",
}
CERTIFICATE = {
    "id": "01",
    "erased": "2026-01-02T00:00:00Z",
    "blobs": [{"sha256": "0" * 64, "gone": True}],
    "shared": 0,
    "complete": True,
    "entry": {
        "seq": 3,
        "at": "2026-01-02T00:00:00Z",
        "actor": "a",
        "action": "prediction.erase",
        "target": "01",
        "detail": {},
        "previous": "0" * 64,
        "hash": "1" * 64,
    },
}


@dataclass
class Answer:
    """What the server says to one request. ``hang_up`` closes the connection instead, ``cut`` after so many bytes."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hang_up: bool = False
    cut: int | None = None

    @classmethod
    def problem(cls, error: RlvoError, **headers: str) -> Answer:
        body = {"type": f"/problems/{error.code}", "title": error.title, "status": error.status, "detail": error.detail}
        errors = [{"field": each.field, "detail": each.detail} for each in error.errors]
        headers = {"Content-Type": "application/problem+json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        return cls(body | {"code": error.code, "trace_id": "abc", "errors": errors}, error.status, headers)


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    length: int


class Script(ThreadingHTTPServer):
    """Gives the answers in order and keeps what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[Answer] = []
        self.asked: list[Asked] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def says(self, *answers: Answer) -> None:
        self.answers += answers


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Script

    def _answer(self) -> None:
        length = left = int(self.headers.get("Content-Length", 0))
        body = b""
        while left:
            chunk = self.rfile.read(min(left, KEPT))
            left -= len(chunk)
            body = body or chunk
        self.server.asked.append(Asked(self.command, self.path, dict(self.headers), body, length))
        answer = self.server.answers.pop(0)
        if answer.hang_up:
            self.close_connection = True
            return
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in ({"Content-Type": "application/json"} | answer.headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: answer.cut])
        self.close_connection = self.close_connection or answer.cut is not None

    do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 - the base class names them so

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Script]:
    with Script() as script:
        thread = threading.Thread(target=partial(script.serve_forever, 0.01))
        thread.start()
        yield script
        script.shutdown()
        thread.join()


class _Blocking:
    """AsyncClient as a blocking client, so that one test holds both."""

    def __init__(self, portal: Any, client: Any) -> None:
        self._portal = portal
        self._client = client

    @property
    def registry(self) -> _Blocking:
        return _Blocking(self._portal, self._client.registry)

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        return lambda *args, **options: self._portal.call(partial(getattr(self._client, verb), *args, **options))

    def list(self, **filters: Any) -> Iterator[Any]:
        async def everything() -> list[Any]:
            return [each async for each in self._client.list(**filters)]

        yield from self._portal.call(everything)


@pytest.fixture(params=["Client", "AsyncClient"])
def connect(request: pytest.FixtureRequest, server: Script) -> Iterator[Callable[..., Any]]:
    """Makes a client of the scripted server. Its pauses are as long as ever but for their jitter, which is small."""
    with ExitStack() as stack:

        def make(url: str | None = None, **options: Any) -> Any:
            if request.param == "Client":
                client: Any = stack.enter_context(Client(url or server.url, **options))
                inner = client
            else:
                portal = stack.enter_context(start_blocking_portal())
                inner = stack.enter_context(
                    portal.wrap_async_context_manager(AsyncClient(url or server.url, **options))
                )
                client = _Blocking(portal, inner)
            inner._verbs = type(inner._verbs)(inner._verbs.retries, first_pause=0.001)
            return client

        yield make
