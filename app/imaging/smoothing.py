"""A Gaussian over a whole volume on all cores, for what scipy does on one.

Notable choices:
- Two of the three axes are done plane by plane, while a plane lies in the cache; the third over rows of all planes.
- The weights and the order of the sums are fixed: the same volume gives the same numbers on any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from app.imaging.jit import jit_compiled, over_slabs

__all__ = ["gaussian"]

Floats = npt.NDArray[np.float32]


def gaussian(values: Floats, sigma: Sequence[float], *, truncate: float) -> Floats:
    """``values`` (X, Y, Z) smoothed by ``sigma`` voxels along each axis, cut at ``truncate`` sigmas; end planes repeat.

    What ``scipy.ndimage.gaussian_filter(mode="nearest")`` gives, up to float32 rounding.
    """
    first, second, third = (_weights(each, truncate) for each in sigma)
    lying = np.ascontiguousarray(values)
    within, smooth = np.empty_like(lying), np.empty_like(lying)
    over_slabs(len(lying), lambda start, stop: _in_planes(lying[start:stop], second, third, within[start:stop]))
    over_slabs(len(lying), lambda start, stop: _across(within, first, smooth[start:stop], start))
    return smooth


def _weights(sigma: float, truncate: float) -> Floats:
    """The half of a normalised kernel from its middle outwards."""
    at = np.arange(int(truncate * sigma + 0.5) + 1)
    half = np.exp(-(at**2) / (2 * sigma**2))
    weights: Floats = (half / (2 * half.sum() - half[0])).astype(np.float32)
    return weights


@jit_compiled
def _in_planes(planes: Floats, down: Floats, along: Floats, out: Floats) -> None:
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


@jit_compiled
def _across(volume: Floats, weights: Floats, out: Floats, first: int) -> None:
    for a in range(out.shape[0]):
        for b in range(volume.shape[1]):
            _add(volume[:, b], weights, first + a, out[a, b])


@jit_compiled
def _add(plane: Any, weights: Floats, row: int, out: Floats) -> None:
    """One row of a plane smoothed down the plane."""
    last, columns = plane.shape[0] - 1, plane.shape[1]
    middle = plane[row]
    for c in range(columns):
        out[c] = weights[0] * middle[c]
    for k in range(1, weights.size):
        above, below = plane[max(row - k, 0)], plane[min(row + k, last)]
        for c in range(columns):
            out[c] += weights[k] * (above[c] + below[c])
