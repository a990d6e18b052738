"""Makes the reference head of a version: its intracranial mask, and the mean of training heads inside it.

Design notes:
- The mask is fixed in MNI space: the brain, and the arteries of its base with a margin, which lie in the cisterns and
  in the carotid siphon. A margin around the whole brain would hold bone: 12 % of the volume with 4 mm, 1 % without.
- Mask and mean are symmetric, so that neither of them tells a side.
- The mean is that of the first patients; some hundred are enough, since each voxel is averaged over all of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app.imaging.model_grid import Grid
from app.imaging.registration import brain_mask
from app.inference.reference_head import ReferenceHead
from app.phantoms import anatomy
from app.sdk.clinical import Side
from app.training.dataset import Bits, Dataset, affected_side

SIPHON_MM = 66.0
"""Arc length of the phantoms' carotid where the cavernous segment begins."""
LOWEST_VERTEBRAL_MM = -62.0
"""MNI z of the foramen magnum, below which the vertebral arteries lie in the neck."""
ARTERY_MARGIN_MM = 3.0
AVERAGED = 512


def intracranial(grid: Grid) -> Bits:
    """Mask (x, y, z): the brain, and the arteries inside the skull, from siphon and foramen magnum on."""
    steps, origin = np.diag(np.asarray(grid.affine))[:3], np.asarray(grid.affine)[:3, 3]
    points = np.indices(grid.shape).reshape(3, -1).T * steps + origin
    mask: Bits = (brain_mask.distance_at(points) <= 0).reshape(grid.shape)
    tree = anatomy.arteries()
    mm = np.stack(np.unravel_index(tree.index, anatomy.SHAPE), axis=1) + anatomy.ORIGIN_MM
    inside = ~tree.vein
    for side in ("left", "right"):
        inside &= ~(tree.of(f"{side}/ica") & (tree.arc_mm < SIPHON_MM))
    inside &= mm[:, 2] >= LOWEST_VERTEBRAL_MM
    reach = np.arange(-ARTERY_MARGIN_MM, ARTERY_MARGIN_MM + 1, ARTERY_MARGIN_MM)
    around = np.stack(np.meshgrid(reach, reach, reach, indexing="ij"), -1).reshape(-1, 1, 3)
    voxels = np.rint((mm[inside] + around - origin) / steps).astype(int).reshape(-1, 3)
    voxels = voxels[((voxels >= 0) & (voxels < grid.shape)).all(axis=1)]
    mask[tuple(voxels.T)] = True
    return mask | mask[::-1]


def make(data: Dataset, rows: NDArray[np.int64], grid: Grid) -> ReferenceHead:
    """Reference head of the patients ``rows``; a channel that none of them has gets the mean zero."""
    mask = intracranial(grid)
    sums = np.zeros((data.images.shape[1], *grid.shape))
    counts = np.zeros(data.images.shape[1])
    for row in rows[:AVERAGED]:
        present = data.presence[row]
        sums[present] += data.images[row][present].astype(np.float64)
        counts += present
    mean = sums / np.maximum(counts, 1)[:, None, None, None]
    mean = (mean + mean[:, ::-1]) / 2 * mask
    return ReferenceHead(mask, mean.astype(np.float16).astype(np.float32))


def left_sided(data: Dataset) -> Bits:
    """Whether the left side is affected, (n,)."""
    return np.array([affected_side(data, row) is Side.LEFT for row in range(len(data))], bool)
