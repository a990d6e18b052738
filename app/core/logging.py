"""The log of a process: one event a line on standard error, for people or as JSON for a collector.

Notable choices:
- Ids are bound to the work in hand (`bound_fields`), so that every line of it names the trace and the prediction, whichever
  room wrote it; the rooms themselves use Python's own logging and know nothing of this one.
- An error is told by its kind and place, never by its message: that may hold what was submitted. This holds for every
  library's log records too.
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

_CHATTY = ("dbos", "alembic", "opentelemetry")
_bound: ContextVar[Mapping[str, str]] = ContextVar("_bound", default={})  # noqa: B039 - never written to


@contextmanager
def bound_fields(**ids: str | None) -> Iterator[None]:
    """Names these ids in every line that the block, and what it calls, logs; None is left out."""
    token = _bound.set({**_bound.get(), **{name: value for name, value in ids.items() if value is not None}})
    try:
        yield
    finally:
        _bound.reset(token)


def configure_logging(level: str, form: str = "text") -> None:
    """Has this process log to standard error from ``level`` upwards, as ``text`` or as ``json``."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)


def error_location(error: BaseException) -> str:
    """The kind of an error and where it came from, without its message."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return f"{type(error).__name__} at " + " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))


_Raised = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class TextFormatter(logging.Formatter):
    """A line to read, with the bound ids at its end."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The line; a record of several lines stays several."""
        ids = "".join(f" {name}={value}" for name, value in _bound.get().items())
        return super().format(record) + ids

    def formatException(self, ei: _Raised) -> str:  # noqa: N802 - the base class names it so
        """The error's kind and place in the stead of its traceback."""
        return error_location(ei[1]) if ei[1] else ""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, event, the bound ids, and the error's kind and place."""

    def format(self, record: logging.LogRecord) -> str:
        """The object."""
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
