"""Prepared tensors in the Open Inference Protocol: parsing, refusals and responses."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from app.inference import open_inference
from app.sdk.errors import InvalidRequest, MalformedJson
from tests.factory import tiny_manifest
from tests.inference.tensor_requests import as_binary, as_json

MANIFEST = tiny_manifest()
SHAPES = open_inference.shapes(MANIFEST)
RNG = np.random.default_rng(0)
ONE = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def test_json_and_binary_requests_are_equal() -> None:
    many = {name: np.stack([array, array + 1]) for name, array in ONE.items()}
    for values in (ONE, many):
        read = [
            open_inference.parse(as_json(values), None, MANIFEST),
            open_inference.parse(*as_binary(values), MANIFEST),
            open_inference.parse(*as_binary({k: v.astype(np.float64) for k, v in values.items()}, "FP64"), MANIFEST),
            open_inference.parse(
                as_json({k: v.ravel().reshape(v.shape) for k, v in values.items()}, "FP64"), None, MANIFEST
            ),
        ]
        for request in read:
            assert np.array_equal(request.image, values["image"].reshape(-1, *SHAPES["image"]))
            assert np.array_equal(request.clinical, values["clinical"].reshape(-1, *SHAPES["clinical"]))
            assert request.image.dtype == np.float32
    assert [request.id for request in read] == [None, "q-1", "q-1", None]


def changed(**change: Any) -> bytes:
    """A request with a changed description of the image."""
    document = json.loads(as_json(ONE))
    document["inputs"][0] |= change
    return json.dumps(document).encode()


NAN = as_json(ONE | {"image": np.full_like(ONE["image"], np.nan)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "list its tensors"),
        (b"[]", "list its tensors"),
        (b'{"inputs": 3}', "list its tensors"),
        (b'{"inputs": []}', "missing"),
        (as_json({"clinical": ONE["clinical"]}), "image is missing"),
        (as_json(ONE | {"extra": ONE["image"]}), "takes the inputs"),
        (changed(datatype="INT8"), "FP32 or FP64"),
        (changed(shape=[1, 2, 3]), "of the shape"),
        (changed(shape=[2, *SHAPES["image"]]), "the shape needs"),
        (changed(shape=[True, *SHAPES["image"]]), "of the shape"),
        (changed(shape="x"), "of the shape"),
        (changed(data=["a"]), "do not match the datatype"),
        (changed(data=[[1.0], [1.0, 2.0]]), "do not match the datatype"),
        (changed(data=None), "the shape needs|finite|match the datatype"),
        (changed(parameters={"binary_data_size": -1}), "number of bytes"),
        (changed(parameters={"binary_data_size": True}), "number of bytes"),
        (changed(parameters={"binary_data_size": 8}), "the shape needs"),
        (as_json(ONE | {"clinical": np.stack([ONE["clinical"]] * 2)}), "as many clinical vectors"),
        (as_json({name: np.stack([array] * 9) for name, array in ONE.items()}), "1 to 8"),
        (NAN, "finite"),
    ],
)
def test_unusable_tensor_is_refused_with_its_name(content: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        open_inference.parse(content, None, MANIFEST)


@pytest.mark.parametrize("content", [b"", b"\xff", b"{", b"[" * 100_000])
def test_invalid_json_is_refused(content: bytes) -> None:
    with pytest.raises(MalformedJson):
        open_inference.parse(content, None, MANIFEST)


def test_truncated_binary_tensors_are_refused() -> None:
    content, length = as_binary(ONE)
    for cut in (content[:-4], content[: length + 3], content[:length]):
        with pytest.raises(InvalidRequest):
            open_inference.parse(cut, length, MANIFEST)
    with pytest.raises(MalformedJson):
        open_inference.parse(content, length + 1, MANIFEST)


def test_response_follows_the_protocol() -> None:
    request = open_inference.parse(*as_binary(ONE), MANIFEST)
    outputs = {"probability": np.asarray([0.25]), "folds": np.asarray([[0.2, 0.3]]), "refractory": np.asarray([True])}
    assert json.loads(open_inference.encode_response(request, MANIFEST, outputs)) == {
        "model_name": "tiny",
        "model_version": "1.0.0",
        "id": "q-1",
        "outputs": [
            {"name": "probability", "datatype": "FP64", "shape": [1], "data": [0.25]},
            {"name": "folds", "datatype": "FP64", "shape": [1, 2], "data": [0.2, 0.3]},
            {"name": "refractory", "datatype": "BOOL", "shape": [1], "data": [True]},
        ],
    }


@pytest.mark.parametrize("shape", [(16, 16, 16), (40, 48, 40), (96, 112, 96)])
def test_limit_of_a_request_follows_the_shapes(shape: tuple[int, int, int]) -> None:
    manifest = MANIFEST.model_copy(update={"grid": MANIFEST.grid.model_copy(update={"shape": shape})})
    values = sum(math.prod(each) for each in open_inference.shapes(manifest).values())
    limit = open_inference.max_request_bytes(manifest)
    longest = len("-1.2345678901234567e-300, ")
    assert limit > open_inference.MAX_PATIENTS * values * 8  # binary FP64
    assert limit > values * longest
    assert limit < 8 * values * 33 + 100_000
    assert limit < 513 * 1024 * 1024
    if values < 1_000_000:
        assert limit > open_inference.MAX_PATIENTS * values * longest
