"""How the API process asks a worker of its own machine, and waits: two messages there, two back, over a Unix socket.

Notable choices:
- For prepared tensors alone, which are answered at once and leave no record; what is on record goes through the queue.
- A worker's socket lies beside its lock file, named by the worker's id, and only this user may open it. A Unix socket's
  path has at most 107 bytes; through `/proc/self/fd` any folder is short enough.
- The standard library frames the messages; nothing is ever pickled.
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


def ask(folder: Path, worker_id: str, head: dict[str, Any], body: bytes, *, patience: float) -> bytes:
    """What the worker answers.

    :param folder: of the workers' files
    :raises OSError, EOFError: the worker is not there, or went away
    :raises ModelNotReady: it did not answer within ``patience`` seconds
    :raises RlvoError: what the worker raised
    """
    caller = socket.socket(socket.AF_UNIX)
    with caller, _reach(folder, worker_id) as address:
        caller.connect(address)
        line = Connection(caller.detach())
    with line:
        line.send_bytes(json.dumps(head).encode())
        line.send_bytes(body)
        if not line.poll(patience):
            raise ModelNotReady("The worker did not answer in time", retry_after=5)
        told, answer = json.loads(line.recv_bytes()), line.recv_bytes()
    if "code" in told:
        raise RlvoError.for_code(told["code"])(told["detail"], retry_after=told["retry_after"])
    return answer


def receive(line: Connection) -> tuple[dict[str, Any], bytes]:
    """The worker's side: one question."""
    head: dict[str, Any] = json.loads(line.recv_bytes())
    return head, line.recv_bytes()


def reply(line: Connection, answer: bytes | RlvoError) -> None:
    """The worker's side: its answer, or why there is none."""
    told = {}
    if isinstance(answer, RlvoError):
        told, answer = {"code": answer.code, "detail": answer.detail, "retry_after": answer.retry_after}, b""
    line.send_bytes(json.dumps(told).encode())
    line.send_bytes(answer)


class Listener:
    """The worker's side: its socket, open until `close`."""

    def __init__(self, folder: Path, worker_id: str) -> None:
        remove_socket(folder, worker_id)
        self._socket = socket.socket(socket.AF_UNIX)
        with _reach(folder, worker_id) as address:
            before = os.umask(0o177)
            try:
                self._socket.bind(address)
            finally:
                os.umask(before)
        self._socket.listen(64)

    def accept(self) -> Connection:
        """The next caller. Raises OSError once it is closed."""
        return Connection(self._socket.accept()[0].detach())

    def close(self) -> None:
        """Wakes whoever accepts."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def remove_socket(folder: Path, worker_id: str) -> None:
    """Removes a worker's socket, its own or a dead one's."""
    (folder / f"{worker_id}{SUFFIX}").unlink(missing_ok=True)


def listening(folder: Path) -> set[str]:
    """The workers that have a socket here, alive or not."""
    with suppress(FileNotFoundError):
        return {path.name.removesuffix(SUFFIX) for path in folder.iterdir() if path.name.endswith(SUFFIX)}
    return set()


@contextmanager
def _reach(folder: Path, worker_id: str) -> Iterator[str]:
    """A short path to the worker's socket."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{worker_id}{SUFFIX}"
    finally:
        os.close(descriptor)
