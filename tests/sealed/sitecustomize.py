"""Refuses connections to other machines, in each Python process that has this folder in PYTHONPATH.

An audit hook (PEP 578) sees each connection and each look-up of a name, by any library. It refuses those that lead to
another machine and writes them to the file ``RLVO_SEALED``.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from typing import Any

_EVENTS = ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")


def _is_remote(address: object) -> bool:
    if not isinstance(address, str | bytes) or not address:
        return False
    host = address.decode("latin-1") if isinstance(address, bytes) else address
    try:
        return not ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host != "localhost"


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _EVENTS:
        return
    host = arguments[0]
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        if not isinstance(address, tuple):  # a Unix socket
            return
        host = address[0]
    if _is_remote(host) and host != "0.0.0.0":
        with open(os.environ["RLVO_SEALED"], "a") as file:  # noqa: PTH123
            file.write(f"{os.getpid()} {event} {host!r} {sys.argv[:4]}\n")
        message = "this process must not connect to other machines"
        raise PermissionError(message)


if "RLVO_SEALED" in os.environ:
    sys.addaudithook(_hook)
