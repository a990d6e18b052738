"""Queries that run often use indexes, so that they stay fast with very many predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from app.database import erasures, fair_queue, figure_state, job_state, predictions, queue_limits, status, trials
from app.database.queue_limits import QueueLimits
from app.database.session import Database, now
from app.sdk.errors import NotFound
from app.sdk.sorting import Sort
from app.sdk.types import Priority, Status
from tests import study

Query = Callable[[Session], Any]


def page(**filters: Any) -> Query:
    return lambda session: predictions.page(session, "pacs", **filters)


def after(sort: Sort) -> Query:
    """The second page in an order."""

    def read(session: Session) -> None:
        first = predictions.page(session, "pacs", limit=1, sort=sort)
        assert first.next
        predictions.page(session, "pacs", limit=1, sort=sort, cursor=first.next)

    return read


def certificate(session: Session) -> None:
    newest = predictions.page(session, "pacs").items[0].id
    with pytest.raises(NotFound, match="not erased"):
        erasures.certificate(session, newest, None, lambda _: True)


QUERIES: dict[str, Query] = {
    "newest": page(),
    "after a time": page(created_after=now()),
    "subject": page(subject="S-1"),
    "study": page(study_instance_uid="1.2.3"),
    "accession number": page(accession_number="A1"),
    "status": page(status=Status.FAILED),
    "version": page(model="tiny@1.0.0"),
    "part of a subject": page(subject_contains="S"),
    **{f"order {sort}": after(sort) for sort in Sort},
    "subject's": lambda session: erasures.of_subject(session, "pacs", "S-1"),
    "newest of a subject": lambda session: predictions.newest_of(session, "pacs", ["S-1"]),
    "certificate": certificate,
    "of a trial": lambda session: trials.entries(session, "silent"),
    "running trial": lambda session: trials.running_at(session, "pacs"),
    "erasures of the audit": lambda session: list(erasures.recorded(session)),
    "due": lambda session: erasures.due(session, now(), most=100),
    "overdue": lambda session: erasures.overdue(session, now()),
    "finished": lambda session: status.done_since(session, now() - timedelta(minutes=1)),
    "queued": status.queued,
    "waiting": status.waiting,
    "waiting jobs": job_state.waiting,
    "any queued": job_state.any_queued,
    "undrawn": figure_state.newest_undrawn,
    "unfinished of a version": lambda session: job_state.unfinished_on(session, "tiny", "1.0.0"),
    "next position": lambda session: fair_queue.next_position(session, "pacs", Priority.ACUTE),
    "limits": lambda session: queue_limits.check(session, QueueLimits(9, 0.3, 0.5), "pacs", Priority.ACUTE),
}
UNDRAWN = "SCAN predictions USING INDEX predictions_undrawn"  # an index of few rows, read from one end
IN_ORDER = ("newest", "after a time", "status", "version", "due", "undrawn", *(f"order {sort}" for sort in Sort))
BY_INDEX = {
    "subject": "predictions_subject",
    "subject's": "predictions_subject",
    "newest of a subject": "predictions_subject",
    "study": "predictions_study_uid",
    "accession number": "predictions_accession",
    "version": "predictions_version",
    "status": "predictions_state",
    "order subject": "predictions_by_subject",
    "order -probability": "predictions_probability",
    "due": "predictions_due",
    "overdue": "predictions_due",
    "finished": "predictions_finished",
    "certificate": "audit_action",
    "of a trial": "predictions_trial",
}
"""The index that SQLite must choose, where another one would be read from end to end; PostgreSQL has statistics."""


@contextmanager
def statements(database: Database) -> Iterator[list[tuple[str, Any]]]:
    """The statements that the block sends, with their parameters."""
    sent: list[tuple[str, Any]] = []

    def note(*arguments: Any) -> None:
        sent.append(arguments[2:4])

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(database.engine, "before_cursor_execute", note)


def plan(session: Session, statement: str, parameters: Any) -> str:
    """How the database runs a statement; PostgreSQL reads small tables as a whole, unless that is forbidden."""
    sqlite = session.get_bind().dialect.name == "sqlite"
    if not sqlite:
        session.execute(text("SET LOCAL enable_seqscan TO off"))
    explain = "EXPLAIN QUERY PLAN" if sqlite else "EXPLAIN"
    rows = session.connection().exec_driver_sql(f"{explain} {statement}", parameters)
    return "\n".join(str(row[-1]) for row in rows)


@pytest.fixture
def filled(database: Database) -> Database:
    with database.session() as session:
        for number in range(3):
            predictions.add(session, study.new_prediction(caller="pacs", subject=f"S-{number}"))
    return database


@pytest.mark.parametrize("name", QUERIES)
def test_query_reads_no_table_as_a_whole(filled: Database, name: str) -> None:
    with filled.reading() as session:
        with statements(filled) as sent:
            QUERIES[name](session)
        plans = [plan(session, *each) for each in sent if each[0].startswith("SELECT")]
    assert plans
    for found in plans:
        for table in ("predictions", "audit"):
            assert f"SCAN {table}" not in found.replace(UNDRAWN, ""), found
            assert f"Seq Scan on {table} " not in found, found
        if name in IN_ORDER and " predictions " in found:
            assert "TEMP B-TREE FOR ORDER BY" not in found, found  # SQLite would sort all rows for each page
    if filled.sqlite and name in BY_INDEX:
        assert any(f"INDEX {BY_INDEX[name]} " in found for found in plans), plans


def test_part_of_a_subject_is_found_without_the_rows(filled: Database) -> None:
    """PostgreSQL would read each row of the tenant to compare its subject, though an index has it."""
    with filled.reading() as session:
        with statements(filled) as sent:
            QUERIES["part of a subject"](session)
        found = plan(session, *next(each for each in sent if "FROM predictions" in each[0]))
    assert ("USING INDEX predictions_page" if filled.sqlite else "Index Only Scan") in found, found


def test_test_notices_a_query_without_an_index(filled: Database) -> None:
    with filled.reading() as session:
        with statements(filled) as sent:
            session.execute(text("SELECT id FROM predictions WHERE body_digest = 'x'"))
        found = plan(session, *sent[0])
    assert "SCAN predictions" in found or "Seq Scan on predictions " in found
