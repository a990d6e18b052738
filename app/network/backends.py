"""What computes the trunks of an ensemble: torch itself, or a runtime that was chosen when the version was loaded.

Notable choices:
- A backend computes the trunks' features and nothing else. They are nearly all of the work; the tail stays float32
  torch for everybody, so a prediction and its explanation, which asks the tail hundreds of questions, see the same
  features and add up whatever the backend rounds.
- Gradients are torch's alone: the explanation's maps do not come through here.
- ``auto`` is OpenVINO on a CPU where it is installed, torch everywhere else (docs/decisions/0020); nothing is imported
  that is not used.
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
    AUTO = "auto"
    TORCH = "torch"
    OPENVINO = "openvino"


class Precision(StrEnum):
    """Of the trunks on a CPU; on CUDA they are bfloat16 always."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Trunks(Protocol):
    """Each fold's trunk features, (1, 4 f, ., ., .) float32, of one image (c, x, y, z) on the CPU."""

    def __call__(self, image: Tensor, /) -> list[Tensor]: ...


def pick(
    backend: Backend,
    device: torch.device,
    folds: Sequence[Network],
    shape: tuple[int, int, int, int],
    precision: Precision = Precision.FLOAT32,
) -> Trunks | None:
    """The backend that is asked for, compiled for images of ``shape``; None: the ensemble's own torch.

    :param folds: as the ensemble holds them, normalisation folded in
    :raises ModelNotReady: where a backend is asked for that is not installed, or not for this device
    """
    here = device.type == "cpu" and find_spec("openvino") is not None
    if backend is Backend.TORCH or (backend is Backend.AUTO and not here):
        return None
    if not here:
        raise ModelNotReady("RLVO_BACKEND=openvino needs a CPU and `pip install rlvo-service[openvino]`")
    from app.network import openvino

    return openvino.OpenVinoTrunks(folds, shape, precision)
