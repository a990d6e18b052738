"""`INSERT ... ON CONFLICT` for SQLite and PostgreSQL, which SQLAlchemy has in two modules."""

from __future__ import annotations

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.database.tables import Base


def insert_for(session: Session, table: type[Base]) -> sqlite.Insert:
    """An insert into ``table`` with ``on_conflict_do_update`` for the database of the session."""
    if session.get_bind().dialect.name == "postgresql":
        # Both classes have the methods that are used here, but no common base class.
        return postgresql.insert(table)  # type: ignore[return-value]
    return sqlite.insert(table)
