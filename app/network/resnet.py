"""The image part of the network: a small 3-D ResNet (He et al. 2016), as in the DAFT paper.

Design notes:
- Convolutions have no bias; a batch normalisation follows each.
- The trunk ends before the last residual block and does not depend on the clinical vector. So one pass serves any
  number of clinical vectors.
- All tensors are (n, channels, x, y, z).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

Modulate = Callable[[Tensor], Tensor]


def has_finite_weights(network: nn.Module) -> bool:
    """Return whether no weight and no statistic of the network is NaN or infinite."""
    return all(bool(torch.isfinite(weight).all()) for weight in network.state_dict().values())


def conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv3d:
    """Create a 3x3x3 convolution that keeps the size at stride 1."""
    return nn.Conv3d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)


class Stem(nn.Sequential):
    """conv3 - norm - relu, then max-pooling by 2: (n, c, x, y, z) to (n, filters, x/2, y/2, z/2).

    Pooling and relu commute. The pooling comes first, so that the relu has an eighth of the voxels.
    """

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.conv = conv3(channels, filters)
        self.norm = nn.BatchNorm3d(filters)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool3d(2)

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.relu(self.pool(self.norm(self.conv(x)))))


class Shortcut(nn.Sequential):
    """The projection of a block's input to its output's shape: 1x1x1 convolution and normalisation."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel_size=1, stride=stride, bias=False)
        self.norm = nn.BatchNorm3d(outputs)


class Residual(nn.Module):
    """Residual block: relu(shortcut(x) + norm2(conv2(relu(norm1(conv1(x)))))).

    Args:
        affine: Whether norm1 has a scale and a shift; False if a modulation after it provides them.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, affine: bool = True) -> None:
        super().__init__()
        self.conv1 = conv3(inputs, outputs, stride)
        self.norm1 = nn.BatchNorm3d(outputs, affine=affine)
        self.conv2 = conv3(outputs, outputs)
        self.norm2 = nn.BatchNorm3d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = nn.Identity() if same else Shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        residual = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.shortcut(x) + self.norm2(self.conv2(residual)))


class Trunk(nn.Sequential):
    """Stem and the first three residual blocks: (n, c, x, y, z) to (n, 4 f, x/8, y/8, z/8)."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.stem = Stem(channels, filters)
        self.block1 = Residual(filters, filters)
        self.block2 = Residual(filters, 2 * filters, stride=2)
        self.block3 = Residual(2 * filters, 4 * filters, stride=2)
