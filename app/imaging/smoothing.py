"""Gaussian smoothing of a volume on all cores.

Design notes:
- Two axes are smoothed plane by plane, while a plane lies in the cache; the third axis over rows of all planes.
- The weights and the order of the sums are fixed, so the number of threads does not change the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from app.imaging.jit import lazy_njit, run_in_slabs

__all__ = ["gaussian"]

Floats = npt.NDArray[np.float32]


def gaussian(values: Floats, sigma: Sequence[float], *, truncate: float) -> Floats:
    """Smooth a volume as ``scipy.ndimage.gaussian_filter(mode="nearest")`` does, up to float32 rounding.

    Args:
        values: (X, Y, Z).
        sigma: standard deviation along each axis, voxels.
        truncate: half width of the kernel, in standard deviations.
    """
    first, second, third = (_weights(each, truncate) for each in sigma)
    volume = np.ascontiguousarray(values)
    planes, smooth = np.empty_like(volume), np.empty_like(volume)
    run_in_slabs(len(volume), lambda start, stop: _in_planes(volume[start:stop], second, third, planes[start:stop]))
    run_in_slabs(len(volume), lambda start, stop: _across(planes, first, smooth[start:stop], start))
    return smooth


def _weights(sigma: float, truncate: float) -> Floats:
    """Half of a normalised Gaussian kernel, from its centre outwards."""
    at = np.arange(int(truncate * sigma + 0.5) + 1)
    half = np.exp(-(at**2) / (2 * sigma**2))
    weights: Floats = (half / (2 * half.sum() - half[0])).astype(np.float32)
    return weights


@lazy_njit
def _in_planes(planes: Floats, down: Floats, along: Floats, out: Floats) -> None:
    """Smooth each plane down its rows, then along its columns."""
    rows, columns = planes.shape[1:]
    reach = along.size - 1
    padded = np.empty(columns + 2 * reach, np.float32)
    for a in range(planes.shape[0]):
        for b in range(rows):
            line = padded[reach : reach + columns]
            _add(planes[a], down, b, line)
            padded[:reach] = line[0]
            padded[reach + columns :] = line[columns - 1]
            done = out[a, b]
            for c in range(columns):
                done[c] = along[0] * padded[c + reach]
            for k in range(1, along.size):
                left, right = padded[reach - k :], padded[reach + k :]
                for c in range(columns):
                    done[c] += along[k] * (left[c] + right[c])


@lazy_njit
def _across(volume: Floats, weights: Floats, out: Floats, first: int) -> None:
    for a in range(out.shape[0]):
        for b in range(volume.shape[1]):
            _add(volume[:, b], weights, first + a, out[a, b])


@lazy_njit
def _add(plane: Any, weights: Floats, row: int, out: Floats) -> None:
    """Write one row of a plane, smoothed down the rows, to ``out``."""
    last, columns = plane.shape[0] - 1, plane.shape[1]
    middle = plane[row]
    for c in range(columns):
        out[c] = weights[0] * middle[c]
    for k in range(1, weights.size):
        above, below = plane[max(row - k, 0)], plane[min(row + k, last)]
        for c in range(columns):
            out[c] += weights[k] * (above[c] + below[c])
