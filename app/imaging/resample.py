"""From any grid to any other under an affine, in one interpolation.

Notable choices:
- The chain output voxel -> output world -> input world -> input voxel is one matrix, so a volume is interpolated
  once however many steps brought it there. Affines are used as they are: any axis order, flip, shear or spacing.
- Anti-aliasing is a low-pass whose full width at half maximum is the output voxel, along each input axis. It is
  built of three cheap parts whose variances add up to the wanted one: a block mean of the stored integers (which
  also makes everything after it small), a three-tap blur of the blocks, and the linear interpolation itself.
- Integers stay as stored until the block mean; slope and intercept are applied to the result.
- Only the part of the input that the output can see is read.
- A voxel is a box: an output centre within half a voxel of the outermost input centres is inside and takes the
  nearest plane's values; beyond that it takes ``fill``.
- Arrays are walked in the order they lie in memory; results are Fortran-ordered, as NIfTI stores them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from app.imaging.io.nifti import Volume
from app.imaging.jit import jit_compiled, over_slabs
from app.imaging.model_grid import Grid

__all__ = ["resample", "shrink", "to_grid", "to_patient", "warm_up"]

Array = npt.NDArray[Any]
Affine = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Whole = npt.NDArray[np.int64]

FWHM_TO_SIGMA = float(1 / (2 * np.sqrt(2 * np.log(2))))
LINEAR_VARIANCE = 1 / 6
"""Variance, in voxels squared, that linear interpolation adds on average over all phases."""
BLOCKS_PER_SIGMA = 1.8
"""Largest block, in sigmas of the low-pass. Beyond 2, block mean and interpolation alone are too much blur; below 1.2
the three taps cannot make up what is missing.
"""
NATIVE = (np.uint8, np.int16, np.uint16, np.float32)
"""Types the kernels read as they lie; any other is converted to float32 first."""


def to_grid(volume: Volume, grid: Grid, world_from_mni: Affine, *, nearest: bool = False, fill: float = 0.0) -> Floats:
    """Bring a volume to the common grid: float32 (X, Y, Z) real-world values.

    ``world_from_mni`` (4, 4) takes MNI152 millimetres to the patient's RAS+ millimetres. ``nearest`` keeps labels as
    they are (no filter). Where the volume does not reach, the answer is ``fill`` (air for CT, 0 for maps).
    """
    voxel_from_grid = np.linalg.inv(volume.affine) @ world_from_mni @ np.asarray(grid.affine)
    if volume.data.dtype.type not in NATIVE:
        return resample(volume.values(), voxel_from_grid, grid.shape, nearest=nearest, fill=fill)
    return resample(
        volume.data, voxel_from_grid, grid.shape, nearest=nearest, fill=fill, slope=volume.slope, inter=volume.inter
    )


def to_patient(
    values: Array, grid: Grid, affine: Affine, shape: tuple[int, int, int], mni_from_world: Affine
) -> Floats:
    """Bring values (X, Y, Z) on the common grid back to a patient's own voxels: float32 of ``shape``, 0 outside.

    ``affine`` takes the patient's voxels to RAS+ millimetres, ``mni_from_world`` those to MNI152 millimetres.
    """
    return resample(values, np.linalg.inv(np.asarray(grid.affine)) @ mni_from_world @ affine, shape)


def resample(
    data: Array,
    voxel_from_out: Affine,
    shape: tuple[int, ...],
    *,
    nearest: bool = False,
    fill: float = 0.0,
    slope: float = 1.0,
    inter: float = 0.0,
) -> Floats:
    """Sample ``data`` (3-D) at ``voxel_from_out @ (i, j, k, 1)`` for every output voxel: float32 of ``shape``.

    Values are ``slope * stored + inter``; outside the data they are ``fill``.
    """
    lying, matrix = _as_it_lies(data, voxel_from_out)
    out = np.empty(shape[::-1], np.float32)
    bounds = np.array([[-0.5, size - 0.5] for size in lying.shape])
    if nearest:
        kernel = _nearest
    else:
        kernel = _linear
        lying, matrix, bounds = _low_passed(lying, matrix, bounds, shape)
    scaling = float(slope), float(inter), float(fill)
    over_slabs(out.shape[0], lambda start, stop: kernel(lying, matrix, bounds, *scaling, out[start:stop], start))
    return out.T


def shrink(
    data: Array, factors: tuple[int, int, int], *, clamp: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[Floats, Affine]:
    """Means of blocks of ``factors`` voxels: float32, and the (4, 4) matrix from its voxels to those of ``data``.

    Stored values are clamped before they are averaged, so that an edge stays where half of a block is past it,
    however bright the other side. A block that hangs over the end repeats the last plane.
    """
    lying, order = _as_it_lies(data, np.eye(4))
    axes = np.argmax(np.abs(order[:, :3]), axis=1)  # axis of data that each axis of the array is
    sizes = np.array([factors[axis] for axis in axes])
    blocks = _block_means(lying, sizes, np.zeros(3, np.int64), -(-np.array(lying.shape) // sizes), clamp)
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag(np.array(factors, float))
    matrix[:3, 3] = (np.array(factors) - 1) / 2
    return blocks.transpose(np.argsort(axes)), matrix


def warm_up() -> None:
    """Compile, or load from the cache, the kernels of every stored type that is common."""
    for dtype in (np.int16, np.uint8, np.float32):
        cube = np.zeros((4, 4, 4), dtype)
        resample(cube, np.diag([2.0, 2.0, 2.0, 1.0]), (2, 2, 2))
        resample(cube, np.eye(4), (2, 2, 2), nearest=True)


def _as_it_lies(data: Array, voxel_from_out: Affine) -> tuple[Array, Affine]:
    """The data as a C-contiguous array of a native type, and the (3, 4) matrix to its axes in their order."""
    matrix = np.ascontiguousarray(voxel_from_out[:3], dtype=np.float64)
    if data.flags.f_contiguous and not data.flags.c_contiguous:
        data, matrix = data.T, np.ascontiguousarray(matrix[::-1])
    return np.ascontiguousarray(data, data.dtype.type if data.dtype.type in NATIVE else np.float32), matrix


def _low_passed(lying: Array, matrix: Affine, bounds: Affine, shape: tuple[int, ...]) -> tuple[Floats, Affine, Affine]:
    """What linear interpolation may be applied to: blurred block means of the part that the output sees.

    Gives the blocks, and ``matrix`` and ``bounds`` in their coordinates. Along each axis the variance of the block
    mean, (k^2 - 1) / 12, of the taps (a, 1 - 2a, a) on blocks, 2 a k^2, and of the interpolation, k^2 / 6, make up
    that of the low-pass.
    """
    variance = (FWHM_TO_SIGMA**2) * (matrix[:, :3] ** 2).sum(axis=1)
    size = np.maximum(1, np.floor(np.sqrt(variance) * BLOCKS_PER_SIGMA)).astype(np.int64)
    taps = np.clip((variance - (size**2 - 1) / 12 - size**2 * LINEAR_VARIANCE) / (2 * size**2), 0, 0.25)

    corners = np.array([[i, j, k, 1] for i in (0, shape[0] - 1) for j in (0, shape[1] - 1) for k in (0, shape[2] - 1)])
    reach = corners @ matrix.T  # (8, 3) in voxels of the data
    count = -(-np.array(lying.shape) // size)
    first = np.clip(np.floor(reach.min(axis=0) / size) - 2, 0, count - 1).astype(np.int64)
    last = np.clip(np.ceil(reach.max(axis=0) / size) + 2, 0, count - 1).astype(np.int64)
    blocks = _block_means(lying, size, first, last - first + 1)
    _blur(blocks, taps)

    origin = (size - 1) / 2 + first * size  # of the first block's centre, in voxels
    moved = matrix.copy()
    moved[:, 3] -= origin
    return blocks, moved / size[:, None], (bounds - origin[:, None]) / size[:, None]


def _block_means(
    lying: Array, size: Whole, first: Whole, count: Whole, clamp: tuple[float, float] = (-np.inf, np.inf)
) -> Floats:
    """Means of the ``count`` blocks from block ``first`` on, axis by axis."""
    if (size == 1).all():
        window = tuple(slice(start, start + n) for start, n in zip(first, count, strict=True))
        blocks = lying[window].astype(np.float32, order="C")
        return blocks if clamp == (-np.inf, np.inf) else np.clip(blocks, *clamp, out=blocks)
    whole = np.issubdtype(lying.dtype, np.integer)
    limits = (np.iinfo(lying.dtype).min, np.iinfo(lying.dtype).max) if whole else (-np.inf, np.inf)
    low, high = (lying.dtype.type(np.clip(bound, *limits)) for bound in clamp)
    blocks = np.empty(tuple(count), np.float32)
    over_slabs(
        int(count[0]),
        lambda start, stop: _block_slab(
            lying,
            size,
            first,
            low,
            high,
            blocks[start:stop],
            start,
            np.zeros(int(count[2] * size[2]), np.int32 if whole else np.float32),
        ),
    )
    return blocks


def _blur(blocks: Floats, taps: Floats | Affine) -> None:
    """Blur in place by (a, 1 - 2a, a) along each axis; the end planes are repeated."""
    if taps[1:].any():
        over_slabs(blocks.shape[0], lambda start, stop: _blur_planes(blocks[start:stop], taps[1], taps[2]))
    if taps[0]:
        over_slabs(blocks.shape[1], lambda start, stop: _blur_across(blocks, taps[0], start, stop))


@jit_compiled
def _block_slab(
    lying: Array, size: Whole, first: Whole, low: Any, high: Any, blocks: Floats, slab: int, row: Array
) -> None:
    """Add rows of stored values up in ``row`` (exactly, for integers), then along it: reads are sequential."""
    planes, rows, columns = lying.shape
    begin = first[2] * size[2]
    whole = min(columns - begin, row.size)
    scale = np.float32(1.0 / (size[0] * size[1] * size[2]))
    for a in range(blocks.shape[0]):
        for b in range(blocks.shape[1]):
            row[:] = 0
            for u in range(size[0]):
                plane = min((first[0] + slab + a) * size[0] + u, planes - 1)
                for v in range(size[1]):
                    line = lying[plane, min((first[1] + b) * size[1] + v, rows - 1), begin : begin + whole]
                    for c in range(whole):
                        value = line[c]
                        value = max(value, low)
                        row[c] += min(value, high)
            for c in range(whole, row.size):
                row[c] = row[whole - 1]
            _means_along(row, size[2], scale, blocks[a, b])


@jit_compiled
def _means_along(row: Array, width: int, scale: np.float32, means: Floats) -> None:
    if width == 2:  # the common widths apart: the compiler vectorises a fixed stride
        for c in range(means.size):
            means[c] = (row[2 * c] + row[2 * c + 1]) * scale
    elif width == 3:
        for c in range(means.size):
            means[c] = (row[3 * c] + row[3 * c + 1] + row[3 * c + 2]) * scale
    else:
        for c in range(means.size):
            total = row[c * width]
            for w in range(1, width):
                total += row[c * width + w]
            means[c] = total * scale


@jit_compiled
def _blur_planes(blocks: Floats, row_tap: float, column_tap: float) -> None:
    planes, rows, columns = blocks.shape
    side, middle = np.float32(column_tap), np.float32(1 - 2 * column_tap)
    side_row, middle_row = np.float32(row_tap), np.float32(1 - 2 * row_tap)
    before = np.empty(columns, np.float32)
    now = np.empty(columns, np.float32)
    for a in range(planes):
        plane = blocks[a]
        before[:] = plane[0]
        for b in range(rows):
            now[:] = plane[b]
            after = plane[min(b + 1, rows - 1)]
            for c in range(columns):
                plane[b, c] = middle_row * now[c] + side_row * (before[c] + after[c])
            before, now = now, before
        for b in range(rows):
            now[:] = plane[b]
            plane[b, 0] = middle * now[0] + side * (now[0] + now[min(1, columns - 1)])
            for c in range(1, columns - 1):
                plane[b, c] = middle * now[c] + side * (now[c - 1] + now[c + 1])
            if columns > 1:
                plane[b, columns - 1] = middle * now[columns - 1] + side * (now[columns - 2] + now[columns - 1])


@jit_compiled
def _blur_across(blocks: Floats, tap: float, start: int, stop: int) -> None:
    planes, columns = blocks.shape[0], blocks.shape[2]
    side, middle = np.float32(tap), np.float32(1 - 2 * tap)
    before = np.empty(columns, np.float32)
    now = np.empty(columns, np.float32)
    for b in range(start, stop):
        before[:] = blocks[0, b]
        for a in range(planes):
            now[:] = blocks[a, b]
            after = blocks[min(a + 1, planes - 1), b]
            for c in range(columns):
                blocks[a, b, c] = middle * now[c] + side * (before[c] + after[c])
            before, now = now, before


@jit_compiled
def _linear(
    data: Array, matrix: Affine, bounds: Affine, slope: float, inter: float, fill: float, out: Floats, first: int
) -> None:
    """Trilinear interpolation; neighbours beyond the data are its end planes."""
    width, flat = out.shape[2], data.reshape(-1)
    for k in range(out.shape[0]):
        for j in range(out.shape[1]):
            start = matrix[:, 1] * j + matrix[:, 2] * (first + k) + matrix[:, 3]
            low, high = 0, width
            for axis in range(3):
                low, high = _between_planes(start[axis], matrix[axis, 0], data.shape[axis], low, high)
            low = min(low, width)
            high = max(low, high)
            row = out[k, j]
            _row_anywhere(data, matrix, bounds, slope, inter, fill, start, row, 0, low)
            _row_within(flat, data.shape, matrix, slope, inter, start, row, low, high)
            _row_anywhere(data, matrix, bounds, slope, inter, fill, start, row, high, width)


@jit_compiled
def _between_planes(start: float, step: float, size: int, low: int, high: int) -> tuple[int, int]:
    """For which i of low..high-1 surely 0 <= start + step i < size - 1: one fewer at each end than reckoned."""
    if step > 0:
        return max(low, int(np.ceil(-start / step)) + 1), min(high, int(np.ceil((size - 1 - start) / step)) - 1)
    if step < 0:
        return max(low, int(np.floor((size - 1 - start) / step)) + 2), min(high, int(np.floor(-start / step)))
    return (low, high) if 0 <= start < size - 1 else (low, low)


@jit_compiled
def _outside(bounds: Affine, p0: float, p1: float, p2: float) -> bool:
    beyond: bool = (
        p0 < bounds[0, 0]
        or p0 > bounds[0, 1]
        or p1 < bounds[1, 0]
        or p1 > bounds[1, 1]
        or p2 < bounds[2, 0]
        or p2 > bounds[2, 1]
    )
    return beyond


@jit_compiled
def _row_within(
    flat: Array,
    shape: tuple[int, int, int],
    matrix: Affine,
    slope: float,
    inter: float,
    start: Affine,
    row: Floats,
    low: int,
    high: int,
) -> None:
    """Where all eight neighbours are there: two thirds of the time, without a comparison and by unsigned indices."""
    one, line, plane = np.uint64(1), np.uint64(shape[2]), np.uint64(shape[1] * shape[2])
    for i in range(low, high):
        p0 = start[0] + matrix[0, 0] * i
        p1 = start[1] + matrix[1, 0] * i
        p2 = start[2] + matrix[2, 0] * i
        a, b, c = np.uint64(p0), np.uint64(p1), np.uint64(p2)
        s, t, u = np.float32(p0 - a), np.float32(p1 - b), np.float32(p2 - c)
        at = a * plane + b * line + c
        near = flat[at] + u * (flat[at + one] - flat[at])
        far = flat[at + line] + u * (flat[at + line + one] - flat[at + line])
        front = near + t * (far - near)
        at += plane
        near = flat[at] + u * (flat[at + one] - flat[at])
        far = flat[at + line] + u * (flat[at + line + one] - flat[at + line])
        back = near + t * (far - near)
        row[i] = slope * (front + s * (back - front)) + inter


@jit_compiled
def _row_anywhere(
    data: Array,
    matrix: Affine,
    bounds: Affine,
    slope: float,
    inter: float,
    fill: float,
    start: Affine,
    row: Floats,
    low: int,
    high: int,
) -> None:
    n0, n1, n2 = data.shape
    for i in range(low, high):
        p0 = start[0] + matrix[0, 0] * i
        p1 = start[1] + matrix[1, 0] * i
        p2 = start[2] + matrix[2, 0] * i
        if _outside(bounds, p0, p1, p2):
            row[i] = fill
            continue
        p0 = min(max(p0, 0.0), n0 - 1.0)
        p1 = min(max(p1, 0.0), n1 - 1.0)
        p2 = min(max(p2, 0.0), n2 - 1.0)
        a, b, c = int(p0), int(p1), int(p2)
        d, e, f = min(a + 1, n0 - 1), min(b + 1, n1 - 1), min(c + 1, n2 - 1)
        s, t, u = np.float32(p0 - a), np.float32(p1 - b), np.float32(p2 - c)
        near = data[a, b, c] + u * (data[a, b, f] - data[a, b, c])
        far = data[a, e, c] + u * (data[a, e, f] - data[a, e, c])
        front = near + t * (far - near)
        near = data[d, b, c] + u * (data[d, b, f] - data[d, b, c])
        far = data[d, e, c] + u * (data[d, e, f] - data[d, e, c])
        back = near + t * (far - near)
        row[i] = slope * (front + s * (back - front)) + inter


@jit_compiled
def _nearest(
    data: Array, matrix: Affine, bounds: Affine, slope: float, inter: float, fill: float, out: Floats, first: int
) -> None:
    n0, n1, n2 = data.shape
    for k in range(out.shape[0]):
        for j in range(out.shape[1]):
            start = matrix[:, 1] * j + matrix[:, 2] * (first + k) + matrix[:, 3]
            for i in range(out.shape[2]):
                p0 = start[0] + matrix[0, 0] * i
                p1 = start[1] + matrix[1, 0] * i
                p2 = start[2] + matrix[2, 0] * i
                if _outside(bounds, p0, p1, p2):
                    out[k, j, i] = fill
                    continue
                a = min(max(int(np.floor(p0 + 0.5)), 0), n0 - 1)
                b = min(max(int(np.floor(p1 + 0.5)), 0), n1 - 1)
                c = min(max(int(np.floor(p2 + 0.5)), 0), n2 - 1)
                out[k, j, i] = slope * data[a, b, c] + inter
