"""Workers with and without a GPU share one queue: one may explain what another one predicted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.database import job_state, predictions
from app.database.session import Database
from app.imaging.io.limits import Limits
from app.inference.model_cache import ModelCache
from app.inference.model_version import ModelVersion
from app.sdk.types import Prediction, Stage
from app.storage.local import Storage
from app.worker.pipeline import PredictionPipeline
from app.worker.prediction_context import PredictionContext
from app.worker.queue import Queue
from tests import study
from tests.factory import tiny_case, tiny_version

OTHER = 0.004  # a difference of probability that bfloat16 may make


@pytest.fixture
def steps(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PredictionPipeline:
    monkeypatch.setattr(ModelVersion, "prepare", lambda version, *_: tiny_case(version.manifest))
    tiny_version(tmp_path / "models")
    cache = ModelCache(tmp_path / "models", "cpu", 1)
    return PredictionPipeline(database, Storage(tmp_path / "blobs"), Queue(database), cache, Limits())


@pytest.fixture
def context(database: Database, steps: PredictionPipeline, tmp_path: Path) -> PredictionContext:
    entry = steps.model_cache.registry.resolve("tiny")
    prediction_id = study.submit(database, steps.queue, entry, study.store_volume(steps.storage, tmp_path))
    with database.session() as session:
        started = job_state.start(session, prediction_id)
    assert started
    return steps.begin(started)


def record(steps: PredictionPipeline, context: PredictionContext, computed_on: list[str] | None) -> Prediction:
    """Run all steps; the answer is moved by `OTHER` and said to be ``computed_on`` a device before it is explained."""
    for stage in Stage:
        result = steps.step(stage, context)
        assert "failure" not in result
        context.results[stage] = result
        if stage is Stage.PREDICT:
            answer = context.answer() | {"probability": context.answer()["probability"] + OTHER}
            del answer["computed_on"]
            answer |= {"computed_on": computed_on} if computed_on else {}
            result["digest"] = context.put_output(stage, json.dumps(answer).encode())
    with steps.database.reading() as session:
        return predictions.find(session, context.study.id, None)


def exact(steps: PredictionPipeline, context: PredictionContext) -> float:
    version = context.version()
    return version.predict(version.prepare({}, context.clinical_record())).probability


@pytest.mark.parametrize("other", [["cuda", "bfloat16"], ["cuda", "float32"], ["cpu", "bfloat16"]])
def test_answer_of_another_device_is_computed_again_before_it_is_explained(
    steps: PredictionPipeline, context: PredictionContext, other: list[str]
) -> None:
    found = record(steps, context, other)
    assert found.probability == pytest.approx(exact(steps, context), abs=1e-6)
    with steps.database.reading() as session:
        stored = job_state.recorded(session, context.study.id)
    assert (stored.device, stored.precision) == ("cpu", "float32")


@pytest.mark.parametrize("same", [["cpu", "float32"], None])
def test_answer_of_such_a_device_or_of_an_earlier_release_stays(
    steps: PredictionPipeline, context: PredictionContext, same: list[str] | None
) -> None:
    assert record(steps, context, same).probability == pytest.approx(exact(steps, context) + OTHER, abs=1e-6)
