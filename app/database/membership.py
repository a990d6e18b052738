"""Conditions on many keys at once."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import ColumnElement, String, any_, bindparam
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import InstrumentedAttribute, Session

__all__ = ["among"]


def among(
    session: Session, column: InstrumentedAttribute[str] | InstrumentedAttribute[str | None], keys: Iterable[str]
) -> ColumnElement[bool]:
    """Whether the text column has one of these keys.

    PostgreSQL gets one array: with a parameter for each key, this process works longer on a statement than the server.
    """
    if session.get_bind().dialect.name == "postgresql":
        return column == any_(bindparam(None, list(keys), type_=ARRAY(String)))
    return column.in_(list(keys))
