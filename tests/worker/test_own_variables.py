"""Own variables in the worker: a shadow version checks the values of a record by its own declaration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from app.database import shadow_scores
from app.database.job_state import JobStudy
from app.database.session import Database
from app.inference import clinical_encoder
from app.inference.model_input import ModelInput
from app.inference.model_version import ModelVersion
from app.sdk.clinical import ClinicalRecord
from app.worker.pipeline import PredictionPipeline
from tests.factory import VARIABLES, tiny_version
from tests.inference.test_own_variables import DDIMER
from tests.worker.test_pipeline import run_all, started, steps, storage, tiny_input

__all__ = ["started", "steps", "storage"]


@pytest.mark.parametrize(("value", "counts"), [(812.0, (1, 0)), (-1.0, (0, 1)), (None, (1, 0))])
def test_shadow_version_reads_an_own_value_by_its_own_declaration(
    database: Database,
    steps: PredictionPipeline,
    started: JobStudy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    value: float | None,
    counts: tuple[int, int],
) -> None:
    def prepare(version: ModelVersion, _: object, record: ClinicalRecord) -> ModelInput:
        encoded = clinical_encoder.encode(record, version.manifest.clinical)
        return replace(tiny_input(version), imputed=encoded.imputed)

    monkeypatch.setattr(ModelVersion, "prepare", prepare)
    run_all(steps, steps.begin(started))
    tiny_version(tmp_path / "models", version="1.1.0", variables=(*VARIABLES, DDIMER))
    record = started.clinical if value is None else started.clinical | {"own": {"ddimer": value}}
    steps.shadow(replace(started, clinical=record), steps.model_cache.registry.resolve("tiny@1.1.0"))
    with database.reading() as session:
        (summary,) = shadow_scores.report(session, "tiny")
    assert (summary.scored, summary.failed) == counts
