"""Smooth deformation of the template: which point of the template each point of the canvas shows.

Design notes:
- Both directions are maps of RAS+ millimetres. ``to_template`` adds a displacement that is interpolated from a coarse
  lattice; ``from_template`` inverts it by fixed-point iteration.
- The displacement has no affine part over the brain, because registration would remove it.
- The skull is not moved by the shrinkage of the brain nor by the ventricles.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from app.imaging.registration import brain_mask
from app.phantoms.canvas import ORIGIN_MM, SHAPE
from app.phantoms.variant import Variant

Points = NDArray[np.float64]
Field = NDArray[np.float32]

STEP_MM = 4.0
WAVES = 30
WAVELENGTH_MM = (30.0, 60.0)
_INVERSION_STEPS = 12
_COUNT = tuple(int(np.ceil((length - 1) / STEP_MM)) + 1 for length in SHAPE)
_BRAIN_CENTRE = np.array([0.0, -20.0, 10.0])
# Centres (right side) and widths, mm, of the parts of a lateral ventricle: frontal horn, body, atrium.
_VENTRICLE = (((8.0, 22.0, 8.0), 13.0), ((10.0, -6.0, 18.0), 14.0), ((22.0, -38.0, 12.0), 13.0))


def displacement(variant: Variant, *, brain: bool) -> Field:
    """Template point minus canvas point (3, X, Y, Z), mm, on a lattice of ``STEP_MM`` that starts at the origin.

    ``brain``: of the brain and its vessels; False: of skull and skin.
    """
    return _displacement(variant, brain)


@lru_cache(maxsize=4)
def _displacement(variant: Variant, brain: bool) -> Field:
    moved = _shared(variant)
    if brain:
        points = _lattice_points()
        moved = moved + _shrinkage(variant, points) + _ventricles(variant, points)
    return np.ascontiguousarray(moved.T.reshape(3, *_COUNT), dtype=np.float32)


def to_template(variant: Variant, points: Points, *, brain: bool = True) -> Points:
    """Points (n, 3) of the template that these points of the canvas show, mm."""
    place = ((points - ORIGIN_MM) / STEP_MM).T
    moved = [ndimage.map_coordinates(f, place, order=1, mode="nearest") for f in displacement(variant, brain=brain)]
    shown: Points = points + np.stack(moved, axis=1)
    return shown


def from_template(variant: Variant, points: Points, *, brain: bool = True) -> Points:
    """Points (n, 3) of the canvas that show these points of the template, mm."""
    found = points
    for _ in range(_INVERSION_STEPS):
        found = found - (to_template(variant, found, brain=brain) - points)
    return found


def on_box(variant: Variant, axes_mm: Sequence[NDArray[np.float64]], *, brain: bool) -> Field:
    """Template coordinates (3, X, Y, Z), mm, of the canvas points on three axes."""
    x, y, z = (_linear(axis, count, start) for axis, count, start in zip(axes_mm, _COUNT, ORIGIN_MM, strict=True))
    shown = np.empty((3, *(len(axis) for axis in axes_mm)), np.float32)
    for dimension, values in enumerate(displacement(variant, brain=brain)):
        inner = y @ (values @ z.T)  # (coarse x, y, z)
        shown[dimension] = (x @ inner.reshape(len(inner), -1)).reshape(shown.shape[1:])
        shape = [-1 if axis == dimension else 1 for axis in range(3)]
        shown[dimension] += axes_mm[dimension].astype(np.float32).reshape(shape)
    return shown


def smooth_waves(rng: np.random.Generator, count: int, points: Points) -> NDArray[np.float64]:
    """Smooth random values (n, ``count``) at points (n, 3), mm, with a standard deviation of one."""
    values = np.zeros((len(points), count))
    for column in range(count):
        directions = rng.standard_normal((WAVES, 3))
        lengths = rng.uniform(*WAVELENGTH_MM, WAVES)
        directions *= (2 * np.pi / lengths / np.linalg.norm(directions, axis=1))[:, None]
        waves = np.cos((points @ directions.T + rng.uniform(0, 2 * np.pi, WAVES)).astype(np.float32))
        values[:, column] = waves.sum(1) * np.sqrt(2 / WAVES)
    return values


@lru_cache(maxsize=2)
def _shared(variant: Variant) -> Points:
    """Displacement (n, 3) of brain and skull on the points of the lattice, without an affine part over the brain."""
    points, known = _lattice_points(), brain_mask.points()
    both = np.concatenate([points, known])
    moved = np.zeros_like(both)
    if variant.deformation_mm:
        moved += variant.deformation_mm * smooth_waves(variant.rng(1), 3, both)
    # The right side lies further forward, the left one further back; most at the poles of the brain.
    pole = np.clip((both[:, 1] + 18) / 80, -1.2, 1.2) ** 2
    moved[:, 1] -= variant.asymmetry_mm * np.tanh(both[:, 0] / 25) * pole
    fit = np.linalg.lstsq(np.column_stack([known, np.ones(len(known))]), moved[len(points) :], rcond=None)[0]
    left: Points = moved[: len(points)] - np.column_stack([points, np.ones(len(points))]) @ fit
    return left


def _lattice_points() -> Points:
    axes = [start + STEP_MM * np.arange(n) for start, n in zip(ORIGIN_MM, _COUNT, strict=True)]
    points: Points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    return points


def _shrinkage(variant: Variant, points: Points) -> Points:
    """The brain shrinks towards its centre; its base stays at the skull base."""
    upper = np.clip((points[:, 2:] + 30) / 30, 0, 1)
    shrunk: Points = variant.atrophy * upper * (points - _BRAIN_CENTRE)
    return shrunk


def _ventricles(variant: Variant, points: Points) -> Points:
    """Around each part of a ventricle, the canvas shows points that are nearer to its centre."""
    moved = np.zeros_like(points)
    pull = variant.ventricles / (1 + variant.ventricles)
    for (x, y, z), width in _VENTRICLE:
        for sign in (-1.0, 1.0):
            apart = points - np.array([sign * x, y, z])
            near = np.exp(-(apart**2).sum(1) / (2 * width**2))
            moved -= 0.7 * pull * near[:, None] * apart  # the parts overlap
    return moved


def _linear(axis_mm: NDArray[np.float64], count: int, start: float) -> Field:
    """(n, count) weights of linear interpolation from the lattice to the points of one axis."""
    place = (axis_mm - start) / STEP_MM
    weights: Field = np.clip(1 - np.abs(place[:, None] - np.arange(count)[None]), 0, 1).astype(np.float32)
    return weights
