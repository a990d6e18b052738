"""Limits of the waiting predictions: no tenant and no batch takes the place of another tenant's acute study."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
from sqlalchemy import select

from app.core.config import Settings
from app.database import job_state, predictions, queue_limits
from app.database.queue_limits import QueueLimits
from app.database.session import Database
from app.database.tables import PredictionRow
from app.sdk.errors import QueueFull
from app.sdk.types import Priority, Status
from tests.study import new_prediction

ACUTE, BATCH = Priority.ACUTE, Priority.BATCH
LIMITS = QueueLimits(100, acute_share=0.2, tenant_share=0.4)


def submit(database: Database, tenant: str, priority: Priority, limits: QueueLimits = LIMITS) -> str | None:
    """Submits a study as the service does; returns its id, or None if the queue is full."""
    new = new_prediction(tenant, priority=priority)
    try:
        with database.session() as session:
            queue_limits.admit(session, limits, tenant, priority)
            predictions.add(session, new)
    except QueueFull:
        return None
    return new.id


def fill(database: Database, tenant: str, priority: Priority, limits: QueueLimits = LIMITS) -> int:
    """Submits studies until one is refused; returns the number of accepted ones."""
    return next(number for number in count() if submit(database, tenant, priority, limits) is None)


def waiting(database: Database) -> int:
    with database.reading() as session:
        return len(session.scalars(select(PredictionRow.id).where(PredictionRow.status == Status.QUEUED)).all())


def test_one_tenant_cannot_refuse_another_one(database: Database) -> None:
    assert fill(database, "research", BATCH) == 32
    assert fill(database, "research", ACUTE) == 40
    assert fill(database, "pacs", ACUTE) == 18
    assert submit(database, "pacs", BATCH) is None


def test_batches_of_many_tenants_leave_places_for_acute_studies(database: Database) -> None:
    assert [fill(database, f"research-{number}", BATCH) for number in range(4)] == [32, 32, 16, 0]
    assert fill(database, "pacs", ACUTE) == 10
    assert [fill(database, f"pacs-{number}", ACUTE) for number in range(11)] == [1] * 10 + [0]
    assert waiting(database) == 100


def test_acute_studies_of_many_tenants_leave_places_for_the_first_one_of_others(database: Database) -> None:
    assert [fill(database, f"flood-{number}", ACUTE) for number in range(3)] == [40, 40, 10]
    assert submit(database, "research", BATCH) is None
    assert submit(database, "flood-0", ACUTE) is None
    assert submit(database, "pacs", ACUTE)
    assert submit(database, "pacs", ACUTE) is None  # the second one is no first one


def test_place_of_a_started_or_cancelled_study_is_free_again(database: Database) -> None:
    limits = QueueLimits(2, acute_share=0.0, tenant_share=1.0)
    first, second = (submit(database, "pacs", ACUTE, limits) for _ in range(2))
    assert first
    assert second
    assert submit(database, "pacs", ACUTE, limits) is None
    with database.session() as session:
        assert job_state.start(session, first)
    assert submit(database, "pacs", ACUTE, limits)
    with database.session() as session:
        predictions.cancel(session, second, "pacs")
    assert submit(database, "pacs", ACUTE, limits)
    assert submit(database, "pacs", ACUTE, limits) is None


@pytest.mark.parametrize("priority", Priority)
def test_simultaneous_studies_do_not_exceed_a_limit(database: Database, priority: Priority) -> None:
    limits = QueueLimits(20, acute_share=0.0, tenant_share=0.25)
    with ThreadPoolExecutor(12) as threads:
        sent = list(threads.map(lambda _: submit(database, "pacs", priority, limits), range(24)))
    assert len([each for each in sent if each]) == 5
    assert waiting(database) == 5


def test_study_of_a_release_without_positions_takes_a_place(database: Database) -> None:
    """Before the queue had positions, every row had the position 0."""
    limits = QueueLimits(1, acute_share=0.0, tenant_share=1.0)
    old = submit(database, "pacs", ACUTE, limits)
    with database.session() as session:
        row = session.get(PredictionRow, old)
        assert row
        row.queue_position = 0
    assert submit(database, "pacs", ACUTE, limits) is None


@pytest.mark.parametrize("places", [1, 2, 5, 9])
def test_short_queue_has_a_place_for_each_priority_and_tenant(database: Database, places: int) -> None:
    limits = QueueLimits(places, Settings().queue_acute_share, Settings().queue_tenant_share)
    for priority in Priority:
        assert limits.of_tenant(priority) >= 1
        assert limits.of_priority(priority) <= places
    assert submit(database, "pacs", BATCH, limits)


@pytest.mark.parametrize("places", [10, 100, 1000, 12345])
def test_default_shares_leave_places_beside_one_tenant(places: int) -> None:
    limits = QueueLimits.of(Settings(queue_limit=places))
    of_one = sum(limits.of_tenant(priority) for priority in Priority)
    assert of_one <= 0.72 * places
    assert limits.shared - of_one >= 0.1 * places
