"""The image part of the network: a small 3-D ResNet (He et al. 2016), as in the DAFT paper.

Design notes:
- Convolutions have no bias; a batch normalisation follows each.
- The trunk ends before the last residual block and does not depend on the clinical vector. So one pass serves any
  number of clinical vectors.
- A clot fills a thousandth of the volume, and the first pooling hides it. So a trunk can have a second path, which
  reads a box around the arteries without that pooling (docs/experiments.md).
- That path finds the clot, but not what it is made of. So a third path can read the same box: it says of each small
  cell whether there is clot, whether it is calcified, and how dense it is (``MarkPath``).
- All tensors are (n, channels, x, y, z).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.network.architecture import TRUNK_STRIDE, Architecture, BoxPath

MARKED = ("clot", "calcified", "clot_hu")
"""What a ``MarkPath`` says of each cell: logit of clot, logit of calcified clot, and density (standardised)."""


def has_finite_weights(network: nn.Module) -> bool:
    """Return whether no weight and no statistic of the network is NaN or infinite."""
    return all(bool(torch.isfinite(weight).all()) for weight in network.state_dict().values())


def conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv3d:
    """Create a 3x3x3 convolution that keeps the size at stride 1."""
    return nn.Conv3d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)


class Stem(nn.Sequential):
    """conv3 - norm - relu, then max-pooling by 2: (n, c, x, y, z) to (n, filters, x/2, y/2, z/2).

    Pooling and relu commute. The pooling comes first, so that the relu has an eighth of the voxels.

    Args:
        pooled: Whether there is a pooling; without it the size stays.
    """

    def __init__(self, channels: int, filters: int, *, pooled: bool = True) -> None:
        super().__init__()
        self.conv = conv3(channels, filters)
        self.norm = nn.BatchNorm3d(filters)
        self.relu = nn.ReLU()
        self.pool: nn.Module = nn.MaxPool3d(2) if pooled else nn.Identity()

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


class Marks(nn.Module):
    """What a path says of each of its cells, and how the trunk's features sum it up.

    Two steps at every cell, each followed by a rectifier: ``hidden``, which knows where in the box the cell lies, and
    ``summed``, from the signs of ``MARKED``. Then the average over the cells of the trunk's features.

    Args:
        inputs: Channels of the path.
        outputs: Channels of the features, m.
        size: Cells of the path along each axis.
    """

    def __init__(self, inputs: int, outputs: int, size: Sequence[int]) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, inputs // 2, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm3d(inputs // 2)
        self.place = nn.Parameter(torch.zeros(1, inputs // 2, *size))
        self.signs = nn.Conv3d(inputs // 2, len(MARKED), kernel_size=1)
        self.sums = nn.Conv3d(len(MARKED), outputs, kernel_size=1)
        self.average = nn.AvgPool3d(TRUNK_STRIDE // 2)
        with torch.no_grad():  # limits of all heights, because only few of the cells hold clot
            self.sums.weight.abs_().mul_(len(MARKED) ** 0.5)
            self.sums.bias = nn.Parameter(torch.linspace(1, -6, outputs))

    def hidden(self, x: Tensor) -> Tensor:
        """First step before its rectifier: (n, i, x, y, z) to (n, i/2, x, y, z)."""
        return cast("Tensor", self.norm(self.conv(x)) + self.place)

    def summed(self, hidden: Tensor) -> Tensor:
        """Second step before its rectifier: (n, i/2, x, y, z) to (n, m, x, y, z)."""
        return cast("Tensor", self.sums(self.signs(hidden)))

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.average(torch.relu(self.summed(torch.relu(self.hidden(x))))))


class ImagePath(nn.Sequential):
    """An image path of the trunk: a stem, residual blocks and, in a ``MarkPath``, marks.

    (n, c, x, y, z) to (n, k, x/8, y/8, z/8).
    """

    stem: Stem

    @property
    def marks(self) -> Marks | None:
        """The last part of a ``MarkPath``; None for other paths."""
        return None

    @property
    def blocks(self) -> list[Residual]:
        """The residual blocks, in order."""
        return [part for part in self.children() if isinstance(part, Residual)]

    @property
    def paths(self) -> list[tuple[ImagePath, tuple[slice, ...] | None]]:
        """This path over the whole image; a trunk of several paths has the same property."""
        return [(self, None)]

    def join(self, features: Sequence[Tensor]) -> Tensor:
        """Return the features of the only path."""
        (whole,) = features
        return whole


class Trunk(ImagePath):
    """Stem and the first three residual blocks: (n, c, x, y, z) to (n, 4 f, x/8, y/8, z/8)."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.stem = Stem(channels, filters)
        self.block1 = Residual(filters, filters)
        self.block2 = Residual(filters, 2 * filters, stride=2)
        self.block3 = Residual(2 * filters, 4 * filters, stride=2)


