"""Raw requests to a real service, for tests of what HTTP libraries do not send."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from app.database import api_keys
from tests.api.server import Server


def connect(server: Server, source: str = "127.0.0.1", *, timeout: float = 20) -> socket.socket:
    """A connection from a loopback address."""
    address = urlsplit(server.url)
    assert address.hostname
    assert address.port
    return socket.create_connection((address.hostname, address.port), timeout, (source, 0))


def head(line: str, *headers: str) -> bytes:
    """The head of a request with a Host header."""
    return "\r\n".join((f"{line} HTTP/1.1", "Host: 127.0.0.1", *headers, "", "")).encode()


def read_all(connection: socket.socket) -> bytes:
    """Everything until the service closes the connection, or until a timeout."""
    received = b""
    with suppress(OSError):
        while more := connection.recv(65536):
            received += more
    return received


def ask(server: Server, request: bytes, *, half_close: bool = False, timeout: float = 20) -> bytes:
    """Sends raw bytes and returns everything that the service answers."""
    with connect(server, timeout=timeout) as connection:
        connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        return read_all(connection)


def key(server: Server, name: str = "pacs") -> dict[str, str]:
    """The header with a new API key."""
    with server.database().session() as session:
        return {"Authorization": f"Bearer {api_keys.create(session, name)}"}


@contextmanager
def flood(server: Server, request: bytes, connections: int) -> Iterator[None]:
    """Sends ``request`` again and again over as many connections while the block runs, from another process."""
    address = urlsplit(server.url)
    command = [sys.executable, str(Path(__file__).with_name("flood_client.py")), address.hostname, address.port]
    with subprocess.Popen(
        [*map(str, command), str(connections)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(request)
        process.stdin.close()
        assert process.stdout.readline() == b"started\n"
        try:
            yield
        finally:
            process.kill()


def latencies(server: Server, seconds: float) -> list[float]:
    """The sorted times of one `GET /livez` after the other, each with a new connection; s."""
    times = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        assert ask(server, head("GET /livez", "Connection: close"), timeout=60).startswith(b"HTTP/1.1 200 ")
        times.append(time.monotonic() - began)
        time.sleep(0.02)
    return sorted(times)
