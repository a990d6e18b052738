"""Faults of the environment make a step wait; faults of the input or of the program still end the study."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import NoReturn

import pytest

from app.database import job_state, predictions, status
from app.database.job_state import JobStudy
from app.database.session import Database
from app.imaging.io.limits import Limits
from app.inference.model_cache import ModelCache
from app.inference.model_version import ModelVersion
from app.sdk.errors import DatabaseUnavailable, InvalidVolume, ModelNotReady, RlvoError, StorageFull, StorageUnavailable
from app.sdk.types import WAITING_FOR_STORAGE, Failure, Prediction, Stage, Status
from app.storage.local import Storage
from app.worker import pipeline
from app.worker.pipeline import PredictionPipeline
from app.worker.prediction_context import PredictionContext
from app.worker.queue import Queue
from app.worker.supervision import LONGEST_PAUSE, pause
from tests import study
from tests.database.results import result
from tests.factory import tiny_case, tiny_version

sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "blobs")


@pytest.fixture
def steps(database: Database, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PredictionPipeline:
    monkeypatch.setattr(pipeline, "PAUSE", 0.0)
    monkeypatch.setattr(ModelVersion, "prepare", lambda version, *_: tiny_case(version.manifest))
    tiny_version(tmp_path / "models")
    return PredictionPipeline(database, storage, Queue(database), ModelCache(tmp_path / "models", "cpu", 1), Limits())


def start(database: Database, prediction_id: str) -> JobStudy:
    with database.session() as session:
        started = job_state.start(session, prediction_id)
    assert started
    return started


@pytest.fixture
def started(database: Database, storage: Storage, steps: PredictionPipeline, tmp_path: Path) -> JobStudy:
    entry = steps.model_cache.registry.resolve("tiny")
    return start(database, study.submit(database, Queue(database), entry, study.store_volume(storage, tmp_path)))


@pytest.fixture
def context(steps: PredictionPipeline, started: JobStudy) -> PredictionContext:
    return steps.begin(started)


def find(database: Database, prediction_id: str) -> Prediction:
    with database.reading() as session:
        return predictions.find(session, prediction_id, None)


def caused_by_the_disk(cause: OSError) -> ModelNotReady:
    error = ModelNotReady("The vessel segmenter cannot be read")
    error.__cause__ = cause
    return error


ENVIRONMENT = {
    "full disk": OSError(errno.ENOSPC, "x"),
    "quota": OSError(errno.EDQUOT, "x"),
    "broken disk": OSError(errno.EIO, "x"),
    "read-only disk": OSError(errno.EROFS, "x"),
    "stale network folder": OSError(errno.ESTALE, "x"),
    "no rights": PermissionError(errno.EACCES, "x"),
    "no file descriptor": OSError(errno.EMFILE, "x"),
    "lost connection": ConnectionResetError(errno.ECONNRESET, "x"),
    "timeout": TimeoutError(errno.ETIMEDOUT, "x"),
    "no thread": RuntimeError("can't start new thread"),
    "storage": StorageUnavailable("x"),
    "full storage": StorageFull("x"),
    "database": DatabaseUnavailable("x"),
    "model store": caused_by_the_disk(OSError(errno.EIO, "x")),
}
PROGRAM = {
    "missing file of the program": FileNotFoundError(errno.ENOENT, "x"),
    "wrong value": ValueError("x"),
    "not enough memory": MemoryError("x"),
    "damaged stream": OSError("x"),
    "other state": RuntimeError("x"),
    "version without a cause": ModelNotReady("x"),
    "refused input": InvalidVolume("x"),
}


def raise_in_prepare(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(ModelVersion, "prepare", fail)


@sqlite
def test_fault_of_the_environment_makes_the_step_wait(
    steps: PredictionPipeline, context: PredictionContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = {}
    for name, error in ENVIRONMENT.items():
        raise_in_prepare(error, monkeypatch)
        outcomes[name] = steps.step(Stage.PREPARE, context)
    assert [name for name, outcome in outcomes.items() if list(outcome) != ["waiting"]] == []
    shown = {name for name, outcome in outcomes.items() if outcome["waiting"] == "x"}
    assert shown == {"storage"}  # the message of a system error may name a file


@sqlite
def test_fault_of_the_input_or_the_program_ends_the_study(
    steps: PredictionPipeline, context: PredictionContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, expected = {}, {}
    for name, error in PROGRAM.items():
        raise_in_prepare(error, monkeypatch)
        codes[name] = steps.step(Stage.PREPARE, context).get("failure", {}).get("code")
        expected[name] = error.code if isinstance(error, RlvoError) else "internal-error"
    assert codes == expected


@sqlite
def test_missing_volume_waits_until_it_is_back(
    storage: Storage, steps: PredictionPipeline, context: PredictionContext
) -> None:
    path = storage.path(context.study.inputs[next(iter(context.study.inputs))].sha256)
    away = path.rename(path.with_suffix(".away"))
    assert "missing" in steps.step(Stage.PREPARE, context)["waiting"]
    away.rename(path)
    assert "digest" in steps.step(Stage.PREPARE, context)


@sqlite
def test_folder_without_any_model_waits_and_a_version_that_was_removed_ends_the_study(
    steps: PredictionPipeline, context: PredictionContext, tmp_path: Path
) -> None:
    store, away = tmp_path / "models", tmp_path / "away"
    store.rename(away)
    assert "model store" in steps.step(Stage.PREPARE, context)["waiting"]
    store.mkdir()  # like a folder that is not mounted
    assert "model store" in steps.step(Stage.PREPARE, context)["waiting"]
    tiny_version(store, name="other")
    assert steps.step(Stage.PREPARE, context)["failure"]["code"] == "model-not-found"


@sqlite
def test_lost_file_of_an_explanation_is_computed_again(
    database: Database, storage: Storage, steps: PredictionPipeline, context: PredictionContext
) -> None:
    for stage in (Stage.PREPARE, Stage.PREDICT, Stage.EXPLAIN):
        context.results[stage] = steps.step(stage, context)
    files = context.explanation()["files"]
    folder = storage.folder / ".work" / context.study.id
    (folder / files[0][1]).unlink()
    (folder / files[1][1]).write_bytes(b"half")  # after a power failure
    assert "digest" in steps.step(Stage.RECORD, context)
    assert find(database, context.study.id).status is Status.SUCCEEDED


@sqlite
def test_waiting_job_gives_up_its_scratch_folder_only_on_a_full_disk(
    storage: Storage, steps: PredictionPipeline, context: PredictionContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    context.results[Stage.PREPARE] = steps.step(Stage.PREPARE, context)

    def fail(error: Exception) -> None:
        def put(*_: object) -> NoReturn:
            raise error

        monkeypatch.setitem(pipeline.COMPUTED_STEPS, Stage.PREDICT, put)  # type: ignore[arg-type]
        assert "waiting" in steps.step(Stage.PREDICT, context)

    fail(StorageUnavailable("x"))
    assert storage.scratch_ids() == [context.study.id]
    fail(StorageFull("x"))
    assert storage.scratch_ids() == []


def wait(database: Database, run: JobStudy, *, step: int = 1) -> bool:
    with database.session() as session:
        return job_state.wait(session, run, "The storage is full", step=step)


def test_waiting_prediction_is_queued_and_says_why(database: Database, started: JobStudy) -> None:
    with database.session() as session:
        assert job_state.advance(session, started, Stage.PREPARE)
    assert wait(database, started)
    waiting = find(database, started.id)
    assert (waiting.status, waiting.stage) == (Status.QUEUED, Stage.PREPARE)
    assert waiting.waiting
    assert (waiting.waiting.reason, waiting.waiting.tries) == (WAITING_FOR_STORAGE, 1)
    assert waiting.summary == "Waiting: The storage is full."
    assert waiting.members()["waiting"].keys() == {"reason", "detail", "since", "tries"}
    with database.reading() as session:
        assert status.states(session, [started.id])[started.id].waiting == WAITING_FOR_STORAGE
        state = status.waiting(session)[WAITING_FOR_STORAGE]
        assert [job.id for job in job_state.waiting(session)] == [started.id]
    assert state.count == 1
    assert 0 <= state.oldest < 60


def test_reason_stays_during_the_next_try_and_ends_with_progress(database: Database, started: JobStudy) -> None:
    assert wait(database, started)
    since = find(database, started.id).waiting
    again = start(database, started.id)
    assert again.attempts == 1  # a wait is no crash of the worker
    assert find(database, started.id).waiting == since
    assert wait(database, again, step=2)
    waiting = find(database, started.id).waiting
    assert since
    assert waiting
    assert (waiting.since, waiting.tries) == (since.since, 2)
    with database.reading() as session:
        assert job_state.waiting(session)[0].step == 2
    third = start(database, started.id)
    with database.session() as session:
        assert job_state.advance(session, third, Stage.PREDICT)
    assert find(database, started.id).waiting is None
    assert find(database, started.id).members().keys().isdisjoint({"waiting"})


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled", "erased"])
def test_end_of_a_prediction_ends_its_wait(database: Database, started: JobStudy, end: str) -> None:
    assert wait(database, started)
    with database.session() as session:
        if end == "cancelled":
            predictions.cancel(session, started.id, None)
        elif end == "erased":
            predictions.erase(session, started.id, None)
        elif end == "failed":
            assert job_state.fail(session, started, Failure(code="x", title="x", detail="x"))
        else:
            assert job_state.succeed(session, started, result())
    with database.reading() as session:
        assert job_state.waiting(session) == []
        assert status.waiting(session)[WAITING_FOR_STORAGE].count == 0
    if end != "erased":
        assert find(database, started.id).waiting is None
    assert not wait(database, started)


def test_run_that_lost_its_prediction_does_not_make_it_wait(database: Database, started: JobStudy) -> None:
    start(database, started.id)  # another worker
    assert not wait(database, started)
    assert find(database, started.id).status is Status.RUNNING


def test_pauses_grow_and_have_a_limit() -> None:
    pauses = [pause(tries) for tries in range(1, 2000)]
    assert pauses == sorted(pauses)
    assert pauses[0] == 1
    assert pauses[-1] == LONGEST_PAUSE
