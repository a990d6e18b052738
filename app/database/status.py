"""Read-only queries for waiting callers and for the metrics.

They run often, so they read few columns and no patient data.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.database import fair_queue
from app.database.session import now
from app.database.tables import PredictionRow
from app.sdk.types import WAITING_FOR_STORAGE, FiguresState, Priority, Stage, Status


@dataclass(frozen=True)
class State:
    """State of a prediction; ``progress`` is a fraction from 0 to 1, ``waiting`` why it makes none.

    ``figures`` is the state of the figures and the report; None if there are none. ``drawing`` tells whether a job
    draws them.
    """

    status: Status
    stage: Stage | None
    progress: float
    waiting: str | None = None
    figures: FiguresState | None = None
    drawing: bool = False

    @property
    def settled(self) -> bool:
        """Whether the prediction has finished, and its figures are not being drawn."""
        return self.status.finished and not self.drawing


@dataclass(frozen=True)
class FinishedPrediction:
    """A finished prediction for the metrics; ``seconds`` by stage, ``waited``: seconds in the queue."""

    id: str
    status: Status
    created: datetime
    waited: float | None
    finished: datetime
    seconds: dict[str, float]


@dataclass(frozen=True)
class QueueWait:
    """Number of predictions that wait, and the seconds that the oldest one has waited."""

    count: int
    oldest: float


def states(session: Session, ids: Iterable[str]) -> dict[str, State]:
    """States of the given predictions, without erased and unknown ones."""
    row = PredictionRow
    columns = (row.id, row.status, row.stage, row.progress, row.waiting, row.figures, row.figures_queued)
    rows = session.execute(select(*columns).where(PredictionRow.id.in_(list(ids)), PredictionRow.erased.is_(None)))
    return {
        key: State(
            Status(status),
            Stage(stage) if stage else None,
            progress,
            pause["reason"] if pause else None,
            FiguresState(figures) if figures else None,
            drawing=figures == FiguresState.PENDING and queued is not None,
        )
        for key, status, stage, progress, pause, figures, queued in rows
    }


def done_since(session: Session, since: datetime) -> list[FinishedPrediction]:
    """Predictions that finished at ``since`` or later."""
    columns = (
        PredictionRow.id,
        PredictionRow.status,
        PredictionRow.created,
        PredictionRow.started,
        PredictionRow.finished,
        PredictionRow.timings,
    )
    rows = session.execute(select(*columns).where(PredictionRow.finished >= since))
    return [
        FinishedPrediction(
            key, Status(status), created, started and (started - created).total_seconds(), finished, timings or {}
        )
        for key, status, created, started, finished, timings in rows
    ]


def waiting(session: Session) -> dict[str, QueueWait]:
    """Predictions that wait for the environment, by reason; a reason without any has none."""
    conditions = (PredictionRow.waiting.is_not(None), PredictionRow.status.in_([Status.QUEUED, Status.RUNNING]))
    pauses = list(session.scalars(select(PredictionRow.waiting).where(*conditions)))
    oldest: dict[str, list[float]] = {WAITING_FOR_STORAGE: []}
    for pause in pauses:
        waited = (now() - datetime.fromisoformat(pause["since"])).total_seconds()
        oldest.setdefault(pause["reason"], []).append(max(0.0, waited))
    return {reason: QueueWait(len(seconds), max(seconds, default=0.0)) for reason, seconds in oldest.items()}


def queued(session: Session) -> dict[Priority, QueueWait]:
    """Queued predictions by priority."""
    row = PredictionRow
    queue = {}
    for priority in Priority:
        conditions = (row.status == Status.QUEUED, row.queue_position.between(*fair_queue.span(priority)))
        count, oldest = session.execute(select(func.count(), func.min(row.created)).where(*conditions)).one()
        queue[priority] = QueueWait(count, max(0.0, (now() - oldest).total_seconds()) if oldest else 0.0)
    return queue
