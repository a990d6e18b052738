"""Waits for predictions to change, with one small query for all waiting requests together.

Design notes:
- One task reads the states of all awaited ids; a waiting request needs an event, not a thread.
- The query interval grows with the waiting time: a twentieth of it, within `MIN_INTERVAL` and `MAX_INTERVAL`.
- Only the database is read, so it does not matter which worker on which machine does the work.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio

from app.database import status
from app.database.status import State

log = logging.getLogger("rlvo.wait")

MIN_INTERVAL = 0.02
MAX_INTERVAL = 0.5
INTERVAL_FRACTION = 0.05


class _Waiter:
    """One waiting request: the last known state, and whether the request has yet to read it."""

    def __init__(self) -> None:
        self.since = anyio.current_time()
        self.changed = asyncio.Event()
        self.state: State | None = None


class ChangeWatcher:
    """Reports changes of predictions to the requests that wait for them.

    Args:
        read: Runs a database query in a thread. `run` must be running for any waiter to be notified.
    """

    def __init__(self, read: Callable[..., Awaitable[Any]]) -> None:
        self._read = read
        self._waiters: dict[str, set[_Waiter]] = {}
        self._has_waiters = asyncio.Event()
        self._closed = False

    async def finished(self, prediction_id: str, within: float) -> None:
        """Returns when the prediction has finished or is erased, after ``within`` seconds, or when the service ends."""
        with anyio.move_on_after(within):
            async for state in self.changes(prediction_id):
                if state is not None and state.status.finished:
                    return

    async def drawn(self, prediction_id: str, within: float) -> None:
        """Returns when no job draws the figures any more, or as `finished`; also when they could not be drawn."""
        with anyio.move_on_after(within):
            async for _ in self.changes(prediction_id):
                pass

    async def changes(self, prediction_id: str, heartbeat: float = math.inf) -> AsyncIterator[State | None]:
        """Yields the present state and each new one, until the prediction is settled (`State.settled`) or erased.

        Yields None if nothing has changed for ``heartbeat`` seconds.
        """
        with self._waiting(prediction_id) as waiter:
            while not self._closed:
                with anyio.move_on_after(heartbeat) as timeout:
                    await waiter.changed.wait()
                if timeout.cancelled_caught:
                    yield None
                    continue
                waiter.changed.clear()
                if waiter.state is None:
                    return
                yield waiter.state
                if waiter.state.settled:
                    return

    async def run(self) -> None:
        """Polls the database until cancelled, while at least one request waits."""
        while True:
            await self._has_waiters.wait()
            await anyio.sleep(self._interval())
            await self._poll()

    def close(self) -> None:
        """Ends all waits."""
        self._closed = True
        for waiter in self._all_waiters():
            waiter.state = None
            waiter.changed.set()

    @contextmanager
    def _waiting(self, prediction_id: str) -> Iterator[_Waiter]:
        waiter = _Waiter()
        self._waiters.setdefault(prediction_id, set()).add(waiter)
        self._has_waiters.set()
        try:
            yield waiter
        finally:
            self._waiters[prediction_id].discard(waiter)
            if not self._waiters[prediction_id]:
                del self._waiters[prediction_id]
            if not self._waiters:
                self._has_waiters.clear()

    def _interval(self) -> float:
        newest = max((waiter.since for waiter in self._all_waiters()), default=0.0)
        return min(MAX_INTERVAL, max(MIN_INTERVAL, INTERVAL_FRACTION * (anyio.current_time() - newest)))

    async def _poll(self) -> None:
        ids = list(self._waiters)
        try:
            states = await self._read(status.states, ids)
        except Exception as error:  # noqa: BLE001 - waiting requests get this error from their next read
            log.warning("the states of predictions could not be read (%s); trying again", type(error).__name__)
            await anyio.sleep(MAX_INTERVAL)
            return
        for prediction_id in ids:
            for waiter in self._waiters.get(prediction_id, ()):
                if (state := states.get(prediction_id)) != waiter.state or state is None:
                    waiter.state = state
                    waiter.changed.set()

    def _all_waiters(self) -> list[_Waiter]:
        return [waiter for waiters in self._waiters.values() for waiter in waiters]
