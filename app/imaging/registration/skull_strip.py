"""Skull strip of a head CT: the intracranial space is the soft tissue that bone surrounds.

Design notes:
- A voxel is inside the skull if few of its 26 rays meet air first. Scalp, face and neck have air on one side.
- A ray that leaves the field of view before it meets air or bone (a cropped vertex) does not count.
- An opening by ``OPENING_MM`` removes the spinal canal and the orbits; the largest part is kept.
- Distances are chamfer distances (two sweeps), which are much faster than an exact transform.
- Contrast in vessels counts as bone; inside the skull this does not change the result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from app.imaging.jit import lazy_njit

__all__ = ["BONE_HU", "OUTSIDE", "intracranial", "warm_up"]

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

OUTSIDE = -2000.0  # value of a voxel without data, outside the field of view; lower than any clamped Hounsfield value
BONE_HU = 110.0
AIR_HU = -300.0
FLUID_HU = -10.0

MAX_AIR_RAYS, MIN_BONE_RAYS = 6, 9
OPENING_MM, CLOSING_MM = 6.0, 8.0

SOFT, BONE, AIR, NO_DATA = 0, 1, 2, 3


def intracranial(hu: Floats, spacing_mm: float) -> Mask:
    """Mask (X, Y, Z) of the intracranial space on an isotropic grid of about 4 mm; empty if bone encloses nothing.

    Args:
        hu: (X, Y, Z), Hounsfield units; ``OUTSIDE`` where there is no data.
        spacing_mm: edge of a voxel.
    """
    tissue_class = np.zeros(hu.shape, np.uint8)
    tissue_class[hu > BONE_HU] = BONE
    tissue_class[hu < AIR_HU] = AIR
    tissue_class[hu <= OUTSIDE] = NO_DATA
    air_rays, bone_rays = np.zeros((2, *hu.shape), np.uint8)
    _count_rays(tissue_class, air_rays, bone_rays)
    enclosed = (tissue_class == SOFT) & (hu > FLUID_HU) & (air_rays <= MAX_AIR_RAYS) & (bone_rays >= MIN_BONE_RAYS)
    core = _largest(_distance(~enclosed, spacing_mm) > OPENING_MM)
    opened = enclosed & (_distance(core, spacing_mm) <= OPENING_MM + spacing_mm / 2)
    return _closed(opened, spacing_mm)


def warm_up() -> None:
    """Compile the kernels, or load them from the cache."""
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
    """The mask closed by a ball of ``CLOSING_MM``, so that contrast, calcifications and ventricles are inside."""
    margin = int(CLOSING_MM / spacing_mm) + 1
    grown = _distance(np.pad(mask, margin), spacing_mm) <= CLOSING_MM
    closed: Mask = _distance(~grown, spacing_mm) > CLOSING_MM
    return closed[margin:-margin, margin:-margin, margin:-margin]


def _distance(mask: Mask, spacing_mm: float) -> Floats:
    """Chamfer distance to the nearest True voxel, millimetres."""
    distance = np.where(mask, np.float32(0), np.float32(1e6))
    _chamfer(distance, np.float32(spacing_mm))
    return distance


@lazy_njit
def _chamfer(distance: Floats, unit: Any) -> None:
    """Borgefors' two sweeps, forward and backward, over the 13 neighbours that are already visited."""
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


@lazy_njit
def _count_rays(tissue_class: Array, air_rays: Array, bone_rays: Array) -> None:
    """Count, for each voxel, the rays (of 26) that meet air first, and those that meet bone first.

    A voxel of soft tissue takes over the first hit of the next voxel on the ray: one sweep per direction.
    """
    nx, ny, nz = tissue_class.shape
    first_hit = np.empty((nx, ny, nz), np.uint8)
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
                    first = tissue_class[i, j, k]
                    if first == 0:
                        a, b, c = i + dx, j + dy, k + dz
                        first = first_hit[a, b, c] if 0 <= a < nx and 0 <= b < ny and 0 <= c < nz else 3
                    first_hit[i, j, k] = first
                    air_rays[i, j, k] += first == 2
                    bone_rays[i, j, k] += first == 1
