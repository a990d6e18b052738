"""Least squares between points of known values and an image, over the twelve numbers of an affine.

Notable choices:
- Gauss-Newton with Levenberg's damping. The derivative is that of the very interpolation used, so a step that looks
  downhill is; a step that is not is taken back.
- Points lie about the origin in units of ``UNIT_MM``, so that turning, scaling and moving are of like size and the
  normal equations well conditioned.
- A point outside the image drops out; the cost is the mean over those inside.
- Everything is summed in one fixed order: the same input gives the same numbers.

Source: the forward additive form in Baker and Matthews, "Lucas-Kanade 20 years on", IJCV 2004.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.imaging.jit import jit_compiled

__all__ = ["UNIT_MM", "Points", "fit", "strain"]

Floats = npt.NDArray[np.float32]
Matrix = npt.NDArray[Any]

UNIT_MM = 50.0
ENOUGH = 0.75
"""A sample counts if at least this much of its neighbourhood lies in the field of view."""


@dataclass(frozen=True, eq=False)
class Points:
    """What the image should show where.

    :ivar at: (n, 3) float64, (millimetres - ``centre``) / UNIT_MM
    :ivar values: (n, channels) float32
    :ivar weights: (n, channels) float32
    """

    at: Matrix
    values: Floats
    weights: Floats
    centre: Matrix

    def into(self, voxel_from_mm: Matrix) -> Matrix:
        """The (3, 4) map from ``at`` to voxels, of a (4, 4) map from millimetres to voxels."""
        linear = voxel_from_mm[:3, :3]
        return np.column_stack([linear * UNIT_MM, linear @ self.centre + voxel_from_mm[:3, 3]])

    def out_of(self, found: Matrix) -> Matrix:
        """The inverse of ``into``: a (4, 4) map from millimetres to voxels."""
        voxel_from_mm = np.eye(4)
        voxel_from_mm[:3, :3] = found[:, :3] / UNIT_MM
        voxel_from_mm[:3, 3] = found[:, 3] - voxel_from_mm[:3, :3] @ self.centre
        return voxel_from_mm


def fit(
    image: Floats,
    points: Points,
    start: Matrix,
    *,
    similarity: bool = False,
    rigid: bool = False,
    steps: int = 20,
    tolerance: float = 0.01,
    stiffness: float = 0.0,
    strained: Matrix | float = 0.0,
) -> tuple[Matrix, float]:
    """Improve ``start``, (3, 4) from ``points.at`` to voxels of ``image``; give it and its cost.

    ``image``: (X, Y, Z, channels + 1) float32, the last channel 1 in the field of view and 0 outside.
    ``similarity``: only turn, move and scale; ``rigid``: only turn and move. ``tolerance``: stop when no point moves
    by more, in voxels. ``stiffness``: what a strain of one (``strain``, on top of ``strained``) adds to the cost.
    """
    found, damping = start, 1e-3
    normal, gradient, cost = _equations(image, points, found, start, stiffness, strained)
    for _ in range(steps):
        basis = _similarity_basis(found)[:, : 6 if rigid else 7] if rigid or similarity else np.eye(12)
        reduced = basis.T @ normal @ basis
        damped = reduced + np.diag(damping * np.diag(reduced) + 1e-9)
        change = (basis @ np.linalg.solve(damped, basis.T @ gradient)).reshape(3, 4)
        tried = found + change
        answer = _equations(image, points, tried, start, stiffness, strained)
        if answer[2] < cost:
            found, (normal, gradient, cost) = tried, answer
            damping = max(damping * 0.3, 1e-5)
            if np.abs(change).sum(axis=1).max() < tolerance:
                break
        else:
            damping *= 10
            if damping > 1e3:
                break
    return found, cost


def strain(start: Matrix, found: Matrix) -> Matrix:
    """(6,): how ``found`` stretches and shears what ``start`` does not; growth alike in all directions is no strain."""
    return _strains(start) @ found.ravel()


def _equations(
    image: Floats, points: Points, found: Matrix, start: Matrix, stiffness: float, strained: Matrix | float
) -> tuple[Matrix, Matrix, float]:
    normal, gradient, sums = np.zeros((12, 12)), np.zeros(12), np.zeros(2)
    _accumulate(image, points.at, points.values, points.weights, found, normal, gradient, sums)
    if sums[1] <= 0:
        return normal, gradient, np.inf
    scale = 1 / sums[1]
    normal, gradient, cost = normal * scale, gradient * scale, float(sums[0] * scale)
    if stiffness:
        rows = _strains(start)
        strains = rows @ found.ravel() + strained
        normal = normal + stiffness * rows.T @ rows
        gradient = gradient - stiffness * rows.T @ strains
        cost += stiffness * float(strains @ strains)
    return normal, gradient, cost


def _strains(start: Matrix) -> Matrix:
    """(6, 12): from the twelve numbers to the stretch and shear away from ``start`` with growth taken out, linearly.

    In order xx, yy, zz, xy, xz, yz, the last three times sqrt 2: so the sum of squares does not depend on the axes.
    """
    inverse = np.linalg.inv(start[:, :3])
    rows = np.zeros((6, 3, 4))
    for n, (r, c) in enumerate(((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))):
        rows[n, r, :3] += inverse[:, c] / 2
        rows[n, c, :3] += inverse[:, r] / 2
    rows[:3] -= rows[:3].mean(axis=0)
    rows[3:] *= np.sqrt(2)
    return rows.reshape(6, 12)


def _similarity_basis(found: Matrix) -> Matrix:
    """(12, 7): small turns about the three axes, moves along them, and growth, at ``found``."""
    columns = []
    for axis in range(3):
        turn = np.zeros((3, 3))
        turn[(axis + 1) % 3, (axis + 2) % 3], turn[(axis + 2) % 3, (axis + 1) % 3] = -1, 1
        columns.append(np.column_stack([turn @ found[:, :3], np.zeros(3)]).ravel())
    for axis in range(3):
        columns.append(np.column_stack([np.zeros((3, 3)), np.eye(3)[axis]]).ravel())
    columns.append(np.column_stack([found[:, :3], np.zeros(3)]).ravel())
    return np.array(columns).T


@jit_compiled
def _accumulate(
    image: Floats,
    at: Matrix,
    values: Floats,
    weights: Floats,
    found: Matrix,
    normal: Matrix,
    gradient: Matrix,
    sums: Matrix,
) -> None:
    """Add J'WJ, J'We, e'We and the sum of weights over all points and channels.

    A row of J is the image's slope by each voxel axis times (x, y, z, 1). So a point adds, for each pair of axes, one
    number, the slopes' weighted product over its channels, times the 4 x 4 products of (x, y, z, 1).
    """
    channels = values.shape[1]
    slopes, place = np.zeros(4), np.ones(4)
    pairs, sides = np.zeros((6, 4, 4)), np.zeros((3, 4))  # the pairs: 00, 01, 02, 11, 12, 22
    for n in range(at.shape[0]):
        x, y, z = at[n, 0], at[n, 1], at[n, 2]
        p = found[0, 0] * x + found[0, 1] * y + found[0, 2] * z + found[0, 3]
        q = found[1, 0] * x + found[1, 1] * y + found[1, 2] * z + found[1, 3]
        r = found[2, 0] * x + found[2, 1] * y + found[2, 2] * z + found[2, 3]
        if not (0 <= p < image.shape[0] - 1 and 0 <= q < image.shape[1] - 1 and 0 <= r < image.shape[2] - 1):
            continue
        _sample(image, p, q, r, channels, slopes)
        if slopes[0] < ENOUGH:
            continue
        s00, s01, s02, s11, s12, s22 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        e0, e1, e2 = 0.0, 0.0, 0.0
        for channel in range(channels):
            weight = weights[n, channel]
            if weight == 0:
                continue
            _sample(image, p, q, r, channel, slopes)
            a, b, c = slopes[1], slopes[2], slopes[3]
            error = values[n, channel] - slopes[0]
            s00, s01, s02 = s00 + weight * a * a, s01 + weight * a * b, s02 + weight * a * c
            s11, s12, s22 = s11 + weight * b * b, s12 + weight * b * c, s22 + weight * c * c
            e0, e1, e2 = e0 + weight * a * error, e1 + weight * b * error, e2 + weight * c * error
            sums[0] += weight * error * error
            sums[1] += weight
        place[0], place[1], place[2] = x, y, z
        for i in range(4):
            sides[0, i] += e0 * place[i]
            sides[1, i] += e1 * place[i]
            sides[2, i] += e2 * place[i]
            for j in range(4):
                product = place[i] * place[j]
                pairs[0, i, j] += s00 * product
                pairs[1, i, j] += s01 * product
                pairs[2, i, j] += s02 * product
                pairs[3, i, j] += s11 * product
                pairs[4, i, j] += s12 * product
                pairs[5, i, j] += s22 * product
    _add_blocks(pairs, sides, normal, gradient)


@jit_compiled
def _add_blocks(pairs: Matrix, sides: Matrix, normal: Matrix, gradient: Matrix) -> None:
    """Add the blocks of the pairs of axes to J'WJ, on both sides of its diagonal, and the axes' own to J'We."""
    pair = 0
    for row in range(3):
        gradient[4 * row : 4 * row + 4] += sides[row]
        for column in range(row, 3):
            normal[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += pairs[pair]
            if column > row:
                normal[4 * column : 4 * column + 4, 4 * row : 4 * row + 4] += pairs[pair]
            pair += 1


@jit_compiled
def _sample(image: Floats, p: float, q: float, r: float, channel: int, slopes: Matrix) -> None:
    """Trilinear value of a channel, and its derivative along each axis, into ``slopes``."""
    a, b, c = int(p), int(q), int(r)
    u, v, w = p - a, q - b, r - c
    e000, e001 = image[a, b, c, channel], image[a, b, c + 1, channel]
    e010, e011 = image[a, b + 1, c, channel], image[a, b + 1, c + 1, channel]
    e100, e101 = image[a + 1, b, c, channel], image[a + 1, b, c + 1, channel]
    e110, e111 = image[a + 1, b + 1, c, channel], image[a + 1, b + 1, c + 1, channel]
    d00, d01, d10, d11 = e001 - e000, e011 - e010, e101 - e100, e111 - e110
    c00, c01, c10, c11 = e000 + w * d00, e010 + w * d01, e100 + w * d10, e110 + w * d11
    near, far = c00 + v * (c01 - c00), c10 + v * (c11 - c10)
    slopes[0] = near + u * (far - near)
    slopes[1] = far - near
    slopes[2] = (1 - u) * (c01 - c00) + u * (c11 - c10)
    slopes[3] = (1 - u) * ((1 - v) * d00 + v * d01) + u * ((1 - v) * d10 + v * d11)
