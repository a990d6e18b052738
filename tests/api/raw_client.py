"""Raw requests to a real service, for tests of what HTTP libraries do not send."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import httpx

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


def ask(server: Server, request: bytes, *, half_close: bool = False) -> bytes:
    """Sends raw bytes and returns everything that the service answers."""
    with connect(server, timeout=5) as connection:
        connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        return read_all(connection)


def key(server: Server, name: str = "pacs") -> dict[str, str]:
    """The header with a new API key."""
    with server.database().session() as session:
        return {"Authorization": f"Bearer {api_keys.create(session, name)}"}


@contextmanager
def flood(send: Callable[[], None], connections: int) -> Iterator[None]:
    """Calls ``send`` again and again in as many threads while the block runs; a refused connection is no error."""
    end = threading.Event()

    def attack() -> None:
        while not end.is_set():
            with suppress(OSError):
                send()

    threads = [threading.Thread(target=attack, daemon=True) for _ in range(connections)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join()


def latencies(url: str, seconds: float) -> list[float]:
    """The sorted times of one GET after the other, each with a new connection; s."""
    times = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        assert httpx.get(url, timeout=30).status_code == 200
        times.append(time.monotonic() - began)
        time.sleep(0.02)
    return sorted(times)
