"""Arteries and veins of a phantom: tubes on splines through control points, as voxels of the canvas.

Design notes:
- Control points are those of docs/training.md, in template coordinates, mirrored for the other side.
- A variant moves the control points, changes radii and branches, adds veins, and follows the deformation of the brain.
- Where branches meet, a voxel belongs to the branch that covers it most, in a tie to the earlier one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.spatial import cKDTree

from app.imaging.registration import brain_mask
from app.phantoms import deformation
from app.phantoms.canvas import ORIGIN_MM, SHAPE, Array
from app.phantoms.variant import Variant

Points = NDArray[np.float64]
_Path = tuple[float, list[tuple[float, float, float]]]  # radius and control points, mm

# Control points (x, y, z) in mm of the left-positive half; x is mirrored for the other side. Radii in mm.
_PATHS: dict[str, _Path] = {
    "ica": (2.3, [(26, -22, -110), (25, -20, -80), (26, -16, -58), (23, -8, -46), (15, -2, -36), (13, 8, -28),
                  (14, 10, -21), (15, 3, -14)]),
    "m1": (1.5, [(15, 3, -14), (22, 3, -13), (30, 2, -14), (38, 0, -15)]),
    "m2-superior": (1.15, [(38, 0, -15), (42, -2, -4), (46, -4, 8), (54, -8, 22), (56, -12, 34)]),
    "m2-inferior": (1.15, [(38, 0, -15), (43, -14, -6), (46, -30, 4), (50, -46, 16), (50, -60, 28)]),
    "aca": (1.1, [(15, 3, -14), (9, 12, -14), (4, 20, -12), (3, 36, 0), (3, 40, 18), (3, 26, 36), (3, 0, 50)]),
    "pca": (1.2, [(1, -16, -16), (10, -19, -16), (18, -28, -13), (20, -50, -6), (14, -76, 2), (10, -92, 6)]),
    "basilar": (1.6, [(1, -38, -64), (1, -34, -50), (1, -26, -32), (1, -16, -16)]),
}  # fmt: skip
_VERTEBRAL: _Path = (1.6, [(1, -38, -64), (7, -42, -72), (15, -46, -80), (21, -40, -90), (21, -38, -110)])
_FETAL_PCA = [(14, 9, -20), (13, -2, -18), (14, -14, -16)]  # from the carotid artery to the second segment of the PCA
_EARLY_M1_MM = 31.0  # x of an early bifurcation

# Veins of the right side and of the midline (x = 0): radius, whether the vein lies in the dura, control points.
_VEINS: dict[str, tuple[float, bool, list[tuple[float, float, float]]]] = {
    "superior-sagittal-sinus": (3.0, True, [(0, 66, 10), (0, 58, 40), (0, 32, 64), (0, 0, 76), (0, -30, 79),
                                            (0, -60, 70), (0, -86, 46), (0, -102, 18), (0, -104, -8)]),
    "straight-sinus": (2.0, False, [(0, -42, 6), (0, -58, 4), (0, -78, -2), (0, -100, -8)]),
    "transverse-sinus": (3.4, True, [(0, -104, -8), (20, -98, -14), (40, -82, -20), (52, -64, -26), (54, -50, -32)]),
    "sigmoid-sinus": (3.4, False, [(54, -50, -32), (50, -42, -40), (40, -36, -50), (32, -32, -60), (28, -28, -80),
                                   (28, -28, -110)]),
    "internal-cerebral-vein": (0.9, False, [(3, 2, 5), (2, -14, 10), (2, -30, 8), (0, -42, 6)]),
    "basal-vein": (1.0, False, [(14, 0, -16), (19, -14, -13), (16, -30, -5), (7, -40, 4), (0, -42, 6)]),
}  # fmt: skip
_MIDLINE = ("superior-sagittal-sinus", "straight-sinus")
_LATERAL_SINUSES = ("transverse-sinus", "sigmoid-sinus")
_MIDLINE_MM = 1.0
_DURAL_MM = 0.0  # distance of the centre of a dural sinus from the surface of the brain


@dataclass(frozen=True)
class Arteries:
    """Voxels of all vessels; each voxel belongs to one branch, named ``side/branch``.

    Attributes:
        index: (n,), flat canvas index.
        cover: (n,), fraction of the voxel inside the artery.
        branch: (n,), index into ``names``.
        arc_mm: (n,), distance along the branch from its origin.
        vein: (n,), True in veins, which only some variants have.
    """

    names: tuple[str, ...]
    lengths_mm: tuple[float, ...]
    index: NDArray[np.int64]
    cover: Array
    branch: NDArray[np.int64]
    arc_mm: Array
    vein: NDArray[np.bool_]

    def of(self, name: str) -> NDArray[np.bool_]:
        """Mask (n,) of the voxels of a branch ``side/branch`` (``left/m1``)."""
        owned: NDArray[np.bool_] = self.branch == self.names.index(name)
        return owned

    def length_mm(self, name: str) -> float:
        """Length of a branch ``side/branch``, millimetres; 0 if it is absent."""
        return self.lengths_mm[self.names.index(name)]


@dataclass(frozen=True)
class _Branch:
    """One branch in template coordinates: control points (k, 3) and the radius at each of them (k,), mm."""

    name: str
    points: Points
    radii: Points
    vein: bool = False


def build(variant: Variant) -> Arteries:
    """All vessels of a variant; ``left`` is the patient's left, negative x in RAS+."""
    names: list[str] = []
    lengths: list[float] = []
    veins: list[bool] = []
    parts = []
    for one in _branches(variant):
        index, cover, arc, length = _tube(one, variant)
        parts.append((index, cover, np.full(len(index), len(names)), arc))
        names.append(one.name)
        lengths.append(length)
        veins.append(one.vein)
    index, cover, branch, arc = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((branch, -cover, index))
    first = order[np.unique(index[order], return_index=True)[1]]
    owner = branch[first]
    return Arteries(tuple(names), tuple(lengths), index[first], cover[first], owner, arc[first], np.array(veins)[owner])


