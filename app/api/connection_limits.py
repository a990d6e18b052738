"""Divides the connections of the service among addresses and callers, so that none of them can use up all.

Design notes:
- If all places are taken, a new connection replaces one that serves no authenticated request: the one that has waited
  longest, of the address that holds most. So probes and other callers always get a connection.
- Requests in progress are counted by caller. All callers together cannot take the places that are reserved.
- Both classes work on the event loop and need no lock.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from app.core.config import Settings
from app.sdk.errors import Busy, RateLimited

log = logging.getLogger("rlvo.http")

_LOG_PAUSE = 10.0  # seconds between two log lines about the limit of connections


class Place(Protocol):
    """A connection as `ConnectionPlaces` needs it."""

    @property
    def address(self) -> str:
        """Address of the client, without the port."""

    @property
    def replaceable(self) -> bool:
        """Whether the connection serves no authenticated request at present."""


P = TypeVar("P", bound=Place)


class ConnectionPlaces(Generic[P]):
    """The open connections of one process by the address of their clients, oldest first.

    Args:
        most: The largest number of connections.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._by_address: dict[str, dict[P, None]] = {}
        self._count = 0
        self._next_warning = 0.0

    def enter(self, connection: P) -> tuple[bool, P | None]:
        """Adds a new connection.

        Returns:
            Whether there is a place for it, and the connection that it replaces, which the caller closes.
        """
        replaced = None
        if self._count >= self._most:
            self._warn()
            replaced = self._oldest_replaceable()
            if replaced is None:
                return False, None
            self.leave(replaced)
        self._by_address.setdefault(connection.address, {})[connection] = None
        self._count += 1
        return True, replaced

    def leave(self, connection: P) -> None:
        """Removes a connection; an unknown one is ignored."""
        same_address = self._by_address.get(connection.address, {})
        if connection in same_address:
            del same_address[connection]
            self._count -= 1
            if not same_address:
                del self._by_address[connection.address]

    def used(self, connection: P) -> None:
        """Makes the connection the newest of its address."""
        same_address = self._by_address.get(connection.address, {})
        if connection in same_address:
            del same_address[connection]
            same_address[connection] = None

    def _warn(self) -> None:
        if time.monotonic() >= self._next_warning:
            self._next_warning = time.monotonic() + _LOG_PAUSE
            log.warning("the limit of %d connections is reached; idle connections are closed", self._most)

    def _oldest_replaceable(self) -> P | None:
        for connections in sorted(self._by_address.values(), key=len, reverse=True):
            for connection in connections:
                if connection.replaceable:
                    return connection
        return None


class RequestsInProgress:
    """Counts the authenticated requests in progress, by caller.

    Args:
        most: The largest number of all callers together.
        per_caller: The largest number of one caller.
    """

    def __init__(self, most: int, per_caller: int) -> None:
        self._most, self._per_caller = most, per_caller
        self._counts = Counter[Hashable]()
        self._total = 0

    @classmethod
    def of(cls, settings: Settings) -> RequestsInProgress:
        """Returns the counter with the limits of ``settings``; a tenth of the connections is reserved."""
        most = max(1, settings.max_connections - settings.max_connections // 10)
        return cls(most, settings.max_requests_per_caller or max(1, settings.max_connections // 4))

    @contextmanager
    def admitted(self, caller: Hashable) -> Iterator[None]:
        """Counts a request of ``caller``, by its identity or address, while the block runs.

        Raises:
            RateLimited: The caller has too many requests in progress.
            Busy: All callers together have too many requests in progress.
        """
        if self._counts[caller] >= self._per_caller:
            raise RateLimited(
                f"This caller may have {self._per_caller} requests in progress. Wait until one of them has ended.",
                retry_after=1,
            )
        if self._total >= self._most:
            raise Busy("The service has no place for a further request. Send it again in a second.", retry_after=1)
        self._counts[caller] += 1
        self._total += 1
        try:
            yield
        finally:
            self._total -= 1
            self._counts[caller] -= 1
            if not self._counts[caller]:
                del self._counts[caller]
