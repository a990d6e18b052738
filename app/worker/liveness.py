"""Which workers are dead, and which jobs nobody does: what every worker watches in the others, and in itself."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.database import workers
from app.worker import ipc


class LivenessMonitor:
    """Tells which workers are dead, by their lock files and by their beats. Holds this worker's own lock."""

    def __init__(self, me: str, folder: Path, lease: float) -> None:
        self._me = me
        self._folder = folder
        self._lease = lease
        self._seen: dict[str, tuple[int, float]] = {}
        self._stray_since: dict[tuple[str, str], float] = {}
        self._in_hand: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / me).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def dead(self, roll: list[workers.WorkerRecord]) -> list[str]:
        """Those on the roll that are dead."""
        found, moment = [], time.monotonic()
        for worker in roll:
            if worker.id == self._me:
                continue
            heartbeats, since = self._seen.get(worker.id, (-1, moment))
            if heartbeats != worker.heartbeats:
                self._seen[worker.id] = (worker.heartbeats, moment)
                since = moment
            if moment - since > self._lease or self._unlocked(worker.id):
                found.append(worker.id)
        return found

    @contextmanager
    def in_hand(self, job: str) -> Iterator[None]:
        """Tells that this worker does the job for as long as the block runs."""
        self._in_hand.add(job)
        try:
            yield
        finally:
            self._in_hand.discard(job)

    def orphaned_jobs(self, running: dict[str, str], known: set[str]) -> set[str]:
        """Jobs that nobody has had in hand for a lease, though the engine says that somebody has.

        Either their worker is off the roll, and whoever struck it died before it put them back; or they are ours, and
        the engine dropped them.
        """
        moment = time.monotonic()
        mine = set(self._in_hand)
        lost = {
            (job, owner)
            for job, owner in running.items()
            if owner not in known or (owner == self._me and job not in mine)
        }
        self._stray_since = {stray: self._stray_since.get(stray, moment) for stray in lost}
        return {job for (job, _), since in self._stray_since.items() if moment - since > self._lease}

    def forget(self, worker_id: str) -> None:
        """Drops what is kept about a worker that was struck off."""
        self._seen.pop(worker_id, None)
        (self._folder / worker_id).unlink(missing_ok=True)
        ipc.remove_socket(self._folder, worker_id)

    def close(self) -> None:
        """Lets go of this worker's lock."""
        (self._folder / self._me).unlink(missing_ok=True)
        self._lock.close()

    def _unlocked(self, worker_id: str) -> bool:
        """Whether the worker's lock file is here and nobody holds it. False where it ran on another machine."""
        try:
            with (self._folder / worker_id).open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (FileNotFoundError, BlockingIOError):
            return False
        return True
