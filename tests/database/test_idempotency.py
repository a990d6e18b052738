"""Idempotency keys: one key, one prediction."""

from __future__ import annotations

import threading
import time

import pytest

from app.database import idempotency, predictions
from app.database.session import Database
from app.sdk.errors import IdempotencyKeyReused, RequestInProgress
from tests.study import new_prediction


def reserve(database: Database, key: str = "k", caller: str = "pacs", lease: float = 60) -> idempotency.Reservation:
    with database.session() as session:
        return idempotency.reserve(session, caller, key, lease=lease, owner="api-1")


def complete(database: Database, key: str = "k", body: str = "body", caller: str = "pacs") -> str:
    new = new_prediction(caller, idempotency_key=key, body_digest=body)
    with database.session() as session:
        predictions.add(session, new)
    return new.id


def test_new_key_is_reserved_and_blocks_others(database: Database) -> None:
    held = reserve(database)
    assert held.replay("body") is None
    with pytest.raises(RequestInProgress):
        reserve(database)


def test_completed_key_returns_the_prediction_for_the_same_body(database: Database) -> None:
    reserve(database)
    made = complete(database)
    again = reserve(database)
    assert again.replay("body") == made
    with pytest.raises(IdempotencyKeyReused):
        again.replay("other body")


def test_keys_belong_to_their_caller(database: Database) -> None:
    reserve(database, caller="pacs")
    complete(database, caller="pacs")
    assert reserve(database, caller="other").prediction_id is None


def test_released_key_is_free_again(database: Database) -> None:
    held = reserve(database)
    with database.session() as session:
        idempotency.release(session, held)
    assert reserve(database).prediction_id is None


def test_late_release_changes_nothing(database: Database) -> None:
    late = reserve(database, lease=0)
    current = reserve(database)
    with database.session() as session:
        idempotency.release(session, late)
    with pytest.raises(RequestInProgress):
        reserve(database)
    made = complete(database)
    with database.session() as session:
        idempotency.release(session, current)
        idempotency.release(session, idempotency.Reservation("pacs", "k", "", made))
    assert reserve(database).replay("body") == made


def test_reservation_of_a_crashed_service_expires(database: Database) -> None:
    reserve(database, lease=0.05)
    time.sleep(0.06)
    assert reserve(database).prediction_id is None


def test_restarted_service_drops_only_its_reservations(database: Database) -> None:
    reserve(database, "open")
    reserve(database, "done")
    made = complete(database, "done")
    with database.session() as session:
        idempotency.reserve(session, "pacs", "foreign", lease=60, owner="api-2")
        idempotency.forget(session, "api-1")
    assert reserve(database, "open").prediction_id is None
    assert reserve(database, "done").prediction_id == made
    with pytest.raises(RequestInProgress):
        reserve(database, "foreign")


def test_second_completion_of_a_key_leaves_nothing(database: Database) -> None:
    made = complete(database)
    with pytest.raises(RequestInProgress):
        complete(database)
    with database.reading() as session:
        assert [item.id for item in predictions.page(session, "pacs").items] == [made]


def test_keys_expire(database: Database) -> None:
    new = new_prediction(idempotency_key="k", body_digest="body", keep_key=0.0)
    with database.session() as session:
        predictions.add(session, new)
    with database.session() as session:
        assert idempotency.expire(session) == 1
    assert reserve(database).prediction_id is None


def test_one_of_many_concurrent_requests_wins(database: Database) -> None:
    outcomes: list[str] = []
    together = threading.Barrier(24)

    def send() -> None:
        together.wait()
        try:
            held = reserve(database)
            outcomes.append(held.prediction_id or complete(database))
        except RequestInProgress:
            outcomes.append("in progress")

    threads = [threading.Thread(target=send) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 24
    assert len(set(outcomes) - {"in progress"}) == 1
    with database.reading() as session:
        assert len(predictions.page(session, "pacs").items) == 1
