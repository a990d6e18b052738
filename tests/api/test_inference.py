"""The Open Inference Protocol over HTTP, with the very door that a worker opens behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import numpy as np
import pytest
import torch

from app.core.config import Settings
from app.database import workers
from app.database.session import now
from app.database.workers import WorkerRecord
from app.inference.ensemble_predictor import NetworkFolds
from app.inference.model_cache import ModelCache
from app.inference.model_version import ModelVersion
from app.worker import ipc
from app.worker.tensor_server import TensorServer
from tests.api.conftest import House, running
from tests.factory import tiny_case
from tests.inference.test_open_inference import as_binary, as_json

pytestmark = pytest.mark.anyio
INFER = "/v2/models/tiny/versions/1.0.0/infer"


@contextmanager
def opened(house: House, name: str = "w") -> Iterator[ModelCache]:
    """A worker's door, with a worker on the roll behind it."""
    settings = house.services.settings
    settings.workers.mkdir(parents=True, exist_ok=True)
    predictor = ModelCache(settings.model_store, "cpu", 1)
    predictor.version("tiny", "1.0.0")
    door = TensorServer(settings.workers, name, predictor)
    door.open()
    with house.services.database.session() as session:
        workers.heartbeat(session, WorkerRecord(name, "here", 1, "cpu", ("tiny@1.0.0",), now(), now(), 1))
    try:
        yield predictor
    finally:
        door.close()


@pytest.fixture
async def busy(house: House) -> AsyncIterator[House]:
    with opened(house):
        yield house


def patient(version: ModelVersion, seed: int = 1) -> dict[str, np.ndarray]:
    case = tiny_case(version.manifest, seed=seed)
    return {"image": case.image, "clinical": case.clinical}


async def test_tensors_get_the_answer_that_a_prediction_would(house: House) -> None:
    with opened(house) as predictor:
        version = predictor.version("tiny", "1.0.0")
        expected = version.predict(tiny_case(version.manifest, seed=1))
        content, length = as_binary(patient(version))
        binary = await house.http.post(INFER, content=content, headers={"Inference-Header-Content-Length": str(length)})
        plain = await house.http.post("/v2/models/tiny/infer", content=as_json(patient(version), id="q-1"))
    assert binary.status_code == 200, binary.text
    assert binary.json() == plain.json()
    found = {each["name"]: each["data"] for each in binary.json()["outputs"]}
    assert found["probability"] == [pytest.approx(expected.probability, abs=1e-6)]
    assert found["folds"] == pytest.approx(expected.folds, abs=1e-6)
    assert found["refractory"] == [expected.decision.refractory]
    assert "Research use only" in binary.headers["x-notice"]


async def test_a_version_is_described(busy: House) -> None:
    described = (await busy.http.get("/v2/models/tiny/versions/champion")).json()
    assert described["versions"] == ["1.0.0"]
    assert {each["name"]: each["shape"] for each in described["inputs"]} == {
        "image": [-1, 2, 16, 16, 16],
        "clinical": [-1, 18],
    }
    assert (await busy.http.get("/v2/models/tiny")).json() == described
    assert (await busy.http.get("/v2/models/none")).status_code == 404
    assert (await busy.http.get("/v2/models/tiny@1.0.0")).status_code == 404
    assert (await busy.http.get("/v2")).json()["extensions"] == ["binary_tensor_data"]
    assert (await busy.http.get("/v2/health/live")).json() == {"live": True}
    assert (await busy.http.get("/v2/health/ready")).json() == {"ready": True}
    assert (await busy.http.get("/v2/models/tiny/ready")).json() == {"name": "tiny", "ready": True}


async def test_errors_speak_the_protocol_as_well(busy: House) -> None:
    refused = await busy.http.post(INFER, content=b'{"inputs": []}')
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid-request")
    assert refused.json()["error"] == refused.json()["detail"]
    odd = await busy.http.post(INFER, content=b"{}", headers={"Inference-Header-Content-Length": "-1"})
    assert (odd.status_code, "error" in odd.json()) == (400, True)
    assert "error" not in (await busy.http.get("/v1/models/none")).json()


async def test_without_a_worker_here_nothing_is_read(house: House) -> None:
    house.worker.beat("tiny@1.0.0")  # alive, on another machine
    answer = await house.http.post(INFER, content=b"{}")
    assert (answer.status_code, answer.json()["code"]) == (503, "model-not-ready")
    assert (await house.http.get("/v2/models/tiny/ready")).status_code == 503


async def test_a_dead_workers_socket_costs_no_answer(house: House) -> None:
    with opened(house, "alive") as predictor:
        content = as_json(patient(predictor.version("tiny", "1.0.0")))
        for name in ("dead-1", "dead-2", "dead-3"):
            ipc.Listener(house.services.settings.workers, name).close()  # its socket stays, and nobody is behind it
            with house.services.database.session() as session:
                workers.heartbeat(session, WorkerRecord(name, "here", 1, "cpu", ("tiny@1.0.0",), now(), now(), 1))
        for _ in range(5):
            assert (await house.http.post(INFER, content=content)).status_code == 200


async def test_many_at_once_are_all_answered(house: House) -> None:
    with opened(house) as predictor:
        version = predictor.version("tiny", "1.0.0")
        expected = [version.predict(tiny_case(version.manifest, seed=seed)).probability for seed in range(3)]
        bodies = [as_json(patient(version, seed)) for seed in range(3)]
        found: dict[int, float] = {}

        async def ask(number: int) -> None:
            answer = await house.http.post(INFER, content=bodies[number % 3])
            found[number] = answer.json()["outputs"][0]["data"][0]

        async with anyio.create_task_group() as tasks:
            for number in range(24):
                tasks.start_soon(ask, number)
    assert [found[number] for number in range(24)] == pytest.approx(expected * 8, abs=1e-6)


async def test_a_full_device_is_relieved_and_asked_again(house: House) -> None:
    with opened(house) as predictor:
        version = predictor.version("tiny", "1.0.0")
        content = as_json(patient(version))
        met = []

        def full(*_: object) -> None:
            met.append(None)
            raise torch.OutOfMemoryError

        assert isinstance(version.committee, NetworkFolds)
        version.committee.ensemble.folds[0].trunk.register_forward_pre_hook(full)
        assert (await house.http.post(INFER, content=content)).status_code == 200
        assert len(met) == 1


async def test_a_body_is_bounded_and_a_key_is_asked_for(settings: Settings, tmp_path: Path) -> None:
    strict = settings.model_copy(update={"auth": "keys", "data_dir": tmp_path / "strict"})
    async with running(strict) as house:
        assert (await house.http.post(INFER, content=b"{}")).status_code == 401
        assert (await house.http.get("/v2/health/live")).status_code == 200
    async with running(settings) as house:
        with opened(house):
            assert (await house.http.post(INFER, content=b" " * 4_000_001)).status_code == 413
            assert (await house.http.post(INFER, content=b" " * 3_000_000)).status_code == 400
