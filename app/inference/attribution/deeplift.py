"""One pass back through the trunk that leaves nothing over: the rescale rule, for maps at a fraction of their price.

DeepLIFT's rescale rule (Shrikumar et al., "Learning important features through propagating activation differences",
ICML 2017) takes, at every rectifier, the slope between absence and the patient in place of the gradient.

Notable choices:
- Absence is one image, zero everywhere, the same for all patients: its activations are computed once per fold. After
  the stem's convolution it is one number per channel, because a convolution of zeros is its bias.
- Max-pooling needs no rule of its own: absence is constant before it, so the difference of the pooled values is the
  difference at the voxel that wins, which is where its gradient goes. Pooling first, the rectifier sees an eighth.
- In the tail, where clinical vector and features multiply, gradients are integrated along the straight path of the
  features and the presence bits (Sundararajan et al., ICML 2017). It is small, so eight steps cost next to nothing.
- float32 on every device: what is divided by small differences must not be rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from app.inference.attribution.quadrature import gauss_legendre
from app.network.conv import convolve
from app.network.daft import Network

TAIL_STEPS = 8
_FLAT = 1e-12
"""Keeps what is equal from being divided by nothing."""


class AbsentImage(NamedTuple):
    """A fold's view of no image: what its rectifiers receive, in order, and its trunk features."""

    received: list[Tensor]
    features: Tensor


class RescalePass(NamedTuple):
    """What one fold saw and why: features (1, 4 f, x, y, z), and slopes by voxels (1, c, X, Y, Z) and by bits (c,).

    Shares are slopes times the image, and times the bits; absence is zero in both.
    """

    features: Tensor
    voxels: Tensor
    bits: Tensor


@torch.no_grad()
def absent_image(fold: Network, blank: Tensor) -> AbsentImage:
    """:param blank: (1, c, x, y, z) of zeros, as the ensemble makes images of one patient."""
    received: list[Tensor] = []

    def rectify(x: Tensor) -> Tensor:
        # Of the stem one voxel stands for all.
        received.append(x if received else x[:, :, :1, :1, :1].clone())
        return torch.relu(x)

    return AbsentImage(received=received, features=_trunk(fold, blank, rectify))


def explain(fold: Network, none: AbsentImage, image: Tensor, clinical: Tensor, bits: slice) -> RescalePass:
    """Slopes whose shares sum to logit(patient) - logit(patient without images), up to the tail's quadrature.

    :param image: (1, c, x, y, z)
    :param clinical: (1, v); ``bits`` says where in it the presence bits lie
    """
    left, stem = iter(none.received), fold.trunk.stem
    with torch.no_grad():
        seen = stem.norm(stem.conv(image))
    seen.requires_grad_()
    features = _after_stem(fold, seen, lambda x: _Rescaled.apply(x, next(left)))  # type: ignore[no-untyped-call]
    slopes, by_bit = _tail_slopes(fold, none.features, features.detach(), clinical, bits)
    (by_seen,) = torch.autograd.grad(features, seen, slopes)
    return RescalePass(features.detach(), _back_through(stem.conv.weight, by_seen), by_bit)


def _back_through(weight: Tensor, slopes: Tensor) -> Tensor:
    """Slopes by the input of a 3x3x3 convolution of stride 1, from those by its output.

    As the convolution with the mirrored kernel that it is: a sixth faster than the library's backward pass for so few
    input channels.
    """
    mirrored = weight.transpose(0, 1).flip(2, 3, 4).contiguous(memory_format=torch.channels_last_3d)
    return convolve(slopes, mirrored, None, (1, 1, 1), (1, 1, 1))


def _tail_slopes(fold: Network, start: Tensor, end: Tensor, clinical: Tensor, bits: slice) -> tuple[Tensor, Tensor]:
    """Mean gradients of the logit along the tail's path, by the features and by the presence bits: one batch."""
    nodes, weights = torch.tensor(gauss_legendre(TAIL_STEPS), dtype=torch.float32, device=end.device).T
    at = (start + nodes.view(-1, 1, 1, 1, 1) * (end - start)).requires_grad_()
    told = (clinical[:, bits] * nodes[:, None]).requires_grad_()
    before, after = (
        clinical[:, part].expand(TAIL_STEPS, -1) for part in (slice(0, bits.start), slice(bits.stop, None))
    )
    logits = fold.tail(at, torch.cat([before, told, after], dim=1))[:, 0]
    by_feature, by_bit = torch.autograd.grad((logits * weights).sum(), [at, told], materialize_grads=True)
    return by_feature.sum(dim=0, keepdim=True), by_bit.sum(dim=0)


def _trunk(fold: Network, image: Tensor, rectify: Any) -> Tensor:
    """``fold.trunk`` with every rectifier in one's own hands."""
    stem = fold.trunk.stem
    return _after_stem(fold, stem.norm(stem.conv(image)), rectify)


def _after_stem(fold: Network, seen: Tensor, rectify: Any) -> Tensor:
    """The trunk's rest; the stem's rectifier stands after its pooling, which commutes."""
    trunk = fold.trunk
    x: Tensor = rectify(functional.max_pool3d(seen, 2))
    for block in (trunk.block1, trunk.block2, trunk.block3):
        inner = rectify(block.norm1(block.conv1(x)))
        x = rectify(block.shortcut(x) + block.norm2(block.conv2(inner)))
    return x


class _Rescaled(torch.autograd.Function):
    """A rectifier whose slope is that between what absence and what the patient sends it."""

    @staticmethod
    def forward(context: Any, x: Tensor, none: Tensor) -> Tensor:
        context.save_for_backward(x, none)
        return torch.relu(x)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # (relu(x) - relu(none)) / (x - none) in few passes over memory: 1 where both are positive, 0 where neither is,
        # and the larger one's part of the distance between them where the rectifier bends.
        x, none = context.saved_tensors
        apart = (x - none).abs_().add_(_FLAT)
        slope = torch.maximum(x, none).div_(apart).clamp_(0, 1)
        return slope.mul_(gradients[0]), None


def passes(
    folds: list[Network], none: list[AbsentImage], image: Tensor, clinical: Tensor, bits: slice
) -> Iterator[RescalePass]:
    """Fold by fold, so that one fold's activations are held at a time."""
    for fold, empty in zip(folds, none, strict=True):
        yield explain(fold, empty, image, clinical, bits)
