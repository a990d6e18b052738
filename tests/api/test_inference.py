"""The Open Inference Protocol over HTTP, with the real tensor server of a worker."""

from __future__ import annotations

import json
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
from app.inference import open_inference
from app.inference.ensemble_predictor import NetworkFolds
from app.inference.model_cache import ModelCache
from app.inference.model_version import ModelVersion
from app.worker import ipc
from app.worker.tensor_server import TensorServer
from tests.api.conftest import RunningService, running
from tests.api.responses import problem
from tests.factory import tiny_case, tiny_manifest
from tests.inference.tensor_requests import as_binary, as_json

pytestmark = pytest.mark.anyio
INFER = "/v2/models/tiny/versions/1.0.0/infer"


@contextmanager
def tensor_server(service: RunningService, name: str = "w") -> Iterator[ModelCache]:
    """Runs a tensor server and registers its worker; gives the models that it serves."""
    settings = service.services.settings
    settings.workers.mkdir(parents=True, exist_ok=True)
    models = ModelCache(settings.model_store, "cpu", 1)
    models.version("tiny", "1.0.0")
    server = TensorServer(settings.workers, name, models)
    server.open()
    with service.services.database.session() as session:
        workers.heartbeat(session, WorkerRecord(name, "here", 1, "cpu", ("tiny@1.0.0",), now(), now(), 1))
    try:
        yield models
    finally:
        server.close()


@pytest.fixture
async def with_worker(service: RunningService) -> AsyncIterator[RunningService]:
    with tensor_server(service):
        yield service


def patient(version: ModelVersion, seed: int = 1) -> dict[str, np.ndarray]:
    case = tiny_case(version.manifest, seed=seed)
    return {"image": case.image, "clinical": case.clinical}


async def test_tensors_give_the_same_numbers_as_a_prediction(service: RunningService) -> None:
    with tensor_server(service) as models:
        version = models.version("tiny", "1.0.0")
        expected = version.predict(tiny_case(version.manifest, seed=1))
        content, length = as_binary(patient(version))
        binary = await service.http.post(
            INFER, content=content, headers={"Inference-Header-Content-Length": str(length)}
        )
        plain = await service.http.post("/v2/models/tiny/infer", content=as_json(patient(version), id="q-1"))
    assert binary.status_code == 200, binary.text
    assert binary.json() == plain.json()
    outputs = {each["name"]: each["data"] for each in binary.json()["outputs"]}
    assert outputs["probability"] == [pytest.approx(expected.probability, abs=1e-6)]
    assert outputs["folds"] == pytest.approx(expected.folds, abs=1e-6)
    assert outputs["refractory"] == [expected.decision.refractory]
    assert outputs["withheld"] == [False]
    assert "Research use only" in binary.headers["x-notice"]


async def test_metadata_describes_a_version(with_worker: RunningService) -> None:
    described = (await with_worker.http.get("/v2/models/tiny/versions/champion")).json()
    assert described["versions"] == ["1.0.0"]
    assert {each["name"]: each["shape"] for each in described["inputs"]} == {
        "image": [-1, 2, 16, 16, 16],
        "clinical": [-1, 18],
    }
    assert (await with_worker.http.get("/v2/models/tiny")).json() == described
    assert (await with_worker.http.get("/v2/models/none")).status_code == 404
    assert (await with_worker.http.get("/v2/models/tiny@1.0.0")).status_code == 404
    assert (await with_worker.http.get("/v2")).json()["extensions"] == ["binary_tensor_data"]
    assert (await with_worker.http.get("/v2/health/live")).json() == {"live": True}
    assert (await with_worker.http.get("/v2/health/ready")).json() == {"ready": True}
    assert (await with_worker.http.get("/v2/models/tiny/ready")).json() == {"name": "tiny", "ready": True}


async def test_errors_have_the_member_of_the_protocol(with_worker: RunningService) -> None:
    refused = await with_worker.http.post(INFER, content=b'{"inputs": []}')
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid-request")
    assert refused.json()["error"] == refused.json()["detail"]
    odd = await with_worker.http.post(INFER, content=b"{}", headers={"Inference-Header-Content-Length": "-1"})
    assert (odd.status_code, "error" in odd.json()) == (400, True)
    assert "error" not in (await with_worker.http.get("/v1/models/none")).json()


