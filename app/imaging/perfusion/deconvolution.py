"""Residue functions by block-circulant deconvolution: the mathematics of perfusion, on plain curves.

    tissue(t) = (CBF * rho / k_H) * integral of arterial(s) R(t - s) ds          R: residue function, R(delay) = 1

Notable choices:
- Block-circulant (Wu et al., Magn Reson Med 2003;50:164): an arterial curve that arrives after the tissue's does
  no harm, so the result depends on delay only through Tmax. A circulant matrix is diagonal in the Fourier basis with
  singular values |FFT(arterial)|: truncating its SVD is dropping frequencies, exactly, at the price of an FFT.
- oSVD (same paper): each curve gets the gentlest truncation whose residue oscillates less than a limit.
- The oscillation index depends on the sampling, and its limit was found at one sample a second: curves are brought to
  that step first, by a cubic spline (written as one matrix, since it is linear in the samples).
- Peaks are read off a parabola through the highest sample and its neighbours, so Tmax is not a multiple of the
  sampling step.
- kappa = k_H / rho: k_H = (1 - 0.45) / (1 - 0.25), the large- over small-vessel plasma fractions, and rho =
  1.04 g/mL, the density of brain (Calamante et al., J Cereb Blood Flow Metab 1999;19:701).
- Enhancement in HU is proportional to iodine concentration, so HU stand for concentration throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.fft
from scipy.interpolate import CubicSpline

__all__ = ["KAPPA", "OSCILLATION_LIMIT", "Haemodynamics", "haemodynamics", "oscillation", "residues"]

KAPPA: Final = ((1 - 0.45) / (1 - 0.25)) / 1.04
"""mL per g: corrects for the haematocrit's fall in small vessels, and turns volume of tissue into mass."""

OSCILLATION_LIMIT: Final = 0.035
"""Wu et al. 2003, table 1: the limit chosen for oSVD."""

_STEP_S: Final = 1.0
"""The sampling that the limit was found at."""

_LEVELS: Final = tuple(float(level) for level in np.geomspace(0.02, 0.9, 24))
"""Truncation levels that are tried, as fractions of the largest singular value, gentlest first."""

_CHUNK: Final = 8192
"""Curves that are worked on at once: a chunk and its spectra stay in the second-level cache's reach."""


@dataclass(frozen=True)
class Haemodynamics:
    """Four numbers per curve, each of shape (N,) float32."""

    cbf: np.ndarray  # mL / 100 g / min
    cbv: np.ndarray  # mL / 100 g
    mtt: np.ndarray  # s
    tmax: np.ndarray  # s


def residues(
    tissue: np.ndarray, arterial: np.ndarray, step_s: float, *, limit: float = OSCILLATION_LIMIT
) -> np.ndarray:
    """The flow-scaled residue functions k = (CBF * rho / k_H) R, in 1/s.

    :param tissue: (N, T) enhancement over the baseline, HU
    :param arterial: (T,) enhancement of the arterial input, HU
    :param step_s: seconds from one sample to the next
    :param limit: the oscillation index that a residue must stay below
    :return: (N, L) float32, one column a second: column j is j seconds, the second half of them negative times
    """
    resampling = _resampling(arterial.size, step_s)
    length = scipy.fft.next_fast_len(2 * len(resampling), real=True)
    transfer = scipy.fft.rfft(resampling @ arterial.astype(np.float64) * _STEP_S, length)
    gain = np.abs(transfer) / np.abs(transfer).max()
    inverses = [
        np.where(gain >= level, 1 / np.where(gain > 0, transfer, 1), 0).astype(np.complex64) for level in _LEVELS
    ]
    found = np.empty((len(tissue), length), np.float32)
    for start in range(0, len(tissue), _CHUNK):
        curves = np.asarray(tissue[start : start + _CHUNK], np.float32) @ resampling.T.astype(np.float32)
        spectra = scipy.fft.rfft(curves, length, axis=1)
        block = found[start : start + _CHUNK]
        pending = np.arange(len(block))
        for truncated in inverses:
            tried = scipy.fft.irfft(spectra[pending] * truncated, length, axis=1)
            calm = (oscillation(tried) < limit) | (truncated is inverses[-1])
            block[pending[calm]] = tried[calm]
            pending = pending[~calm]
            if not pending.size:
                break
    return found


def _resampling(frames: int, step_s: float) -> np.ndarray:
    """The matrix (new frames, frames) that takes samples every ``step_s`` to samples every second."""
    times = np.arange(frames) * step_s
    matrix: np.ndarray = CubicSpline(times, np.eye(frames))(np.arange(0, times[-1] + 1e-9, _STEP_S))
    return matrix


def oscillation(residue: np.ndarray) -> np.ndarray:
    """The oscillation index of each row: mean absolute second difference over the peak (Wu et al. 2003, eq. 9).

    :param residue: (N, L)
    :return: (N,)
    """
    bend = np.abs(np.diff(residue, n=2, axis=1)).sum(axis=1)
    index: np.ndarray = bend / (residue.shape[1] * np.maximum(residue.max(axis=1), 1e-12))
    return index


def haemodynamics(
    tissue: np.ndarray, arterial: np.ndarray, step_s: float, *, limit: float = OSCILLATION_LIMIT
) -> Haemodynamics:
    """Flow, volume, transit time and delay of each curve.

    CBF is the residue's peak and Tmax its time (0 where the tissue leads the artery); CBV is the ratio of the areas
    under the tissue and arterial curves, and MTT = CBV / CBF (central volume theorem).

    :param tissue: (N, T) enhancement, HU
    :param arterial: (T,) enhancement of the arterial input, already corrected for partial volume, HU
    :param step_s: seconds from one sample to the next
    """
    per_100_g = 100 * KAPPA
    height, delay = _peaks(residues(tissue, arterial, step_s, limit=limit))
    cbf = per_100_g * 60 * np.maximum(height, 0)
    cbv = per_100_g * np.maximum(tissue.sum(axis=1), 0) / arterial.sum()
    mtt = np.divide(60 * cbv, cbf, out=np.zeros_like(cbf), where=cbf > 0)
    maps = (cbf, cbv, mtt, np.maximum(delay, 0) * _STEP_S)
    return Haemodynamics(*(values.astype(np.float32) for values in maps))


def _peaks(residue: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Height and place (in samples, negative past the middle) of each row's maximum, by a parabola through three."""
    rows, length = np.arange(len(residue)), residue.shape[1]
    at = residue.argmax(axis=1)
    before, peak, after = (residue[rows, (at + step) % length] for step in (-1, 0, 1))
    bend = before - 2 * peak + after
    shift = np.divide(0.5 * (before - after), bend, out=np.zeros_like(peak), where=bend < 0)
    height = peak - 0.25 * (before - after) * shift
    place = np.where(at > length // 2, at - length, at) + shift
    return height, place
