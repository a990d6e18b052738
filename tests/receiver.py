"""A real receiver of webhook messages, which verifies signatures with the library of Standard Webhooks."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook


@dataclass
class Receiver:
    """Received messages. The receiver answers with ``statuses`` in order and repeats the last one."""

    port: int
    statuses: list[int]
    location: str = ""
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/rlvo"

    def verified(self, secret: str, number: int = -1) -> Any:
        """The document of one message. Raises WebhookVerificationError if the signature is not valid."""
        return Webhook(secret).verify(self.bodies[number], self.headers[number])


@contextmanager
def receiving(*statuses: int, location: str = "", tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Runs a receiver on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            receiver.headers.append(dict(self.headers.items()))
            self.send_response(statuses[min(len(receiver.bodies), len(statuses)) - 1])
            if receiver.location:
                self.send_header("Location", receiver.location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        receiver = Receiver(server.server_address[1], list(statuses), location)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
