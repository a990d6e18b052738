"""Skull base, face and upper spine of a variant: bone beside the carotid artery, air cells, orbits and teeth.

Design notes:
- Bodies are ellipsoids and rods in template coordinates, mirrored. The brain is never overwritten.
- Bone touches the carotid artery from its canal to the siphon, as in patients. It is as dense as contrast, or denser,
  which makes a vessel mask difficult there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from app.phantoms import deformation
from app.phantoms.canvas import AIR, BONE, CSF, FAT, GREY, MARROW, MUSCLE, ORIGIN_MM, Array
from app.phantoms.variant import Variant

LOW_MM, HIGH_MM = (-78, -82, -116), (78, 84, -6)
_CLEAR_MM = 1.5  # distance from the brain that stays free
_MARGIN_MM = 8
_TILE = 48
OTIC_CAPSULE, ENAMEL, CELL_WALL = 1900.0, 1800.0, 450.0

Point = tuple[float, float, float]


@dataclass(frozen=True)
class _Bodies:
    """Template coordinates (X, Y, Z) in a box, mm, and the appearance of bodies.

    ``x`` is mirrored to the right side; ``septum`` is the distance from the septum of the sphenoid sinus; ``size``: of
    air cells, relative, one for each side; ``noise``: a texture.
    """

    x: Array
    y: Array
    z: Array
    septum: Array
    size: Array
    noise: Array

    def ellipsoid(self, centre: Point, axes: Point, *, sized: bool = False) -> Array:
        """Distance (mm, about) to an ellipsoid, negative inside; ``sized``: it differs between sides and variants."""
        scaled = [(v - c) / a for v, c, a in zip((self.x, self.y, self.z), centre, axes, strict=True)]
        radius = np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2)
        apart: Array = (radius - (self.size if sized else np.float32(1))) * np.float32(min(axes))
        return apart

    def rod(self, start: Point, end: Point, radii: tuple[float, float]) -> Array:
        """Distance, mm, to a rod whose radius changes from its start to its end, negative inside."""
        origin, along = np.array(start, np.float32), np.array(end, np.float32) - np.array(start, np.float32)
        apart = [v - o for v, o in zip((self.x, self.y, self.z), origin, strict=True)]
        place = np.clip(sum(v * a for v, a in zip(apart, along, strict=True)) / (along @ along), 0, 1)
        square = sum((v - place * a) ** 2 for v, a in zip(apart, along, strict=True))
        rod: Array = np.sqrt(square) - (radii[0] + place * (radii[1] - radii[0])).astype(np.float32)
        return rod


def add(variant: Variant, tissue: Array, away: Array) -> None:
    """Change the canvas ``tissue`` (HU) in place; ``away``: distance from the brain, mm."""
    box = tuple(slice(int(a - o), int(b - o) + 1) for a, b, o in zip(LOW_MM, HIGH_MM, ORIGIN_MM, strict=True))
    axes = [np.arange(a.start, a.stop) + o for a, o in zip(box, ORIGIN_MM, strict=True)]
    shown = deformation.on_box(variant, axes, brain=False)
    rng = variant.rng(5)
    sizes = rng.uniform(0.75, 1.15, 2)
    size = np.where(shown[0] < 0, sizes[0], sizes[1]).astype(np.float32)
    noise = _noise(rng, size.shape)
    painted = tissue[box].copy()
    distance = away[box]
    septum = float(rng.uniform(-3, 3))
    for paint, clear, low, high in _PARTS:
        # Bodies are placed in the template, so the part has a margin for the deformation.
        part = tuple(
            slice(max(int(a - start) - _MARGIN_MM, 0), int(b - start) + _MARGIN_MM + 1)
            for a, b, start in zip(low, high, LOW_MM, strict=True)
        )
        fields = (np.abs(shown[0][part]), shown[1][part], shown[2][part], shown[0][part] - septum)
        bodies = _Bodies(*fields, size[part], noise[part])
        paint(bodies, painted[part], distance[part] > clear)
    tissue[box] += np.float32(variant.skull_base) * (painted - tissue[box])


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Random texture with grains of some millimetres and a standard deviation of one, repeated every ``_TILE`` mm."""
    tile = ndimage.gaussian_filter(rng.standard_normal((_TILE,) * 3), 1.4, mode="wrap")
    texture: Array = (tile / tile.std()).astype(np.float32)[np.ix_(*(np.arange(n) % _TILE for n in shape))]
    return texture


def _cells(noise: Array) -> Array:
    """Air cells with thin walls of bone, HU."""
    return np.where(np.abs(noise) > 0.35, np.float32(AIR + 150), np.float32(CELL_WALL))


def _put(painted: Array, where: NDArray[np.bool_], values: Array | float) -> None:
    painted[where] = values[where] if isinstance(values, np.ndarray) else values


