"""Writes of a worker, and the cases in which it must not write."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from app.database import job_state, predictions
from app.database.job_state import JobStudy
from app.database.predictions import Artifact
from app.database.session import Database
from app.sdk.types import Failure, Stage, Status
from tests.database.results import result
from tests.study import new_prediction

FAILURE = Failure(code="nifti-invalid", title="The file is not a volume", detail="Send it again")


def queued(database: Database) -> str:
    new = new_prediction()
    with database.session() as session:
        predictions.add(session, new)
    return new.id


def started(database: Database, prediction_id: str) -> JobStudy:
    with database.session() as session:
        study = job_state.start(session, prediction_id)
    assert study
    return study


def status(database: Database, prediction_id: str) -> Status:
    with database.reading() as session:
        return predictions.find(session, prediction_id, None).status


def writes(database: Database, study: JobStudy) -> list[bool]:
    """Tries each write of a run."""
    with database.session() as session:
        return [
            job_state.advance(session, study, Stage.RECORD),
            job_state.succeed(session, study, result([Artifact("maps/x.nii.gz", "a" * 64, 1, "application/gzip")])),
            job_state.fail(session, study, FAILURE),
        ]


def test_start_returns_the_study(database: Database) -> None:
    study = started(database, queued(database))
    assert study.clinical == {"age": 71, "nihss": 14}
    assert study.explain
    assert (study.run, study.attempts) == (1, 1)
    assert status(database, study.id) is Status.RUNNING


def test_stages_are_stored_and_never_go_back(database: Database) -> None:
    study = started(database, queued(database))
    shown = []
    for stage in (Stage.PREPARE, Stage.EXPLAIN, Stage.PREDICT):
        with database.session() as session:
            assert job_state.advance(session, study, stage)
        with database.reading() as session:
            stored = predictions.find(session, study.id, None)
        shown.append((stored.stage, stored.progress))
    assert [stage for stage, _ in shown] == [Stage.PREPARE, Stage.EXPLAIN, Stage.EXPLAIN]
    assert 0 < shown[0][1] < shown[1][1] == shown[2][1] < 1


def test_failure_is_recorded(database: Database) -> None:
    study = started(database, queued(database))
    with database.session() as session:
        assert job_state.fail(session, study, FAILURE)
    with database.reading() as session:
        stored = predictions.find(session, study.id, None)
    assert (stored.status, stored.error) == (Status.FAILED, FAILURE)
    assert stored.finished


def cancelled(database: Database, prediction_id: str) -> None:
    with database.session() as session:
        predictions.cancel(session, prediction_id, None)


def erased(database: Database, prediction_id: str) -> None:
    with database.session() as session:
        predictions.erase(session, prediction_id, None)


def recorded(database: Database, prediction_id: str) -> None:
    with database.session() as session:
        study = job_state.start(session, prediction_id)
        assert study
        assert job_state.succeed(session, study, result())


def failed(database: Database, prediction_id: str) -> None:
    with database.session() as session:
        study = job_state.start(session, prediction_id)
        assert study
        assert job_state.fail(session, study, FAILURE)


def taken_over(database: Database, prediction_id: str) -> None:
    started(database, prediction_id)


@pytest.mark.parametrize("change", [cancelled, erased, recorded, failed, taken_over])
def test_run_that_lost_its_prediction_writes_nothing(
    database: Database, change: Callable[[Database, str], None]
) -> None:
    study = started(database, queued(database))
    change(database, study.id)
    with database.engine.connect() as connection:
        before = connection.exec_driver_sql("SELECT * FROM predictions").all()
    assert writes(database, study) == [False, False, False]
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT * FROM predictions").all() == before
        assert connection.exec_driver_sql("SELECT * FROM artifacts").all() == []


@pytest.mark.parametrize("change", [cancelled, erased, recorded, failed])
def test_finished_prediction_is_not_started(database: Database, change: Callable[[Database, str], None]) -> None:
    prediction_id = queued(database)
    change(database, prediction_id)
    with database.session() as session:
        assert job_state.start(session, prediction_id) is None
        assert job_state.start(session, "unknown") is None
        assert job_state.unfinished(session, [prediction_id]) == set()


def test_attempts_count_the_starts_in_one_stage(database: Database) -> None:
    prediction_id = queued(database)
    study = started(database, prediction_id)
    with database.session() as session:
        job_state.advance(session, study, Stage.PREPARE)
    assert [started(database, prediction_id).attempts for _ in range(2)] == [2, 3]
    study = started(database, prediction_id)
    assert study.attempts == 4
    with database.session() as session:
        job_state.advance(session, study, Stage.PREPARE)
        job_state.advance(session, study, Stage.PREDICT)
    assert started(database, prediction_id).attempts == 2