class BoxTrunk(ImagePath):
    """A stem without pooling and three residual blocks of stride 2, over a box of the image."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.stem = Stem(channels, filters, pooled=False)
        self.block1 = Residual(filters, 2 * filters, stride=2)
        self.block2 = Residual(2 * filters, 4 * filters, stride=2)
        self.block3 = Residual(4 * filters, 4 * filters, stride=2)


class MarkPath(ImagePath):
    """A stem, one residual block, and marks of its cells of two voxels: (n, c, x, y, z) to (n, m, x/8, y/8, z/8).

    Args:
        size: Voxels of the image along each axis.
    """

    def __init__(self, channels: int, filters: int, marks: int, size: Sequence[int]) -> None:
        super().__init__()
        self.stem = Stem(channels, filters)
        self.block1 = Residual(filters, 2 * filters)
        self.signs = Marks(2 * filters, marks, [length // 2 for length in size])

    @property
    def marks(self) -> Marks:
        """The last part of the path."""
        return self.signs


class MultiPathTrunk(nn.Module):
    """The whole image by one path and a box of it by others: (n, c, x, y, z) to (n, 4 f + 4 g + m, x/8, y/8, z/8).

    f and g are the filters of the stems of image and box, m the marks, which may be none. The features of the box stand
    at its place among those of the image, with zeros around them.
    """

    def __init__(self, channels: int, filters: int, box: BoxPath) -> None:
        super().__init__()
        self.whole = Trunk(channels, filters)
        self.box = BoxTrunk(channels, box.filters)
        self.marks = MarkPath(channels, box.filters, box.marks, box.size) if box.marks else None
        self._box = box

    @property
    def paths(self) -> list[tuple[ImagePath, tuple[slice, ...] | None]]:
        """Each path with the voxel ranges that it sees; None: the whole image."""
        in_box = [path for path in (self.box, self.marks) if path is not None]
        return [(self.whole, None), *((path, self._box.slices) for path in in_box)]

    def forward(self, image: Tensor) -> Tensor:
        return self.join([path(image if part is None else image[:, :, *part]) for path, part in self.paths])

    def join(self, features: Sequence[Tensor]) -> Tensor:
        """Join the features of the paths, in the order of ``paths``."""
        whole, *boxed = features
        return torch.cat([whole, functional.pad(torch.cat(boxed, dim=1), self.margins(whole.shape[2:]))], dim=1)

    def margins(self, size: Sequence[int]) -> list[int]:
        """Voxels of zeros around the box in features of ``size`` (x, y, z), as ``torch.nn.functional.pad`` takes them.

        Raises:
            ValueError: The image does not contain the box.
        """
        margins: list[int] = []
        for length, part in zip(reversed(size), reversed(self._box.slices), strict=True):
            before, after = part.start // TRUNK_STRIDE, length - part.stop // TRUNK_STRIDE
            if after < 0:
                raise ValueError("the image does not contain the box of its further paths; use a larger grid")
            margins += [before, after]
        return margins


def build_trunk(architecture: Architecture) -> Trunk | MultiPathTrunk:
    """Create the trunk of an architecture with random initial weights."""
    if architecture.box is None:
        return Trunk(architecture.in_channels, architecture.filters)
    return MultiPathTrunk(architecture.in_channels, architecture.filters, architecture.box)
