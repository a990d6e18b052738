"""Python imports this in every process that has the folder in PYTHONPATH: nothing connects beyond this machine.

An audit hook (PEP 578) sees each connect and each look-up of a name, whichever library makes it. One that leads away is
written to the file ``RLVO_SEALED`` and refused.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from typing import Any

_EVENTS = ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")


def _leaves(place: object) -> bool:
    if not isinstance(place, str | bytes) or not place:
        return False
    host = place.decode("latin-1") if isinstance(place, bytes) else place
    try:
        return not ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host != "localhost"


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _EVENTS:
        return
    place = arguments[0]
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        if not isinstance(address, tuple):  # a socket of this machine's file system
            return
        place = address[0]
    if _leaves(place) and place != "0.0.0.0":
        with open(os.environ["RLVO_SEALED"], "a") as file:  # noqa: PTH123
            file.write(f"{os.getpid()} {event} {place!r} {sys.argv[:4]}\n")
        message = "this process may not connect beyond its machine"
        raise PermissionError(message)


if "RLVO_SEALED" in os.environ:
    sys.addaudithook(_hook)
