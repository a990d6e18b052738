"""A small 3-D U-Net (Çiçek et al., MICCAI 2016) that segments vessels in a CT angiogram.

Design notes:
- Two poolings and few filters: a vessel is recognised from about one centimetre around it, and a CPU is enough.
- A volume of any size is computed in slabs that overlap by the receptive field. So memory is bounded, and the result
  does not depend on the slabs.
- Batch normalisation, because its statistics are fixed after training; group normalisation would depend on the slab.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from app.network.resnet import conv3, has_finite_weights

__all__ = ["WINDOW_HU", "UNet", "VesselNet", "scaled"]

Floats = NDArray[np.float32]

WINDOW_HU: Final = (-50.0, 600.0)  # values outside are clamped: air to the lower end, dense bone to the upper end
_CELL, _MARGIN, _SLAB = 4, 24, 48
"""Planes: per cell after both poolings; receptive field on either side, rounded up; computed at a time."""


class _DoubleConv(nn.Sequential):
    """conv3 - norm - relu, twice."""

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
    """Scaled values (n, 1, x, y, z) to vessel logits (n, 1, x, y, z); x, y, z are multiples of four."""

    def __init__(self, filters: int = 8) -> None:
        super().__init__()
        self.fine = _DoubleConv(1, filters)
        self.middle = _DoubleConv(filters, 2 * filters)
        self.coarse = _DoubleConv(2 * filters, 4 * filters)
        self.back_to_middle = _DoubleConv(6 * filters, 2 * filters)
        self.back_to_fine = _DoubleConv(3 * filters, filters)
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
    """A trained U-Net as a function of a volume; it keeps no patient data between calls."""

    def __init__(self, network: UNet) -> None:
        self._network = network.eval()

    @classmethod
    def from_bytes(cls, content: bytes, filters: int) -> VesselNet:
        """Load the weights (safetensors).

        Raises:
            ValueError: ``content`` does not hold the weights of a U-Net with ``filters`` filters.
        """
        network = UNet(filters)
        try:
            network.load_state_dict(load_tensors(content))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError("the file does not hold the weights of this U-Net") from error
        if not has_finite_weights(network):
            raise ValueError("the file holds weights that are not finite numbers")
        return cls(network)

    @torch.inference_mode()
    def __call__(self, values: Floats) -> Floats:
        """Compute vessel probabilities (x, y, z), 0 to 1, from Hounsfield units (x, y, z) on voxels of about 0.9 mm."""
        padded = np.pad(scaled(values), [(0, -n % _CELL) for n in values.shape], mode="edge")
        probabilities = np.empty_like(padded)
        for start in range(0, padded.shape[0], _SLAB):
            low, high = max(0, start - _MARGIN), min(padded.shape[0], start + _SLAB + _MARGIN)
            logits = self._network(torch.from_numpy(np.ascontiguousarray(padded[None, None, low:high])))[0, 0]
            kept = logits[start - low : start - low + _SLAB]
            probabilities[start : start + _SLAB] = torch.sigmoid(kept).numpy()
        x, y, z = values.shape
        return probabilities[:x, :y, :z]


def scaled(values: Floats) -> Floats:
    """Scale Hounsfield units from ``WINDOW_HU`` to 0..1, the input range of the network."""
    low, high = WINDOW_HU
    within: Floats = ((np.clip(values, low, high) - low) / (high - low)).astype(np.float32)
    return within
