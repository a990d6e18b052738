"""Registered workers: heartbeats, loaded models, load results and memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.database.session import now
from app.database.tables import WorkerRow
from app.database.upsert import insert_for


@dataclass(frozen=True)
class LoadResult:
    """Result of a load request (`app.database.model_requests`): its generation, and the error if it failed."""

    generation: int
    error: str | None


@dataclass(frozen=True)
class Usage:
    """Memory in bytes: of the process, of the loaded weights, and of its GPU, used and in total."""

    resident: int
    weights: int
    device_used: int = 0
    device_whole: int = 0


@dataclass(frozen=True)
class WorkerRecord:
    """Row of one worker; ``models`` and the keys of ``load_results`` are ``name@version``."""

    id: str
    host: str
    pid: int
    device: str
    models: tuple[str, ...]
    started: datetime
    last_heartbeat: datetime
    heartbeats: int
    load_results: Mapping[str, LoadResult] = field(default_factory=dict)
    usage: Usage | None = None


def heartbeat(session: Session, worker: WorkerRecord) -> None:
    """Writes the row of a worker; adds it if it is new or was deregistered."""
    values = {
        "host": worker.host,
        "pid": worker.pid,
        "device": worker.device,
        "models": list(worker.models),
        "load_results": {key: asdict(result) for key, result in worker.load_results.items()},
        "started": worker.started,
        "last_heartbeat": worker.last_heartbeat,
        "heartbeats": worker.heartbeats,
        "usage": worker.usage and asdict(worker.usage),
    }
    insert = insert_for(session, WorkerRow).values(id=worker.id, **values)
    session.execute(insert.on_conflict_do_update(index_elements=["id"], set_=values))


def registered(session: Session) -> list[WorkerRecord]:
    """All registered workers, also stopped ones, oldest first."""
    rows = session.scalars(select(WorkerRow).order_by(WorkerRow.started, WorkerRow.id))
    return [
        WorkerRecord(
            row.id,
            row.host,
            row.pid,
            row.device,
            tuple(row.models),
            row.started,
            row.last_heartbeat,
            row.heartbeats,
            {key: LoadResult(**result) for key, result in (row.load_results or {}).items()},
            Usage(**row.usage) if row.usage else None,
        )
        for row in rows
    ]


def live(session: Session, lease: float) -> list[WorkerRecord]:
    """Workers with a heartbeat within the last ``lease`` seconds."""
    since = now() - timedelta(seconds=lease)
    return [worker for worker in registered(session) if worker.last_heartbeat >= since]


def deregister(session: Session, worker_id: str) -> bool:
    """Deletes the row of a worker; of several concurrent calls, one returns True."""
    return (
        session.execute(delete(WorkerRow).where(WorkerRow.id == worker_id).returning(WorkerRow.id)).first() is not None
    )
