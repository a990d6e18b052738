"""Waiting for predictions to change, at the price of one small query for everybody who waits.

Notable choices:
- One task asks for the states of all ids that anybody waits for; a waiting request costs an event, not a thread.
- It asks often while somebody has only just begun to wait, and ever more rarely after: the answer is late by at most
  a twentieth of what was waited already, and never by more than half a second.
- Only the database is asked, so it does not matter which worker, on which machine, does the work.
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
from app.sdk.errors import RlvoError

log = logging.getLogger("rlvo.wait")

SHORTEST = 0.02
LONGEST = 0.5
SHARE = 0.05


class _Place:
    """One waiting request: the last state it was shown, and what it has not seen yet."""

    def __init__(self) -> None:
        self.since = anyio.current_time()
        self.changed = asyncio.Event()
        self.state: State | None = None


class ChangeWatcher:
    """Tells of changes. ``read`` runs a query beside the event loop; `run` must be running for anybody to be woken."""

    def __init__(self, read: Callable[..., Awaitable[Any]]) -> None:
        self._read = read
        self._places: dict[str, set[_Place]] = {}
        self._somebody = asyncio.Event()
        self._closed = False

    async def finished(self, prediction_id: str, within: float) -> None:
        """Returns when the prediction has finished or is gone, after ``within`` seconds, or when the service closes."""
        with anyio.move_on_after(within):
            async for _ in self.changes(prediction_id):
                pass

    async def changes(self, prediction_id: str, heartbeat: float = math.inf) -> AsyncIterator[State | None]:
        """Each new state from the present one on, until the prediction has finished or is gone.

        None says that nothing has changed for ``heartbeat`` seconds.
        """
        with self._waiting(prediction_id) as place:
            while not self._closed:
                with anyio.move_on_after(heartbeat) as silence:
                    await place.changed.wait()
                if silence.cancelled_caught:
                    yield None
                    continue
                place.changed.clear()
                if place.state is None:
                    return
                yield place.state
                if place.state.status.finished:
                    return

    async def run(self) -> None:
        """Looks on for as long as the service lives."""
        while True:
            await self._somebody.wait()
            await anyio.sleep(self._pause())
            await self._look()

    def close(self) -> None:
        """Sends everybody home."""
        self._closed = True
        for place in self._everybody():
            place.state = None
            place.changed.set()

    @contextmanager
    def _waiting(self, prediction_id: str) -> Iterator[_Place]:
        place = _Place()
        self._places.setdefault(prediction_id, set()).add(place)
        self._somebody.set()
        try:
            yield place
        finally:
            self._places[prediction_id].discard(place)
            if not self._places[prediction_id]:
                del self._places[prediction_id]
            if not self._places:
                self._somebody.clear()

    def _pause(self) -> float:
        newest = max((place.since for place in self._everybody()), default=0.0)
        return min(LONGEST, max(SHORTEST, SHARE * (anyio.current_time() - newest)))

    async def _look(self) -> None:
        asked = list(self._places)
        try:
            states = await self._read(status.states, asked)
        except RlvoError as error:  # the database is away: those who wait learn it from their own read
            log.warning("cannot look for changes: %s", error.code)
            await anyio.sleep(LONGEST)
            return
        for prediction_id in asked:
            for place in self._places.get(prediction_id, ()):
                if (state := states.get(prediction_id)) != place.state or state is None:
                    place.state = state
                    place.changed.set()

    def _everybody(self) -> list[_Place]:
        return [place for places in self._places.values() for place in places]
