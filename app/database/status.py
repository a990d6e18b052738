"""What those who only look on ask of the database: the states that somebody waits for, and the service's figures.

These run often (a waiting caller's poll, a scrape), so they read few columns and touch no patient data.
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
from app.sdk.types import Priority, Stage, Status


@dataclass(frozen=True)
class State:
    """How far a prediction is; ``progress`` is the fraction of the whole, 0 to 1."""

    status: Status
    stage: Stage | None
    progress: float


@dataclass(frozen=True)
class FinishedPrediction:
    """A finished prediction, as the metrics see it; ``seconds`` by stage, ``waited`` in the queue."""

    id: str
    status: Status
    created: datetime
    waited: float | None
    finished: datetime
    seconds: dict[str, float]


@dataclass(frozen=True)
class Waiting:
    """How many predictions wait for a worker, and for how many seconds the first of them has."""

    count: int
    oldest: float


def states(session: Session, ids: Iterable[str]) -> dict[str, State]:
    """The states of these predictions; one that was erased or never was is left out."""
    columns = (PredictionRow.id, PredictionRow.status, PredictionRow.stage, PredictionRow.progress)
    rows = session.execute(select(*columns).where(PredictionRow.id.in_(list(ids)), PredictionRow.erased.is_(None)))
    return {
        key: State(Status(status), Stage(stage) if stage else None, progress) for key, status, stage, progress in rows
    }


def done_since(session: Session, moment: datetime) -> list[FinishedPrediction]:
    """The predictions that finished at ``moment`` or later."""
    columns = (
        PredictionRow.id,
        PredictionRow.status,
        PredictionRow.created,
        PredictionRow.started,
        PredictionRow.finished,
        PredictionRow.timings,
    )
    rows = session.execute(select(*columns).where(PredictionRow.finished >= moment))
    return [
        FinishedPrediction(
            key, Status(status), created, started and (started - created).total_seconds(), finished, timings or {}
        )
        for key, status, created, started, finished, timings in rows
    ]


def waiting(session: Session) -> dict[Priority, Waiting]:
    """The queue, by priority."""
    row = PredictionRow
    found = {}
    for priority in Priority:
        mine = (row.status == Status.QUEUED, row.queue_position.between(*fair_queue.span(priority)))
        count, oldest = session.execute(select(func.count(), func.min(row.created)).where(*mine)).one()
        found[priority] = Waiting(count, max(0.0, (now() - oldest).total_seconds()) if oldest else 0.0)
    return found
