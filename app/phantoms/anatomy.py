"""Anatomy of the phantom in MNI space: a CT-like head around the MNI brain, and arteries on analytic centre lines.

Design notes:
- All parts are on one canvas of 1 mm voxels, MNI152 RAS+ millimetres, which is resampled for patients and grids.
- Brain tissue comes from the grey and white matter maps of nilearn (ICBM 2009a). CSF, skull and scalp are shells around
  it; face and neck are a cylinder with a spine. No patient's scan is used.
- Arteries are cubic splines through the points of docs/training.md, mirrored, with an arc length to position a clot.
- Densities are Hounsfield units at 120 kV (Barrett & Swindell; Parizel 2001 for blood and thrombus).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import CubicSpline
from scipy.spatial import cKDTree

from app.imaging.registration.brain_mask import template_image

Array = NDArray[np.float32]

ORIGIN_MM = np.array([-100.0, -136.0, -116.0])
SHAPE = (201, 241, 221)
CANVAS = np.array([[1.0, 0, 0, ORIGIN_MM[0]], [0, 1.0, 0, ORIGIN_MM[1]], [0, 0, 1.0, ORIGIN_MM[2]], [0, 0, 0, 1.0]])

AIR, FAT, MUSCLE, BONE, MARROW, CSF, GREY, WHITE, BLOOD = -1000.0, -80.0, 55.0, 1100.0, 500.0, 8.0, 38.0, 29.0, 42.0
CONTRAST = 300.0  # added to blood by the bolus, at the arterial peak
PLAQUE = 160.0  # mean density of a calcified plaque at the clot, above blood
SIPHON = 350.0  # the same in the carotid siphon, away from the clot

# Control points (x, y, z) in mm of the left-positive half; x is mirrored for the other side. Radii in mm.
_PATHS: dict[str, tuple[float, list[tuple[float, float, float]]]] = {
    "ica": (2.3, [(26, -22, -110), (25, -20, -80), (26, -16, -58), (23, -8, -46), (15, -2, -36), (13, 8, -28),
                  (14, 10, -21), (15, 3, -14)]),
    "m1": (1.5, [(15, 3, -14), (22, 3, -13), (30, 2, -14), (38, 0, -15)]),
    "m2-superior": (1.15, [(38, 0, -15), (42, -2, -4), (46, -4, 8), (54, -8, 22), (56, -12, 34)]),
    "m2-inferior": (1.15, [(38, 0, -15), (43, -14, -6), (46, -30, 4), (50, -46, 16), (50, -60, 28)]),
    "aca": (1.1, [(15, 3, -14), (9, 12, -14), (4, 20, -12), (3, 36, 0), (3, 40, 18), (3, 26, 36), (3, 0, 50)]),
    "pca": (1.2, [(1, -16, -16), (10, -19, -16), (18, -28, -13), (20, -50, -6), (14, -76, 2), (10, -92, 6)]),
    "basilar": (1.6, [(1, -38, -64), (1, -34, -50), (1, -26, -32), (1, -16, -16)]),
}  # fmt: skip


@dataclass(frozen=True)
class Arteries:
    """Voxels of all arteries; each voxel belongs to one branch, named ``side/branch``.

    Attributes:
        index: (n,), flat canvas index.
        cover: (n,), fraction of the voxel inside the artery.
        branch: (n,), index into ``names``.
        arc_mm: (n,), distance along the branch from its origin.
    """

    names: tuple[str, ...]
    lengths_mm: tuple[float, ...]
    index: NDArray[np.int64]
    cover: Array
    branch: NDArray[np.int64]
    arc_mm: Array

    def of(self, name: str) -> NDArray[np.bool_]:
        """Mask (n,) of the voxels of a branch ``side/branch`` (``left/m1``)."""
        owned: NDArray[np.bool_] = self.branch == self.names.index(name)
        return owned


@dataclass(frozen=True)
class PhantomHead:
    """Maps on the canvas (X, Y, Z) that are the same for every patient.

    Attributes:
        tissue: HU without blood vessels.
        brain: fraction of grey and white matter.
        flow: normal cerebral blood flow, mL/100 g/min.
    """

    tissue: Array
    brain: Array
    flow: Array


def _map(name: str) -> Array:
    """One of nilearn's ICBM 2009a maps, 0 to 1, on the canvas (both have 1 mm voxels at whole millimetres)."""
    image = template_image(name)
    values = np.asarray(image.dataobj, dtype=np.float32) / 255
    canvas = np.zeros(SHAPE, np.float32)
    start = np.rint(image.affine[:3, 3] - ORIGIN_MM).astype(int)
    low, high = np.maximum(start, 0), np.minimum(start + values.shape, SHAPE)
    inside = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
    canvas[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = values[inside]
    return canvas


@cache
def head() -> PhantomHead:
    """The head, built once per process."""
    grey, white = _map("gm"), _map("wm")
    brain = np.clip(grey + white, 0, 1)
    solid = ndimage.binary_fill_holes(ndimage.gaussian_filter(brain, 3) > 0.3)
    away = ndimage.distance_transform_edt(~solid).astype(np.float32)

    x, y, z = (np.arange(n, dtype=np.float32) + o for n, o in zip(SHAPE, ORIGIN_MM, strict=True))
    neck = np.hypot(x[:, None] / 64, (y[None, :] + 14) / 84)[:, :, None]
    below = z[None, None, :] < -24
    skull = (away > 2) & (away <= 9)
    spine = np.hypot(x[:, None], y[None, :] + 42)[:, :, None]

    tissue = np.full(SHAPE, AIR, np.float32)
    tissue[(neck <= 1) & below] = MUSCLE
    tissue[(neck <= 1) & (neck > 0.93) & below] = FAT
    tissue[away <= 15] = FAT
    tissue[away <= 12] = MUSCLE
    tissue[(spine < 18) & below & (away > 9)] = MARROW
    tissue[skull] = BONE
    tissue[skull & (away > 4) & (away <= 7)] = MARROW
    inside = away <= 2
    tissue[inside] = (CSF + (GREY - CSF) * grey + (WHITE - CSF) * white)[inside]
    tissue = ndimage.gaussian_filter(tissue, 0.6)
    flow = 60 * grey + 24 * white
    return PhantomHead(tissue=tissue, brain=brain * inside, flow=flow.astype(np.float32))


def _tube(radius: float, points: NDArray[np.float64]) -> tuple[NDArray[np.int64], Array, Array, float]:
    """Index, cover, arc length and total length of a tube of ``radius`` mm on the spline through ``points``."""
    knots = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    line = CubicSpline(knots, points)(np.linspace(0, knots[-1], int(knots[-1] * 4)))
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    reach = np.arange(-int(radius + 2), int(radius + 3))
    box = np.stack(np.meshgrid(reach, reach, reach, indexing="ij"), -1).reshape(1, -1, 3)
    nodes = np.rint(line - ORIGIN_MM).astype(np.int64)
    near = (nodes[:, None] + box).reshape(-1, 3)
    near = near[((near >= 0) & (near < SHAPE)).all(1)]
    index = np.unique(np.ravel_multi_index(tuple(near.T), SHAPE))
    distance, nearest = cKDTree(line).query(np.stack(np.unravel_index(index, SHAPE), -1) + ORIGIN_MM)
    cover = np.clip(radius + 0.5 - distance, 0, 1)  # a partial-volume edge one voxel wide
    kept = cover > 0
    along = arc[np.asarray(nearest)[kept]]
    return index[kept], cover[kept].astype(np.float32), along.astype(np.float32), float(arc[-1])


@cache
def arteries() -> Arteries:
    """All arteries of both sides; ``left`` is the patient's left, negative x in RAS+.

    Where branches meet, a voxel belongs to the branch that covers it most, in a tie to the earlier one.
    """
    names: list[str] = []
    lengths: list[float] = []
    parts = []
    for side, sign in (("left", -1.0), ("right", 1.0)):
        for name, (radius, points) in _PATHS.items():
            index, cover, arc, length = _tube(radius, np.array(points, float) * [sign, 1, 1])
            parts.append((index, cover, np.full(len(index), len(names)), arc))
            names.append(f"{side}/{name}")
            lengths.append(length)
    index, cover, branch, arc = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((branch, -cover, index))
    first = order[np.unique(index[order], return_index=True)[1]]
    return Arteries(tuple(names), tuple(lengths), index[first], cover[first], branch[first], arc[first])


def length_mm(branch: str) -> float:
    """Length of a branch (``ica``), which is the same on both sides, millimetres."""
    tree = arteries()
    return tree.lengths_mm[tree.names.index(f"left/{branch}")]
