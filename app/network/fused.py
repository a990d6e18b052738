"""relu(conv(x) + other) in one go: by oneDNN's fused kernel on a CPU, by three torch calls elsewhere.

Notable choices:
- The weights are put into the kernel's own order once, not at every call, and nothing is written to memory between the
  convolution, the addition and the rectifier: a tenth of a coalition's time (bench/explain.py).
- The operator is the one that torch's compiler emits for frozen models. It has no public name, so it is used here only,
  and only where it is there; the same numbers come out either way (tests/network/test_coalitions.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

ConvAddRelu = Callable[[Tensor, Tensor], Tensor]


def conv_add_relu(conv: nn.Conv3d) -> ConvAddRelu:
    """(x, other) to relu(conv(x) + other), for a 3x3x3 convolution of stride 1; ``other`` may be written to."""
    if conv.weight.device.type == "cpu" and hasattr(torch.ops.mkldnn, "_convolution_pointwise_"):
        return _onednn(conv)

    def plain(x: Tensor, other: Tensor) -> Tensor:
        return torch.relu_(functional.conv3d(x, conv.weight, conv.bias, padding=1) + other)

    return plain


@torch.no_grad()
def _onednn(conv: nn.Conv3d) -> ConvAddRelu:
    ones = [1, 1, 1]
    weight, bias = torch.ops.mkldnn._reorder_convolution_weight(conv.weight, ones, ones, ones, 1), conv.bias  # noqa: SLF001

    def fused(x: Tensor, other: Tensor) -> Tensor:
        torch.ops.mkldnn._convolution_pointwise_.binary(
            other, x, weight, bias, ones, ones, ones, 1, "add", 1.0, "relu", [], ""
        )
        return other

    return fused
