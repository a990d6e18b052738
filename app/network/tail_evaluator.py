"""One patient, hundreds of clinical vectors: the tail of the network in the form that makes each of them cheap.

Notable choices:
- The modulated features are sum_r k_r(clinical) G_r: a few fixed maps G_r, mixed by numbers that the clinical vector
  decides. With a linear scale there is one map per unit of the bottleneck (seven); with tanh or sigmoid, one per
  channel and half. A convolution is linear, so it is applied to the maps once, and only the mixing is left.
- What follows the first rectifier is not linear: one convolution per clinical vector remains at most.
- The numbers are those of ``Network.tail`` up to rounding (1e-5; tests/network/test_coalitions.py).
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

CHUNK_BYTES = 4 << 20  # mixed maps in flight: as many as the second-level caches hold (a sixth faster than 64 MiB)


@dataclass(frozen=True)
class ModulatedConv:
    """constant + sum_r coefficient_r * map_r; without maps, the constant alone.

    Maps are kept flat in channels-last order, (r, x * y * z * c), which is how the next convolution likes them.
    """

    constant: Tensor
    maps: Tensor | None
    shape: tuple[int, ...]

    @classmethod
    def of(cls, step: Callable[[Tensor], Tensor], generators: Tensor) -> ModulatedConv:
        """Take ``step``, linear but for a constant, through every generator (r, c, x, y, z)."""
        constant = step(torch.zeros_like(generators[:1]))
        maps = (step(generators) - constant).permute(0, 2, 3, 4, 1)
        return cls(constant.permute(0, 2, 3, 4, 1).flatten(1), maps.flatten(1), tuple(maps.shape[1:]))

    @classmethod
    def fixed(cls, value: Tensor) -> ModulatedConv:
        """What no clinical vector changes: (1, c, x, y, z)."""
        last = value.permute(0, 2, 3, 4, 1)
        return cls(last.flatten(1), None, tuple(last.shape[1:]))

    def __call__(self, coefficients: Tensor) -> Tensor:
        """(n, r) to (n, c, x, y, z), or (1, c, x, y, z) where nothing varies."""
        mixed = self.constant if self.maps is None else torch.addmm(self.constant, coefficients, self.maps)
        return mixed.view(-1, *self.shape).permute(0, 4, 1, 2, 3)


class TailEvaluator:
    """``network.tail(features, .)`` of one patient, prepared once.

    :param features: (1, 4 f, x, y, z), the trunk's output
    """

    @torch.no_grad()
    def __init__(self, network: Network, features: Tensor) -> None:
        self.network = network
        self.pooled: Tensor | None = None
        if network.modulation is None:
            nothing = features.new_zeros(1, network.architecture.clinical_size)
            self.pooled = network.penultimate(features, nothing)
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
        self.seen = pool(modulated)
        generators = _generators(self.modulation, modulated)

        conv = block.conv2
        if not isinstance(block.norm2, nn.Identity):
            conv = fuse_conv_bn_eval(conv, block.norm2)
        self._end = conv_add_relu(conv)

        in_shortcut = location in (Location.BLOCK_INPUT, Location.SHORTCUT)
        self.shortcut = (
            ModulatedConv.of(block.shortcut, generators)
            if in_shortcut
            else ModulatedConv.fixed(block.shortcut(features))
        )
        self.before: ModulatedConv | None = None  # the residual path before its rectifier, where that varies
        if location in (Location.BLOCK_INPUT, Location.RESIDUAL_INPUT):
            self.before = ModulatedConv.of(first, generators)
        elif location is Location.AFTER_NORM:
            self.before = ModulatedConv.of(lambda x: x, generators)
        elif location is Location.AFTER_ACTIVATION:
            self.residual = ModulatedConv.of(second, generators)
        else:
            self.residual = ModulatedConv.fixed(second(torch.relu(first(features))))

    @torch.no_grad()
    def logits(self, clinical: Tensor) -> Tensor:
        """Logits (n, outputs) of clinical vectors (n, v)."""
        if self.pooled is not None:
            return self.network.classify(self.pooled.expand(len(clinical), -1), clinical)
        coefficients = self._coefficients(clinical)
        rows = max(1, CHUNK_BYTES // (4 * self.shortcut.constant.numel()))
        pooled = torch.cat([self._penultimate(some) for some in torch.split(coefficients, rows)])
        return self.network.classify(pooled, clinical)

    def _penultimate(self, coefficients: Tensor) -> Tensor:
        shortcut = self.shortcut(coefficients)
        if self.before is None:
            return pool(torch.relu(self.residual(coefficients) + shortcut))
        inner = torch.relu_(self.before(coefficients))
        if self.shortcut.maps is None:  # everybody's: not to be written to
            shortcut = shortcut.expand_as(inner).clone(memory_format=torch.channels_last_3d)
        return pool(self._end(inner, shortcut))

    def _coefficients(self, clinical: Tensor) -> Tensor:
        modulation = self.modulation
        seen = self.seen.expand(len(clinical), -1)
        inputs = torch.cat([seen, clinical], dim=1) if modulation.sees_features else clinical
        hidden = torch.relu(modulation.squeeze(inputs))
        if modulation.linear:
            return hidden
        scale, shift = modulation.split(hidden)
        unscaled = torch.ones_like(hidden[:, :1])
        return torch.cat([part for part in (unscaled if scale is None else scale, shift) if part is not None], dim=1)


def _generators(modulation: Modulation, features: Tensor) -> Tensor:
    """The maps that the coefficients mix: (r, c, x, y, z), in the order of ``_coefficients``."""
    channels = features.shape[1]
    each = torch.eye(channels, dtype=features.dtype, device=features.device)[:, :, None, None, None]
    everywhere = torch.ones_like(features[:, :1])
    if modulation.linear:
        scale, shift = modulation.split(torch.eye(modulation.squeeze.out_features, device=features.device))
        assert scale is not None
        maps = scale[:, :, None, None, None] * features
        return maps if shift is None else maps + shift[:, :, None, None, None] * everywhere
    parts = [each * features if modulation.has_scale else features]
    if modulation.has_shift:
        parts.append(each * everywhere)
    return torch.cat(parts)
