"""Conditions on many ids, sent to the database as one parameter.

A list of parameters has a limit, and is written into each statement anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from sqlalchemy import ARRAY, ColumnElement, Text, any_, func, literal, select
from sqlalchemy.orm import InstrumentedAttribute, Session

Column = InstrumentedAttribute[str] | InstrumentedAttribute[str | None]


def among(session: Session, column: Column, values: Iterable[str]) -> ColumnElement[bool]:
    """Whether the column has one of these values, of any number: an array for PostgreSQL, a JSON list for SQLite."""
    listed = sorted(values)
    if session.get_bind().dialect.name == "postgresql":
        return column == any_(literal(listed, ARRAY(Text)))
    items = func.json_each(json.dumps(listed)).table_valued("value")
    return column.in_(select(items.c.value))
