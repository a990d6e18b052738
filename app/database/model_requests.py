"""What operators ask of all workers: keep this version loaded, or let it go. Each worker answers in its own row.

Notable choices:
- A demand stands until it is replaced, so that a worker that starts later, or again, loads what is wanted as well.
- Asking again takes the next generation, and an answer says which it is to: an old refusal is not taken for a new one.
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
    """``wanted``: to be loaded and checked, else to be unloaded once nothing is left to do for it."""

    name: str
    version: str
    wanted: bool
    generation: int


def request(session: Session, name: str, version: str, *, wanted: bool) -> int:
    """Makes or renews a demand; its generation."""
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
    """Every demand, the oldest first."""
    rows = session.scalars(
        select(ModelRequestRow).order_by(ModelRequestRow.requested, ModelRequestRow.name, ModelRequestRow.version)
    )
    return [LoadRequest(row.name, row.version, row.wanted, row.generation) for row in rows]
