"""A real HTTP server with scripted responses."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from app.sdk import RlvoError

MAX_STORED_BODY = 1024 * 1024  # bytes; the rest of a request body is read and discarded
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
class Response:
    """Response to one request; ``disconnect`` closes the connection instead, ``truncate_at`` after that many bytes."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    disconnect: bool = False
    truncate_at: int | None = None

    @classmethod
    def problem(cls, error: RlvoError, **headers: str) -> Response:
        body = {"type": f"/problems/{error.code}", "title": error.title, "status": error.status, "detail": error.detail}
        errors = [{"field": fault.field, "detail": fault.detail} for fault in error.errors]
        headers = {"Content-Type": "application/problem+json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        return cls(body | {"code": error.code, "trace_id": "abc", "errors": errors}, error.status, headers)


@dataclass
class ReceivedRequest:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    length: int


class ScriptedServer(ThreadingHTTPServer):
    """Sends the scripted responses in order and stores the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.responses: list[Response] = []
        self.requests: list[ReceivedRequest] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def respond_with(self, *responses: Response) -> None:
        self.responses += responses


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def _respond(self) -> None:
        length = left = int(self.headers.get("Content-Length", 0))
        body = b""
        while left:
            chunk = self.rfile.read(min(left, MAX_STORED_BODY))
            left -= len(chunk)
            body = body or chunk
        self.server.requests.append(ReceivedRequest(self.command, self.path, dict(self.headers), body, length))
        response = self.server.responses.pop(0)
        if response.disconnect:
            self.close_connection = True
            return
        content = response.body if isinstance(response.body, bytes) else json.dumps(response.body).encode()
        self.send_response(response.status)
        for name, value in ({"Content-Type": "application/json"} | response.headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: response.truncate_at])
        self.close_connection = self.close_connection or response.truncate_at is not None

    do_GET = do_POST = do_PUT = do_DELETE = _respond  # noqa: N815 - names of the base class

    def log_message(self, *args: object) -> None:
        pass
