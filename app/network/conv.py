"""Convolutions by oneDNN's kernels on a CPU, and by torch's public calls elsewhere.

Design notes:
- torch computes one patient's small volume (channels * x * y up to 20,480; ``use_mkldnn`` in
  ATen/native/Convolution.cpp) with a slow loop. ``convolve`` calls oneDNN's faster kernel instead.
- ``conv_add_relu`` reorders the weights once and writes no intermediate result to memory (bench/explain.py).
- Neither operator has a public name. Only this module uses them, and only where torch has them. The numbers are equal
  with and without them (tests/network).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ConvAddRelu = Callable[[Tensor, Tensor], Tensor]


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """Compute ``functional.conv3d``, differentiable; an export or a compiler sees torch's public call."""
    on_cpu = x.device.type == weight.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if on_cpu and not traced and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        result: Tensor = torch.mkldnn_convolution(x, weight, bias, padding, stride, (1, 1, 1), 1)
        return result
    return functional.conv3d(x, weight, bias, tuple(stride), tuple(padding))


class Convolution(nn.Conv3d):
    """A layer that calls ``convolve`` on the weights of ``conv``: undilated, ungrouped, padded by zeros."""

    def __init__(self, conv: nn.Conv3d) -> None:
        geometry: dict[str, Any] = {"kernel_size": conv.kernel_size, "stride": conv.stride, "padding": conv.padding}
        # On the meta device, initial weights cost no memory and draw no random numbers.
        super().__init__(conv.in_channels, conv.out_channels, bias=False, device="meta", **geometry)
        self.weight, self.bias = conv.weight, conv.bias
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        assert not isinstance(self.padding, str)
        return convolve(x, self.weight, self.bias, self.stride, self.padding)


def conv_add_relu(conv: nn.Conv3d) -> ConvAddRelu:
    """Return (x, other) -> relu(conv(x) + other) for a 3x3x3 convolution of stride 1; it may overwrite ``other``."""
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
