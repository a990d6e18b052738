"""`INSERT ... ON CONFLICT`, which SQLAlchemy offers under two names for our two databases."""

from __future__ import annotations

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.database.tables import Base


def insert_for(session: Session, table: type[Base]) -> sqlite.Insert:
    """An insert into ``table`` that understands ``on_conflict_do_update`` on the session's database."""
    if session.get_bind().dialect.name == "postgresql":
        # The two classes share every method that is used here, and no base that declares them.
        return postgresql.insert(table)  # type: ignore[return-value]
    return sqlite.insert(table)
