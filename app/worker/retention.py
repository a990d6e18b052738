"""Erases predictions after the retention period (``RLVO_RETENTION_DAYS``) and removes files that nothing refers to.

Design notes:
- The period starts when the prediction ends. An accepted study without an answer is not erased by its age, so that no
  outage and no clock error loses it; the log says how many there are.
- Several workers may run this at the same time: one transaction erases a batch, and a second one finds it done. On
  SQLite the batches are small, because a prediction that is accepted meanwhile waits for the write lock.
- On PostgreSQL several batches are erased at the same time: while one waits for server and disk, another is prepared.
- An erasure is final and depends on the clock. If the wall clock has jumped against the monotonic clock since the start
  of the process, nothing is erased until an operator restarts the worker.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta

from app.database import erasures, idempotency, job_state, records, row_erasure, studies
from app.database.session import Database, now
from app.sdk.errors import NotFound
from app.storage.local import Storage
from app.worker.erasure import Eraser

log = logging.getLogger("rlvo.retention")

BATCH_SIZE = 100
BATCH_SIZE_POSTGRESQL = 400  # fewer statements, flushes and commits; an audit entry waits for the end of a batch
THREADS = 3  # on PostgreSQL; SQLite has one writer
BATCHES = 4  # of each thread that are looked up at once
ORPHAN_AGE = 3600.0  # seconds until an unreferenced blob or partial upload is removed; no upload takes that long
LARGEST_JUMP = 3600.0  # seconds that the wall clock may drift in one process; daylight saving does not change UTC


class Retention:
    """Erases predictions after ``days`` days; 0 keeps all predictions."""

    def __init__(self, database: Database, eraser: Eraser, days: float) -> None:
        self._database = database
        self._eraser = eraser
        self._days = days
        self._offset = time.time() - time.monotonic()

    def apply(self) -> int:
        """Erases all predictions that are due and returns their number."""
        if not self._days:
            return 0
        if self._clock_has_jumped():
            log.error("the clock has jumped; nothing is erased by age until this worker is restarted")
            return 0
        erased, before = 0, now() - timedelta(days=self._days)
        if overdue := self._overdue(before):
            log.warning("%d studies are older than the retention period and have no answer; they are kept", overdue)
        with ThreadPoolExecutor(self._threads, thread_name_prefix="retention") as pool:
            while ids := self._due(before):
                parts = [ids[start : start + self._batch] for start in range(0, len(ids), self._batch)]
                erased += sum(pool.map(self._erase, parts))
        if erased:
            log.info("erased %d predictions that were older than %g days", erased, self._days)
        self._erase_studies(before)
        return erased

    def forget_instances(self, hours: float) -> int:
        """Unnames the files of received studies after ``hours``, so that a sweep deletes them; returns their number.

        Clinical records whose study has not arrived by then are deleted.
        """
        if self._clock_has_jumped():
            return 0
        before = now() - timedelta(hours=hours)
        with self._database.session() as session:
            records.forget(session, before)
            return studies.forget_bytes(session, before)

    def _erase_studies(self, before: datetime) -> None:
        """Erases the studies whose predictions are erased, and those that never had one."""
        with self._database.reading() as session:
            due = studies.old(session, before, most=BATCH_SIZE)
        for tenant, uid in due:
            with suppress(NotFound):
                self._eraser.erase_study(uid, tenant, actor="worker", why=erasures.RETENTION)

    def _clock_has_jumped(self) -> bool:
        return abs(time.time() - time.monotonic() - self._offset) > LARGEST_JUMP

    @property
    def _threads(self) -> int:
        return 1 if self._database.sqlite else THREADS

    @property
    def _batch(self) -> int:
        return BATCH_SIZE if self._database.sqlite else BATCH_SIZE_POSTGRESQL

    def _due(self, before: datetime) -> list[str]:
        with self._database.reading() as session:
            return erasures.due(session, before, most=self._batch * BATCHES * self._threads)

    def _erase(self, ids: list[str]) -> int:
        return self._eraser.erase_all(ids, actor="worker", why=erasures.RETENTION)

    def _overdue(self, before: datetime) -> int:
        with self._database.reading() as session:
            return erasures.overdue(session, before)


def sweep(database: Database, storage: Storage, *, age: float = ORPHAN_AGE) -> int:
    """Deletes unreferenced blobs and rests of uploads that are ``age`` seconds old, and returns their number.

    It also clears scratch folders that no prediction needs, and drops expired idempotency keys.
    """
    old = list(storage.older_than(age))
    with database.reading() as session:
        referenced = row_erasure.referenced(session, old)
    deleted = sum(storage.delete(digest, grace=age) for digest in old if digest not in referenced)
    scratch_ids = storage.scratch_ids()
    with database.session() as session:
        idempotency.expire(session)
        needed = job_state.unfinished(session, scratch_ids)
    for prediction_id in set(scratch_ids) - needed:
        storage.scratch(prediction_id).clear()
    return deleted + storage.sweep_incoming(older_than=age)
