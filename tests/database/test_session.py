"""The connection: transactions on both databases, and errors when a database is unavailable."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.orm import Session

from app.database import workers
from app.database.session import Database, now
from app.database.tables import Base
from app.database.workers import WorkerRecord
from app.sdk.errors import DatabaseUnavailable


def worker(heartbeats: int = 1) -> WorkerRecord:
    return WorkerRecord("w", "host", 1, "cpu", ("tiny@1.0.0",), now(), now(), heartbeats)


def test_exception_rolls_back_the_transaction(database: Database) -> None:
    def fail_halfway() -> None:
        with database.session() as session:
            workers.heartbeat(session, worker())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    with database.reading() as session:
        assert workers.registered(session) == []


def test_session_is_committed_at_its_end(database: Database) -> None:
    with database.session() as session:
        workers.heartbeat(session, worker())
    with database.reading() as session:
        (stored,) = workers.registered(session)
    assert stored.models == ("tiny@1.0.0",)
    assert stored.last_heartbeat.utcoffset() is not None
    assert abs((now() - stored.last_heartbeat).total_seconds()) < 60


def test_reading_session_writes_nothing(database: Database) -> None:
    if database.sqlite:
        pytest.skip("SQLite does not enforce a reading session")
    with pytest.raises(Exception, match="read-only"), database.reading() as session:
        workers.heartbeat(session, worker())


def test_value_that_was_read_is_valid_until_the_write(database: Database) -> None:
    """Twenty threads increment one number; no increment is lost."""
    with database.session() as session:
        workers.heartbeat(session, worker(heartbeats=0))

    def count() -> None:
        for _ in range(5):
            with database.session() as session:
                lock = "" if database.sqlite else " FOR UPDATE"
                heartbeats = session.execute(text(f"SELECT heartbeats FROM workers WHERE id = 'w'{lock}")).scalar_one()
                time.sleep(0.001)
                workers.heartbeat(session, worker(heartbeats=heartbeats + 1))

    threads = [threading.Thread(target=count) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as session:
        assert workers.registered(session)[0].heartbeats == 100


def test_sqlite_settings_lose_nothing(database: Database) -> None:
    if not database.sqlite:
        pytest.skip("SQLite only")
    with database.reading() as session:
        settings = [session.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous")]
        assert settings == ["delete", 2]
        assert session.execute(text("PRAGMA busy_timeout")).scalar() == 30000
        assert session.execute(text("PRAGMA foreign_keys")).scalar() == 1


def test_migrations_make_the_declared_tables(database: Database) -> None:
    declared = set(Base.metadata.tables)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_name": lambda name, kind, _parents: kind != "table" or name in declared,
                "compare_type": True,
            },
        )
        assert compare_metadata(context, Base.metadata) == []


def test_second_upgrade_changes_nothing(database: Database) -> None:
    database.upgrade()
    database.ping()


def test_several_processes_can_upgrade_at_the_same_time(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new' / 'rlvo.sqlite'}"
    code = f"from app.database.session import Database; Database({url!r}).upgrade()"
    started = [subprocess.Popen([sys.executable, "-W", "error", "-c", code]) for _ in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    database = Database(url)
    database.ping()
    database.close()


@pytest.mark.parametrize(
    "url", ["sqlite:////nowhere/rlvo.sqlite", "postgresql://user@127.0.0.1:1/nothing", "postgres://user@127.0.0.1:1/x"]
)
def test_unreachable_database_is_unavailable(url: str) -> None:
    database = Database(url)
    with pytest.raises(DatabaseUnavailable) as caught:
        database.ping()
    assert caught.value.retry_after
    assert "nowhere" not in caught.value.detail
    database.close()


def test_database_without_tables_is_unavailable(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'empty.sqlite'}")
    with pytest.raises(DatabaseUnavailable):
        database.ping()
    database.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_suspended_transaction_is_ended_and_others_continue(database: Database, database_url: str) -> None:
    with database.session() as session:
        workers.heartbeat(session, worker(heartbeats=0))
    suspended, count = Database(database_url, idle=1), text("UPDATE workers SET heartbeats = heartbeats + 1")

    def suspend(then: Callable[[Session], object]) -> None:
        with suspended.session() as session:
            session.execute(count)
            started = time.monotonic()
            with database.session() as other:
                other.execute(count)  # waits for the row that is locked
            assert 0.5 < time.monotonic() - started < 10
            then(session)

    # The error comes with the next statement or with the commit.
    for then in (lambda session: session.execute(count), lambda _: None):
        with pytest.raises(DatabaseUnavailable):
            suspend(then)
    suspended.close()
    with database.reading() as session:
        assert workers.registered(session)[0].heartbeats == 2


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_connections_to_a_server_that_refuses_writes_are_not_used_again(database: Database, database_url: str) -> None:
    mode = f"ALTER DATABASE {database.url.database} {{}} default_transaction_read_only"  # of new connections

    def run(statement: str) -> None:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("SET default_transaction_read_only = off"))
            connection.execute(text(statement))

    other = Database(database_url)
    run(mode.format("SET") + " = on")
    with pytest.raises(DatabaseUnavailable, match="read-only"):
        other.ping()
    run(mode.format("RESET"))
    other.ping()
    other.close()
