"""Queries and changes of predictions for the API."""

from __future__ import annotations

import threading
import uuid
from datetime import timedelta

import pytest
from sqlalchemy import update

from app.core.tracing import TraceContext
from app.database import idempotency, predictions, row_erasure
from app.database.predictions import Artifact
from app.database.session import Database, now
from app.database.tables import PredictionRow
from app.sdk import published_scores
from app.sdk.clinical import ClinicalRecord
from app.sdk.errors import Conflict, Erased, InvalidRequest, NotFinished, NotFound, PredictionNotFound
from app.sdk.types import Input, Status
from tests.database.results import result
from tests.database.rows import A, B, C, add_prediction, finish, summary
from tests.study import MODEL, new_prediction


def test_ids_sort_by_time_and_never_repeat() -> None:
    ids = [predictions.new_id() for _ in range(2000)]
    assert len(set(ids)) == 2000
    assert [uuid.UUID(one).version for one in ids[:3]] == [7, 7, 7]
    assert {uuid.UUID(one).variant for one in ids} == {uuid.RFC_4122}
    assert [one[:13] for one in ids] == sorted(one[:13] for one in ids)


def test_new_prediction_is_queued_and_read_back(database: Database) -> None:
    new = add_prediction(database, inputs={Input.CTA: summary(A)}, clinical={"age": 71, "aphasia": "größer ≥ 中"})
    with database.reading() as session:
        stored = predictions.find(session, new.id, "pacs")
        names = predictions.artifacts(session, new.id, "pacs")
    assert stored.status is Status.QUEUED
    assert stored.model == MODEL
    assert stored.inputs == {Input.CTA: summary(A)}
    assert stored.subject == "S-1"
    assert stored.created.utcoffset() == timedelta(0)
    assert names == ["inputs/cta.nii"]


def test_finished_prediction_is_read_back(database: Database) -> None:
    new, made = add_prediction(database), result()
    finish(database, new)
    with database.reading() as session:
        stored = predictions.find(session, new.id, "pacs")
    assert stored.status is Status.SUCCEEDED
    assert (stored.probability, stored.interval, stored.folds) == (made.probability, made.interval, made.folds)
    assert (stored.decision, stored.flags, stored.attribution) == (made.decision, made.flags, made.attribution)
    assert (stored.perfusion, stored.timings, stored.progress) == (made.perfusion, made.timings, 1.0)
    assert stored.finished
    assert stored.started
    assert stored.created <= stored.started <= stored.finished


def test_published_scores_of_the_record_are_with_a_result_and_not_in_a_list(database: Database) -> None:
    record = {"atrial_fibrillation": False, "hypertension": True, "nihss": 14}
    new, unreadable = add_prediction(database, clinical=record), add_prediction(database, clinical=record)
    with database.reading() as session:
        assert predictions.find(session, new.id, None).scores is None
    finish(database, new)
    finish(database, unreadable)
    with database.session() as session:  # as a release with other fields could have stored it
        earlier = update(PredictionRow).where(PredictionRow.id == unreadable.id)
        session.execute(earlier.values(clinical={"nihss": "severe"}))
    with database.reading() as session:
        found = predictions.find(session, new.id, None).scores
        assert found == published_scores.of_record(ClinicalRecord.model_validate(record))
        assert predictions.find(session, unreadable.id, None).scores is None
        assert all(item.scores is None for item in predictions.page(session, None, limit=10).items)
    icad, odds = found or []
    assert (icad.low, icad.high, icad.value, icad.text) == (6, 20, None, "6 to 20 of 20 points")
    assert "several stenoses of one artery on CTA" in icad.missing
    assert odds.missing == ["no hyperdense artery on CT", "diabetes"]


def test_other_callers_do_not_see_a_prediction(database: Database) -> None:
    new = add_prediction(database, inputs={Input.CTA: summary(A)})
    with database.session() as session:
        for query in (predictions.find, predictions.cancel, predictions.erase, predictions.artifacts):
            with pytest.raises(PredictionNotFound):
                query(session, new.id, "other")
        with pytest.raises(PredictionNotFound):
            predictions.artifact(session, new.id, "other", "inputs/cta.nii")
        assert predictions.page(session, "other").items == []
        assert predictions.find(session, new.id, None).id == new.id


def test_unknown_id_is_not_found(database: Database) -> None:
    with database.reading() as session, pytest.raises(PredictionNotFound):
        predictions.find(session, "nothing", "pacs")


def test_pages_show_each_prediction_once_newest_first(database: Database) -> None:
    ids = [add_prediction(database).id for _ in range(7)]
    seen, cursor = [], None
    with database.reading() as session:
        while True:
            page = predictions.page(session, "pacs", limit=3, cursor=cursor)
            seen += [item.id for item in page.items]
            cursor = page.next
            if cursor is None:
                break
    assert seen == ids[::-1]


def test_cursor_is_valid_after_new_and_erased_rows(database: Database) -> None:
    ids = [add_prediction(database).id for _ in range(6)]
    with database.session() as session:
        first = predictions.page(session, "pacs", limit=3)
    add_prediction(database)
    with database.session() as session:
        predictions.erase(session, first.items[-1].id, "pacs")
    with database.reading() as session:
        second = predictions.page(session, "pacs", limit=3, cursor=first.next)
    assert [item.id for item in second.items] == ids[2::-1]
    assert second.next is None


