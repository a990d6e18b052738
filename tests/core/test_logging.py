"""Log lines have one event and the bound ids, and no message of an error."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import httpx
import pytest

from app.core import logging as app_logging


@pytest.fixture(params=["text", "json"])
def written(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Log output of a process that is configured in this format."""
    root, stream = logging.getLogger(), io.StringIO()
    before, level = list(root.handlers), root.level
    monkeypatch.setattr("sys.stderr", stream)
    app_logging.configure_logging("info", request.param)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)


def test_line_has_the_bound_ids(written: io.StringIO) -> None:
    log = logging.getLogger("rlvo.test")
    with app_logging.bound_fields(trace="t1"), app_logging.bound_fields(prediction="p1", worker=None):
        log.info("stage %s", "prepare")
    log.info("idle")
    inside, outside = written.getvalue().splitlines()
    assert "stage prepare" in inside
    assert "t1" in inside
    assert "p1" in inside
    assert "worker" not in inside
    assert "t1" not in outside


def test_error_is_logged_without_its_message(written: io.StringIO) -> None:
    try:
        raise ValueError("CANARY: age 71")
    except ValueError:
        logging.getLogger("a.library").exception("it failed")
    assert "CANARY" not in written.getvalue()
    assert "ValueError at test_logging.py:" in written.getvalue()


def test_url_of_a_request_is_not_logged(written: io.StringIO) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(204))
    with httpx.Client(transport=transport) as client:
        client.post("https://hooks.example/CANARY?subject=CANARY")
    logging.getLogger("rlvo.test").info("sent")
    assert "sent" in written.getvalue()
    assert "CANARY" not in written.getvalue()


def test_json_format_has_one_object_per_line(monkeypatch: pytest.MonkeyPatch) -> None:
    record = logging.LogRecord("rlvo.x", logging.WARNING, "f", 1, "two\nlines of %d", (3,), None)
    with app_logging.bound_fields(trace="t"):
        line = app_logging.JsonFormatter().format(record)
    assert "\n" not in line
    document = json.loads(line)
    assert document.pop("time").endswith("+00:00")
    assert document == {"level": "warning", "logger": "rlvo.x", "event": "two\nlines of 3", "trace": "t"}
