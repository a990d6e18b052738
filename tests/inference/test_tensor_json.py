"""The reader of tensors in JSON: the same values as the standard parser, without its memory."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest

from app.inference import tensor_json
from app.sdk.errors import InvalidRequest, MalformedJson

RNG = np.random.default_rng(0)


def read(text: str | bytes, most: int = 10**7) -> tuple[Any, list[np.ndarray[Any, Any]]]:
    content = text.encode() if isinstance(text, str) else text
    return tensor_json.read(content, len(content), most, "at most so many values")


def document(data: str, **more: Any) -> str:
    return json.dumps({"inputs": [{"name": "image", "data": "DATA", "shape": [1]}], **more}).replace('"DATA"', data)


@pytest.mark.parametrize(
    "shape", [(1,), (7,), (3, 5), (2, 3, 4), (2, 1, 3, 4, 5), (200_000,), (40, 50, 100), (1, 1, 1)]
)
@pytest.mark.parametrize("indent", [None, 1])
def test_values_are_those_of_the_standard_parser(shape: tuple[int, ...], indent: int | None) -> None:
    values = RNG.normal(size=shape) * 10.0 ** RNG.integers(-30, 30, shape)
    text = json.dumps(
        {"id": "a", "inputs": [{"data": values.tolist(), "name": "image"}], "z": [[1], {}]}, indent=indent
    )
    rest, arrays = read(text)
    assert rest == {"id": "a", "inputs": [{"data": [], "name": "image"}], "z": [[1], {}]}
    assert np.array_equal(arrays[0], values.astype(np.float32).ravel())


def test_numbers_of_every_form_are_read() -> None:
    _, arrays = read(document(" [ 0, -0, 1e3 ,-1.5E-2,\n\t 12345678901234567890, 3.0 ]"))
    assert arrays[0].tolist() == np.asarray([0, -0.0, 1e3, -1.5e-2, 12345678901234567890, 3.0], np.float32).tolist()


def test_only_the_data_of_inputs_are_taken() -> None:
    text = (
        '{"data": [1], "inputs": [{"name": "a", "parameters": {"data": [2]}, "d\\u0061ta": [3, 4]},'
        ' {"data": [[5], [6]], "name": "data"}], "outputs": [{"data": [7]}]}'
    )
    rest, arrays = read(text)
    assert rest["data"] == [1]
    assert rest["outputs"] == [{"data": [7]}]
    assert rest["inputs"][0]["parameters"] == {"data": [2]}
    assert [array.tolist() for array in arrays] == [[3, 4], [5, 6]]


@pytest.mark.parametrize(
    "data",
    [
        '["1"]',
        "[true]",
        "[null]",
        "[NaN]",
        "[Infinity]",
        "[1, -Infinity]",
        "[{}]",
        "[1,]",
        "[,1]",
        "[1,,2]",
        "[1 2]",
        "[01]",
        "[+1]",
        "[1.]",
        "[.5]",
        "[1e]",
        "[--1]",
        "[[1], [2, 3]]",
        "[[1, 2], [3]]",
        "[[1, 2], 3]",
        "[1, [2, 3]]",
        "[[1, [2]]]",
        "[[[1]], [2]]",
        "[[], [1]]",
        "[[1], []]",
        "[1][2]",
        "[[1][2]]",
        "[" * 40 + "1" + "]" * 40,
        "[" + "9" * 5000 + "]",
        "[" + "9" * 400 + "]",
        "[" + " " * 3_000_000 + "1]",
    ],
)
def test_data_that_are_no_rectangle_of_numbers_are_refused(data: str) -> None:
    with pytest.raises((InvalidRequest, MalformedJson)):
        read(document(data))
    filler = "[" + "1," * 600_000  # the fault is not in the first piece
    if data.startswith("[") and not data.startswith("[["):
        with pytest.raises((InvalidRequest, MalformedJson)):
            read(document(filler + data[1:]))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        '{"inputs": [{"data": [1, 2',
        '{"inputs": [{"data": [1, 2]',
        '{"inputs": [{"data": [1]}]} x',
        '{"inputs": [], "inputs": [{"data": [1]}]}',
        '{"inputs": [{"data": [1], "data": [2]}]}',
        '{"inputs": [{"name": "a',
        "]",
        '{"x": ' + "[" * 20 + "]" * 20 + "}",
        '{"x": "' + "a" * 70_000 + '"}',
        " " * 3_000_000,
        '{"x": [' + "1," * 40_000 + "1]}",
    ],
    ids=lambda text: text[:30],
)
def test_text_that_is_no_short_json_document_is_refused(text: str) -> None:
    with pytest.raises(MalformedJson):
        read(text)


def test_more_values_than_allowed_are_refused() -> None:
    assert len(read(document(json.dumps([1.0] * 50)), most=50)[1][0]) == 50
    with pytest.raises(InvalidRequest, match="at most so many"):
        read(document(json.dumps([1.0] * 51)), most=50)


def test_memory_is_that_of_the_tensors() -> None:
    content = document("[" + "0.5," * 1_000_000 + "1]").encode()
    tracemalloc.start()
    _, arrays = tensor_json.read(content, len(content), 10**7, "")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(arrays[0]) == 1_000_001
    assert peak < 34e6  # measured: 26.2 MB; the whole document with the standard parser takes more