def _face(b: _Bodies, painted: Array, free: NDArray[np.bool_]) -> None:
    inside = free & (painted > AIR + 500)  # within the outline of the face
    jaw = np.abs(np.hypot(b.x, b.y - 30) - 27)
    arch = (jaw < 5) & (b.y > 24)
    _put(painted, inside & arch & (b.z < -82), MARROW)
    _put(painted, inside & (jaw < 3.5) & (b.y > 28) & (b.z < -86) & (b.z > -102) & (b.noise > -0.6), ENAMEL)
    maxillary = b.ellipsoid((28, 42, -64), (13, 15, 15), sized=True)
    _put(painted, inside & (maxillary < 1.5), BONE)
    _put(painted, inside & (maxillary < 0), AIR)
    nose = b.ellipsoid((0, 42, -60), (11, 24, 18))
    _put(painted, inside & (nose < 0), np.where(b.noise > 0.6, np.float32(MUSCLE), np.float32(AIR)))
    ethmoid = b.ellipsoid((0, 44, -38), (13, 20, 11), sized=True)
    _put(painted, inside & (ethmoid < 1), BONE)
    _put(painted, inside & (ethmoid < 0), _cells(b.noise))
    orbit = b.ellipsoid((32, 50, -40), (18, 24, 17))
    _put(painted, inside & (orbit < 2), BONE)
    _put(painted, inside & (orbit < 0), FAT)
    _put(painted, inside & (b.rod((16, 24, -32), (31, 52, -40), (2.0, 2.0)) < 0), GREY)
    _put(painted, inside & (b.ellipsoid((32, 58, -40), (12, 12, 12)) < 0), 15.0)
    throat = b.ellipsoid((0, 6, -96), (11, 7, 36))
    _put(painted, inside & (throat < 0), AIR)


def _sphenoid(b: _Bodies, painted: Array, free: NDArray[np.bool_]) -> None:
    clivus = b.rod((0, -3, -36), (0, -27, -62), (9.0, 11.0))
    _put(painted, free & (clivus < 0), BONE)
    _put(painted, free & (clivus < -2.5), MARROW)
    body = b.ellipsoid((0, 11, -39), (17, 19, 14))
    _put(painted, free & (body < 0), BONE)
    sinus = b.ellipsoid((0, 13, -39), (13, 15, 10), sized=True)
    _put(painted, free & (sinus < 0), np.where(np.abs(b.septum) < 1, np.float32(CELL_WALL), np.float32(AIR)))
    _put(painted, free & (b.rod((20, 7, -23), (17, 14, -22), (3.5, 4.0)) < 0), BONE)  # anterior clinoid process
    _put(painted, free & (b.rod((10, -7, -27), (5, -7, -28), (2.5, 3.0)) < 0), BONE)  # dorsum sellae
    wing = b.rod((18, 16, -30), (46, 26, -24), (5.0, 4.0))
    _put(painted, free & (wing < 0), BONE)


def _petrous(b: _Bodies, painted: Array, free: NDArray[np.bool_]) -> None:
    petrous = b.rod((17, -12, -43), (58, -32, -40), (8.0, 13.0))
    _put(painted, free & (petrous < 0), BONE)
    _put(painted, free & (petrous < -2.5) & (b.noise > 0), MARROW)
    mastoid = b.ellipsoid((57, -38, -48), (12, 15, 17), sized=True)
    _put(painted, free & (mastoid < 1.5), BONE)
    _put(painted, free & (mastoid < 0), _cells(b.noise))
    _put(painted, free & (b.ellipsoid((38, -23, -43), (7, 6, 6)) < 0), OTIC_CAPSULE)
    _put(painted, free & (b.rod((21, -23, -40), (33, -23, -41), (2.0, 2.0)) < 0), CSF)  # internal auditory canal
    _put(painted, free & (b.ellipsoid((47, -24, -45), (4, 4, 5)) < 0), AIR)  # tympanic cavity
    _put(painted, free & (b.rod((47, -22, -47), (75, -22, -49), (3.0, 3.5)) < 0), AIR)  # external auditory canal


def _spine(b: _Bodies, painted: Array, free: NDArray[np.bool_]) -> None:
    low = free & (b.z < -58)
    mass = b.ellipsoid((17, -40, -84), (12, 12, 9))
    _put(painted, low & (mass < 0), BONE)
    _put(painted, low & (mass < -2), MARROW)
    _put(painted, low & (np.hypot(b.x - 21, b.y + 39) < 3.0) & (b.z < -76), MUSCLE)  # around the vertebral artery
    canal = np.hypot(b.x, b.y + 45)
    _put(painted, low & (canal < 10), CSF)
    _put(painted, low & (canal < 5), GREY)


# Function, distance from the brain that stays free, and the box of the template that it changes, mm.
_PARTS = (
    (_face, 6.0, (-56, 0, -116), (56, 84, -20)),
    (_sphenoid, _CLEAR_MM, (-52, -40, -76), (52, 34, -16)),
    (_petrous, _CLEAR_MM, (-78, -58, -70), (78, 0, -26)),
    (_spine, 2.0, (-34, -62, -116), (34, -26, -58)),
)
