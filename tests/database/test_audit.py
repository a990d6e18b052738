"""The audit log: its chain is valid, and each kind of manipulation shows."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from app.database import audit
from app.database.audit import ChainCheck
from app.database.session import Database


def fill(database: Database, count: int = 5) -> None:
    for number in range(count):
        with database.session() as session:
            audit.append(session, "pacs", "prediction.submit", f"id-{number}", {"bytes": number, "näme": [1, None]})


def check(database: Database) -> ChainCheck:
    with database.reading() as session:
        return audit.verify(session)


def tamper(database: Database, *statements: str) -> None:
    """Changes the log with all rights: drops the triggers first."""
    triggers = ["audit_refuses_update", "audit_refuses_delete"] if database.sqlite else ["audit_refuses ON audit"]
    with database.session() as session:
        for statement in (*(f"DROP TRIGGER {name}" for name in triggers), *statements):
            session.execute(text(statement))


def test_empty_and_filled_chain_are_intact(database: Database) -> None:
    assert check(database) == ChainCheck(0, audit.GENESIS, None)
    fill(database)
    assert check(database).intact
    assert check(database).entries == 5


@pytest.mark.parametrize(
    ("statement", "broken_at"),
    [
        ("UPDATE audit SET actor = 'other' WHERE seq = 3", 3),
        ("UPDATE audit SET detail = '[]' WHERE seq = 2", 2),
        ("DELETE FROM audit WHERE seq = 1", 1),
        ("DELETE FROM audit WHERE seq = 4", 4),
        ("DELETE FROM audit WHERE seq = 5", 5),
        ("UPDATE audit SET seq = 9 WHERE seq = 5", 5),
    ],
)
def test_each_change_shows(database: Database, statement: str, broken_at: int) -> None:
    fill(database)
    tamper(database, statement)
    assert check(database).broken_at == broken_at


@pytest.mark.parametrize("statement", ["UPDATE audit SET actor = 'x'", "DELETE FROM audit"])
def test_the_database_refuses_changes(database: Database, statement: str) -> None:
    fill(database, 1)
    with pytest.raises(DatabaseError, match="append-only"), database.session() as session:
        session.execute(text(statement))
    assert check(database).intact


def test_entry_is_rolled_back_with_its_transaction(database: Database) -> None:
    def fail_halfway() -> None:
        with database.session() as session:
            audit.append(session, "pacs", "prediction.submit", "x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert check(database).entries == 0


def test_concurrent_appends_make_one_chain(database: Database) -> None:
    threads = [threading.Thread(target=fill, args=(database, 10)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert check(database).intact
    assert check(database).entries == 80


def test_two_entries_in_one_transaction_are_in_order(database: Database) -> None:
    with database.session() as session:
        audit.append(session, "a", "b", "c")
        audit.append(session, "a", "b", "d")
    assert check(database).entries == 2
    assert check(database).intact
