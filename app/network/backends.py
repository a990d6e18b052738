"""Select the runtime that computes the trunks of an ensemble: torch or OpenVINO.

Design notes:
- A backend computes the trunks' features only; they are nearly all of the work.
- The tail is float32 torch with every backend. So a prediction and its explanation use the same features and add up.
- torch computes all gradients; the voxel maps of an explanation use no backend.
- ``auto`` is OpenVINO on a CPU where it is installed, and torch everywhere else (docs/decisions/0020).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from app.network.daft import Network
from app.sdk.errors import ModelNotReady


class Backend(StrEnum):
    """Runtime of the trunks (setting ``RLVO_BACKEND``)."""

    AUTO = "auto"
    TORCH = "torch"
    OPENVINO = "openvino"


class Precision(StrEnum):
    """Number format of the trunks."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Trunks(Protocol):
    """Compute the features of each given trunk, (1, t, ., ., .) float32, of one image (c, x, y, z) on the CPU."""

    def __call__(self, image: Tensor, /) -> list[Tensor]: ...


def select_backend(
    backend: Backend,
    device: torch.device,
    folds: Sequence[Network],
    shape: tuple[int, int, int, int],
    precision: Precision = Precision.FLOAT32,
) -> Trunks | None:
    """Return the requested backend, compiled for images of ``shape``, or None for torch.

    ``folds`` have batch normalisation folded in; ``shape`` is (c, x, y, z) of one image.

    Raises:
        ModelNotReady: OpenVINO is requested, but it is not installed or the device is no CPU.
    """
    available = device.type == "cpu" and find_spec("openvino") is not None
    if backend is Backend.TORCH or (backend is Backend.AUTO and not available):
        return None
    if not available:
        raise ModelNotReady("RLVO_BACKEND=openvino needs a CPU and `pip install rlvo-service[openvino]`")
    from app.network import openvino

    return openvino.OpenVinoTrunks(folds, shape, precision)
