"""What operators ask of all workers: keep this version loaded, or let it go. Each worker answers in its own row.

Notable choices:
- A demand stands until it is replaced, so that a worker that starts later, or again, loads what is wanted as well.
- Asking again takes the next ticket, and an answer says which it is to: an old refusal is not taken for a new one.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.database.session import now
from app.database.tables import DemandRow
from app.database.upsert import insert_for


@dataclass(frozen=True)
class Demand:
    """``wanted``: to be loaded and checked, else to be unloaded once nothing is left to do for it."""

    name: str
    version: str
    wanted: bool
    ticket: int


def ask(session: Session, name: str, version: str, *, wanted: bool) -> int:
    """Makes or renews a demand; its ticket."""
    known = session.scalars(
        select(DemandRow).where(DemandRow.name == name, DemandRow.version == version).with_for_update()
    ).one_or_none()
    ticket = 1 if known is None else known.ticket + 1
    values = {"wanted": wanted, "ticket": ticket, "asked": now()}
    insert = insert_for(session, DemandRow).values(name=name, version=version, **values)
    session.execute(insert.on_conflict_do_update(index_elements=["name", "version"], set_=values))
    return ticket


def standing(session: Session) -> list[Demand]:
    """Every demand, the oldest first."""
    rows = session.scalars(select(DemandRow).order_by(DemandRow.asked, DemandRow.name, DemandRow.version))
    return [Demand(row.name, row.version, row.wanted, row.ticket) for row in rows]
