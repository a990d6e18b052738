"""What the routes work with: one bundle of handles, made once by `create_app` and given to each request.

Notable choices:
- Database and storage speak in plain blocking calls; they run in threads, and the event loop stays free.
- Uploads have threads of their own: many slow ones never keep a short question to the database waiting.
- Dependencies are coroutines: a plain function would cost a thread for each.
- Routes take `ServicesDep` and `CurrentCaller` as annotated parameters; nothing is looked up in globals.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Concatenate, ParamSpec, TypeVar

from anyio import CapacityLimiter, Semaphore, create_task_group, to_thread
from fastapi import Depends, FastAPI, Request
from sqlalchemy.orm import Session

from app.api.long_poll import ChangeWatcher
from app.api.metrics import Metrics
from app.api.oidc import TokenVerifier
from app.api.rate_limit import RateLimiter
from app.core.config import Settings
from app.core.tracing import NoopTraces, Traces
from app.database import idempotency
from app.database.api_keys import Caller
from app.database.session import Database
from app.registry.model_store import ModelStore
from app.sdk.errors import Draining
from app.storage.local import Storage
from app.worker.queue import Queue

TENSORS = 4
"""Requests with prepared tensors whose bodies are held at once; a body is some 20 MB."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Services:
    """The handles of one service process.

    :ivar draining: set while the process ends; nothing new is taken then, and whoever waits is answered at once
    """

    settings: Settings
    database: Database
    storage: Storage
    registry: ModelStore
    queue: Queue
    metrics: Metrics = field(default_factory=Metrics)
    traces: Traces = field(default_factory=NoopTraces)
    draining: bool = False
    _for_rows: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(16))
    _for_bytes: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(8))
    _for_questions: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(TENSORS))
    tensors: Semaphore = field(default_factory=lambda: Semaphore(TENSORS))

    def __post_init__(self) -> None:
        self.watch = ChangeWatcher(self.read)
        self.rates = RateLimiter()
        self.tokens = TokenVerifier(self.settings) if self.settings.oidc_issuer else None

    @property
    def owner(self) -> str:
        """This service's name among those that share its database."""
        return f"{socket.gethostname()[:50]}:{self.settings.port}"

    async def read(self, work: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs ``work(session, ...)`` in a transaction that only reads."""

        def run() -> T:
            with self.database.reading() as session:
                return work(session, *args, **kwargs)

        return await to_thread.run_sync(run, limiter=self._for_rows)

    async def write(self, work: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs ``work(session, ...)`` in a transaction that is committed when it returns."""

        def run() -> T:
            with self.database.session() as session:
                return work(session, *args, **kwargs)

        return await to_thread.run_sync(run, limiter=self._for_rows)

    async def work(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs work on bytes (parsing, hashing, writing to disk) beside the event loop."""
        return await to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self._for_bytes)

    async def run_inference(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Puts a question to a worker, and waits for its answer beside the event loop and everybody else."""
        return await to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self._for_questions)

    def drain(self) -> None:
        """Takes nothing new from now on, and sends those who wait home."""
        self.draining = True
        self.watch.close()

    def open_for_work(self) -> None:
        """Raises Draining while the process ends."""
        if self.draining:
            raise Draining("The service is shutting down; send the request again in a moment.", retry_after=5)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """From the tables being there to the last waiting caller sent home."""
    services: Services = app.state.services
    await to_thread.run_sync(services.database.upgrade)
    await to_thread.run_sync(services.queue.upgrade)
    await services.write(idempotency.forget, services.owner)
    async with create_task_group() as tasks:
        tasks.start_soon(services.watch.run)
        try:
            yield
        finally:
            services.drain()
            tasks.cancel_scope.cancel()
    await to_thread.run_sync(services.database.close)
    await to_thread.run_sync(services.traces.close)


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


ServicesDep = Annotated[Services, Depends(_services)]
CurrentCaller = Annotated[Caller, Depends(_caller)]
