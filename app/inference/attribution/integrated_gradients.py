"""Where in the images the ensemble's logit comes from.

Notable choices:
- Everything starts from absence: zero channels with their presence bits off, which training shows the network often.
- Voxel maps are by the rescale rule (app/network/rescale.py) unless asked otherwise: about three forward passes, and
  deleting what they rank highest takes as much away as by 32 steps of integrated gradients (docs/explanation.md).
- On request they are path-integrated gradients (Sundararajan et al., ICML 2017) of the ensemble's mean logit, image
  and presence bits growing together, at two and a half forward passes a step.
- A bit's share belongs to its channel, spread like the rest of it.
- Imaging's value is shared among modalities by the sums of the same maps, or, on request, exactly, over every subset
  of the present channels. Either is made to sum (``to_sum``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.inference.attribution.quadrature import gauss_legendre
from app.inference.attribution.shapley import exact, to_sum
from app.network.ensemble import Ensemble

FINE_STEPS = 32

Array = NDArray[np.float64]


def path_gradients(
    ensemble: Ensemble, image: Tensor, clinical: Tensor, bits: slice, *, steps: int = FINE_STEPS
) -> tuple[Tensor, Tensor]:
    """Integrated gradients of the mean logit from absence to the patient, by Gauss-Legendre quadrature.

    :param image: (c, x, y, z)
    :param clinical: (v,) the patient's clinical vector
    :param bits: where in it the presence bits lie
    :return: (c, x, y, z) shares of the voxels and (c,) shares of the presence bits; their sum approaches
        logit(patient) - logit(patient without images) as ``steps`` grows
    """
    full = ensemble.image(image)
    vector = clinical.to(ensemble.device, torch.float32)[None]
    slope_image, slope_bits = torch.zeros_like(full), torch.zeros_like(vector[:, bits])
    for along, weight in gauss_legendre(steps):
        for fold in ensemble.folds:
            at = (full * along).requires_grad_()
            told = (vector[:, bits] * along).requires_grad_()
            known = torch.cat([vector[:, : bits.start], told, vector[:, bits.stop :]], dim=1)
            logit = fold.tail(ensemble.trunk(fold, at), known)[0, 0]
            by_image, by_bits = torch.autograd.grad(logit, [at, told], materialize_grads=True)
            slope_image += weight / len(ensemble.folds) * by_image
            slope_bits += weight / len(ensemble.folds) * by_bits
    return (slope_image * full)[0].cpu(), (slope_bits * vector[:, bits])[0].cpu()


def modality_shares_exact(
    ensemble: Ensemble, image: Tensor, clinical: Tensor, bits: slice, present: Sequence[int]
) -> Array:
    """Shapley values, in logits, of the present channels: 2^len(present) trunk passes, at the patient's own record."""

    def game(masks: NDArray[np.bool_], _rows: NDArray[np.intp]) -> Array:
        values = []
        for mask in masks:
            some, known = torch.zeros_like(image), clinical.clone()
            known[bits] = 0.0
            for channel in np.asarray(present)[mask]:
                some[channel] = image[channel]
                known[bits.start + channel] = clinical[bits.start + channel]
            values.append(float(ensemble.logits(ensemble.features(some), known[None]).mean()))
        return np.asarray(values)

    return exact(game, len(present), 1).values


def smooth(shares: Tensor) -> Tensor:
    """A 3x3x3 binomial smoothing of maps (c, x, y, z), zero outside; gradients are rough from voxel to voxel."""
    for axis in (1, 2, 3):
        size = shares.shape[axis]
        blurred = shares * 0.5
        blurred.narrow(axis, 1, size - 1).add_(shares.narrow(axis, 0, size - 1), alpha=0.25)
        blurred.narrow(axis, 0, size - 1).add_(shares.narrow(axis, 1, size - 1), alpha=0.25)
        shares = blurred
    return shares


def voxel_map(shares: Tensor, contribution: float) -> NDArray[np.float32]:
    """One channel's map (x, y, z), summing to its modality's contribution."""
    return to_sum(shares.double().numpy(), contribution).astype(np.float32)
