"""A TCP proxy between a service and its object store or database, with the faults of a real network.

The proxy listens on a port of 127.0.0.1 and connects each client to a server: a TCP address or the path of a Unix
socket. A change of the fault closes all connections, as an outage does.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum

Target = tuple[str, int] | str
CHUNK = 16 * 1024


class Fault(StrEnum):
    """What happens to the bytes of a connection."""

    NONE = "none"
    REFUSED = "refused"  # the connection is reset at once
    SILENT = "silent"  # the bytes are read and never answered
    ANSWERED = "answered"  # each request gets `TcpProxy.answer`
    SLOW = "slow"  # `TcpProxy.rate` bytes a second from the server


class TcpProxy:
    """A proxy to ``target``, which may be changed, for example to the new primary of a database."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.answer = b""
        self.rate = 1e9
        self.requests = 0
        self._fault = Fault.NONE
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def fault(self) -> Fault:
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        self._fault = fault
        self.cut()

    def cut(self) -> None:
        """Closes all connections; new ones are accepted."""
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def outage(self, fault: Fault = Fault.REFUSED, answer: bytes = b"") -> Iterator[None]:
        """The fault during the block."""
        self.answer = answer
        self.fault = fault
        try:
            yield
        finally:
            self.fault = Fault.NONE

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            self.requests += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            self._open.add(client)
            try:
                match self._fault:
                    case Fault.REFUSED:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    case Fault.SILENT:
                        while client.recv(CHUNK):
                            pass
                    case Fault.ANSWERED:
                        self._answer(client)
                    case _:
                        self._connect(client)
            finally:
                self._open.discard(client)

    def _answer(self, client: socket.socket) -> None:
        """Reads one request head and sends the answer; the body that follows is read and dropped."""
        head = b""
        while b"\r\n\r\n" not in head:
            part = client.recv(CHUNK)
            if not part:
                return
            head += part
        client.sendall(self.answer)
        client.shutdown(socket.SHUT_WR)
        while client.recv(CHUNK):
            pass

    def _connect(self, client: socket.socket) -> None:
        if isinstance(self.target, str):
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.target)
        else:
            server = socket.create_connection(self.target)
        with server:
            self._open.add(server)
            try:
                upstream = threading.Thread(target=_copy, args=(client, server, 1e9), daemon=True)
                upstream.start()
                _copy(server, client, self.rate if self._fault is Fault.SLOW else 1e9)
                upstream.join()
            finally:
                self._open.discard(server)


def http(status: str, body: str = "", *headers: str) -> bytes:
    """An HTTP answer that ends the connection."""
    lines = (f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers)
    return "\r\n".join((*lines, "", body)).encode()


def _copy(source: socket.socket, target: socket.socket, rate: float) -> None:
    with suppress(OSError):
        while data := source.recv(min(CHUNK, max(1, int(rate)))):
            target.sendall(data)
            if rate < 1e9:
                time.sleep(len(data) / rate)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