def test_pages_are_filtered(database: Database) -> None:
    old = add_prediction(database, subject="S-2")
    between = now()
    new = add_prediction(database, model=MODEL.model_copy(update={"version": "2.0.0"}))
    finish(database, new)

    def ids(**filters: object) -> list[str]:
        with database.reading() as session:
            return [item.id for item in predictions.page(session, "pacs", **filters).items]  # type: ignore[arg-type]

    assert ids(subject="S-2") == [old.id]
    assert ids(status=Status.SUCCEEDED) == [new.id]
    assert ids(model="tiny") == [new.id, old.id]
    assert ids(model="tiny@2.0.0") == [new.id]
    assert ids(model="other") == []
    assert ids(created_after=between) == [new.id]


@pytest.mark.parametrize("cursor", ["", "x", "!!!!", "bnVsbA", "W10", "WzEsMl0", "WyJ4IiwieSJd", "é", "a" * 5000])
def test_invalid_cursor_is_refused(database: Database, cursor: str) -> None:
    with database.reading() as session, pytest.raises(InvalidRequest):
        predictions.page(session, "pacs", cursor=cursor)


def test_unfinished_prediction_is_cancelled(database: Database) -> None:
    new = add_prediction(database)
    with database.session() as session:
        assert predictions.cancel(session, new.id, "pacs").status is Status.CANCELLED
        again = predictions.cancel(session, new.id, "pacs")
        assert again.status is Status.CANCELLED
        assert again.finished
    done = add_prediction(database)
    finish(database, done)
    with database.session() as session, pytest.raises(Conflict):
        predictions.cancel(session, done.id, "pacs")


def test_erasure_leaves_an_empty_row_and_no_patient_data(database: Database) -> None:
    canary = "CANARY"
    new = add_prediction(
        database,
        subject=canary,
        clinical={"age": canary},
        trace_context=TraceContext(canary, canary),
        idempotency_key=canary,
        body_digest=canary,
        inputs={Input.CTA: summary(A)},
    )
    finish(database, new, Artifact("maps/attribution-cta.nii.gz", B, 10, "application/gzip"))
    with database.session() as session:
        assert predictions.erase(session, new.id, "pacs") == [A, B]
    with database.session() as session:
        for query in (predictions.find, predictions.cancel, predictions.erase):
            with pytest.raises(Erased):
                query(session, new.id, "pacs")
        with pytest.raises(PredictionNotFound):
            predictions.find(session, new.id, "other")
        assert predictions.page(session, "pacs").items == []
        assert row_erasure.referenced(session, [A, B]) == set()
    with database.engine.connect() as connection:
        for table in ("predictions", "attributions", "artifacts", "blobs", "idempotency_keys"):
            assert canary not in str(connection.exec_driver_sql(f"SELECT * FROM {table}").all())
    with database.session() as session:
        assert idempotency.reserve(session, "pacs", canary, lease=60).prediction_id is None


def test_blob_stays_while_a_prediction_refers_to_it(database: Database) -> None:
    first = add_prediction(database, inputs={Input.CTA: summary(A), Input.NCCT: summary(B)})
    second = add_prediction(database, inputs={Input.CTA: summary(A), Input.TMAX: summary(C)})
    with database.session() as session:
        assert predictions.erase(session, first.id, "pacs") == [B]
    with database.session() as session:
        assert row_erasure.referenced(session, [A, B, C]) == {A, C}
        assert predictions.erase(session, second.id, "pacs") == [A, C]


def test_concurrent_erasure_and_use_of_a_blob_do_not_lose_it(database: Database) -> None:
    """Several threads add and erase predictions of one volume; no remaining one refers to a digest for deletion."""
    failures: list[str] = []

    def add_and_erase(number: int) -> None:
        for _ in range(6):
            new = new_prediction(inputs={Input.CTA: summary(A), Input.NCCT: summary(B)})
            with database.session() as session:
                predictions.add(session, new)
            if number % 2:
                with database.session() as session:
                    orphans = predictions.erase(session, new.id, "pacs")
                    failures.extend(row_erasure.referenced(session, orphans))

    threads = [threading.Thread(target=add_and_erase, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with database.reading() as session:
        assert len(predictions.page(session, "pacs", limit=100).items) == 18
        assert row_erasure.referenced(session, [A, B]) == {A, B}


def test_artifact_is_found_by_name_or_has_a_reason(database: Database) -> None:
    new = add_prediction(database)
    name = "maps/attribution-cta.nii.gz"
    with database.reading() as session, pytest.raises(NotFinished):
        predictions.artifact(session, new.id, "pacs", name)
    finish(database, new, Artifact(name, B, 10, "application/gzip"))
    with database.reading() as session:
        assert predictions.artifact(session, new.id, "pacs", name) == (B, "application/gzip")
        with pytest.raises(NotFound):
            predictions.artifact(session, new.id, "pacs", "maps/other.nii.gz")
