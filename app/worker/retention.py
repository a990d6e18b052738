"""Erases predictions that are older than the site keeps them (``RLVO_RETENTION_DAYS``).

Notable choices:
- The days count from when the study was accepted, whatever became of it.
- Any number of workers may do this at once: each erasure is a transaction of its own, and the second one finds the
  prediction erased.
- Erasing cannot be taken back, and it hangs on the clock. So where the wall clock has jumped against the monotonic one
  since the process started, nothing is erased until an operator has looked and started it anew.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime, timedelta

from app.database import erasures
from app.database.session import Database, now
from app.sdk.errors import Erased
from app.storage.local import Storage

log = logging.getLogger("rlvo.retention")

AT_ONCE = 100
LARGEST_JUMP = 3600.0
"""Seconds by which the wall clock may drift while a process lives; daylight saving does not touch UTC."""


class Retention:
    """Keeps nothing longer than ``days``; 0: keeps everything."""

    def __init__(self, database: Database, storage: Storage, days: float) -> None:
        self._database = database
        self._storage = storage
        self._days = days
        self._offset = time.time() - time.monotonic()

    def apply(self) -> int:
        """Erases what is due, and returns how many predictions that were."""
        if not self._days:
            return 0
        if abs(time.time() - time.monotonic() - self._offset) > LARGEST_JUMP:
            log.error("the clock has jumped; nothing is erased by its age until this worker is started again")
            return 0
        erased, before = 0, now() - timedelta(days=self._days)
        while ids := self._due(before):
            erased += sum(self._erase(prediction_id) for prediction_id in ids)
        if erased:
            log.info("erased %d predictions that were older than %g days", erased, self._days)
        return erased

    def _due(self, before: datetime) -> list[str]:
        with self._database.reading() as session:
            return erasures.due(session, before, most=AT_ONCE)

    def _erase(self, prediction_id: str) -> bool:
        try:
            with self._database.session() as session:
                orphans = erasures.erase(session, prediction_id, None, actor="worker", why="retention")
        except Erased:
            return False
        for digest in orphans:
            self._storage.delete(digest)
        return True
