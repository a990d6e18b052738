"""Logging of a process: one event per line on standard error, as text or as JSON.

Design notes:
- `bound_fields` adds ids (trace, prediction) to every line that a block logs. All packages use Python's own logging.
- An error is logged with its type and source lines, never with its message, which may contain submitted data.
  This applies to the records of libraries too.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

_VERBOSE = ("dbos", "alembic", "opentelemetry", "httpx", "httpcore")  # httpx logs URLs, which may hold a token or an id
_bound: ContextVar[Mapping[str, str]] = ContextVar("_bound", default={})  # noqa: B039 - never written to


@contextmanager
def bound_fields(**ids: str | None) -> Iterator[None]:
    """Add these ids to every line that is logged inside the block; ids that are None are omitted."""
    token = _bound.set({**_bound.get(), **{name: value for name, value in ids.items() if value is not None}})
    try:
        yield
    finally:
        _bound.reset(token)


def configure_logging(level: str, form: str = "text") -> None:
    """Log to standard error from ``level`` upwards; ``form`` is ``text`` or ``json``."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _VERBOSE:
        logging.getLogger(name).setLevel(logging.WARNING)


def error_location(error: BaseException) -> str:
    """Type of an error and its innermost source lines, without its message."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return f"{type(error).__name__} at " + " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))


_Raised = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class TextFormatter(logging.Formatter):
    """Text line with the bound ids at its end."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; line breaks of its message are kept."""
        ids = "".join(f" {name}={value}" for name, value in _bound.get().items())
        return super().format(record) + ids

    def formatException(self, ei: _Raised) -> str:  # noqa: N802 - the base class names it so
        """Return type and source lines of the error instead of its traceback."""
        return error_location(ei[1]) if ei[1] else ""


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, event, bound ids, and type and source lines of an error."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as a JSON object."""
        line: dict[str, str] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_bound.get(),
        }
        if record.exc_info and record.exc_info[1]:
            line["error"] = error_location(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False)
