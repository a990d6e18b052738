"""The queue: a job exists if and only if its prediction exists, and the API loads no torch for it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from sqlalchemy import text

from app.database import predictions, status
from app.database.session import Database
from app.sdk.errors import DatabaseUnavailable, InvalidRequest, PredictionNotFound
from app.sdk.types import Priority
from app.worker.queue import Queue, check_sqlite
from tests.study import add_and_queue, new_prediction


@pytest.fixture
def queue(database: Database) -> Queue:
    return Queue(database)


def jobs(database: Database) -> list[tuple[str, str]]:
    table = "workflow_status" if database.sqlite else "dbos.workflow_status"
    with database.reading() as session:
        rows = session.execute(text(f"SELECT workflow_uuid, status FROM {table} ORDER BY priority, created_at"))
        return [(row[0], row[1]) for row in rows]


def test_job_is_committed_with_its_prediction(database: Database, queue: Queue) -> None:
    new = new_prediction()
    with database.session() as session:
        add_and_queue(session, queue, new)
        assert status.queued(session)[Priority.ACUTE].count == 1
    assert jobs(database) == [(new.id, "ENQUEUED")]
    assert queue.alive([new.id, "other"]) == {new.id}


def test_job_is_rolled_back_with_its_prediction(database: Database, queue: Queue) -> None:
    new = new_prediction()

    def fail_halfway() -> None:
        with database.session() as session:
            add_and_queue(session, queue, new)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert jobs(database) == []
    with database.reading() as session:
        assert status.queued(session)[Priority.ACUTE].count == 0
        with pytest.raises(PredictionNotFound):
            predictions.find(session, new.id, None)


def test_submitting_twice_makes_one_job(database: Database, queue: Queue) -> None:
    new = new_prediction()
    with database.session() as session:
        add_and_queue(session, queue, new)
    with database.session() as session:
        queue.submit(session, new.id)
    assert len(jobs(database)) == 1


def test_engine_holds_an_id_and_no_patient_data(database: Database, queue: Queue) -> None:
    with database.session() as session:
        add_and_queue(session, queue, new_prediction(subject="CANARY", clinical={"age": "CANARY"}))
    tables = ("workflow_status", "workflow_input")
    with database.engine.connect() as connection:
        for table in tables:
            name = table if database.sqlite else f"dbos.{table}"
            assert "CANARY" not in str(connection.exec_driver_sql(f"SELECT * FROM {name}").all())


def test_upgrading_again_changes_nothing(database: Database, queue: Queue) -> None:
    new = new_prediction()
    with database.session() as session:
        add_and_queue(session, queue, new)
    queue.upgrade()
    assert queue.alive([new.id]) == {new.id}


def test_a_lost_database_is_told_and_not_waited_for() -> None:
    database = Database("postgresql://user@127.0.0.1:1/nothing")
    queue = Queue(database)
    with pytest.raises(DatabaseUnavailable), database.session() as session:
        queue.submit(session, "x")
    database.close()


def test_queue_loads_no_torch() -> None:
    modules = "app.worker.queue, app.registry.model_store, app.storage.local, app.database.predictions"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("python", "sqlite"), [((3, 11), (3, 40, 1)), ((3, 12), (3, 42, 0)), ((3, 13), (3, 50, 2))])
def test_sqlite_that_the_engine_can_use_is_taken(python: tuple[int, ...], sqlite: tuple[int, ...]) -> None:
    check_sqlite(python, sqlite)


def test_sqlite_that_is_too_old_for_the_engine_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"SQLite 3\.42 or later with this Python, which has 3\.40\.1"):
        check_sqlite((3, 12), (3, 40, 1))