async def test_tensors_without_a_finite_answer_are_an_invalid_request(service: RunningService) -> None:
    with tensor_server(service) as models:
        tensors = patient(models.version("tiny", "1.0.0"))
        tensors["image"] = np.full_like(tensors["image"], np.finfo(np.float32).max)
        answer = await service.http.post(INFER, content=as_json(tensors))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request"), answer.text


async def test_infer_without_a_local_worker_gives_503(service: RunningService) -> None:
    service.worker.heartbeat("tiny@1.0.0")  # alive, on another machine
    answer = await service.http.post(INFER, content=b"{}")
    assert (answer.status_code, answer.json()["code"]) == (503, "model-not-ready")
    assert (await service.http.get("/v2/models/tiny/ready")).status_code == 503


async def test_sockets_of_stopped_workers_are_skipped(service: RunningService) -> None:
    with tensor_server(service, "alive") as models:
        content = as_json(patient(models.version("tiny", "1.0.0")))
        for name in ("dead-1", "dead-2", "dead-3"):
            # The socket file remains, but no process listens.
            ipc.Listener(service.services.settings.workers, name).close()
            with service.services.database.session() as session:
                workers.heartbeat(session, WorkerRecord(name, "here", 1, "cpu", ("tiny@1.0.0",), now(), now(), 1))
        for _ in range(5):
            assert (await service.http.post(INFER, content=content)).status_code == 200


async def test_concurrent_requests_all_get_their_own_answer(service: RunningService) -> None:
    with tensor_server(service) as models:
        version = models.version("tiny", "1.0.0")
        expected = [version.predict(tiny_case(version.manifest, seed=seed)).probability for seed in range(3)]
        bodies = [as_json(patient(version, seed)) for seed in range(3)]
        probabilities: dict[int, float] = {}

        async def send(number: int) -> None:
            answer = await service.http.post(INFER, content=bodies[number % 3])
            probabilities[number] = answer.json()["outputs"][0]["data"][0]

        async with anyio.create_task_group() as tasks:
            for number in range(24):
                tasks.start_soon(send, number)
    assert [probabilities[number] for number in range(24)] == pytest.approx(expected * 8, abs=1e-6)


async def test_request_is_repeated_after_the_device_ran_out_of_memory(service: RunningService) -> None:
    with tensor_server(service) as models:
        version = models.version("tiny", "1.0.0")
        content = as_json(patient(version))
        calls = []

        def out_of_memory(*_: object) -> None:
            calls.append(None)
            raise torch.OutOfMemoryError

        assert isinstance(version.predictor, NetworkFolds)
        version.predictor.ensemble.folds[0].trunk.register_forward_pre_hook(out_of_memory)
        assert (await service.http.post(INFER, content=content)).status_code == 200
        assert len(calls) == 1


async def test_infer_needs_a_key_and_limits_the_body(settings: Settings, tmp_path: Path) -> None:
    strict = settings.model_copy(update={"auth": "keys", "data_dir": tmp_path / "strict"})
    async with running(strict) as service:
        assert (await service.http.post(INFER, content=b"{}")).status_code == 401
        assert (await service.http.get("/v2/health/live")).status_code == 200
    async with running(settings) as service:
        with tensor_server(service):
            assert (await service.http.post(INFER, content=b" " * 4_000_001)).status_code == 413
            assert (await service.http.post(INFER, content=b" " * 2_000_000)).status_code == 400


async def test_body_beyond_the_tensors_of_the_version_is_refused(with_worker: RunningService) -> None:
    limit = open_inference.max_request_bytes(tiny_manifest())
    assert limit < with_worker.services.settings.max_body_bytes

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(limit // 1000 + 1):
            yield b"1," * 500

    for content in (b" " * (limit + 1), chunks()):
        refused = await with_worker.http.post(INFER, content=content)
        assert problem(refused) == (413, "payload-too-large")
        assert "binary_data_size" in refused.json()["detail"]
        assert refused.json()["error"] == refused.json()["detail"]


async def test_most_patients_in_the_longest_json_are_accepted(service: RunningService) -> None:
    with tensor_server(service) as models:
        version = models.version("tiny", "1.0.0")
        cases = [patient(version, seed) for seed in range(8)]
        many = {name: np.stack([case[name] for case in cases]).astype(np.float64) * (1 + 1e-15) for name in cases[0]}
        content = json.dumps(json.loads(as_json(many, "FP64")), indent=1).encode()
        answer = await service.http.post(INFER, content=content)
        expected = [version.predict(tiny_case(version.manifest, seed=seed)).probability for seed in range(8)]
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == pytest.approx(expected, abs=1e-5)
