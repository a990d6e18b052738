"""A client for raw requests, and functions that build them.

``CANARY`` stands for values of a patient; no response and no log may repeat it.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field

CANARY = "CANARY-DOE-JANE-19700101"
UNKNOWN = "01900000-0000-7000-8000-000000000000"
HOST = b"Host: localhost\r\n"
DISPOSITION = b'Content-Disposition: form-data; name="%s"; filename="CANARY-DOE-JANE-19700101.nii.gz"\r\n'


@dataclass(frozen=True)
class Attack:
    """A request in pieces, sent ``pause`` seconds apart; with ``waits``, only a timeout of the service ends it."""

    name: str
    pieces: tuple[bytes, ...] = field(repr=False)
    pause: float = 0.0
    waits: bool = False


@dataclass
class Answer:
    """The bytes that were received before the connection was closed or idle."""

    raw: bytes
    seconds: float
    closed: bool

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3})", self.raw)]


async def send(port: int, attack: Attack, *, timeout: float = 4.0) -> Answer:
    """Sends an attack and reads until the service closes the connection or sends no more data."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    started = time.perf_counter()
    raw, closed, first = b"", False, timeout
    try:
        for number, piece in enumerate(attack.pieces):
            if number and attack.pause:
                await asyncio.sleep(attack.pause)
            writer.write(piece)
            await asyncio.wait_for(writer.drain(), timeout)
        while True:
            more = await asyncio.wait_for(reader.read(65536), 0.3 if raw else timeout)
            if not more:
                closed = True
                break
            if not raw:
                first = time.perf_counter() - started
            raw += more
    except TimeoutError:
        pass
    except OSError:
        closed = True
    finally:
        writer.close()
    return Answer(raw, first, closed)


def request(head: bytes, body: bytes = b"", *more: bytes) -> bytes:
    """A request with a Host header, the given header lines and a correct Content-Length."""
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    return head + b" HTTP/1.1\r\n" + HOST + length + b"".join(line + b"\r\n" for line in more) + b"\r\n" + body


def form(body: bytes, content_type: bytes = b"multipart/form-data; boundary=X") -> bytes:
    return request(b"POST /v1/predictions", body, b"Content-Type: " + content_type, b"Prefer: respond-async")


def part(name: bytes, content: bytes, *headers: bytes) -> bytes:
    head = b"\r\n".join((b'Content-Disposition: form-data; name="%s"' % name, *headers))
    return b"--X\r\n" + head + b"\r\n\r\n" + content + b"\r\n"
