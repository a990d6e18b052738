"""Copies of arrays to the device of a training run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to ``device``.

    A copy to a GPU starts from pinned memory: it then neither waits for the kernels before it nor stops the caller, who
    prepares the next batch meanwhile.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
