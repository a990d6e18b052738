"""Bodies of inference requests in the Open Inference Protocol, for the tests of the parser, the API and the service."""

from __future__ import annotations

import json
from typing import Any

import numpy as np


def as_json(values: dict[str, np.ndarray[Any, Any]], datatype: str = "FP32", **more: Any) -> bytes:
    """Encode tensors as JSON; ``more`` are further members of the request."""
    inputs = [
        {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.tolist()}
        for name, array in values.items()
    ]
    return json.dumps({"inputs": inputs, **more}).encode()


def as_binary(values: dict[str, np.ndarray[Any, Any]], datatype: str = "FP32") -> tuple[bytes, int]:
    """Encode tensors with the binary extension; the body and the length of its JSON header."""
    inputs = [
        {
            "name": name,
            "datatype": datatype,
            "shape": list(array.shape),
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in values.items()
    ]
    header = json.dumps({"id": "q-1", "inputs": inputs}).encode()
    return header + b"".join(array.tobytes() for array in values.values()), len(header)
