"""Draws pending figures while a worker has nothing else to do.

Design notes:
- A drawing costs as much processor time as an explained study. Under load, figures are therefore drawn only for those
  who ask for them (`Queue.draw_on_demand`), and the throughput of predictions does not pay for them.
- In quiet times they are drawn ahead, newest first and one at a time, so that a reader seldom waits.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.database import figure_state, job_state
from app.database.session import Database
from app.worker.liveness import LivenessMonitor
from app.worker.queue import FIGURE_JOB, Queue


@dataclass
class IdleDrawing:
    """Queues a drawing when a worker has been idle since the last look."""

    database: Database
    queue: Queue
    liveness: LivenessMonitor
    _idle: bool = False

    def look(self) -> None:
        """Call this regularly; the first of two looks at an idle worker queues nothing."""
        active = self.liveness.active_jobs
        drawing = {job for job in active if job.startswith(f"{FIGURE_JOB}-")}
        with self.database.reading() as session:
            idle = active == drawing and not job_state.any_queued(session)
            newest = figure_state.newest_undrawn(session) if idle and self._idle and not drawing else None
        self._idle = idle
        if newest is not None:
            with self.database.session() as session:
                self.queue.draw_on_demand(session, newest)
