"""The interval that the caller sent replaces that of the header when the worker reads the series."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from app.database.job_state import JobStudy
from app.imaging.io.limits import DEFAULT
from app.inference.model_cache import ModelCache
from app.sdk.types import Input, InputSummary
from app.storage.local import Storage
from app.worker.prediction_context import PredictionContext
from tests.imaging.hostile import build
from tests.study import MODEL


@pytest.mark.parametrize(
    ("sent", "step", "codes"), [(None, 1.0, ["time-step-default"]), (1.5, 1.5, [])], ids=["not sent", "sent"]
)
def test_interval_of_the_study_is_used(tmp_path: Path, sent: float | None, step: float, codes: list[str]) -> None:
    voxels = np.arange(5 * 4 * 3 * 9, dtype=np.int16).reshape(5, 4, 3, 9)
    data = build(voxels, xyzt_units=2, pixdim=(1.0, 2.0, 2.0, 5.0, 1.0, 0.0, 0.0, 0.0))  # no unit of time
    storage = Storage(tmp_path)
    summary = InputSummary(sha256=storage.put(data), bytes=len(data), shape=[5, 4, 3, 9], spacing_mm=[2, 2, 5])
    study = JobStudy(
        id="01",
        run=1,
        attempts=1,
        model=MODEL,
        subject=None,
        created=datetime.now(UTC),
        explain=False,
        clinical={},
        inputs={Input.CTP: summary},
        ctp_interval_s=sent,
    )
    context = PredictionContext(study, cast("ModelCache", None), storage, DEFAULT)
    volume = context.volumes()[Input.CTP]
    assert volume.time_step_s == step
    assert [flag.code for flag in volume.flags if flag.code.startswith("time")] == codes
