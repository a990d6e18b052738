"""Bring values that are shares of a sum from the model's grid to a grid of the patient, with the same sum.

Design notes:
- Interpolation keeps values. It does not keep their sum, which an additive explanation needs. So each voxel gives its
  value away: to the eight cells around its place, with the weights of trilinear interpolation, which sum to 1.
- Each voxel is first parted into equal smaller ones, so that neighbouring cells get even shares.
- The grid has the directions of the patient's image and cells of whole voxels. It ends where the values end, which can
  be outside the image.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from app.imaging.io.nifti import Volume
from app.imaging.jit import lazy_njit

__all__ = ["deposit"]

Affine = npt.NDArray[np.float64]

PARTS = 3  # of each voxel along each axis


def deposit(values: npt.NDArray[np.float32], affine: Affine, image_affine: Affine, mni_from_world: Affine) -> Volume:
    """Deposit the values of a volume in MNI space on a grid of the patient.

    Args:
        values: (X, Y, Z) shares of a sum.
        affine: (4, 4), their voxels -> MNI152 millimetres.
        image_affine: (4, 4), the voxels of the patient's image -> RAS+ millimetres.
        mni_from_world: (4, 4), the patient's RAS+ millimetres -> MNI152 millimetres.

    Returns:
        Shares of the same sum, float32, on a grid whose cells are blocks of the image's voxels and about as large as
        the voxels of ``values``; its affine is (4, 4), cell -> RAS+ millimetres.
    """
    edge = float(np.cbrt(abs(np.linalg.det(affine[:3, :3]) / np.linalg.det(mni_from_world[:3, :3]))))
    blocks = np.maximum(1, np.rint(edge / np.linalg.norm(image_affine[:3, :3], axis=0)))
    cells = image_affine @ _blocks_to_voxels(blocks)
    cell_from_voxel = np.linalg.inv(cells) @ np.linalg.inv(mni_from_world) @ affine
    voxels = np.argwhere(values != 0)
    if not len(voxels):
        return Volume(np.zeros((1, 1, 1), np.float32), cells)
    reach = np.abs(cell_from_voxel[:3, :3]).sum(axis=1) / 2  # of the corner of a voxel from its centre
    centres = voxels @ cell_from_voxel[:3, :3].T + cell_from_voxel[:3, 3]
    first = np.floor(centres.min(axis=0) - reach).astype(np.int64)
    shape = np.floor(centres.max(axis=0) + reach).astype(np.int64) + 2 - first
    sums = np.zeros(tuple(shape))
    _scatter(centres - first, values[tuple(voxels.T)].astype(np.float64), cell_from_voxel[:3, :3].copy(), sums)
    origin = np.eye(4)
    origin[:3, 3] = first
    return _trimmed(sums, cells @ origin)


def _blocks_to_voxels(blocks: Affine) -> Affine:
    """Map from blocks to voxels; the centre of block 0 is the centre of the first ``blocks`` voxels."""
    matrix = np.diag([*blocks, 1.0])
    matrix[:3, 3] = (blocks - 1) / 2
    return matrix


@lazy_njit
def _scatter(centres: Affine, shares: Affine, axes: Affine, sums: Affine) -> None:
    """Add each share to the cells around its voxel: ``axes`` are the edges of a voxel, in cells."""
    weight = 1.0 / PARTS**3
    for voxel in range(centres.shape[0]):
        for part in range(PARTS**3):
            steps = (part // (PARTS * PARTS), part // PARTS % PARTS, part % PARTS)
            low = np.empty(3, np.int64)
            above = np.empty(3)
            for axis in range(3):
                at = centres[voxel, axis]
                for edge in range(3):
                    at += axes[axis, edge] * ((steps[edge] + 0.5) / PARTS - 0.5)
                low[axis] = int(np.floor(at))
                above[axis] = at - low[axis]
            for corner in range(8):
                i, j, k = corner >> 2, corner >> 1 & 1, corner & 1
                share = shares[voxel] * weight
                share *= above[0] if i else 1 - above[0]
                share *= above[1] if j else 1 - above[1]
                share *= above[2] if k else 1 - above[2]
                sums[low[0] + i, low[1] + j, low[2] + k] += share


def _trimmed(sums: Affine, affine: Affine) -> Volume:
    """The volume without empty planes at its ends."""
    used = [np.flatnonzero(sums.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    origin = np.eye(4)
    origin[:3, 3] = [each[0] for each in used]
    box = sums[tuple(slice(each[0], each[-1] + 1) for each in used)]
    return Volume(box.astype(np.float32), affine @ origin)
