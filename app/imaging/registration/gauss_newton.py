"""Least-squares fit of an affine (twelve parameters) between points of known value and an image.

Design notes:
- Gauss-Newton with Levenberg's damping and the exact derivative of the interpolation; a worse step is undone.
- Points are centred and in units of ``UNIT_MM``, so that the normal equations are well conditioned.
- Points outside the image are left out; the cost is the mean over the others.
- The order of the sums is fixed: the same input gives the same result.

Source: the forward additive form in Baker and Matthews, "Lucas-Kanade 20 years on", IJCV 2004.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.imaging.jit import lazy_njit

__all__ = ["UNIT_MM", "Points", "fit", "strain"]

Floats = npt.NDArray[np.float32]
Matrix = npt.NDArray[Any]

UNIT_MM = 50.0
MIN_VISIBLE = 0.75  # a sample counts if at least this share of its neighbourhood lies in the field of view


@dataclass(frozen=True, eq=False)
class Points:
    """Points with the values that the image should have there.

    Attributes:
        coordinates: (n, 3) float64, (millimetres - ``centre``) / UNIT_MM.
        values: (n, channels) float32.
        weights: (n, channels) float32.
        centre: (3,), millimetres.
    """

    coordinates: Matrix
    values: Floats
    weights: Floats
    centre: Matrix

    def voxel_from_unit(self, voxel_from_mm: Matrix) -> Matrix:
        """Convert a (4, 4) map from millimetres to voxels into a (3, 4) map from ``coordinates`` to voxels."""
        linear = voxel_from_mm[:3, :3]
        return np.column_stack([linear * UNIT_MM, linear @ self.centre + voxel_from_mm[:3, 3]])

    def voxel_from_mm(self, transform: Matrix) -> Matrix:
        """Convert a (3, 4) map from ``coordinates`` to voxels into a (4, 4) map from millimetres to voxels."""
        voxel_from_mm = np.eye(4)
        voxel_from_mm[:3, :3] = transform[:, :3] / UNIT_MM
        voxel_from_mm[:3, 3] = transform[:, 3] - voxel_from_mm[:3, :3] @ self.centre
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
    earlier_strain: Matrix | float = 0.0,
) -> tuple[Matrix, float]:
    """Fit the transform from points to image.

    Args:
        image: (X, Y, Z, channels + 1) float32; the last channel is 1 in the field of view and 0 outside.
        points: the points and the values that the image should have there.
        start: (3, 4), initial transform from ``points.coordinates`` to voxels of ``image``.
        similarity: fit only rotation, translation and scale.
        rigid: fit only rotation and translation.
        steps: largest number of steps.
        tolerance: stop when no point moves by more, voxels.
        stiffness: cost of a ``strain`` of one.
        earlier_strain: (6,), strain of earlier fits, which counts too.

    Returns:
        The (3, 4) transform and its cost.
    """
    transform, damping = start, 1e-3
    normal, gradient, cost = _equations(image, points, transform, start, stiffness, earlier_strain)
    for _ in range(steps):
        basis = _similarity_basis(transform)[:, : 6 if rigid else 7] if rigid or similarity else np.eye(12)
        reduced = basis.T @ normal @ basis
        damped = reduced + np.diag(damping * np.diag(reduced) + 1e-9)
        change = (basis @ np.linalg.solve(damped, basis.T @ gradient)).reshape(3, 4)
        candidate = transform + change
        equations = _equations(image, points, candidate, start, stiffness, earlier_strain)
        if equations[2] < cost:
            transform, (normal, gradient, cost) = candidate, equations
            damping = max(damping * 0.3, 1e-5)
            if np.abs(change).sum(axis=1).max() < tolerance:
                break
        else:
            damping *= 10
            if damping > 1e3:
                break
    return transform, cost


def strain(start: Matrix, transform: Matrix) -> Matrix:
    """(6,): stretch and shear of ``transform`` relative to ``start``, without uniform growth."""
    return _strains(start) @ transform.ravel()


def _equations(
    image: Floats, points: Points, transform: Matrix, start: Matrix, stiffness: float, earlier_strain: Matrix | float
) -> tuple[Matrix, Matrix, float]:
    normal, gradient, sums = np.zeros((12, 12)), np.zeros(12), np.zeros(2)
    _accumulate(image, points.coordinates, points.values, points.weights, transform, normal, gradient, sums)
    if sums[1] <= 0:
        return normal, gradient, np.inf
    scale = 1 / sums[1]
    normal, gradient, cost = normal * scale, gradient * scale, float(sums[0] * scale)
    if stiffness:
        rows = _strains(start)
        strains = rows @ transform.ravel() + earlier_strain
        normal = normal + stiffness * rows.T @ rows
        gradient = gradient - stiffness * rows.T @ strains
        cost += stiffness * float(strains @ strains)
    return normal, gradient, cost


def _strains(start: Matrix) -> Matrix:
    """(6, 12): linear map from the twelve parameters to the strain relative to ``start``, without uniform growth.

    In order xx, yy, zz, xy, xz, yz; the last three times sqrt 2, so that the sum of squares is rotation-invariant.
    """
    inverse = np.linalg.inv(start[:, :3])
    rows = np.zeros((6, 3, 4))
    for n, (r, c) in enumerate(((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))):
        rows[n, r, :3] += inverse[:, c] / 2
        rows[n, c, :3] += inverse[:, r] / 2
    rows[:3] -= rows[:3].mean(axis=0)
    rows[3:] *= np.sqrt(2)
    return rows.reshape(6, 12)


def _similarity_basis(transform: Matrix) -> Matrix:
    """(12, 7): infinitesimal rotations about the axes, translations along them, and scaling, at ``transform``."""
    columns = []
    for axis in range(3):
        rotation = np.zeros((3, 3))
        rotation[(axis + 1) % 3, (axis + 2) % 3], rotation[(axis + 2) % 3, (axis + 1) % 3] = -1, 1
        columns.append(np.column_stack([rotation @ transform[:, :3], np.zeros(3)]).ravel())
    for axis in range(3):
        columns.append(np.column_stack([np.zeros((3, 3)), np.eye(3)[axis]]).ravel())
    columns.append(np.column_stack([transform[:, :3], np.zeros(3)]).ravel())
    return np.array(columns).T


@lazy_njit
def _accumulate(
    image: Floats,
    coordinates: Matrix,
    values: Floats,
    weights: Floats,
    transform: Matrix,
    normal: Matrix,
    gradient: Matrix,
    sums: Matrix,
) -> None:
    """Add J'WJ, J'We, e'We and the sum of weights over all points and channels.

    A row of J is the gradient of the image along each voxel axis times (x, y, z, 1). For each pair of axes, a point
    adds the weighted product of the gradients, summed over its channels, times the 4 x 4 products of (x, y, z, 1).
    """
    channels = values.shape[1]
    slopes, homogeneous = np.zeros(4), np.ones(4)
    pairs, sides = np.zeros((6, 4, 4)), np.zeros((3, 4))  # order of the pairs: 00, 01, 02, 11, 12, 22
    for n in range(coordinates.shape[0]):
        x, y, z = coordinates[n, 0], coordinates[n, 1], coordinates[n, 2]
        p = transform[0, 0] * x + transform[0, 1] * y + transform[0, 2] * z + transform[0, 3]
        q = transform[1, 0] * x + transform[1, 1] * y + transform[1, 2] * z + transform[1, 3]
        r = transform[2, 0] * x + transform[2, 1] * y + transform[2, 2] * z + transform[2, 3]
        if not (0 <= p < image.shape[0] - 1 and 0 <= q < image.shape[1] - 1 and 0 <= r < image.shape[2] - 1):
            continue
        _sample(image, p, q, r, channels, slopes)
        if slopes[0] < MIN_VISIBLE:
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
        homogeneous[0], homogeneous[1], homogeneous[2] = x, y, z
        for i in range(4):
            sides[0, i] += e0 * homogeneous[i]
            sides[1, i] += e1 * homogeneous[i]
            sides[2, i] += e2 * homogeneous[i]
            for j in range(4):
                product = homogeneous[i] * homogeneous[j]
                pairs[0, i, j] += s00 * product
                pairs[1, i, j] += s01 * product
                pairs[2, i, j] += s02 * product
                pairs[3, i, j] += s11 * product
                pairs[4, i, j] += s12 * product
                pairs[5, i, j] += s22 * product
    _add_blocks(pairs, sides, normal, gradient)


@lazy_njit
def _add_blocks(pairs: Matrix, sides: Matrix, normal: Matrix, gradient: Matrix) -> None:
    """Add the blocks of the pairs of axes to J'WJ, on both sides of its diagonal, and ``sides`` to J'We."""
    pair = 0
    for row in range(3):
        gradient[4 * row : 4 * row + 4] += sides[row]
        for column in range(row, 3):
            normal[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += pairs[pair]
            if column > row:
                normal[4 * column : 4 * column + 4, 4 * row : 4 * row + 4] += pairs[pair]
            pair += 1


@lazy_njit
def _sample(image: Floats, p: float, q: float, r: float, channel: int, slopes: Matrix) -> None:
    """Write the trilinear value of a channel and its derivative along each axis to ``slopes`` (4,)."""
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
