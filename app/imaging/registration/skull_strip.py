"""The intracranial space of a head CT, without a model of the head: soft tissue with bone all round.

Notable choices:
- A voxel is inside the skull when few of the 26 straight ways out of it end in air. Scalp, face and neck have air on
  one side; where the field of view ends before either air or bone (a cropped vertex), that way does not count.
- What is left is opened by ``OPENING_MM``, which cuts the spinal canal and the orbits off, and the largest part kept.
- Distances are chamfer distances (steps of 1, sqrt 2 and sqrt 3): two sweeps, where an exact transform takes ten
  times as long.
- Contrast in vessels counts as bone. It lies inside the skull, where more bone changes nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from app.imaging.jit import jit_compiled

__all__ = ["BONE_HU", "OUTSIDE", "intracranial", "warm_up"]

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

OUTSIDE = -2000.0
"""Stands for no value: the field of view ends before here. Below anything a scanner writes after clamping."""
BONE_HU = 110.0
AIR_HU = -300.0
FLUID_HU = -10.0

MOST_TO_AIR, FEWEST_TO_BONE = 6, 9
OPENING_MM, CLOSING_MM = 6.0, 8.0

PASS, BONE, AIR, NOTHING = 0, 1, 2, 3


def intracranial(hu: Floats, spacing_mm: float) -> Mask:
    """Where brain, CSF and what lies among them is, on an isotropic grid (X, Y, Z) of about 4 mm.

    ``hu``: Hounsfield units, ``OUTSIDE`` where there is no data. All False where nothing is enclosed.
    """
    kind = np.zeros(hu.shape, np.uint8)
    kind[hu > BONE_HU] = BONE
    kind[hu < AIR_HU] = AIR
    kind[hu <= OUTSIDE] = NOTHING
    to_air, to_bone = np.zeros((2, *hu.shape), np.uint8)
    _ways_out(kind, to_air, to_bone)
    enclosed = (kind == PASS) & (hu > FLUID_HU) & (to_air <= MOST_TO_AIR) & (to_bone >= FEWEST_TO_BONE)
    core = _largest(_distance(~enclosed, spacing_mm) > OPENING_MM)
    opened = enclosed & (_distance(core, spacing_mm) <= OPENING_MM + spacing_mm / 2)
    return _closed(opened, spacing_mm)


def warm_up() -> None:
    intracranial(np.zeros((4, 4, 4), np.float32), 4.0)


def _largest(mask: Mask) -> Mask:
    labels, count = ndimage.label(mask)
    if not count:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest: Mask = labels == sizes.argmax()
    return largest


def _closed(mask: Mask, spacing_mm: float) -> Mask:
    """Closed by a ball of ``CLOSING_MM``: vessels full of contrast, calcifications and ventricles are inside."""
    margin = int(CLOSING_MM / spacing_mm) + 1
    grown = _distance(np.pad(mask, margin), spacing_mm) <= CLOSING_MM
    closed: Mask = _distance(~grown, spacing_mm) > CLOSING_MM
    return closed[margin:-margin, margin:-margin, margin:-margin]


def _distance(mask: Mask, spacing_mm: float) -> Floats:
    """Millimetres to the nearest True voxel, by chamfer."""
    distance = np.where(mask, np.float32(0), np.float32(1e6))
    _chamfer(distance, np.float32(spacing_mm))
    return distance


@jit_compiled
def _chamfer(distance: Floats, unit: Any) -> None:
    """Borgefors' two sweeps, forward then backward, over the 13 neighbours already visited."""
    nx, ny, nz = distance.shape
    for sweep in (1, -1):
        for i0 in range(nx):
            i = i0 if sweep == 1 else nx - 1 - i0
            for j0 in range(ny):
                j = j0 if sweep == 1 else ny - 1 - j0
                for k0 in range(nz):
                    k = k0 if sweep == 1 else nz - 1 - k0
                    best = distance[i, j, k]
                    for di in (-1, 0):
                        for dj in range(-1, 1 - di):
                            last = 0 if di == 0 and dj == 0 else 2
                            for dk in range(-1, last):
                                a, b, c = i + sweep * di, j + sweep * dj, k + sweep * dk
                                if 0 <= a < nx and 0 <= b < ny and 0 <= c < nz:
                                    step = unit * np.float32(np.sqrt(di * di + dj * dj + dk * dk))
                                    best = min(best, distance[a, b, c] + step)
                    distance[i, j, k] = best


@jit_compiled
def _ways_out(kind: Array, to_air: Array, to_bone: Array) -> None:
    """For each voxel, how many of its 26 rays meet air first, and how many bone.

    Along a ray the first thing met is that of the next voxel, unless this one stops it: one sweep for each direction,
    against it.
    """
    nx, ny, nz = kind.shape
    met = np.empty((nx, ny, nz), np.uint8)
    for ray in range(27):
        dx, dy, dz = ray // 9 - 1, ray // 3 % 3 - 1, ray % 3 - 1
        if ray == 13:
            continue
        for i0 in range(nx):
            i = nx - 1 - i0 if dx > 0 else i0
            for j0 in range(ny):
                j = ny - 1 - j0 if dy > 0 else j0
                for k0 in range(nz):
                    k = nz - 1 - k0 if dz > 0 else k0
                    first = kind[i, j, k]
                    if first == 0:
                        a, b, c = i + dx, j + dy, k + dz
                        first = met[a, b, c] if 0 <= a < nx and 0 <= b < ny and 0 <= c < nz else 3
                    met[i, j, k] = first
                    to_air[i, j, k] += first == 2
                    to_bone[i, j, k] += first == 1
