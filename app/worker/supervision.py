"""Supervision between workers: the heartbeat of this worker, and takeover of the jobs of workers that stopped.

Design notes:
- Each worker watches all others (see `LivenessMonitor`). The worker that deregisters a stopped one requeues its jobs.
- The job engine drops a job if the database fails while it logs a step. Such a job is assigned to a worker and not
  active in it; after one lease it goes back into the queue. A job that the engine has given up starts again.
- A prediction that waits for the environment is tried again after a pause that doubles with each try. The pause is
  measured with the monotonic clock of the watcher, so a jump of the wall clock neither prolongs nor shortens it.
- Only a few waiting jobs are queued at a time, acute ones first, so that an outage of hours leaves no flood of tries.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from dataclasses import dataclass, field
from datetime import datetime

from app.database import job_state, workers
from app.database.session import Database, now
from app.inference.model_cache import ModelCache
from app.worker import resource_limits
from app.worker.liveness import LivenessMonitor
from app.worker.lost_device import end_process
from app.worker.model_loading import ModelLoader
from app.worker.queue import Queue

log = logging.getLogger("rlvo.worker")

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 15.0
CONTINUED_AT_ONCE = 8  # waiting jobs that one watch of one worker queues again


@dataclass
class Supervisor:
    """Registers one worker, keeps its row up to date, and takes over from workers that stopped."""

    worker_id: str
    database: Database
    queue: Queue
    model_cache: ModelCache
    model_loader: ModelLoader
    liveness: LivenessMonitor
    started: datetime = field(default_factory=now)
    heartbeats: int = 0
    _waiting_since: dict[tuple[str, int], float] = field(default_factory=dict)

    def heartbeat(self) -> None:
        """Writes the row of this worker."""
        self.heartbeats += 1
        used, total = self.model_cache.device_memory()
        worker = workers.WorkerRecord(
            self.worker_id,
            socket.gethostname(),
            os.getpid(),
            self.model_cache.device,
            tuple(f"{ref.name}@{ref.version}" for ref in self.model_cache.loaded()),
            self.started,
            now(),
            self.heartbeats,
            self.model_loader.results,
            workers.Usage(resource_limits.resident(), self.model_cache.bytes(), used, total),
        )
        with self.database.session() as session:
            workers.heartbeat(session, worker)

    def load_models(self) -> None:
        """Carries out load requests and publishes new results at once; ends this process if a load lost the device."""
        before = self.model_loader.results
        self.model_loader.reconcile()
        if self.model_loader.results != before:
            self.heartbeat()
        if self.model_loader.device_error is not None:
            end_process(self.model_loader.device_error)

    def watch(self) -> None:
        """Writes a heartbeat, requeues the jobs of stopped workers, and restarts broken and waiting jobs."""
        self.heartbeat()
        with self.database.reading() as session:
            registered = workers.registered(session)
        for stopped in self.liveness.stopped(registered):
            with self.database.session() as session:
                removed = workers.deregister(session, stopped)
            if removed:
                log.warning("worker %s has stopped; its jobs go back into the queue", stopped)
                self._requeue_jobs_of(stopped)
                self.liveness.forget(stopped)
        running = self.queue.running()
        self._requeue(self.liveness.orphaned_jobs(running, {worker.id for worker in registered}))
        for job in self.queue.broken():
            self.queue.restart(job)
        self._continue_waiting()

    def _continue_waiting(self) -> None:
        """Queues waiting jobs again whose pause is over."""
        with self.database.reading() as session:
            waiting = job_state.waiting(session)
        current_time = time.monotonic()
        since = {(job.id, job.run): self._waiting_since.get((job.id, job.run), current_time) for job in waiting}
        due = [job for job in waiting if current_time - since[job.id, job.run] >= pause(job.tries)]
        for job in due[:CONTINUED_AT_ONCE]:
            self.queue.continue_waiting(job)
            since[job.id, job.run] = current_time
        self._waiting_since = since

    def leave(self) -> None:
        """Requeues the unfinished jobs of this worker and deregisters it. Raises DatabaseUnavailable, StorageFull."""
        with self.database.errors():  # the queue raises those of the driver
            self._requeue_jobs_of(self.worker_id)
        with self.database.session() as session:
            workers.deregister(session, self.worker_id)
        self.liveness.close()

    def _requeue_jobs_of(self, worker_id: str) -> None:
        self._requeue({job for job, owner in self.queue.running().items() if owner == worker_id})

    def _requeue(self, jobs: set[str]) -> None:
        if jobs:
            self.queue.requeue(sorted(jobs))


def pause(tries: int) -> float:
    """Seconds before the next try of a prediction that waits for the environment."""
    return float(min(FIRST_PAUSE * 2 ** min(tries - 1, 10), LONGEST_PAUSE))
