"""A load that loses the device ends its worker, after the operator's request has its result."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from app.database import model_requests, workers
from app.database.session import Database
from app.inference.model_cache import ModelCache
from app.inference.model_version import ModelVersion
from app.worker import lost_device
from app.worker.liveness import LivenessMonitor
from app.worker.model_loading import ModelLoader
from app.worker.queue import Queue
from app.worker.supervision import Supervisor
from tests.factory import tiny_version

FAULT = "CUDA error: an illegal memory access was encountered"


class Ended(BaseException):
    """In place of the end of the process."""


@pytest.fixture
def supervisor(database: Database, tmp_path: Path) -> Iterator[Supervisor]:
    """A supervisor of a worker that is asked to load a version."""
    tiny_version(tmp_path / "models")
    with database.session() as session:
        model_requests.request(session, "tiny", "1.0.0", wanted=True)
    cache = ModelCache(tmp_path / "models", "cpu", 1)
    liveness = LivenessMonitor("w", tmp_path, 15.0)
    yield Supervisor("w", database, Queue(database), cache, ModelLoader(database, cache), liveness)
    liveness.close()


def test_load_that_loses_the_device_ends_the_worker_after_its_result(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lose_device(*_: object) -> None:
        raise torch.AcceleratorError(f"{FAULT}\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.")

    def end(status: int) -> None:
        assert status == lost_device.EXIT_STATUS
        raise Ended

    monkeypatch.setattr(ModelVersion, "verify_golden_cases", lose_device)
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(Ended):
        supervisor.load_models()
    with supervisor.database.reading() as session:
        (worker,) = workers.registered(session)
    assert worker.load_results["tiny@1.0.0"].error == "The version could not be loaded: AcceleratorError"
    assert caplog.messages[-1].endswith(FAULT)


def test_load_of_damaged_files_does_not_end_the_worker(supervisor: Supervisor, tmp_path: Path) -> None:
    (tmp_path / "models" / "tiny" / "1.0.0" / "fold-0.safetensors").write_bytes(b"x")
    supervisor.load_models()
    assert supervisor.model_loader.results["tiny@1.0.0"].error
