"""Prepared tensors: the API process forwards them, and the worker computes the response."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from app.inference.model_cache import ModelCache
from tests.factory import tiny_case
from tests.inference.tensor_requests import as_binary

from .service_process import RunningService

pytestmark = pytest.mark.xdist_group("e2e")


def test_open_inference_request_gives_the_number_of_the_model(service: RunningService, model_store: Path) -> None:
    version = ModelCache(model_store, "cpu", 1).version("tiny", "1.0.0")
    case = tiny_case(version.manifest, seed=4)
    content, length = as_binary({"image": case.image, "clinical": case.clinical})
    response = httpx.post(
        f"{service.url}/v2/models/tiny/versions/champion/infer",
        content=content,
        headers={"Inference-Header-Content-Length": str(length)},
        timeout=60,
    )
    assert response.status_code == 200, response.text
    assert response.json()["outputs"][0]["data"][0] == pytest.approx(version.predict(case).probability, abs=1e-5)
    assert httpx.get(f"{service.url}/v2/models/tiny/ready", timeout=60).json()["ready"]
    assert [path.suffix for path in (service.folder / "workers").iterdir() if path.suffix] == [".tensors"]
