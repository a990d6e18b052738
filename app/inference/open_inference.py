"""Prepared tensors in the Open Inference Protocol, version 2 (KServe, Triton).

Source: https://github.com/kserve/open-inference-protocol, with its binary tensor data extension for requests.

Design notes:
- Two inputs, as ``prepare`` makes them: ``image`` (n, c, x, y, z) on the version's MNI grid, normalised, and
  ``clinical`` (n, v), with missing and presence bits. One patient may be sent without the n.
- A response is always plain JSON, because it has only a few numbers per patient.
- Shapes, types and finite numbers are checked before a network receives the values.
- The size of a request is limited by the shapes of the version, so that its memory is known before it is read.
- No torch: the API process uses this module for model metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.inference import tensor_json
from app.registry.manifest import Manifest
from app.sdk.errors import InvalidRequest

MAX_PATIENTS = 8  # most patients in one request
VALUE_BYTES = 32  # most bytes of one value: a number with 17 digits, its exponent and white space
MAX_JSON_BYTES = 512 * 1024 * 1024
PLATFORM = "rlvo_ensemble"
_TYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "FP64": np.dtype("<f8")}


@dataclass(frozen=True)
class InferenceRequest:
    """``image`` (n, c, x, y, z) and ``clinical`` (n, v), float32; ``id`` is the caller's identifier."""

    id: str | None
    image: NDArray[np.float32]
    clinical: NDArray[np.float32]


def shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """Return each input's shape for one patient."""
    return {"image": (len(manifest.channels), *manifest.grid.shape), "clinical": (manifest.architecture.clinical_size,)}


def max_request_bytes(manifest: Manifest) -> int:
    """Return the largest size of a request body, in bytes.

    It holds `MAX_PATIENTS` patients as JSON; on a large grid fewer, but always as many in binary FP64.
    """
    values = MAX_PATIENTS * sum(math.prod(shape) for shape in shapes(manifest).values())
    as_json = min(values * VALUE_BYTES, MAX_JSON_BYTES)
    return tensor_json.MAX_TEXT_BYTES + max(as_json, values * _TYPES["FP64"].itemsize)


def metadata(manifest: Manifest, versions: Sequence[str]) -> dict[str, Any]:
    """Return the protocol's model metadata; -1 stands for the number of patients.

    Where ``withheld`` is true, a warning withholds the decision, and ``refractory`` must not be used.
    """
    each = {"probability": [-1], "log_odds": [-1], "folds": [-1, len(manifest.folds)]}
    return {
        "name": manifest.name,
        "versions": list(versions),
        "platform": PLATFORM,
        "inputs": [
            {"name": name, "datatype": "FP32", "shape": [-1, *shape]} for name, shape in shapes(manifest).items()
        ],
        "outputs": [
            *({"name": name, "datatype": "FP64", "shape": shape} for name, shape in each.items()),
            {"name": "refractory", "datatype": "BOOL", "shape": [-1]},
            {"name": "withheld", "datatype": "BOOL", "shape": [-1]},
        ],
    }


def parse(content: bytes | bytearray, header_length: int | None, manifest: Manifest) -> InferenceRequest:
    """Parse the body of a request; ``header_length`` bytes of JSON precede binary tensors (None: only JSON).

    Raises:
        MalformedJson: The JSON cannot be parsed, or is too long or too deep outside the data.
        InvalidRequest: A tensor is missing or does not match the version.
    """
    expected = shapes(manifest)
    length = len(content) if header_length is None else min(header_length, len(content))
    most = MAX_PATIENTS * max(math.prod(shape) for shape in expected.values())
    rule = f"Send as many clinical vectors as images, 1 to {MAX_PATIENTS}."
    document, arrays = tensor_json.read(content, length, most, rule)
    try:
        listed = [(str(each["name"]), each) for each in document["inputs"]]
    except (KeyError, TypeError):
        raise InvalidRequest("The request must list its tensors in `inputs`, each with a name.") from None
    binary = memoryview(content)[length:]
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, tensor in listed:
        if name not in expected or name in tensors:
            raise InvalidRequest(f"This version takes the inputs {' and '.join(expected)}, each once.")
        data = arrays.pop(0) if isinstance(tensor.get("data"), list) and arrays else None
        size = _binary_size(tensor)
        tensors[name] = _tensor(name, tensor, data if size is None else binary[:size], expected[name])
        binary = binary[size or 0 :]
    if missing := set(expected) - set(tensors):
        raise InvalidRequest(f"The input {' and '.join(sorted(missing))} is missing.")
    count = len(tensors["image"])
    if len(tensors["clinical"]) != count or not 1 <= count <= MAX_PATIENTS:
        raise InvalidRequest(rule)
    identity = document.get("id")
    return InferenceRequest(identity if isinstance(identity, str) else None, tensors["image"], tensors["clinical"])


def encode_response(request: InferenceRequest, manifest: Manifest, outputs: Mapping[str, NDArray[Any]]) -> bytes:
    """Encode the protocol's inference response; the first axis of each output is the patient."""
    kinds = {"f": "FP64", "b": "BOOL"}
    document: dict[str, Any] = {
        "model_name": manifest.name,
        "model_version": manifest.version,
        "outputs": [
            {
                "name": name,
                "datatype": kinds[values.dtype.kind],
                "shape": list(values.shape),
                "data": values.ravel().tolist(),
            }
            for name, values in outputs.items()
        ],
    }
    if request.id is not None:
        document["id"] = request.id[:128]
    return json.dumps(document, allow_nan=False).encode()


def _binary_size(tensor: Mapping[str, Any]) -> int | None:
    parameters = tensor.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
        raise InvalidRequest("binary_data_size must be a number of bytes.")
    return size


def _tensor(
    name: str, tensor: Mapping[str, Any], data: NDArray[np.float32] | memoryview | None, one: tuple[int, ...]
) -> NDArray[np.float32]:
    """Return the tensor (n, ...), or raise InvalidRequest."""
    message = f"{name}: this version takes FP32 or FP64 of the shape (n, {', '.join(map(str, one))})."
    kind, shape = _TYPES.get(str(tensor.get("datatype"))), tensor.get("shape")
    if kind is None or not isinstance(shape, list) or not all(type(edge) is int and 0 < edge < 2**31 for edge in shape):
        raise InvalidRequest(message)
    if tuple(shape) != one and tuple(shape[1:]) != one:
        raise InvalidRequest(message)
    if data is None:
        raise InvalidRequest(f"{name}: the data do not match the datatype.")
    try:
        flat = np.frombuffer(data, kind) if isinstance(data, memoryview) else data
    except ValueError:
        raise InvalidRequest(f"{name}: the data do not match the datatype.") from None
    if flat.size != math.prod(shape):
        raise InvalidRequest(f"{name}: the shape needs {math.prod(shape)} values.")
    # torch needs aligned, writable memory; the body of the request is neither.
    values: NDArray[np.float32] = np.require(flat.reshape(-1, *one), np.float32, ["C", "A", "W"])
    if not np.isfinite(values).all():
        raise InvalidRequest(f"{name}: every value must be a finite number.")
    return values
