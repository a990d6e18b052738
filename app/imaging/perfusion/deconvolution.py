"""Block-circulant deconvolution of perfusion curves: residue functions, flow, volume and Tmax.

    tissue(t) = (CBF * rho / k_H) * integral of arterial(s) R(t - s) ds          R: residue function, R(delay) = 1

Design notes:
- Block-circulant (Wu et al., Magn Reson Med 2003;50:164): CBF does not depend on the delay, also if it is negative. A
  circulant matrix is diagonal in the Fourier basis, so a truncated SVD is an FFT without some frequencies.
- oSVD (same paper): each curve gets the weakest truncation with an oscillation index below the limit. The limit was
  found at one sample a second, so curves are resampled to that step by a cubic spline (one matrix).
- Peaks are read from a parabola through three samples, so Tmax is not a multiple of the step.
- Only Tmax is read from the residue. The height of its peak is a biased CBF, so CBF has its own estimate (``flow.py``).
- kappa = k_H / rho: k_H = (1 - 0.45) / (1 - 0.25), the ratio of the plasma fractions in large and small vessels, and
  rho = 1.04 g/mL, the density of brain (Calamante et al., J Cereb Blood Flow Metab 1999;19:701).
- Enhancement in HU is proportional to the concentration of iodine and is used in its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.fft
from scipy.interpolate import CubicSpline

from app.imaging.perfusion.flow import flow

__all__ = ["KAPPA", "OSCILLATION_LIMIT", "Haemodynamics", "haemodynamics", "oscillation", "residues"]

KAPPA: Final = ((1 - 0.45) / (1 - 0.25)) / 1.04  # mL per g: haematocrit of small vessels; volume to mass
OSCILLATION_LIMIT: Final = 0.035  # Wu et al. 2003, table 1: the limit chosen for oSVD
_STEP_S: Final = 1.0  # the sampling at which the limit was found
_LEVELS: Final = tuple(float(level) for level in np.geomspace(0.02, 0.9, 24))
"""Truncation levels as fractions of the largest singular value, weakest truncation first."""

_CHUNK: Final = 8192  # curves per chunk, chosen for the size of the processor cache


@dataclass(frozen=True)
class Haemodynamics:
    """Three values per curve, each (N,) float32."""

    cbf: np.ndarray  # mL / 100 g / min
    cbv: np.ndarray  # mL / 100 g
    tmax: np.ndarray  # s


def residues(
    tissue: np.ndarray, arterial: np.ndarray, step_s: float, *, limit: float = OSCILLATION_LIMIT
) -> np.ndarray:
    """Flow-scaled residue functions k = (CBF * rho / k_H) R, in 1/s.

    Args:
        tissue: (N, T), enhancement above the baseline, HU.
        arterial: (T,), enhancement of the arterial input, HU.
        step_s: seconds from one sample to the next.
        limit: largest oscillation index of a residue.

    Returns:
        (N, L) float32; column j is j seconds, and the second half of the columns is negative time.
    """
    resampling = _resampling(arterial.size, step_s)
    length = scipy.fft.next_fast_len(2 * len(resampling), real=True)
    transfer = scipy.fft.rfft(resampling @ arterial.astype(np.float64) * _STEP_S, length)
    gain = np.abs(transfer) / np.abs(transfer).max()
    inverses = [
        np.where(gain >= level, 1 / np.where(gain > 0, transfer, 1), 0).astype(np.complex64) for level in _LEVELS
    ]
    result = np.empty((len(tissue), length), np.float32)
    for start in range(0, len(tissue), _CHUNK):
        curves = np.asarray(tissue[start : start + _CHUNK], np.float32) @ resampling.T.astype(np.float32)
        spectra = scipy.fft.rfft(curves, length, axis=1)
        block = result[start : start + _CHUNK]
        pending = np.arange(len(block))
        for truncated in inverses:
            candidate = scipy.fft.irfft(spectra[pending] * truncated, length, axis=1)
            accepted = (oscillation(candidate) < limit) | (truncated is inverses[-1])
            block[pending[accepted]] = candidate[accepted]
            pending = pending[~accepted]
            if not pending.size:
                break
    return result


def _resampling(frames: int, step_s: float) -> np.ndarray:
    """Matrix (new frames, frames) from samples every ``step_s`` to samples every second."""
    times = np.arange(frames) * step_s
    matrix: np.ndarray = CubicSpline(times, np.eye(frames))(np.arange(0, times[-1] + 1e-9, _STEP_S))
    return matrix


def oscillation(residue: np.ndarray) -> np.ndarray:
    """(N,): oscillation index of each row of ``residue`` (N, L): mean |second difference| / peak (Wu et al., eq. 9)."""
    bend = np.abs(np.diff(residue, n=2, axis=1)).sum(axis=1)
    index: np.ndarray = bend / (residue.shape[1] * np.maximum(residue.max(axis=1), 1e-12))
    return index


def haemodynamics(
    tissue: np.ndarray, arterial: np.ndarray, step_s: float, *, limit: float = OSCILLATION_LIMIT
) -> Haemodynamics:
    """Flow, volume and Tmax of each curve.

    Tmax is the time of the peak of the residue (0 if the tissue is earlier than the artery); CBF is the estimate of
    ``flow.py``; CBV is the ratio of the areas under the tissue and arterial curves.

    Args:
        tissue: (N, T), enhancement, HU.
        arterial: (T,), enhancement of the arterial input, corrected for partial volume, HU.
        step_s: seconds from one sample to the next.
        limit: largest oscillation index of a residue.
    """
    per_100_g = 100 * KAPPA
    delay = _peak_positions(residues(tissue, arterial, step_s, limit=limit))
    cbf = per_100_g * 60 * flow(tissue, arterial, step_s)
    cbv = per_100_g * np.maximum(tissue.sum(axis=1), 0) / arterial.sum()
    maps = (cbf, cbv, np.maximum(delay, 0) * _STEP_S)
    return Haemodynamics(*(values.astype(np.float32) for values in maps))


def _peak_positions(residue: np.ndarray) -> np.ndarray:
    """Position of each row's maximum (samples; negative in the second half), by a parabola through three samples."""
    rows, length = np.arange(len(residue)), residue.shape[1]
    at = residue.argmax(axis=1)
    before, peak, after = (residue[rows, (at + step) % length] for step in (-1, 0, 1))
    bend = before - 2 * peak + after
    shift: np.ndarray = np.divide(0.5 * (before - after), bend, out=np.zeros_like(peak), where=bend < 0)
    position: np.ndarray = np.where(at > length // 2, at - length, at) + shift
    return position
