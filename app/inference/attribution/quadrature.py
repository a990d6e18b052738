"""Gauss-Legendre quadrature of an integral along a path."""

from __future__ import annotations

import numpy as np


def gauss_legendre(steps: int) -> list[tuple[float, float]]:
    """Return nodes and weights on (0, 1); exact for polynomials up to degree 2 ``steps`` - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return [(float(node + 1) / 2, float(weight) / 2) for node, weight in zip(nodes, weights, strict=True)]
