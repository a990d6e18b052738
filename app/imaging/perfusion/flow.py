"""Cerebral blood flow of perfusion curves by Bayesian estimation with an exponential residue function.

    tissue(t) = (CBF * rho / k_H) * integral of arterial(s) exp(-(t - delay - s) / MTT) ds + noise

The posterior of (delay, MTT) is computed on a grid, and CBF is its geometric mean. Deconvolution with a truncated
spectrum lowers the flow of tissue with a short transit time more than that of tissue with a long one, and noise raises
a low flow. An estimate with a model of the residue has neither fault as long as the model holds; ``docs/imaging.md``
gives the errors for other residues.

Design notes:
- Boutelier et al., IEEE Trans Med Imaging 2012;31:1381, and Mouridsen et al., NeuroImage 2006;33:570: the posterior of
  the parameters of a residue with its delay. The exponential is the residue of one well-mixed compartment.
- The prior is uniform in delay and in MTT, within the ranges that brain tissue has.
- The flow enters linearly, so each point of the grid needs only its best flow: one product of matrices.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.interpolate import CubicSpline

__all__ = ["flow"]

_MTT_S: Final = np.geomspace(2.5, 24, 14)
_DELAYS_S: Final = np.arange(-5, 15.25, 0.5)  # negative: the tissue is earlier than the artery that was found
_FINE_S: Final = 0.1
_CHUNK: Final = 2048
_PARAMETERS: Final = 4  # flow, delay, MTT, baseline: they take these degrees of freedom from the residuals
_EVERY: Final = 17  # curves from one to the next of which the noise is measured


def flow(tissue: np.ndarray, arterial: np.ndarray, step_s: float) -> np.ndarray:
    """Flow of each curve as (CBF * rho / k_H), in 1/s.

    Args:
        tissue: (N, T), enhancement above the baseline, HU.
        arterial: (T,), enhancement of the arterial input, corrected for partial volume, HU.
        step_s: seconds from one sample to the next.

    Returns:
        (N,) float32, at least 0.
    """
    shapes, transit_s = _shapes(arterial.astype(np.float64), step_s)
    lengths = np.maximum(np.linalg.norm(shapes, axis=1), 1e-12)
    units = (shapes / lengths[:, None]).astype(np.float32).T
    # The grid is geometric in MTT: the weight of a point is the width of its cell, which is proportional to MTT.
    prior = (transit_s / transit_s.max()).astype(np.float32)
    variance = _variance(tissue[::_EVERY], units)
    result = np.zeros(len(tissue), np.float32)
    for start in range(0, len(tissue), _CHUNK):
        projected = np.maximum(np.asarray(tissue[start : start + _CHUNK], np.float32) @ units, 0)
        best = projected.max(axis=1, keepdims=True)
        weight = np.exp(np.maximum((projected**2 - best**2) / (2 * variance), -60)) * prior
        logarithm = np.log(np.maximum(projected / lengths, 1e-12))
        mean = np.exp((weight * logarithm).sum(axis=1) / weight.sum(axis=1))
        result[start : start + _CHUNK] = np.where(best[:, 0] > 0, mean, 0)
    return result


def _variance(tissue: np.ndarray, units: np.ndarray) -> np.float32:
    """Variance of the noise: median over the curves of what the best point of the grid leaves."""
    if not len(tissue):
        return np.float32(1)
    curves = np.asarray(tissue, np.float32)
    left = (curves**2).sum(axis=1) - np.maximum(curves @ units, 0).max(axis=1) ** 2
    return np.float32(max(np.median(left) / max(curves.shape[1] - _PARAMETERS, 1), 1e-4))


def _shapes(arterial: np.ndarray, step_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Tissue curves of unit flow at each point of the grid, (M, T) HU * s, and the MTT of each, (M,) s."""
    times = np.arange(arterial.size) * step_s
    fine = np.arange(0, times[-1] + _FINE_S / 2, _FINE_S)
    input_curve = CubicSpline(times, arterial)(fine)
    shapes, transit_s = [], []
    for mtt in _MTT_S:
        residue = np.exp(-fine / mtt)
        residue[0] /= 2  # trapezoidal rule
        curve = np.convolve(input_curve, residue)[: fine.size] * _FINE_S
        for delay in _DELAYS_S:
            shapes.append(np.interp(times - delay, fine, curve, left=0))
            transit_s.append(mtt)
    return np.array(shapes), np.array(transit_s)
