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
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, literal, tuple_
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


class Part(NamedTuple):
    """A part of an ordered list, as conditions and expressions of ORDER BY that an index serves."""

    conditions: Sequence[ColumnElement[bool]]
    order: Sequence[ColumnElement[Any]]


def parts(sort: Sort, cursor: str | None) -> list[Part]:
    """The list after the cursor, or the whole list: rows with a value, then those without.

    Raises InvalidRequest for a cursor of another order.
    """
    column, descending = _column(sort)
    absent, value, row_id = (False, None, "") if cursor is None else _read(cursor, sort)
    order = [key.desc() if descending else key.asc() for key in (column, PredictionRow.id)]
    found: list[Part] = []
    if not absent:
        present: list[ColumnElement[bool]] = [] if column is PredictionRow.created else [column.is_not(None)]
        if cursor is not None:
            keys = tuple_(column, PredictionRow.id)
            after = tuple_(literal(value, column.type), literal(row_id))  # unlike OR, an index finds a pair
            present.append(keys < after if descending else keys > after)
        found.append(Part(present, order))
    if column is not PredictionRow.created:
        later = PredictionRow.id < row_id if descending else PredictionRow.id > row_id
        found.append(Part([column.is_(None), later] if absent else [column.is_(None)], order))
    return found


def cursor_of(row: PredictionRow, sort: Sort) -> str:
    """The cursor that continues after ``row``."""
    name = sort.removeprefix("-")
    row_id = uuid.UUID(row.id).hex
    if name == "created":
        return f"{(row.created - _EPOCH) // timedelta(microseconds=1):016d}{row_id}"
    value = getattr(row, name)
    written = struct.pack(">d", value) if isinstance(value, float) else (value or "").encode()
    return f"{int(value is None)}{written.hex()}{row_id}"


def _column(sort: Sort) -> tuple[InstrumentedAttribute[Any], bool]:
    return _COLUMNS[sort.removeprefix("-")], sort.startswith("-")


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
