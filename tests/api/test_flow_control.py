"""Flow control of one connection: a body that the application does not read stays in the socket of the client."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.server import ServerState

from app.api.http_protocol import Connection, protocol
from app.api.request_parser import CHUNKS_PER_TURN
from app.core.config import Settings

pytestmark = pytest.mark.anyio

Application = Callable[[Any, Any, Any], Awaitable[None]]
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = 2048
SEGMENT = b"%x\r\n%s\r\n" % (CHUNK, bytes(CHUNK)) * CHUNKS_PER_TURN  # the parser pauses at its end
SEGMENTS = 256


@dataclass
class Client:
    """The socket of a client, and the connection of the service that reads from it."""

    socket: socket.socket
    connection: Connection
    sent: int = 0

    async def send(self, data: bytes) -> None:
        """Sends all bytes and lets the service read them."""
        await asyncio.get_running_loop().sock_sendall(self.socket, data)
        self.sent += len(data)
        await asyncio.sleep(0.002)

    async def send_body(self) -> None:
        for _ in range(SEGMENTS):
            await self.send(SEGMENT)
        await self.send(b"0\r\n\r\n")

    async def answer(self) -> bytes:
        received = b""
        while more := await asyncio.get_running_loop().sock_recv(self.socket, 65536):
            received += more
        return received


@asynccontextmanager
async def connected(app: Application) -> AsyncIterator[Client]:
    """A client that is connected to an application."""
    near, far = socket.socketpair()
    near.setblocking(False)
    config = uvicorn.Config(app, http=protocol(Settings()), lifespan="off", log_config=None)
    config.load()
    make: Any = config.http_protocol_class
    with near:
        transport, connection = await asyncio.get_running_loop().connect_accepted_socket(
            lambda: make(config, ServerState(), {}), far
        )
        assert isinstance(connection, Connection)
        yield Client(near, connection)
        transport.abort()


async def respond(send: Any, body: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize("unread_after", [0, 40])
async def test_body_that_is_not_read_is_not_collected(unread_after: int) -> None:
    """The application reads nothing, or stops after some messages."""
    end = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(unread_after):
            await receive()
        await end.wait()

    async with connected(app) as client:
        await client.send(HEAD)
        with suppress(TimeoutError):
            await asyncio.wait_for(client.send_body(), 1.5)
        assert client.connection.flow.read_paused
        assert len(client.connection.cycle.body) <= HIGH_WATER_LIMIT + 2 * len(SEGMENT)
        assert client.sent < SEGMENTS * len(SEGMENT)
        end.set()


@pytest.mark.parametrize("delay", [0, 0.001, 0.02])
async def test_body_arrives_whole_at_an_application_that_reads(delay: float) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        read, more = 0, True
        while more:
            message = await receive()
            read += len(message["body"])
            more = message["more_body"]
            await asyncio.sleep(delay)
        await respond(send, b"%d bytes" % read)

    async with connected(app) as client:
        await client.send(HEAD)
        await asyncio.wait_for(client.send_body(), 30)
        answer = await asyncio.wait_for(client.answer(), 30)
    assert answer.endswith(b"\r\n\r\n%d bytes" % (SEGMENTS * CHUNKS_PER_TURN * CHUNK))


async def test_next_request_is_answered_after_a_body_that_was_not_read() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.05)  # the whole body has arrived
        await respond(send, scope["path"].encode())

    async with connected(app) as client:
        await client.send(HEAD.replace(b"Connection: close\r\n", b"") + SEGMENT * 3 + b"0\r\n\r\n")
        await asyncio.sleep(0.1)
        await client.send(b"GET /second HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await asyncio.wait_for(client.answer(), 30)
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert answer.endswith(b"/second")