def _branches(variant: Variant) -> Iterator[_Branch]:
    """Branches in the order of their precedence, with the control points of the variant."""
    rng = variant.rng(2)
    moved: dict[tuple[float, ...], Points] = {}

    def placed(points: Points) -> Points:
        """The points with a random displacement each; a point that branches share moves once."""
        for point in map(tuple, points):
            if _key(point) not in moved:
                moved[_key(point)] = variant.course_mm * rng.standard_normal(3)
        return np.array([point + moved[_key(tuple(point))] for point in points]) if len(points) else points

    for side, sign in enumerate((-1.0, 1.0)):
        for name, radii, points in _arteries(variant, side):
            factor = 1 + variant.calibre * float(rng.uniform(-1, 1)) if variant.calibre else 1.0
            mirrored = np.array(points, float).reshape(-1, 3) * [sign, 1, 1]
            yield _Branch(f"{('left', 'right')[side]}/{name}", placed(mirrored), radii * factor)
    if variant.veins:
        for name, (radius, dural, points) in _VEINS.items():
            for side, sign in enumerate((-1.0, 1.0)):
                factor = variant.veins * (variant.transverse[side] if name in _LATERAL_SINUSES else 1.0)
                path = placed(np.array(points, float) * [sign, 1, 1])
                path = _at_surface(path) if dural else path
                label = ("left", "right")[side] if name not in _MIDLINE else "midline"
                yield _Branch(f"{label}/{name}", path, np.full(len(path), radius * factor), vein=True)
                if name in _MIDLINE:
                    break


def _key(point: tuple[float, ...]) -> tuple[float, ...]:
    """Points of both sides that lie at the midline are one point."""
    return (0.0, *point[1:]) if abs(point[0]) <= _MIDLINE_MM else point


def _arteries(variant: Variant, side: int) -> Iterator[tuple[str, Points, list[tuple[float, float, float]]]]:
    """Name, radius at each control point, and control points of the arteries of one side; no points if absent."""
    trunks = {"m2-superior": variant.m2_superior[side], "m2-inferior": variant.m2_inferior[side]}
    for name, (radius, fixed) in _PATHS.items():
        points, factors = list(fixed), np.full(len(fixed), trunks.get(name, 1.0))
        if name in trunks and trunks[name] == 0:
            points, factors = [], factors[:0]
        elif name in trunks and variant.early_bifurcation[side]:
            points[0] = (_EARLY_M1_MM, 2.0, -14.0)
        elif name == "m1" and variant.early_bifurcation[side]:
            points = [*points[:2], (26.0, 2.5, -13.5), (_EARLY_M1_MM, 2.0, -14.0)]
        elif name == "pca" and variant.fetal_pca[side]:
            points = [*_FETAL_PCA, *points[2:]]
            factors = np.ones(len(points))
        elif name == "aca" and variant.a1[side] == 0:
            points = [(0, 20, -12), *points[2:]]
            factors = np.ones(len(points))
        elif name == "aca":
            factors[:2] = variant.a1[side]
        yield name, radius * factors, points
    if variant.veins:
        radius, points = _VERTEBRAL
        yield "vertebral", np.full(len(points), radius), points


def _at_surface(path: Points) -> Points:
    """The points, moved along their direction from the middle of the brain until they lie at its surface."""
    centre = np.array([0.0, -20.0, 5.0])
    out = path - centre
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    reach = np.arange(30.0, 130.0, 0.5)
    candidates = centre + reach[None, :, None] * out[:, None]
    depth = brain_mask.distance_at(candidates.reshape(-1, 3)).reshape(len(path), -1)
    last = depth.shape[1] - 1 - np.argmax((depth < _DURAL_MM)[:, ::-1], axis=1)
    moved: Points = centre + reach[last, None] * out
    return moved


def _tube(branch: _Branch, variant: Variant) -> tuple[NDArray[np.int64], Array, Array, float]:
    """Index, cover, arc length and total length of the tube on the spline through the control points."""
    points = branch.points
    if not len(points):
        empty = np.zeros(0, np.float32)
        return np.zeros(0, np.int64), empty, empty, 0.0
    knots = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    steps = np.linspace(0, knots[-1], int(knots[-1] * 4))
    line, radius = CubicSpline(knots, points)(steps), np.interp(steps, knots, branch.radii)
    if not variant.is_template:
        line = deformation.from_template(variant, line)
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    widest = float(radius.max())
    reach = np.arange(-int(widest + 2), int(widest + 3))
    box = np.stack(np.meshgrid(reach, reach, reach, indexing="ij"), -1).reshape(1, -1, 3)
    nodes = np.unique(np.rint(line - ORIGIN_MM).astype(np.int64), axis=0)
    near = (nodes[:, None] + box).reshape(-1, 3)
    near = near[((near >= 0) & (near < SHAPE)).all(1)]
    index = np.unique(np.ravel_multi_index(tuple(near.T), SHAPE))
    distance, nearest = cKDTree(line).query(np.stack(np.unravel_index(index, SHAPE), -1) + ORIGIN_MM)
    cover = np.clip(radius[nearest] + 0.5 - distance, 0, 1)  # a partial-volume edge one voxel wide
    kept = cover > 0
    along = arc[np.asarray(nearest)[kept]]
    return index[kept], cover[kept].astype(np.float32), along.astype(np.float32), float(arc[-1])
