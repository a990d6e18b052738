"""What those who only look on ask of the database: the states that somebody waits for, and the service's figures.

These run often (a waiting caller's poll, a scrape), so they read few columns and touch no patient data.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.database.session import now
from app.database.tables import PredictionRow
from app.sdk.types import Stage, Status


@dataclass(frozen=True)
class State:
    """How far a prediction is; ``progress`` is the fraction of the whole, 0 to 1."""

    status: Status
    stage: Stage | None
    progress: float


@dataclass(frozen=True)
class Done:
    """A finished prediction, as the metrics see it; ``seconds`` by stage."""

    id: str
    status: Status
    created: datetime
    finished: datetime
    seconds: dict[str, float]


def states(session: Session, ids: Iterable[str]) -> dict[str, State]:
    """The states of these predictions; one that was erased or never was is left out."""
    columns = (PredictionRow.id, PredictionRow.status, PredictionRow.stage, PredictionRow.progress)
    rows = session.execute(select(*columns).where(PredictionRow.id.in_(list(ids)), PredictionRow.erased.is_(None)))
    return {
        key: State(Status(status), Stage(stage) if stage else None, progress) for key, status, stage, progress in rows
    }


def done_since(session: Session, moment: datetime) -> list[Done]:
    """The predictions that finished at ``moment`` or later."""
    columns = (
        PredictionRow.id, PredictionRow.status, PredictionRow.created, PredictionRow.finished, PredictionRow.timings
    )  # fmt: skip
    rows = session.execute(select(*columns).where(PredictionRow.finished >= moment))
    return [
        Done(key, Status(status), created, finished, timings or {}) for key, status, created, finished, timings in rows
    ]


def oldest_wait(session: Session) -> float:
    """Seconds for which the oldest queued prediction has waited; 0 where none waits."""
    oldest = session.scalar(select(func.min(PredictionRow.created)).where(PredictionRow.status == Status.QUEUED))
    return max(0.0, (now() - oldest).total_seconds()) if oldest else 0.0
