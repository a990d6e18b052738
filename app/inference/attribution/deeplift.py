"""Voxel maps by DeepLIFT's rescale rule, in one backward pass through the trunk.

At every rectifier, the rule replaces the gradient by the slope between the baseline and the patient (Shrikumar et al.,
"Learning important features through propagating activation differences", ICML 2017).

Design notes:
- The baseline is an image of zeros, the same for all patients. So its activations are computed once per trunk.
- Folds that share a trunk share its passes: their slopes are added before the one backward pass.
- Max-pooling needs no rule. The baseline is constant before it, so the gradient at the maximum is already exact.
- In the tail, clinical vector and features multiply. There, gradients are integrated along the straight path of the
  features and the presence bits (Sundararajan et al., ICML 2017).
- float32 on every device, because slopes are divided by small differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from app.inference.attribution.quadrature import gauss_legendre
from app.network.conv import convolve
from app.network.daft import Network

TAIL_STEPS = 8
_EPSILON = 1e-12  # avoids a division by zero for equal activations


class BaselineActivations(NamedTuple):
    """A trunk's activations for the baseline image: inputs of its rectifiers, in order, and its features."""

    rectifier_inputs: list[Tensor]
    features: Tensor


class RescaleResult(NamedTuple):
    """Features (1, t, x, y, z) of a trunk, and the slopes of the summed logits of the folds that share it.

    Slopes are by voxels (1, c, X, Y, Z) and by presence bits (c,). A share is a slope times its input.
    """

    features: Tensor
    voxels: Tensor
    bits: Tensor


@torch.no_grad()
def baseline_activations(fold: Network, blank: Tensor) -> BaselineActivations:
    """Compute the activations of ``blank`` (1, c, x, y, z), a batch of zeros as ``Ensemble.image`` makes it."""
    inputs: list[Tensor] = []
    # Rectifiers of each path: its stem's, two of each block, two of the marks.
    counts = [1 + 2 * len(path.blocks) + 2 * (path.marks is not None) for path, _ in fold.trunk.paths]
    first_of_path = {sum(counts[:index]) for index in range(len(counts))}

    def rectify(x: Tensor) -> Tensor:
        # After a stem's convolution every voxel equals the bias, so one voxel is enough.
        after_stem = len(inputs) in first_of_path
        inputs.append(x[:, :, :1, :1, :1].clone() if after_stem else x)
        return torch.relu(x)

    return BaselineActivations(rectifier_inputs=inputs, features=_trunk(fold, blank, rectify))


def rescale(
    folds: Sequence[Network], baseline: BaselineActivations, image: Tensor, clinical: Tensor, bits: slice
) -> RescaleResult:
    """Compute slopes whose shares sum to logit(patient) - logit(patient without images), up to the quadrature error.

    The logit is the sum over ``folds``, which share one trunk. ``image`` is (1, c, x, y, z), ``clinical`` (1, v), and
    ``bits`` the positions of the presence bits in it.
    """
    remaining, outputs, trunk = iter(baseline.rectifier_inputs), [], folds[0].trunk
    for path, part in trunk.paths:
        with torch.no_grad():
            outputs.append(path.stem.norm(path.stem.conv(_cut(image, part))))
        outputs[-1].requires_grad_()
    features = _after_stems(folds[0], outputs, lambda x: _RescaledRelu.apply(x, next(remaining)))  # type: ignore[no-untyped-call]
    tails = [_tail_slopes(fold, baseline.features, features.detach(), clinical, bits) for fold in folds]
    slopes, by_bit = (torch.stack(part).sum(dim=0) for part in zip(*tails, strict=True))
    by_voxel = torch.zeros_like(image)
    by_output = torch.autograd.grad(features, outputs, slopes)
    for (path, part), own in zip(trunk.paths, by_output, strict=True):
        _cut(by_voxel, part).add_(_convolution_backward(path.stem.conv.weight, own))
    return RescaleResult(features.detach(), by_voxel, by_bit)


def _cut(image: Tensor, part: tuple[slice, ...] | None) -> Tensor:
    """Return the part of images (n, c, x, y, z) that a path sees, as a view."""
    return image if part is None else image[:, :, *part]


def _convolution_backward(weight: Tensor, slopes: Tensor) -> Tensor:
    """Compute slopes by the input of a 3x3x3 convolution of stride 1 from those by its output.

    For few input channels, a convolution with the mirrored kernel is faster than torch's backward pass.
    """
    mirrored = weight.transpose(0, 1).flip(2, 3, 4).contiguous(memory_format=torch.channels_last_3d)
    return convolve(slopes, mirrored, None, (1, 1, 1), (1, 1, 1))


def _tail_slopes(fold: Network, start: Tensor, end: Tensor, clinical: Tensor, bits: slice) -> tuple[Tensor, Tensor]:
    """Compute mean gradients of the logit along the path, by the features and by the presence bits, in one batch."""
    nodes, weights = torch.tensor(gauss_legendre(TAIL_STEPS), dtype=torch.float32, device=end.device).T
    at = (start + nodes.view(-1, 1, 1, 1, 1) * (end - start)).requires_grad_()
    bits_at = (clinical[:, bits] * nodes[:, None]).requires_grad_()
    before, after = (
        clinical[:, part].expand(TAIL_STEPS, -1) for part in (slice(0, bits.start), slice(bits.stop, None))
    )
    logits = fold.tail(at, torch.cat([before, bits_at, after], dim=1))[:, 0]
    by_feature, by_bit = torch.autograd.grad((logits * weights).sum(), [at, bits_at], materialize_grads=True)
    return by_feature.sum(dim=0, keepdim=True), by_bit.sum(dim=0)


def _trunk(fold: Network, image: Tensor, rectify: Any) -> Tensor:
    """Compute ``fold.trunk`` with ``rectify`` in place of every rectifier."""
    stems = [path.stem.norm(path.stem.conv(_cut(image, part))) for path, part in fold.trunk.paths]
    return _after_stems(fold, stems, rectify)


def _after_stems(fold: Network, stem_outputs: Sequence[Tensor], rectify: Any) -> Tensor:
    """Compute the trunk from the normalised outputs of the paths' stems on."""
    features = []
    for (path, _), output in zip(fold.trunk.paths, stem_outputs, strict=True):
        x: Tensor = rectify(path.stem.pool(output))
        for block in path.blocks:
            inner = rectify(block.norm1(block.conv1(x)))
            x = rectify(block.shortcut(x) + block.norm2(block.conv2(inner)))
        if path.marks is not None:
            x = path.marks.average(rectify(path.marks.summed(rectify(path.marks.hidden(x)))))
        features.append(x)
    return fold.trunk.join(features)


class _RescaledRelu(torch.autograd.Function):
    """A rectifier whose slope is taken between the baseline's input and the patient's input."""

    @staticmethod
    def forward(context: Any, x: Tensor, baseline: Tensor) -> Tensor:
        context.save_for_backward(x, baseline)
        return torch.relu(x)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # (relu(x) - relu(baseline)) / (x - baseline) in few passes over memory: 1 if both are positive, 0 if neither
        # is; otherwise the larger value divided by the distance.
        x, baseline = context.saved_tensors
        distance = (x - baseline).abs_().add_(_EPSILON)
        slope = torch.maximum(x, baseline).div_(distance).clamp_(0, 1)
        return slope.mul_(gradients[0]), None
