"""Convolutions by oneDNN's own kernels on a CPU, by torch's public calls elsewhere.

Notable choices:
- torch leaves one patient's small volume (channels * x * y up to 20,480; ``use_mkldnn`` in ATen/native/Convolution.cpp)
  to a loop that takes ten times as long as oneDNN. ``convolve`` does not.
- relu(conv(x) + other) in one go: the weights are put into the kernel's own order once, not at every call, and nothing
  is written to memory between the convolution, the addition and the rectifier: a tenth of a coalition's time
  (bench/explain.py).
- Neither operator has a public name, so they are used here only, and only where they are there; the same numbers come
  out either way (tests/network).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

ConvAddRelu = Callable[[Tensor, Tensor], Tensor]


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """``functional.conv3d``, differentiable; what traces it (an export, a compiler) sees the public call."""
    here = x.device.type == weight.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if here and not traced and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        found: Tensor = torch.mkldnn_convolution(x, weight, bias, padding, stride, (1, 1, 1), 1)
        return found
    return functional.conv3d(x, weight, bias, tuple(stride), tuple(padding))


class Convolution(nn.Conv3d):
    """A layer that asks ``convolve``."""

    @classmethod
    def of(cls, conv: nn.Conv3d) -> Convolution:
        """The same layer on the same weights: undilated, ungrouped, padded by zeros."""
        made = copy.copy(conv)
        made.__class__ = cls
        return cast("Convolution", made)

    def forward(self, x: Tensor) -> Tensor:
        assert not isinstance(self.padding, str)
        return convolve(x, self.weight, self.bias, self.stride, self.padding)


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
