"""Evaluate the tail of the network for many clinical vectors of one patient at low cost.

Design notes:
- The modulated features are sum_r k_r(clinical) G_r: fixed maps G_r with coefficients from the clinical vector.
- With a linear scale there is one map per bottleneck unit; with tanh or sigmoid, one per channel for scale and shift.
- A convolution is linear, so it is applied to the maps once. Per clinical vector only the linear combination remains.
- The layers after the first rectifier are not linear: at most one convolution per clinical vector remains.
- The numbers equal those of ``Network.tail`` up to rounding (1e-5; tests/network/test_tail_evaluator.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from app.network.architecture import Location
from app.network.conv import conv_add_relu
from app.network.daft import Modulation, Network, pool

CHUNK_BYTES = 4 << 20  # combined maps computed at a time on a CPU; they fit the second-level cache
GPU_CHUNK_BYTES = 256 << 20  # on a GPU, where many small kernels would be slower than their arithmetic


@dataclass(frozen=True)
class MapCombination:
    """constant + sum_r coefficient_r * map_r; without maps, the constant alone.

    ``constant`` is (1, x * y * z * c) and ``maps`` (r, x * y * z * c), channels last; ``shape`` is (x, y, z, c).
    """

    constant: Tensor
    maps: Tensor | None
    shape: tuple[int, ...]

    @classmethod
    def of(cls, step: Callable[[Tensor], Tensor], generators: Tensor) -> MapCombination:
        """Apply ``step``, linear up to a constant, to every generator (r, c, x, y, z)."""
        constant = step(torch.zeros_like(generators[:1]))
        maps = (step(generators) - constant).permute(0, 2, 3, 4, 1)
        return cls(constant.permute(0, 2, 3, 4, 1).flatten(1), maps.flatten(1), tuple(maps.shape[1:]))

    @property
    def bytes(self) -> int:
        """Memory of the maps."""
        return self.constant.nbytes + (0 if self.maps is None else self.maps.nbytes)

    @classmethod
    def fixed(cls, value: Tensor) -> MapCombination:
        """Create a combination without maps from one value (1, c, x, y, z)."""
        last = value.permute(0, 2, 3, 4, 1)
        return cls(last.flatten(1), None, tuple(last.shape[1:]))

    def __call__(self, coefficients: Tensor) -> Tensor:
        """Combine the maps: coefficients (n, r) to (n, c, x, y, z), or (1, c, x, y, z) without maps."""
        combined = self.constant if self.maps is None else torch.addmm(self.constant, coefficients, self.maps)
        return combined.view(-1, *self.shape).permute(0, 4, 1, 2, 3)


class TailEvaluator:
    """``network.tail(features, .)`` of one patient's trunk features (1, 4 f, x, y, z), for many clinical vectors."""

    @torch.no_grad()
    def __init__(self, network: Network, features: Tensor) -> None:
        self.network = network
        self.pooled: Tensor | None = None
        if network.modulation is None:
            unused = features.new_zeros(1, network.architecture.clinical_size)
            self.pooled = network.penultimate(features, unused)
            return
        self.modulation = network.modulation
        self._prepare(features, network.architecture.location)

    def _prepare(self, features: Tensor, location: Location) -> None:
        block = self.network.block

        def first(x: Tensor) -> Tensor:
            return cast("Tensor", block.norm1(block.conv1(x)))

        def second(x: Tensor) -> Tensor:
            return cast("Tensor", block.norm2(block.conv2(x)))

        modulated = features
        if location is Location.AFTER_NORM:
            modulated = first(features)
        elif location is Location.AFTER_ACTIVATION:
            modulated = torch.relu(first(features))
        self.pooled_input = pool(modulated)
        generators = _generators(self.modulation, modulated)

        conv = block.conv2
        if not isinstance(block.norm2, nn.Identity):
            conv = fuse_conv_bn_eval(conv, block.norm2)
        self._conv2_add_relu = conv_add_relu(conv)

        in_shortcut = location in (Location.BLOCK_INPUT, Location.SHORTCUT)
        self.shortcut = (
            MapCombination.of(block.shortcut, generators)
            if in_shortcut
            else MapCombination.fixed(block.shortcut(features))
        )
        self.before: MapCombination | None = None  # the residual path before its rectifier, if it varies
        if location in (Location.BLOCK_INPUT, Location.RESIDUAL_INPUT):
            self.before = MapCombination.of(first, generators)
        elif location is Location.AFTER_NORM:
            self.before = MapCombination.of(lambda x: x, generators)
        elif location is Location.AFTER_ACTIVATION:
            self.residual = MapCombination.of(second, generators)
        else:
            self.residual = MapCombination.fixed(second(torch.relu(first(features))))

    @property
    def bytes(self) -> int:
        """Memory of the maps that every clinical vector shares."""
        if self.pooled is not None:
            return self.pooled.nbytes
        residual = self.residual if self.before is None else self.before
        return self.shortcut.bytes + residual.bytes + self.pooled_input.nbytes

    @torch.no_grad()
    def logits(self, clinical: Tensor) -> Tensor:
        """Compute logits (n, outputs) of clinical vectors (n, v)."""
        if self.pooled is not None:
            return self.network.classify(self.pooled.expand(len(clinical), -1), clinical)
        coefficients = self._coefficients(clinical)
        chunk = CHUNK_BYTES if clinical.device.type == "cpu" else GPU_CHUNK_BYTES
        rows = max(1, chunk // (4 * self.shortcut.constant.numel()))
        pooled = torch.cat([self._penultimate(chunk) for chunk in torch.split(coefficients, rows)])
        return self.network.classify(pooled, clinical)

    def _penultimate(self, coefficients: Tensor) -> Tensor:
        shortcut = self.shortcut(coefficients)
        if self.before is None:
            return pool(torch.relu(self.residual(coefficients) + shortcut))
        inner = torch.relu_(self.before(coefficients))
        if self.shortcut.maps is None:  # shared by all vectors: copy it, because the kernel writes to it
            shortcut = shortcut.expand_as(inner).clone(memory_format=torch.channels_last_3d)
        return pool(self._conv2_add_relu(inner, shortcut))

    def _coefficients(self, clinical: Tensor) -> Tensor:
        modulation = self.modulation
        pooled = self.pooled_input.expand(len(clinical), -1)
        inputs = torch.cat([pooled, clinical], dim=1) if modulation.sees_features else clinical
        hidden = torch.relu(modulation.squeeze(inputs))
        if modulation.linear:
            return hidden
        scale, shift = modulation.split(hidden)
        unscaled = torch.ones_like(hidden[:, :1])
        return torch.cat([part for part in (unscaled if scale is None else scale, shift) if part is not None], dim=1)


def _generators(modulation: Modulation, features: Tensor) -> Tensor:
    """Return the maps (r, c, x, y, z) in the order of ``_coefficients``."""
    channels = features.shape[1]
    one_channel = torch.eye(channels, dtype=features.dtype, device=features.device)[:, :, None, None, None]
    ones = torch.ones_like(features[:, :1])
    if modulation.linear:
        scale, shift = modulation.split(torch.eye(modulation.squeeze.out_features, device=features.device))
        assert scale is not None
        maps = scale[:, :, None, None, None] * features
        return maps if shift is None else maps + shift[:, :, None, None, None] * ones
    parts = [one_channel * features if modulation.has_scale else features]
    if modulation.has_shift:
        parts.append(one_channel * ones)
    return torch.cat(parts)
