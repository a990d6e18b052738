"""A log line: one event, the ids it belongs to, and no value of anybody's."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from app.core import logging as logs


@pytest.fixture(params=["text", "json"])
def written(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Where the log of a process goes that was set up in this form."""
    root, stream = logging.getLogger(), io.StringIO()
    before, level = list(root.handlers), root.level
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure_logging("info", request.param)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)


def test_a_line_names_what_is_being_worked_on(written: io.StringIO) -> None:
    log = logging.getLogger("rlvo.test")
    with logs.bound_fields(trace="t1"), logs.bound_fields(prediction="p1", worker=None):
        log.info("stage %s", "prepare")
    log.info("idle")
    inside, outside = written.getvalue().splitlines()
    assert "stage prepare" in inside
    assert "t1" in inside
    assert "p1" in inside
    assert "worker" not in inside
    assert "t1" not in outside


def test_an_error_is_told_without_its_message(written: io.StringIO) -> None:
    try:
        raise ValueError("CANARY: age 71")
    except ValueError:
        logging.getLogger("a.library").exception("it failed")
    assert "CANARY" not in written.getvalue()
    assert "ValueError at test_logs.py:" in written.getvalue()


def test_json_is_one_object_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    record = logging.LogRecord("rlvo.x", logging.WARNING, "f", 1, "two\nlines of %d", (3,), None)
    with logs.bound_fields(trace="t"):
        line = logs.JsonFormatter().format(record)
    assert "\n" not in line
    found = json.loads(line)
    assert found.pop("time").endswith("+00:00")
    assert found == {"level": "warning", "logger": "rlvo.x", "event": "two\nlines of 3", "trace": "t"}
