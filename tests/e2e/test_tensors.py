"""Prepared tensors through the whole service: the API process passes them on, the worker answers."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from app.inference.model_cache import ModelCache
from tests.factory import tiny_case
from tests.inference.test_open_inference import as_binary

from .house import House

pytestmark = pytest.mark.xdist_group("journeys")


def test_a_triton_client_gets_the_number_that_the_model_gives(house: House, model_store: Path) -> None:
    version = ModelCache(model_store, "cpu", 1).version("tiny", "1.0.0")
    case = tiny_case(version.manifest, seed=4)
    content, length = as_binary({"image": case.image, "clinical": case.clinical})
    answer = httpx.post(
        f"{house.url}/v2/models/tiny/versions/champion/infer",
        content=content,
        headers={"Inference-Header-Content-Length": str(length)},
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"][0] == pytest.approx(version.predict(case).probability, abs=1e-5)
    assert httpx.get(f"{house.url}/v2/models/tiny/ready").json()["ready"]
    assert [path.suffix for path in (house.folder / "workers").iterdir() if path.suffix] == [".tensors"]
