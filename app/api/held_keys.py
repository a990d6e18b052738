"""Keeps the idempotency keys of the requests in progress reserved while this process lives.

A key is reserved for `RLVO_LEASE` seconds only. So if a process is killed during an upload, the sender can repeat it
with the same key soon, at any other process of the service.
"""

from __future__ import annotations

import logging
import time

from anyio import CapacityLimiter, sleep, to_thread

from app.core.logging import error_location
from app.database import idempotency
from app.database.session import Database

log = logging.getLogger("rlvo.submission")


class HeldKeys:
    """The requests of one process that hold an idempotency key.

    Args:
        database: Where the keys are reserved.
        lease: Seconds for which a key is reserved, and after which another request may take it.
        longest: Seconds after which a request that hangs keeps its key no longer.
    """

    def __init__(self, database: Database, lease: float, longest: float) -> None:
        self.lease = lease
        self._database = database
        self._longest = longest
        self._until: dict[str, float] = {}
        self._limiter = CapacityLimiter(1)  # its own thread, so that no burst of requests delays a renewal

    def add(self, token: str) -> None:
        """Renews the key of a request from now on, until it is completed or released."""
        self._until[token] = time.monotonic() + self._longest

    async def renew_always(self) -> None:
        """Renews all keys, again and again. A database error is logged; the next try may succeed."""
        while True:
            await sleep(self.lease / 3)
            try:
                await self.renew()
            except Exception as error:  # noqa: BLE001 - the next try may succeed
                log.warning("idempotency keys are renewed later: %s", error_location(error))

    async def renew(self) -> None:
        """Renews all keys once. Raises DatabaseUnavailable."""
        for token in [token for token, until in self._until.items() if until <= time.monotonic()]:
            del self._until[token]
        if tokens := set(self._until):
            renewed = await to_thread.run_sync(self._renew, tokens, abandon_on_cancel=True, limiter=self._limiter)
            for token in tokens - renewed:
                del self._until[token]

    def _renew(self, tokens: set[str]) -> set[str]:
        with self._database.session() as session:
            return idempotency.renew(session, tokens, lease=self.lease)
