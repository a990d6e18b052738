"""The steps of a job, without a worker around them: what is tried again, what is final, what is logged."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from app import job
from app.database import predictions, work
from app.database.session import Database
from app.database.work import Study
from app.imaging.limits import Limits
from app.job import Job, Steps
from app.model import ModelVersion
from app.predictor import Predictor
from app.queue import Queue
from app.sdk.errors import InvalidVolume
from app.sdk.types import Stage, Status
from app.storage import Storage
from tests import study
from tests.factory import tiny_case, tiny_version


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "blobs")


@pytest.fixture
def steps(database: Database, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(job, "PAUSE", 0.0)
    monkeypatch.setattr(ModelVersion, "prepare", lambda self, *_: tiny_case(self.manifest))
    tiny_version(tmp_path / "models")
    return Job(database, storage, Predictor(tmp_path / "models", "cpu", 1), Limits())


@pytest.fixture
def started(database: Database, storage: Storage, steps: Job, tmp_path: Path) -> Study:
    entry = steps._predictor.registry.resolve("tiny")
    prediction_id = study.submit(database, Queue(database), entry, study.store_volume(storage, tmp_path))
    with database.session() as session:
        found = work.start(session, prediction_id)
    assert found
    return found


def run_all(steps: Job, started: Study, done: Steps) -> None:
    for stage in Stage:
        done[stage] = steps.step(stage, started, done)
        assert "failure" not in done[stage]


def test_steps_hand_on_digests_and_end_in_the_record(database: Database, steps: Job, started: Study) -> None:
    done: Steps = {}
    run_all(steps, started, done)
    assert all(set(step) == {"digest", "seconds"} for step in done.values())
    with database.reading() as session:
        assert predictions.find(session, started.id, None).status is Status.SUCCEEDED
        names = predictions.artifacts(session, started.id, None)
    assert "inputs/cta.nii" in names
    assert {"maps/attribution-cta.nii.gz", "maps/attribution-ncct.nii.gz"} <= set(names)


def test_a_record_is_made_once(database: Database, steps: Job, started: Study) -> None:
    done: Steps = {}
    run_all(steps, started, done)
    with database.reading() as session:
        before = predictions.find(session, started.id, None)
    assert "failure" not in steps.step(Stage.RECORD, started, done)
    with database.reading() as session:
        assert predictions.find(session, started.id, None) == before


def test_what_is_gone_from_the_workbench_is_made_again(
    database: Database, storage: Storage, steps: Job, started: Study
) -> None:
    done: Steps = {}
    for stage in Stage:
        storage.workbench(started.id).clear()
        done[stage] = steps.step(stage, started, done)
    with database.reading() as session:
        found = predictions.find(session, started.id, None)
    assert found.status is Status.SUCCEEDED
    assert found.attribution
    assert {"attribution-ncct", "attribution-cta"} <= set(found.attribution.maps)


def test_a_refusal_is_not_tried_again(steps: Job, started: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = 0

    def refuse(*_: object) -> NoReturn:
        nonlocal tried
        tried += 1
        raise InvalidVolume("The volume is cut off")

    monkeypatch.setattr(ModelVersion, "prepare", refuse)
    assert steps.step(Stage.PREPARE, started, {}) == {
        "failure": {"code": "nifti-invalid", "title": InvalidVolume.title, "detail": "The volume is cut off"}
    }
    assert tried == 1


def test_an_unexpected_error_is_tried_three_times_and_tells_nothing(
    steps: Job, started: Study, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = 0

    def fail(*_: object) -> NoReturn:
        nonlocal tried
        tried += 1
        raise ValueError("CANARY: age 71")

    monkeypatch.setattr(ModelVersion, "prepare", fail)
    result = steps.step(Stage.PREPARE, started, {})
    assert tried == 3
    assert result["failure"]["code"] == "internal-error"
    assert "CANARY" not in str(result) + caplog.text
    assert "ValueError at test_job.py:" in caplog.text


def test_an_error_that_passes_is_survived(steps: Job, started: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare, tried = ModelVersion.prepare, 0

    def fail_twice(self: ModelVersion, *given: object) -> object:
        nonlocal tried
        tried += 1
        if tried < 3:
            raise OSError
        return prepare(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(ModelVersion, "prepare", fail_twice)
    assert "digest" in steps.step(Stage.PREPARE, started, {})
