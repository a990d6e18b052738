"""Both clients of the SDK, blocking and asynchronous, connected to a scripted HTTP server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from app.sdk import AsyncClient, Client
from tests.sdk.scripted_server import ScriptedServer


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        thread = threading.Thread(target=partial(running.serve_forever, 0.01))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


class _BlockingAdapter:
    """AsyncClient as a blocking client, so that one test covers both."""

    def __init__(self, portal: Any, client: Any) -> None:
        self._portal = portal
        self._client = client

    @property
    def registry(self) -> _BlockingAdapter:
        return _BlockingAdapter(self._portal, self._client.registry)

    @property
    def studies(self) -> _BlockingAdapter:
        return _BlockingAdapter(self._portal, self._client.studies)

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        return lambda *args, **options: self._portal.call(partial(getattr(self._client, verb), *args, **options))

    def list(self, **filters: Any) -> Iterator[Any]:
        async def collect() -> list[Any]:
            return [prediction async for prediction in self._client.list(**filters)]

        yield from self._portal.call(collect)


@pytest.fixture(params=["Client", "AsyncClient"])
def connect(request: pytest.FixtureRequest, server: ScriptedServer) -> Iterator[Callable[..., Any]]:
    """Factory of clients of the scripted server; only the random part of their pauses is shortened."""
    with ExitStack() as stack:

        def make(url: str | None = None, **options: Any) -> Any:
            if request.param == "Client":
                client: Any = stack.enter_context(Client(url or server.url, **options))
                inner = client
            else:
                portal = stack.enter_context(start_blocking_portal())
                inner = stack.enter_context(
                    portal.wrap_async_context_manager(AsyncClient(url or server.url, **options))
                )
                client = _BlockingAdapter(portal, inner)
            inner._verbs = type(inner._verbs)(inner._verbs.retries, first_pause=0.001)
            return client

        yield make
