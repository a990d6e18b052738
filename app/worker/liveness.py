"""Detection of stopped workers and of orphaned jobs.

Design notes:
- A worker has stopped if its lock file is free, or if its heartbeat count has not changed for one lease.
- The kernel frees the lock file at once, but only watchers on the same machine see it.
- The watcher measures the lease with its monotonic clock, so clocks of two machines are never compared.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.database import workers
from app.worker import ipc


class LivenessMonitor:
    """Watches other workers by their lock files and heartbeats, and holds the lock file of this worker."""

    def __init__(self, worker_id: str, folder: Path, lease: float) -> None:
        self._id = worker_id
        self._folder = folder
        self._lease = lease
        self._seen: dict[str, tuple[int, float]] = {}
        self._orphaned_since: dict[tuple[str, str], float] = {}
        self._active_jobs: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / worker_id).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def stopped(self, registered: list[workers.WorkerRecord]) -> list[str]:
        """Ids of the registered workers that have stopped."""
        ids, current_time = [], time.monotonic()
        for worker in registered:
            if worker.id == self._id:
                continue
            heartbeats, since = self._seen.get(worker.id, (-1, current_time))
            if heartbeats != worker.heartbeats:
                self._seen[worker.id] = (worker.heartbeats, current_time)
                since = current_time
            if current_time - since > self._lease or self._unlocked(worker.id):
                ids.append(worker.id)
        return ids

    @contextmanager
    def active_job(self, job: str) -> Iterator[None]:
        """Marks a job as active in this worker while the block runs."""
        self._active_jobs.add(job)
        try:
            yield
        finally:
            self._active_jobs.discard(job)

    @property
    def active_jobs(self) -> frozenset[str]:
        """Jobs that are active in this worker."""
        return frozenset(self._active_jobs)

    def orphaned_jobs(self, running: dict[str, str], registered: set[str]) -> set[str]:
        """Jobs that the engine counts as running and that no worker has worked on for one lease.

        The worker of such a job is not registered, because the worker that deregistered it stopped before it requeued
        the jobs. Or it is this worker, and the engine has dropped the job. ``running`` gives the worker of each job.
        """
        current_time = time.monotonic()
        active = set(self._active_jobs)
        orphaned = {
            (job, owner)
            for job, owner in running.items()
            if owner not in registered or (owner == self._id and job not in active)
        }
        self._orphaned_since = {each: self._orphaned_since.get(each, current_time) for each in orphaned}
        return {job for (job, _), since in self._orphaned_since.items() if current_time - since > self._lease}

    def forget(self, worker_id: str) -> None:
        """Drops the state and the files of a worker that was deregistered."""
        self._seen.pop(worker_id, None)
        (self._folder / worker_id).unlink(missing_ok=True)
        ipc.remove_socket(self._folder, worker_id)

    def close(self) -> None:
        """Releases the lock of this worker."""
        (self._folder / self._id).unlink(missing_ok=True)
        self._lock.close()

    def _unlocked(self, worker_id: str) -> bool:
        """Whether the lock file of a worker exists and is free; False for a worker of another machine."""
        try:
            with (self._folder / worker_id).open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (FileNotFoundError, BlockingIOError):
            return False
        return True
