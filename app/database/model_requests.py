"""Load requests of operators to all workers: keep a version loaded, or unload it.

Design notes:
- A request stays until it is replaced, so a worker that starts later carries it out as well.
- A renewed request has the next generation. Each worker writes its result with the generation into its row, so an old
  result is not taken for the new one.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.database.session import now
from app.database.tables import ModelRequestRow
from app.database.upsert import insert_for


@dataclass(frozen=True)
class LoadRequest:
    """Request for one version; ``wanted``: load and check it, otherwise unload it after its last prediction."""

    name: str
    version: str
    wanted: bool
    generation: int


def request(session: Session, name: str, version: str, *, wanted: bool) -> int:
    """Makes or renews a request and returns its generation."""
    known = session.scalars(
        select(ModelRequestRow)
        .where(ModelRequestRow.name == name, ModelRequestRow.version == version)
        .with_for_update()
    ).one_or_none()
    generation = 1 if known is None else known.generation + 1
    values = {"wanted": wanted, "generation": generation, "requested": now()}
    insert = insert_for(session, ModelRequestRow).values(name=name, version=version, **values)
    session.execute(insert.on_conflict_do_update(index_elements=["name", "version"], set_=values))
    return generation


def current(session: Session) -> list[LoadRequest]:
    """All requests, oldest first."""
    rows = session.scalars(
        select(ModelRequestRow).order_by(ModelRequestRow.requested, ModelRequestRow.name, ModelRequestRow.version)
    )
    return [LoadRequest(row.name, row.version, row.wanted, row.generation) for row in rows]
