"""The predictions as the API sees them."""

from __future__ import annotations

import threading
import uuid
from datetime import timedelta

import pytest

from app.core.tracing import TraceContext
from app.database import job_state, predictions
from app.database.predictions import Artifact, NewPrediction
from app.database.session import Database, now
from app.sdk.errors import Conflict, Erased, InvalidRequest, NotFinished, NotFound, PredictionNotFound
from app.sdk.types import Input, InputSummary, Status
from tests.database.results import result
from tests.study import MODEL, new_prediction

A, B, C = "a" * 64, "b" * 64, "c" * 64


def volume(digest: str) -> InputSummary:
    return InputSummary(sha256=digest, bytes=5 << 30, shape=[512, 512, 320], spacing_mm=[0.5, 0.5, 0.6])


def added(database: Database, **changes: object) -> NewPrediction:
    new = new_prediction(**changes)  # type: ignore[arg-type]
    with database.session() as session:
        predictions.add(session, new)
    return new


def finished(database: Database, new: NewPrediction, *artifacts: Artifact) -> None:
    with database.session() as session:
        study = job_state.start(session, new.id)
        assert study
        assert job_state.succeed(session, study, result(artifacts=artifacts))


def test_ids_sort_by_time_and_never_repeat() -> None:
    ids = [predictions.new_id() for _ in range(2000)]
    assert len(set(ids)) == 2000
    assert [uuid.UUID(one).version for one in ids[:3]] == [7, 7, 7]
    assert {uuid.UUID(one).variant for one in ids} == {uuid.RFC_4122}
    assert [one[:13] for one in ids] == sorted(one[:13] for one in ids)


def test_a_new_prediction_is_queued_and_read_as_it_was_sent(database: Database) -> None:
    new = added(database, inputs={Input.CTA: volume(A)}, clinical={"age": 71, "aphasia": "größer ≥ 中"})
    with database.reading() as session:
        found = predictions.find(session, new.id, "pacs")
        study = predictions.artifacts(session, new.id, "pacs")
    assert found.status is Status.QUEUED
    assert found.model == MODEL
    assert found.inputs == {Input.CTA: volume(A)}
    assert found.subject == "S-1"
    assert found.created.utcoffset() == timedelta(0)
    assert study == ["inputs/cta.nii"]


def test_a_finished_prediction_is_read_as_it_was_made(database: Database) -> None:
    new, made = added(database), result()
    finished(database, new)
    with database.reading() as session:
        found = predictions.find(session, new.id, "pacs")
    assert found.status is Status.SUCCEEDED
    assert (found.probability, found.interval, found.folds) == (made.probability, made.interval, made.folds)
    assert (found.decision, found.flags, found.attribution) == (made.decision, made.flags, made.attribution)
    assert (found.perfusion, found.timings, found.progress) == (made.perfusion, made.timings, 1.0)
    assert found.finished
    assert found.started
    assert found.created <= found.started <= found.finished


def test_nobody_sees_another_callers_prediction(database: Database) -> None:
    new = added(database, inputs={Input.CTA: volume(A)})
    with database.session() as session:
        for ask in (predictions.find, predictions.cancel, predictions.erase, predictions.artifacts):
            with pytest.raises(PredictionNotFound):
                ask(session, new.id, "other")
        with pytest.raises(PredictionNotFound):
            predictions.artifact(session, new.id, "other", "inputs/cta.nii")
        assert predictions.page(session, "other").items == []
        assert predictions.find(session, new.id, None).id == new.id


def test_an_unknown_id_is_not_found(database: Database) -> None:
    with database.reading() as session, pytest.raises(PredictionNotFound):
        predictions.find(session, "nothing", "pacs")


def test_pages_show_each_prediction_once_newest_first(database: Database) -> None:
    ids = [added(database).id for _ in range(7)]
    seen, cursor = [], None
    with database.reading() as session:
        while True:
            page = predictions.page(session, "pacs", limit=3, cursor=cursor)
            seen += [item.id for item in page.items]
            cursor = page.next
            if cursor is None:
                break
    assert seen == ids[::-1]


def test_a_cursor_survives_rows_that_come_and_go(database: Database) -> None:
    ids = [added(database).id for _ in range(6)]
    with database.session() as session:
        first = predictions.page(session, "pacs", limit=3)
    added(database)
    with database.session() as session:
        predictions.erase(session, first.items[-1].id, "pacs")
    with database.reading() as session:
        second = predictions.page(session, "pacs", limit=3, cursor=first.next)
    assert [item.id for item in second.items] == ids[2::-1]
    assert second.next is None


