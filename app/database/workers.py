"""The roll of the workers: who is alive, which models it has loaded, and whose jobs have to be taken over."""

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
    """What became of a demand (`demands.py`): the ticket that it is to, and why it could not be met, if so."""

    generation: int
    error: str | None


@dataclass(frozen=True)
class Usage:
    """Bytes: of memory that the process holds, of the weights that it keeps loaded, and of its GPU, used and whole."""

    resident: int
    weights: int
    device_used: int = 0
    device_whole: int = 0


@dataclass(frozen=True)
class WorkerRecord:
    """One worker as the roll has it; ``models`` are the ``name@version`` that it keeps loaded.

    ``answers``: by ``name@version``, to what operators asked of it.
    """

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
    """Writes the worker's sign of life, and its row where it is new or was taken for dead."""
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
    """Everybody on the roll, alive or not, oldest first."""
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
    """Those that gave a sign of life within the last ``lease`` seconds."""
    since = now() - timedelta(seconds=lease)
    return [worker for worker in registered(session) if worker.last_heartbeat >= since]


def deregister(session: Session, worker_id: str) -> bool:
    """Takes a worker off the roll. Of several that try at once, one is told True."""
    return (
        session.execute(delete(WorkerRow).where(WorkerRow.id == worker_id).returning(WorkerRow.id)).first() is not None
    )
