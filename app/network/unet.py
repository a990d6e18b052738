"""A small 3-D U-Net (Çiçek et al., MICCAI 2016) that marks vessels in a CT angiogram.

Notable choices:
- Two poolings and few filters: a vessel is told from what lies within a centimetre of it, and a CPU must afford it.
- A volume of any size is answered whole, in slabs that overlap by what the network can see, so that the answer does
  not depend on where a slab ends and memory stays bounded.
- Group normalisation by sample would see the slab: batch normalisation, whose numbers are fixed after training.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from app.network.resnet import conv3

__all__ = ["WINDOW_HU", "UNet", "VesselNet", "scaled"]

Floats = NDArray[np.float32]

WINDOW_HU: Final = (-50.0, 600.0)
"""What is beyond is clamped: air to the one end, bone to the other."""
_STEP, _SEEN, _SLAB = 4, 24, 48
"""Planes: of one cell after both poolings; on either side that an answer depends on, rounded up; answered at a time."""


class _Twice(nn.Sequential):
    """conv3 - norm - relu, two times."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            conv3(inputs, outputs),
            nn.BatchNorm3d(outputs),
            nn.ReLU(),
            conv3(outputs, outputs),
            nn.BatchNorm3d(outputs),
            nn.ReLU(),
        )


class UNet(nn.Module):
    """(n, 1, x, y, z) scaled values to (n, 1, x, y, z) logits of vessel; x, y, z in multiples of four."""

    def __init__(self, filters: int = 8) -> None:
        super().__init__()
        self.fine = _Twice(1, filters)
        self.middle = _Twice(filters, 2 * filters)
        self.coarse = _Twice(2 * filters, 4 * filters)
        self.back_to_middle = _Twice(6 * filters, 2 * filters)
        self.back_to_fine = _Twice(3 * filters, filters)
        self.last = nn.Conv3d(filters, 1, kernel_size=1)
        self.pool = nn.MaxPool3d(2)
        self.grow = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        middle = self.middle(self.pool(fine))
        coarse = self.coarse(self.pool(middle))
        middle = self.back_to_middle(torch.cat([middle, self.grow(coarse)], dim=1))
        logits: Tensor = self.last(self.back_to_fine(torch.cat([fine, self.grow(middle)], dim=1)))
        return logits


class VesselNet:
    """A trained network as a plain function of a volume. Holds no patient between two calls."""

    def __init__(self, network: UNet) -> None:
        self._network = network.eval()

    @classmethod
    def from_bytes(cls, content: bytes, filters: int) -> VesselNet:
        """:raises ValueError: ``content`` (safetensors) does not hold the weights of such a network"""
        network = UNet(filters)
        try:
            network.load_state_dict(load_tensors(content))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError("the file does not hold the weights of this U-Net") from error
        return cls(network)

    @torch.inference_mode()
    def __call__(self, values: Floats) -> Floats:
        """Chance of vessel, 0 to 1, for each voxel of (X, Y, Z) Hounsfield units on voxels of about 0.9 mm."""
        padded = np.pad(scaled(values), [(0, -n % _STEP) for n in values.shape], mode="edge")
        found = np.empty_like(padded)
        for start in range(0, padded.shape[0], _SLAB):
            low, high = max(0, start - _SEEN), min(padded.shape[0], start + _SLAB + _SEEN)
            logits = self._network(torch.from_numpy(np.ascontiguousarray(padded[None, None, low:high])))[0, 0]
            kept = logits[start - low : start - low + _SLAB]
            found[start : start + _SLAB] = torch.sigmoid(kept).numpy()
        x, y, z = values.shape
        return found[:x, :y, :z]


def scaled(values: Floats) -> Floats:
    """Hounsfield units as the network takes them: the window to 0..1."""
    low, high = WINDOW_HU
    within: Floats = ((np.clip(values, low, high) - low) / (high - low)).astype(np.float32)
    return within
