"""Messages between the API process and a worker on the same machine, over a Unix socket.

Design notes:
- Only prepared tensors use the socket: they are answered at once and leave no record. Predictions use the queue.
- The id of the worker names the socket, next to the lock file of the worker. Only the current user may open it.
- The path of a Unix socket has at most 107 bytes; a path through `/proc/self/fd` is short for every folder.
- The standard library frames the messages. Pickle is not used.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from app.sdk.errors import ModelNotReady, RlvoError

SUFFIX = ".tensors"


def send_request(
    folder: Path, worker_id: str, head: dict[str, Any], body: bytes | bytearray, *, patience: float
) -> bytes:
    """Sends one request to a worker and returns the body of its response.

    Raises:
        OSError, EOFError: The worker has no socket in the folder, or the connection broke.
        ModelNotReady: There was no response within ``patience`` seconds.
        RlvoError: The worker answered with this error.
    """
    client = socket.socket(socket.AF_UNIX)
    with client, _short_path(folder, worker_id) as address:
        client.connect(address)
        connection = Connection(client.detach())
    with connection:
        connection.send_bytes(json.dumps(head).encode())
        connection.send_bytes(body)
        if not connection.poll(patience):
            raise ModelNotReady("The worker did not answer in time. Send the request again", retry_after=5)
        header, answer = json.loads(connection.recv_bytes()), connection.recv_bytes()
    if "code" in header:
        raise RlvoError.for_code(header["code"])(header["detail"], retry_after=header["retry_after"])
    return answer


def receive(connection: Connection) -> tuple[dict[str, Any], bytes]:
    """Reads one request in the worker: head and body."""
    head: dict[str, Any] = json.loads(connection.recv_bytes())
    return head, connection.recv_bytes()


def reply(connection: Connection, answer: bytes | RlvoError) -> None:
    """Sends the response of the worker: the body or the error."""
    header = {}
    if isinstance(answer, RlvoError):
        header, answer = {"code": answer.code, "detail": answer.detail, "retry_after": answer.retry_after}, b""
    connection.send_bytes(json.dumps(header).encode())
    connection.send_bytes(answer)


class Listener:
    """Socket of a worker, open until `close`."""

    def __init__(self, folder: Path, worker_id: str) -> None:
        remove_socket(folder, worker_id)
        self._socket = socket.socket(socket.AF_UNIX)
        with _short_path(folder, worker_id) as address:
            umask = os.umask(0o177)
            try:
                self._socket.bind(address)
            finally:
                os.umask(umask)
        self._socket.listen(64)

    def accept(self) -> Connection:
        """Waits for the next connection. Raises OSError after `close`."""
        return Connection(self._socket.accept()[0].detach())

    def close(self) -> None:
        """Closes the socket and ends a waiting `accept`."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def remove_socket(folder: Path, worker_id: str) -> None:
    """Removes the socket file of a worker, if there is one."""
    (folder / f"{worker_id}{SUFFIX}").unlink(missing_ok=True)


def workers_with_socket(folder: Path) -> set[str]:
    """Ids of the workers that have a socket in this folder; some of them may have stopped."""
    with suppress(FileNotFoundError):
        return {path.name.removesuffix(SUFFIX) for path in folder.iterdir() if path.name.endswith(SUFFIX)}
    return set()


@contextmanager
def _short_path(folder: Path, worker_id: str) -> Iterator[str]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{worker_id}{SUFFIX}"
    finally:
        os.close(descriptor)
