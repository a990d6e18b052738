"""The whole network: a ResNet whose last block is modulated by the clinical vector.

Source: Wolf, Poelsterl, Wachinger, "DAFT: a universal module to interweave tabular data and 3D images in CNNs",
NeuroImage 2022. tests/conformance compares the numbers with the original code.

Design notes:
- DAFT and FiLM are one module. They differ only in whether the auxiliary net also receives the pooled features.
- ``forward`` is ``tail(trunk(image), clinical)``; the trunk does not depend on the clinical vector.
- ``Location`` names the points of the tail at which the modulation can be applied.
- app/network/tail_evaluator.py computes the same tail for hundreds of clinical vectors at low cost.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from app.network.architecture import Architecture, Fusion, Location, ScaleActivation
from app.network.resnet import MultiPathTrunk, Residual, Trunk, build_trunk

ACTIVATIONS = {ScaleActivation.LINEAR: nn.Identity, ScaleActivation.TANH: nn.Tanh, ScaleActivation.SIGMOID: nn.Sigmoid}


def pool(features: Tensor) -> Tensor:
    """Average over space: (n, c, x, y, z) to (n, c)."""
    return features.mean(dim=(2, 3, 4))


def scale_shift(features: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """Compute scale * features + shift per channel (equation 1 of the paper); None leaves that part out.

    ``features`` are (n, c, x, y, z), ``scale`` and ``shift`` (n, c).
    """
    if scale is not None:
        features = features * scale[:, :, None, None, None]
    if shift is not None:
        features = features + shift[:, :, None, None, None]
    return features


class Modulation(nn.Module):
    """The auxiliary net: scale and shift of ``channels`` channels from the clinical vector (DAFT: and the features)."""

    def __init__(self, channels: int, architecture: Architecture) -> None:
        super().__init__()
        self.sees_features = architecture.fusion is Fusion.DAFT
        self.has_scale, self.has_shift = architecture.scale, architecture.shift
        inputs = architecture.clinical_size + (channels if self.sees_features else 0)
        outputs = channels * (self.has_scale + self.has_shift)
        self.squeeze = nn.Linear(inputs, architecture.bottleneck, bias=False)
        self.expand = nn.Linear(architecture.bottleneck, outputs, bias=False)
        self.activation = ACTIVATIONS[architecture.activation]()
        # Whether the modulated features are linear in the hidden units (see app/network/tail_evaluator.py).
        self.linear = self.has_scale and architecture.activation is ScaleActivation.LINEAR

    def bottleneck(self, features: Tensor, clinical: Tensor) -> Tensor:
        """Compute the hidden units (n, bottleneck) from features (n, c, x, y, z) and clinical vectors (n, v)."""
        inputs = torch.cat([pool(features), clinical], dim=1) if self.sees_features else clinical
        return torch.relu(self.squeeze(inputs))

    def split(self, hidden: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Compute scale and shift, (n, c) each, from the hidden units; None for a part that is switched off."""
        parts = list(self.expand(hidden).chunk(self.has_scale + self.has_shift, dim=1))
        scale = self.activation(parts.pop(0)) if self.has_scale else None
        return scale, parts.pop(0) if self.has_shift else None

    def forward(self, features: Tensor, clinical: Tensor) -> Tensor:
        return scale_shift(features, *self.split(self.bottleneck(features, clinical)))


class Network(nn.Module):
    """The network that an ``Architecture`` describes."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        location = architecture.location
        inputs, outputs = architecture.trunk_channels, architecture.pooled_channels
        self.architecture = architecture
        self.trunk: Trunk | MultiPathTrunk = build_trunk(architecture)
        self.modulation: Modulation | None = None
        if architecture.fusion in (Fusion.DAFT, Fusion.FILM):
            before = location in (Location.BLOCK_INPUT, Location.SHORTCUT, Location.RESIDUAL_INPUT)
            self.modulation = Modulation(inputs if before else outputs, architecture)
        # A modulation after norm1 replaces the scale and shift of that normalisation.
        affine = self.modulation is None or location is not Location.AFTER_NORM
        self.block = Residual(inputs, outputs, architecture.stride, affine=affine)
        late = architecture.clinical_size if architecture.fusion is Fusion.CONCAT else 0
        self.head = nn.Linear(outputs + late, architecture.outputs)

    def forward(self, image: Tensor, clinical: Tensor) -> Tensor:
        """Compute logits (n, outputs) of images (n, c, x, y, z) and clinical vectors (n, v)."""
        return self.tail(self.trunk(image), clinical)

    def tail(self, features: Tensor, clinical: Tensor) -> Tensor:
        """Compute logits (n, outputs) from trunk features (n, t, x, y, z) and clinical vectors (n, v)."""
        return self.classify(self.penultimate(features, clinical), clinical)

    def penultimate(self, features: Tensor, clinical: Tensor) -> Tensor:
        """Compute the pooled output of the last block, (n, 8 f)."""
        block = self.block

        def modulate_at(location: Location, x: Tensor) -> Tensor:
            if self.modulation is None or self.architecture.location is not location:
                return x
            return cast("Tensor", self.modulation(x, clinical))

        x = modulate_at(Location.BLOCK_INPUT, features)
        shortcut = block.shortcut(modulate_at(Location.SHORTCUT, x))
        residual = block.norm1(block.conv1(modulate_at(Location.RESIDUAL_INPUT, x)))
        residual = torch.relu(modulate_at(Location.AFTER_NORM, residual))
        residual = block.norm2(block.conv2(modulate_at(Location.AFTER_ACTIVATION, residual)))
        return pool(torch.relu(shortcut + residual))

    def classify(self, pooled: Tensor, clinical: Tensor) -> Tensor:
        """Apply the head to pooled features (n, 8 f), joined with the clinical vector under ``concat``."""
        if self.architecture.fusion is Fusion.CONCAT:
            pooled = torch.cat([pooled, clinical], dim=1)
        return cast("Tensor", self.head(pooled))


def build(architecture: Architecture) -> Network:
    """Create a network with random initial weights.

    Raises:
        ValueError: The modulation neither scales nor shifts.
    """
    modulated = architecture.fusion in (Fusion.DAFT, Fusion.FILM)
    if modulated and not (architecture.scale or architecture.shift):
        raise ValueError("a modulation needs a scale, a shift, or both")
    return Network(architecture)
