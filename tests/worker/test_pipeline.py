"""The steps of a job, without a worker around them: what is tried again, what is final, what is logged."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
import torch

from app.database import job_state, predictions
from app.database.job_state import JobStudy
from app.database.session import Database
from app.imaging.io.limits import Limits
from app.inference.ensemble_predictor import NetworkFolds
from app.inference.model_cache import ModelCache
from app.inference.model_version import ModelVersion
from app.network.ensemble import Ensemble
from app.sdk.errors import InvalidVolume
from app.sdk.types import Stage, Status
from app.storage.local import Storage
from app.worker import pipeline
from app.worker.pipeline import PredictionPipeline, StepResults
from app.worker.queue import Queue
from tests import study
from tests.factory import tiny_case, tiny_version


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "blobs")


@pytest.fixture
def steps(database: Database, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PredictionPipeline:
    monkeypatch.setattr(pipeline, "PAUSE", 0.0)
    monkeypatch.setattr(ModelVersion, "prepare", lambda self, *_: tiny_case(self.manifest))
    tiny_version(tmp_path / "models")
    return PredictionPipeline(database, storage, Queue(database), ModelCache(tmp_path / "models", "cpu", 1), Limits())


@pytest.fixture
def started(database: Database, storage: Storage, steps: PredictionPipeline, tmp_path: Path) -> JobStudy:
    entry = steps._predictor.registry.resolve("tiny")
    prediction_id = study.submit(database, Queue(database), entry, study.store_volume(storage, tmp_path))
    with database.session() as session:
        found = job_state.start(session, prediction_id)
    assert found
    return found


def run_all(steps: PredictionPipeline, started: JobStudy, done: StepResults) -> None:
    for stage in Stage:
        done[stage] = steps.step(stage, started, done)
        assert "failure" not in done[stage]


def test_steps_hand_on_digests_and_end_in_the_record(
    database: Database, steps: PredictionPipeline, started: JobStudy
) -> None:
    done: StepResults = {}
    run_all(steps, started, done)
    assert all(set(step) == {"digest", "seconds"} for step in done.values())
    with database.reading() as session:
        assert predictions.find(session, started.id, None).status is Status.SUCCEEDED
        names = predictions.artifacts(session, started.id, None)
    assert "inputs/cta.nii" in names
    assert {"maps/attribution-cta.nii.gz", "maps/attribution-ncct.nii.gz"} <= set(names)


def test_a_record_is_made_once(database: Database, steps: PredictionPipeline, started: JobStudy) -> None:
    done: StepResults = {}
    run_all(steps, started, done)
    with database.reading() as session:
        before = predictions.find(session, started.id, None)
    assert "failure" not in steps.step(Stage.RECORD, started, done)
    with database.reading() as session:
        assert predictions.find(session, started.id, None) == before


def test_what_is_gone_from_the_workbench_is_made_again(
    database: Database, storage: Storage, steps: PredictionPipeline, started: JobStudy
) -> None:
    done: StepResults = {}
    for stage in Stage:
        storage.workbench(started.id).clear()
        done[stage] = steps.step(stage, started, done)
    with database.reading() as session:
        found = predictions.find(session, started.id, None)
    assert found.status is Status.SUCCEEDED
    assert found.attribution
    assert {"attribution-ncct", "attribution-cta"} <= set(found.attribution.maps)


def test_a_refusal_is_not_tried_again(
    steps: PredictionPipeline, started: JobStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    steps: PredictionPipeline, started: JobStudy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
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


def test_an_error_that_passes_is_survived(
    steps: PredictionPipeline, started: JobStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, tried = ModelVersion.prepare, 0

    def fail_twice(self: ModelVersion, *given: object) -> object:
        nonlocal tried
        tried += 1
        if tried < 3:
            raise OSError
        return prepare(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(ModelVersion, "prepare", fail_twice)
    assert "digest" in steps.step(Stage.PREPARE, started, {})


def room_for(versions: int, steps: PredictionPipeline, started: JobStudy) -> list[int]:
    """A device that holds ``versions`` loaded ones: with more, the network's own forward runs out of memory.

    Returns how many were loaded at each forward of the first convolution.
    """
    loaded: list[int] = []

    def forward(*_: object) -> None:
        loaded.append(len(steps._predictor.loaded()))
        if loaded[-1] > versions:
            raise torch.OutOfMemoryError

    committee = steps._predictor.version(started.model.name, started.model.version).committee
    assert isinstance(committee, NetworkFolds)
    first = next(part for part in committee.ensemble.folds[0].modules() if isinstance(part, torch.nn.Conv3d))
    first.register_forward_pre_hook(forward)
    return loaded


def test_a_full_device_is_relieved_and_the_step_tried_again(
    database: Database, steps: PredictionPipeline, started: JobStudy, tmp_path: Path
) -> None:
    tiny_version(tmp_path / "models", name="other")
    loaded = room_for(1, steps, started)
    steps._predictor.version("other", "1.0.0")
    done: StepResults = {}
    run_all(steps, started, done)
    assert loaded[:2] == [2, 1]
    assert [ref.name for ref in steps._predictor.loaded()] == ["tiny"]
    with database.reading() as session:
        assert predictions.find(session, started.id, None).status is Status.SUCCEEDED


def test_a_device_that_is_full_with_one_version_has_it_loaded_anew(
    steps: PredictionPipeline, started: JobStudy
) -> None:
    loaded = room_for(0, steps, started)  # as scattered memory is: enough of it, once it is given back
    done: StepResults = {}
    run_all(steps, started, done)
    assert loaded == [1]


def test_a_device_that_is_too_small_fails_the_step_and_not_the_worker(
    steps: PredictionPipeline, started: JobStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*_: object) -> NoReturn:
        torch.empty(2**50)
        raise AssertionError

    done: StepResults = {Stage.PREPARE: steps.step(Stage.PREPARE, started, {})}
    with monkeypatch.context() as small:
        small.setattr(Ensemble, "trunk", forward)
        assert steps.step(Stage.PREDICT, started, done)["failure"]["code"] == "internal-error"
    assert "digest" in steps.step(Stage.PREDICT, started, done)
