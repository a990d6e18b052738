"""Image attribution: integrated gradients, exact modality shares and smoothing of voxel maps.

Design notes:
- The baseline is an absent image: zero channels with their presence bits off, which training shows the network often.
- Voxel maps use the rescale rule by default (deeplift.py), which ranks voxels equally well at a lower cost
  (docs/explanation.md). On request they are integrated gradients (Sundararajan et al., ICML 2017) of the ensemble's
  mean logit, along a path on which image and presence bits grow together.
- A presence bit's share belongs to its channel.
- The modalities' shares are the sums of the maps, or exact Shapley values on request. Both are adjusted to the total.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.inference.attribution.quadrature import gauss_legendre
from app.inference.attribution.shapley import distribute_remainder, exact
from app.network.ensemble import Ensemble

DEFAULT_STEPS = 32

Array = NDArray[np.float64]


def integrated_gradients(
    ensemble: Ensemble, image: Tensor, clinical: Tensor, bits: slice, *, steps: int = DEFAULT_STEPS
) -> tuple[Tensor, Tensor]:
    """Compute integrated gradients of the mean logit by Gauss-Legendre quadrature.

    ``image`` is (c, x, y, z), ``clinical`` (v,), and ``bits`` the positions of the presence bits in it.

    Returns:
        (c, x, y, z) shares of the voxels and (c,) shares of the presence bits; their sum approaches
        logit(patient) - logit(patient without images) as ``steps`` grows.
    """
    full = ensemble.image(image)
    vector = clinical.to(ensemble.device, torch.float32)[None]
    slope_image, slope_bits = torch.zeros_like(full), torch.zeros_like(vector[:, bits])
    for along, weight in gauss_legendre(steps):
        for fold in ensemble.folds:
            at = (full * along).requires_grad_()
            bits_at = (vector[:, bits] * along).requires_grad_()
            vector_at = torch.cat([vector[:, : bits.start], bits_at, vector[:, bits.stop :]], dim=1)
            logit = fold.tail(ensemble.trunk(fold, at), vector_at)[0, 0]
            by_image, by_bits = torch.autograd.grad(logit, [at, bits_at], materialize_grads=True)
            slope_image += weight / len(ensemble.folds) * by_image
            slope_bits += weight / len(ensemble.folds) * by_bits
    return (slope_image * full)[0].cpu(), (slope_bits * vector[:, bits])[0].cpu()


def exact_modality_shares(
    ensemble: Ensemble, image: Tensor, clinical: Tensor, bits: slice, present: Sequence[int]
) -> Array:
    """Compute Shapley values, in logits, of the present channels, with 2^len(present) trunk passes.

    The clinical values are the patient's. For ``image``, ``clinical`` and ``bits`` see ``integrated_gradients``.
    """

    def game(masks: NDArray[np.bool_], _rows: NDArray[np.intp]) -> Array:
        values = []
        for mask in masks:
            subset, vector = torch.zeros_like(image), clinical.clone()
            vector[bits] = 0.0
            for channel in np.asarray(present)[mask]:
                subset[channel] = image[channel]
                vector[bits.start + channel] = clinical[bits.start + channel]
            values.append(float(ensemble.logits(ensemble.features(subset), vector[None]).mean()))
        return np.asarray(values)

    return exact(game, len(present), 1).values


def smooth(shares: Tensor) -> Tensor:
    """Smooth maps (c, x, y, z) by a 3x3x3 binomial kernel, zero outside, because gradients vary between neighbours."""
    for axis in (1, 2, 3):
        size = shares.shape[axis]
        blurred = shares * 0.5
        blurred.narrow(axis, 1, size - 1).add_(shares.narrow(axis, 0, size - 1), alpha=0.25)
        blurred.narrow(axis, 0, size - 1).add_(shares.narrow(axis, 1, size - 1), alpha=0.25)
        shares = blurred
    return shares


def smooth_within(shares: Tensor, mask: Tensor) -> Tensor:
    """Smooth maps (c, x, y, z) by the same kernel, but inside ``mask`` (x, y, z) only; each map keeps its sum."""
    weight = mask.to(shares.dtype)
    reached = smooth(weight[None])[0].clamp_min(1e-6)
    return smooth(shares * weight / reached) * weight


def voxel_map(shares: Tensor, contribution: float) -> NDArray[np.float32]:
    """Adjust one channel's map (x, y, z) to sum to its modality's contribution."""
    return distribute_remainder(shares.double().numpy(), contribution).astype(np.float32)
