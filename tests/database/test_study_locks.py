"""Transactions that change studies and predictions at the same time wait for each other and do not deadlock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from sqlalchemy import select, text

from app.database import erasures, predictions, received, studies
from app.database.session import Database, now
from app.database.study_tables import StudyPredictionRow
from app.database.tables import PredictionRow
from tests.database.rows import add_prediction

UPPER, LOWER = "North", "a-clinic"  # a language orders them otherwise than their code points
LANGUAGES = ("en-x-icu", "en_US.utf8", "en_US")

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture
def beside() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def add_study(database: Database, tenant: str) -> str:
    """Add a study with a queued prediction; returns the id of the prediction."""
    made = add_prediction(database, caller=tenant)
    with database.session() as session:
        row = received.study_row(session, tenant, "1.2.3")
        session.add(StudyPredictionRow(study_id=row.id, revision=1, prediction_id=made.id, why="quiet", created=now()))
    return made.id


def until_it_waits(database: Database, other: Future[None]) -> None:
    """Return when the other transaction waits for a lock."""
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = :name")
    limit = time.monotonic() + 30
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while not connection.scalar(waiting, {"name": database.url.database}):
            assert not other.done(), other.exception()
            assert time.monotonic() < limit
            time.sleep(0.02)


def erase(database: Database, *ids: str) -> Callable[[], None]:
    def run() -> None:
        with database.session() as session:
            assert len(erasures.erase_all(session, ids, actor="pacs", why="request")) == len(ids)

    return run


def test_an_erasure_beside_the_cancellation_of_its_study(database: Database, beside: ThreadPoolExecutor) -> None:
    made = add_study(database, UPPER)
    with database.session() as session:
        _, unfinished = studies.cancel(session, UPPER, "1.2.3")
        erasing = beside.submit(erase(database, made))
        until_it_waits(database, erasing)
        assert unfinished == [made]
        predictions.cancel(session, made, UPPER)
    erasing.result(timeout=30)
    with database.reading() as session:
        assert session.scalars(select(PredictionRow.erased)).one() is not None


def test_an_erasure_beside_a_reception_for_other_tenants(database: Database, beside: ThreadPoolExecutor) -> None:
    ids = [add_study(database, tenant) for tenant in (LOWER, UPPER)]
    order_by_language(database)
    with database.session() as session:
        received.study_row(session, UPPER, "1.2.3")
        erasing = beside.submit(erase(database, *ids))
        until_it_waits(database, erasing)
        received.study_row(session, LOWER, "1.2.3")
    erasing.result(timeout=30)


def order_by_language(database: Database) -> None:
    """Make the table order its keys by a language, as in a database that was created with one."""
    with database.engine.connect() as connection:
        known = set(connection.scalars(text("SELECT collname FROM pg_collation")))
        language = next((each for each in LANGUAGES if each in known), None)
        if language is None:
            pytest.skip("the server of this machine knows no language")
        kind = f'TYPE varchar(64) COLLATE "{language}"'
        connection.execute(text(f"ALTER TABLE studies ALTER COLUMN caller {kind}, ALTER COLUMN uid {kind}"))
        connection.commit()
        assert list(connection.scalars(text("SELECT caller FROM studies ORDER BY caller"))) == [LOWER, UPPER]
