"""Order of a list of predictions, and the cursor that continues it after a given row.

Design notes:
- A cursor is a position in the order and not a count, so new and erased rows neither repeat nor hide others.
- Rows without a value (no subject, no probability yet) stand at the end in either direction.
- Rows with the same value are ordered by their id, which sorts by time.
"""

from __future__ import annotations

import re
import struct
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, case, or_
from sqlalchemy.orm import InstrumentedAttribute

from app.database.tables import PredictionRow
from app.sdk.errors import InvalidRequest
from app.sdk.sorting import Sort

CURSOR = r"[0-9a-f]{33,290}"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OF_TIME = re.compile(r"([0-9]{16})([0-9a-f]{32})")
_OF_VALUE = re.compile(r"([01])((?:[0-9a-f]{2}){0,128})([0-9a-f]{32})")
_COLUMNS: dict[str, InstrumentedAttribute[Any]] = {
    "created": PredictionRow.created,
    "subject": PredictionRow.subject,
    "probability": PredictionRow.probability,
}


def order(sort: Sort) -> Sequence[ColumnElement[Any]]:
    """The expressions of ORDER BY."""
    column, descending = _column(sort)
    keys = [column, PredictionRow.id]
    ordered = [key.desc() if descending else key.asc() for key in keys]
    return ordered if column is PredictionRow.created else [_absent(column), *ordered]


def cursor_of(row: PredictionRow, sort: Sort) -> str:
    """The cursor that continues after ``row``."""
    name = sort.removeprefix("-")
    row_id = uuid.UUID(row.id).hex
    if name == "created":
        return f"{(row.created - _EPOCH) // timedelta(microseconds=1):016d}{row_id}"
    value = getattr(row, name)
    written = struct.pack(">d", value) if isinstance(value, float) else (value or "").encode()
    return f"{int(value is None)}{written.hex()}{row_id}"


def after(cursor: str, sort: Sort) -> ColumnElement[bool]:
    """Condition for the rows after the row of the cursor. Raises InvalidRequest for a cursor of another order."""
    column, descending = _column(sort)
    absent, value, row_id = _read(cursor, sort)
    later_id = PredictionRow.id < row_id if descending else PredictionRow.id > row_id
    if absent:
        return and_(column.is_(None), later_id)
    later = or_(column < value if descending else column > value, and_(column == value, later_id))
    return later if column is PredictionRow.created else or_(column.is_(None), later)


def _column(sort: Sort) -> tuple[InstrumentedAttribute[Any], bool]:
    return _COLUMNS[sort.removeprefix("-")], sort.startswith("-")


def _absent(column: InstrumentedAttribute[Any]) -> ColumnElement[int]:
    return case((column.is_(None), 1), else_=0)


def _read(cursor: str, sort: Sort) -> tuple[bool, Any, str]:
    """Whether the row has no value, its value, and its id."""
    name = sort.removeprefix("-")
    try:
        if name == "created":
            time, row_id = _matched(_OF_TIME, cursor)
            return False, _EPOCH + timedelta(microseconds=int(time)), str(uuid.UUID(row_id))
        absent, written, row_id = _matched(_OF_VALUE, cursor)
        value = None if absent == "1" else _VALUES[name](bytes.fromhex(written))
        return value is None, value, str(uuid.UUID(row_id))
    except (ValueError, struct.error):
        message = "The cursor is not valid. Start again without a cursor, and pass on `next` of each page"
        raise InvalidRequest(message) from None


def _probability(written: bytes) -> float:
    (value,) = struct.unpack(">d", written)
    if not 0 <= value <= 1:
        raise ValueError
    return float(value)


def _subject(written: bytes) -> str:
    text = written.decode()
    if not text.isprintable():  # PostgreSQL takes no NUL
        raise ValueError
    return text


_VALUES: dict[str, Callable[[bytes], float | str]] = {"probability": _probability, "subject": _subject}


def _matched(pattern: re.Pattern[str], cursor: str) -> tuple[Any, ...]:
    match = pattern.fullmatch(cursor)
    if match is None:
        raise ValueError
    return match.groups()
