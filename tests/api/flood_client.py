"""A process that sends the same request again and again: `python flood_client.py HOST PORT CONNECTIONS < request`."""

from __future__ import annotations

import os
import socket
import sys
import threading
from contextlib import suppress


def attack(host: str, port: int, request: bytes) -> None:
    while True:
        with suppress(OSError), socket.create_connection((host, port), 5) as connection:
            connection.sendall(request)
            connection.recv(65536)


if __name__ == "__main__":
    content = sys.stdin.buffer.read()
    for _ in range(int(sys.argv[3])):
        threading.Thread(target=attack, args=(sys.argv[1], int(sys.argv[2]), content), daemon=True).start()
    os.nice(10)
    print("started", flush=True)
    threading.Event().wait()