def test_pages_are_filtered(database: Database) -> None:
    old = added(database, subject="S-2")
    moment = now()
    new = added(database, model=MODEL.model_copy(update={"version": "2.0.0"}))
    finished(database, new)

    def ids(**filters: object) -> list[str]:
        with database.reading() as session:
            return [item.id for item in predictions.page(session, "pacs", **filters).items]  # type: ignore[arg-type]

    assert ids(subject="S-2") == [old.id]
    assert ids(status=Status.SUCCEEDED) == [new.id]
    assert ids(model="tiny") == [new.id, old.id]
    assert ids(model="tiny@2.0.0") == [new.id]
    assert ids(model="other") == []
    assert ids(created_after=moment) == [new.id]


@pytest.mark.parametrize("cursor", ["", "x", "!!!!", "bnVsbA", "W10", "WzEsMl0", "WyJ4IiwieSJd", "é", "a" * 5000])
def test_a_foreign_cursor_is_refused(database: Database, cursor: str) -> None:
    with database.reading() as session, pytest.raises(InvalidRequest):
        predictions.page(session, "pacs", cursor=cursor)


def test_cancelling_ends_what_has_not_finished(database: Database) -> None:
    new = added(database)
    with database.session() as session:
        assert predictions.cancel(session, new.id, "pacs").status is Status.CANCELLED
        again = predictions.cancel(session, new.id, "pacs")
        assert again.status is Status.CANCELLED
        assert again.finished
    done = added(database)
    finished(database, done)
    with database.session() as session, pytest.raises(Conflict):
        predictions.cancel(session, done.id, "pacs")


def test_erasing_leaves_a_tombstone_and_nothing_of_the_patient(database: Database) -> None:
    canary = "CANARY"
    new = added(
        database,
        subject=canary,
        clinical={"age": canary},
        place=TraceContext(canary, canary),
        idempotency_key=canary,
        body_digest=canary,
        inputs={Input.CTA: volume(A)},
    )
    finished(database, new, Artifact("maps/attribution-cta.nii.gz", B, 10, "application/gzip"))
    with database.session() as session:
        assert predictions.erase(session, new.id, "pacs") == [A, B]
    with database.session() as session:
        for ask in (predictions.find, predictions.cancel, predictions.erase):
            with pytest.raises(Erased):
                ask(session, new.id, "pacs")
        with pytest.raises(PredictionNotFound):
            predictions.find(session, new.id, "other")
        assert predictions.by_idempotency_key(session, "pacs", canary) is None
        assert predictions.page(session, "pacs").items == []
        assert predictions.referenced(session, [A, B]) == set()
    with database.engine.connect() as connection:
        for table in ("predictions", "attributions", "artifacts", "blobs", "idempotency_keys"):
            assert canary not in str(connection.exec_driver_sql(f"SELECT * FROM {table}").all())


def test_a_blob_stays_while_any_prediction_names_it(database: Database) -> None:
    first = added(database, inputs={Input.CTA: volume(A), Input.NCCT: volume(B)})
    second = added(database, inputs={Input.CTA: volume(A), Input.TMAX: volume(C)})
    with database.session() as session:
        assert predictions.erase(session, first.id, "pacs") == [B]
    with database.session() as session:
        assert predictions.referenced(session, [A, B, C]) == {A, C}
        assert predictions.erase(session, second.id, "pacs") == [A, C]


def test_erasing_and_naming_one_blob_at_once_never_loses_it(database: Database) -> None:
    """Many predictions of one volume come and go; whatever is returned for deletion is named by none that stays."""
    failures: list[str] = []

    def churn(number: int) -> None:
        for _ in range(6):
            new = new_prediction(inputs={Input.CTA: volume(A), Input.NCCT: volume(B)})
            with database.session() as session:
                predictions.add(session, new)
            if number % 2:
                with database.session() as session:
                    gone = predictions.erase(session, new.id, "pacs")
                    failures.extend(predictions.referenced(session, gone))

    threads = [threading.Thread(target=churn, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with database.reading() as session:
        assert len(predictions.page(session, "pacs", limit=100).items) == 18
        assert predictions.referenced(session, [A, B]) == {A, B}


def test_artifacts_are_found_by_name_or_told_why_not(database: Database) -> None:
    new = added(database)
    name = "maps/attribution-cta.nii.gz"
    with database.reading() as session, pytest.raises(NotFinished):
        predictions.artifact(session, new.id, "pacs", name)
    finished(database, new, Artifact(name, B, 10, "application/gzip"))
    with database.reading() as session:
        assert predictions.artifact(session, new.id, "pacs", name) == (B, "application/gzip")
        with pytest.raises(NotFound):
            predictions.artifact(session, new.id, "pacs", "maps/other.nii.gz")
