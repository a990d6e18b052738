"""Named files as messages between two processes: the names as JSON, then the bytes of each file.

The standard library frames the messages. Pickle is not used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from multiprocessing.connection import Connection

ERROR = "error"
"""Name of the file of an answer that has failed: the type and the place of the error."""


IDLE_SECONDS = 60.0  # without a message until the drawing process ends


def send(connection: Connection, files: Mapping[str, bytes]) -> None:
    """Sends files. Raises OSError if the other process has ended."""
    connection.send_bytes(json.dumps(list(files)).encode())
    for data in files.values():
        connection.send_bytes(data)


def receive(connection: Connection) -> dict[str, bytes]:
    """Receives the files of one message. Raises EOFError or OSError if the other process has ended."""
    names: list[str] = json.loads(connection.recv_bytes())
    return {name: connection.recv_bytes() for name in names}
