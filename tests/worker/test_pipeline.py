"""The steps of a prediction without a worker process: order, retries, takeover and logged errors."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch

from app.database import job_state, predictions, shadow_scores
from app.database.job_state import JobStudy
from app.database.session import Database
from app.database.tables import PredictionRow
from app.imaging.aligned_study import PatientGrid, Source
from app.imaging.io import nifti
from app.imaging.io.limits import Limits
from app.inference.ensemble_predictor import NetworkFolds
from app.inference.model_cache import ModelCache
from app.inference.model_input import ModelInput
from app.inference.model_version import ModelVersion
from app.inference.replay import SAME
from app.network.ensemble import Ensemble
from app.reporting import page
from app.sdk.errors import InvalidVolume
from app.sdk.series import SeriesSummary
from app.sdk.summary import is_synthetic
from app.sdk.types import Channel, FiguresState, Flag, FoldSpread, Input, Prediction, Stage, Status
from app.storage.local import Storage
from app.worker import pipeline
from app.worker.drawing_data import DATA, DrawingData
from app.worker.pipeline import PredictionPipeline
from app.worker.prediction_context import PredictionContext, StepResults
from app.worker.queue import Queue
from tests import study
from tests.factory import tiny_case, tiny_version
from tests.inference.test_finite import rewrite, set_value


def tiny_input(version: ModelVersion, *_: object) -> ModelInput:
    """A ready model input, instead of a registration; the CTA of the study is the source of its channel."""
    grids = {Channel.CTA: PatientGrid(study.AFFINE, (16, 16, 16), np.eye(4))}
    return replace(tiny_case(version.manifest), grids=grids, sources={Channel.CTA: Source(Input.CTA)})


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "blobs")


@pytest.fixture
def steps(database: Database, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PredictionPipeline:
    monkeypatch.setattr(pipeline, "PAUSE", 0.0)
    monkeypatch.setattr(ModelVersion, "prepare", tiny_input)
    tiny_version(tmp_path / "models")
    return PredictionPipeline(database, storage, Queue(database), ModelCache(tmp_path / "models", "cpu", 1), Limits())


@pytest.fixture
def started(database: Database, storage: Storage, steps: PredictionPipeline, tmp_path: Path) -> JobStudy:
    entry = steps.model_cache.registry.resolve("tiny")
    prediction_id = study.submit(database, Queue(database), entry, study.store_volume(storage, tmp_path))
    with database.session() as session:
        started = job_state.start(session, prediction_id)
    assert started
    return started


@pytest.fixture
def context(steps: PredictionPipeline, started: JobStudy) -> PredictionContext:
    return steps.begin(started)


def run_step(steps: PredictionPipeline, stage: Stage, context: PredictionContext) -> None:
    result = steps.step(stage, context)
    assert "failure" not in result
    context.results[stage] = result


def run_all(steps: PredictionPipeline, context: PredictionContext) -> StepResults:
    for stage in Stage:
        run_step(steps, stage, context)
    return context.results


def find(database: Database, prediction_id: str) -> Prediction:
    with database.reading() as session:
        return predictions.find(session, prediction_id, None)


@pytest.fixture
def read_fields(monkeypatch: pytest.MonkeyPatch) -> list[Input]:
    """The volumes that were read, in order."""
    original, fields = nifti.read, []

    def read(path: Path, *, field: Input, limits: Limits) -> nifti.Volume:
        fields.append(field)
        return original(path, field=field, limits=limits)

    monkeypatch.setattr(nifti, "read", read)
    return fields


def test_steps_log_digests_and_end_in_the_record(
    database: Database, steps: PredictionPipeline, context: PredictionContext
) -> None:
    results = run_all(steps, context)
    assert all(list(result) == ["digest", "seconds"] for result in results.values())
    assert results[Stage.RECORD]["digest"] == ""
    prediction = find(database, context.study.id)
    assert prediction.status is Status.SUCCEEDED
    with database.reading() as session:
        names = predictions.artifacts(session, context.study.id, None)
    assert "inputs/cta.nii" in names
    assert {"maps/attribution-cta.nii.gz", "maps/attribution-ncct.nii.gz"} <= set(names)
    assert prediction.figures is FiguresState.PENDING
    assert not [name for name in names if name.startswith("figures/") or name == "report.html"]
    assert prediction.attribution
    maps = {name.removeprefix("maps/").removesuffix(".nii.gz") for name in names if name.startswith("maps/")}
    assert set(prediction.attribution.maps) == maps


def test_figures_of_an_earlier_release_are_not_drawn_again(
    database: Database, steps: PredictionPipeline, context: PredictionContext
) -> None:
    """The release before has explained with figures, and this one records."""
    for stage in (Stage.PREPARE, Stage.PREDICT, Stage.EXPLAIN):
        run_step(steps, stage, context)
    explanation = context.explanation()
    explanation["files"].append(("report.html", context.scratch.put(b"<html>"), "text/html"))
    context.put_output(Stage.EXPLAIN, json.dumps(explanation).encode())
    pipeline.record(context, partial(steps._succeed, context.study))
    assert find(database, context.study.id).figures is FiguresState.READY


def test_result_is_recorded_once(database: Database, steps: PredictionPipeline, context: PredictionContext) -> None:
    run_all(steps, context)
    before = find(database, context.study.id)
    assert "failure" not in steps.step(Stage.RECORD, context)
    assert find(database, context.study.id) == before


def test_output_that_is_gone_is_computed_again(
    database: Database, storage: Storage, steps: PredictionPipeline, context: PredictionContext
) -> None:
    for stage in Stage:
        storage.scratch(context.study.id).clear()
        run_step(steps, stage, context)
    prediction = find(database, context.study.id)
    assert prediction.status is Status.SUCCEEDED
    assert prediction.attribution
    assert {"attribution-ncct", "attribution-cta"} <= set(prediction.attribution.maps)


@pytest.mark.parametrize("cleared", [False, True], ids=["same machine", "another machine"])
@pytest.mark.parametrize("stage", [Stage.PREDICT, Stage.EXPLAIN, Stage.RECORD])
def test_takeover_continues_after_the_last_logged_step(
    database: Database, storage: Storage, steps: PredictionPipeline, started: JobStudy, stage: Stage, cleared: bool
) -> None:
    stopped, successor = steps.begin(started), steps.begin(started)
    for each in list(Stage)[: list(Stage).index(stage)]:
        run_step(steps, each, stopped)
    logged = {each: stopped.results[each]["digest"] for each in list(stopped.results)[:2]}
    successor.results = stopped.results
    if cleared:
        storage.scratch(started.id).clear()
    for each in list(Stage)[list(Stage).index(stage) :]:
        run_step(steps, each, successor)
    assert {each: successor.results[each]["digest"] for each in logged} == logged
    assert find(database, started.id).status is Status.SUCCEEDED


def test_interval_that_an_earlier_release_computed_is_recorded_as_the_spread_of_the_folds(
    database: Database, steps: PredictionPipeline, context: PredictionContext
) -> None:
    for stage in (Stage.PREPARE, Stage.PREDICT):
        run_step(steps, stage, context)
    answer = context.answer()
    earlier = answer | {"interval": {"level": 0.9, "low": 0.01, "high": 0.99}}
    context.results[Stage.PREDICT]["digest"] = context.put_output(Stage.PREDICT, json.dumps(earlier).encode())
    for stage in (Stage.EXPLAIN, Stage.RECORD):
        run_step(steps, stage, context)
    interval = FoldSpread(low=min(answer["folds"]), high=max(answer["folds"]))
    assert find(database, context.study.id).interval == interval


def test_every_answer_of_a_version_says_whether_its_training_patients_were_synthetic(
    steps: PredictionPipeline, started: JobStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = steps.begin(started)
    version = context.version()
    run_all(steps, context)
    assert is_synthetic(Flag.model_validate(flag) for flag in context.answer()["flags"])
    training = version.manifest.training.model_copy(update={"synthetic": False})
    monkeypatch.setattr(version, "manifest", version.manifest.model_copy(update={"training": training}))
    assert pipeline._origin(context) == []


DOUBTFUL = (Flag(code="imputed", detail="age: not given"), Flag(code="alignment-poor", detail="cta: it is poor"))


@pytest.mark.parametrize("accepted", [False, True], ids=["by default", "warnings accepted"])
@pytest.mark.parametrize("codes", [["imputed"], ["imputed", "alignment-poor"]], ids=["info", "warning"])
def test_warnings_withhold_the_decision_unless_they_are_accepted(
    database: Database,
    steps: PredictionPipeline,
    started: JobStudy,
    monkeypatch: pytest.MonkeyPatch,
    codes: list[str],
    accepted: bool,
) -> None:
    flags = tuple(flag for flag in DOUBTFUL if flag.code in codes)
    monkeypatch.setattr(ModelVersion, "prepare", lambda version, *_: replace(tiny_input(version), flags=flags))
    context = steps.begin(replace(started, accept_warnings=accepted))
    run_all(steps, context)
    prediction = find(database, started.id)
    withheld = [] if accepted or codes == ["imputed"] else ["alignment-poor"]
    assert (prediction.decision is None, prediction.withheld) == (bool(withheld), withheld)
    assert prediction.probability is not None
    assert prediction.attribution
    with database.reading() as session:
        digest, _ = predictions.artifact(session, started.id, None, DATA)
    data = DrawingData.model_validate_json(context.storage.read(digest))
    report = page.report(data.prediction, {}, data.card)
    assert ("Decision withheld: alignment poor." in report) is bool(withheld)
    answer, tolerance = steps.replay(started)
    assert answer.probability == prediction.probability
    assert tolerance == SAME  # the record says that a CPU computed it in float32, as here


def test_flags_and_series_of_a_dicom_study_are_in_the_answer(
    database: Database, steps: PredictionPipeline, started: JobStudy
) -> None:
    flags = [Flag(code="slices-interpolated", detail="cta"), Flag(code="series-role-doubtful", detail="cta")]
    series = [
        SeriesSummary(number=4, modality="CT", images=16, role="cta", used=True, rule="words-cta", reason="It is.")
    ]
    with database.session() as session:
        row = session.get(PredictionRow, started.id)
        assert row is not None
        row.series = [each.model_dump(mode="json") for each in series]
        row.intake_flags = [each.model_dump(mode="json") for each in flags]
    with database.session() as session:
        study = job_state.start(session, started.id)
    assert study is not None
    run_all(steps, steps.begin(study))
    prediction = find(database, started.id)
    assert prediction.withheld == ["series-role-doubtful"]
    assert prediction.series == series
    assert [flag.code for flag in prediction.flags][:2] == ["slices-interpolated", "series-role-doubtful"]


def test_shadow_of_a_withheld_decision_has_a_difference_and_no_agreement(
    database: Database, steps: PredictionPipeline, started: JobStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelVersion, "prepare", lambda version, *_: replace(tiny_input(version), flags=DOUBTFUL))
    run_all(steps, steps.begin(started))
    steps.shadow(started, steps.model_cache.registry.resolve("tiny"))
    with database.reading() as session:
        (summary,) = shadow_scores.report(session, "tiny")
    assert (summary.scored, summary.failed, summary.decided, summary.agreed) == (1, 0, 0, 0)
    assert summary.mean_difference == 0


def test_shadow_with_weights_that_are_not_finite_is_a_failed_score(
    database: Database, steps: PredictionPipeline, started: JobStudy, tmp_path: Path
) -> None:
    run_all(steps, steps.begin(started))
    rewrite(tiny_version(tmp_path / "models", version="1.1.0", seed=1), set_value("head.weight", float("nan")))
    steps.shadow(started, steps.model_cache.registry.resolve("tiny@1.1.0"))
    with database.reading() as session:
        (summary,) = shadow_scores.report(session, "tiny")
    assert (summary.scored, summary.failed, summary.mean_difference) == (0, 1, None)


def test_answer_that_is_not_finite_is_not_recorded(
    database: Database, steps: PredictionPipeline, context: PredictionContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = np.full((2, 16, 16, 16), np.finfo(np.float32).max)
    monkeypatch.setattr(ModelVersion, "prepare", lambda version, *_: replace(tiny_input(version), image=huge))
    run_step(steps, Stage.PREPARE, context)
    failure = steps.step(Stage.PREDICT, context)["failure"]
    assert failure["code"] == "internal-error"
    assert "no finite number" in failure["detail"]


def test_volume_is_read_once_and_released(
    steps: PredictionPipeline, context: PredictionContext, read_fields: list[Input]
) -> None:
    for stage in (Stage.PREPARE, Stage.PREDICT, Stage.EXPLAIN):
        run_step(steps, stage, context)
        assert read_fields == [Input.CTA]
    assert context._volumes == {}
    run_step(steps, Stage.RECORD, context)
    assert read_fields == [Input.CTA]
    context.close()
    assert context._outputs == {}


def test_volume_is_released_at_once_without_an_explanation(
    steps: PredictionPipeline, started: JobStudy, read_fields: list[Input]
) -> None:
    context = steps.begin(replace(started, explain=False))
    run_step(steps, Stage.PREPARE, context)
    assert read_fields == [Input.CTA]
    assert context._volumes == {}


def test_refusal_is_not_tried_again(
    steps: PredictionPipeline, context: PredictionContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    def refuse(*_: object) -> NoReturn:
        nonlocal tries
        tries += 1
        raise InvalidVolume("The volume is cut off")

    monkeypatch.setattr(ModelVersion, "prepare", refuse)
    assert steps.step(Stage.PREPARE, context) == {
        "failure": {"code": "nifti-invalid", "title": InvalidVolume.title, "detail": "The volume is cut off"}
    }
    assert tries == 1


def test_unexpected_error_is_tried_three_times_and_its_message_is_hidden(
    steps: PredictionPipeline,
    context: PredictionContext,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries = 0

    def fail(*_: object) -> NoReturn:
        nonlocal tries
        tries += 1
        raise ValueError("CANARY: age 71")

    monkeypatch.setattr(ModelVersion, "prepare", fail)
    result = steps.step(Stage.PREPARE, context)
    assert tries == 3
    assert result["failure"]["code"] == "internal-error"
    assert "CANARY" not in str(result) + caplog.text
    assert "ValueError at test_pipeline.py:" in caplog.text


def test_third_try_can_succeed(
    steps: PredictionPipeline, context: PredictionContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    def fail_twice(version: ModelVersion, *_: object) -> ModelInput:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise OSError
        return tiny_input(version)

    monkeypatch.setattr(ModelVersion, "prepare", fail_twice)
    assert "digest" in steps.step(Stage.PREPARE, context)


def limit_device(versions: int, steps: PredictionPipeline, study: JobStudy) -> list[int]:
    """A device with memory for ``versions`` loaded versions; with more, the forward pass runs out of memory.

    Returns the number of loaded versions at each forward pass of the first convolution.
    """
    loaded: list[int] = []

    def forward(*_: object) -> None:
        loaded.append(len(steps.model_cache.loaded()))
        if loaded[-1] > versions:
            raise torch.OutOfMemoryError

    predictor = steps.model_cache.version(study.model.name, study.model.version).predictor
    assert isinstance(predictor, NetworkFolds)
    first = next(part for part in predictor.ensemble.folds[0].modules() if isinstance(part, torch.nn.Conv3d))
    first.register_forward_pre_hook(forward)
    return loaded


def test_full_device_unloads_other_versions_and_the_step_is_tried_again(
    database: Database, steps: PredictionPipeline, context: PredictionContext, tmp_path: Path
) -> None:
    tiny_version(tmp_path / "models", name="other")
    loaded = limit_device(1, steps, context.study)
    steps.model_cache.version("other", "1.0.0")
    run_all(steps, context)
    assert loaded[:2] == [2, 1]
    assert [ref.name for ref in steps.model_cache.loaded()] == ["tiny"]
    assert find(database, context.study.id).status is Status.SUCCEEDED


def test_device_that_is_full_with_one_version_loads_it_again(
    steps: PredictionPipeline, context: PredictionContext
) -> None:
    loaded = limit_device(0, steps, context.study)  # like fragmented memory, which is enough after a release
    run_all(steps, context)
    assert loaded == [1]


def test_device_without_enough_memory_fails_the_step_and_not_the_worker(
    steps: PredictionPipeline, context: PredictionContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*_: object) -> NoReturn:
        torch.empty(2**50)
        raise AssertionError

    run_step(steps, Stage.PREPARE, context)
    with monkeypatch.context() as patched:
        patched.setattr(Ensemble, "trunk", forward)
        assert steps.step(Stage.PREDICT, context)["failure"]["code"] == "internal-error"
    assert "digest" in steps.step(Stage.PREDICT, context)
