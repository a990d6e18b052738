"""Resample a volume from any grid to any other under an affine, with one interpolation and anti-aliasing.

Design notes:
- All transforms are combined into one matrix. Any axis order, flip, shear or spacing is allowed.
- Anti-aliasing: a low-pass with the output voxel as full width at half maximum (docs/decisions/0051).
- Integers stay as stored until the block mean; slope and intercept are applied to the result.
- A voxel is a box: up to half a voxel outside the outermost centres, the value is that of the nearest plane.
- Results are Fortran-ordered, as NIfTI stores them.
"""

from __future__ import annotations

from functools import partial, reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from app.imaging.io.nifti import Volume
from app.imaging.jit import lazy_njit, run_in_slabs
from app.imaging.model_grid import Grid

__all__ = ["highest", "resample", "shrink", "to_grid", "to_patient", "warm_up"]

Array = npt.NDArray[Any]
Affine = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

FWHM_TO_SIGMA = float(1 / (2 * np.sqrt(2 * np.log(2))))
LINEAR_VARIANCE = 1 / 6  # variance that linear interpolation adds, voxels squared, averaged over all phases
BLOCKS_PER_SIGMA = 1.8
"""Largest block, in sigmas of the low-pass. Above 2, block mean and interpolation alone blur too much; below 1.2, the
three-tap blur cannot add the missing variance.
"""
MIN_STEP = 1e-9  # voxels; a smaller step along a row is rounding of a zero
NATIVE_TYPES = (np.uint8, np.int16, np.uint16, np.float32)  # types that the kernels read; others become float32


def to_grid(
    volume: Volume, grid: Grid, world_from_mni: Affine, *, nearest: bool = False, fill: float = 0.0, parts: int = 1
) -> Floats:
    """Resample a volume to the model's grid: float32 real-world values.

    Args:
        volume: (X, Y, Z), on the patient's grid.
        grid: the model's grid.
        world_from_mni: (4, 4), MNI152 -> the patient's RAS+ millimetres.
        nearest: keep labels: nearest neighbour, without a filter.
        fill: value outside the volume (air for CT, 0 for maps).
        parts: divide each voxel into so many parts along each axis, and return the highest of their values.
    """
    fine = grid.divided(parts) if parts > 1 else grid
    voxel_from_grid = np.linalg.inv(volume.affine) @ world_from_mni @ np.asarray(fine.affine)
    sample = partial(resample, voxel_from_out=voxel_from_grid, shape=fine.shape, nearest=nearest, fill=fill)
    if volume.data.dtype.type in NATIVE_TYPES:
        return highest(sample(volume.data, slope=volume.slope, inter=volume.inter), parts)
    return highest(sample(volume.values()), parts)


def highest(values: Floats, parts: int) -> Floats:
    """Highest value of each block of ``parts`` voxels along each axis: (parts X, parts Y, parts Z) to (X, Y, Z)."""
    for axis in range(3):
        planes = [values[(slice(None),) * axis + (slice(start, None, parts),)] for start in range(parts)]
        values = reduce(np.maximum, planes)
    return values


def to_patient(
    values: Array, grid: Grid, affine: Affine, shape: tuple[int, int, int], mni_from_world: Affine
) -> Floats:
    """Resample values on the model's grid to the patient's grid: float32 of ``shape``, 0 outside.

    Args:
        values: (X, Y, Z).
        grid: the model's grid.
        affine: (4, 4), the patient's voxels -> RAS+ millimetres.
        shape: shape of the patient's grid.
        mni_from_world: (4, 4), the patient's RAS+ millimetres -> MNI152 millimetres.
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
    array, matrix = _in_memory_order(data, voxel_from_out)
    out = np.empty(shape[::-1], np.float32)
    bounds = np.array([[-0.5, size - 0.5] for size in array.shape])
    if nearest:
        kernel = _nearest
    else:
        kernel = _linear
        array, matrix, bounds = _low_passed(array, matrix, bounds, shape)
    scaling = float(slope), float(inter), float(fill)
    run_in_slabs(out.shape[0], lambda start, stop: kernel(array, matrix, bounds, *scaling, out[start:stop], start))
    return out.T


def shrink(
    data: Array, factors: tuple[int, int, int], *, clamp: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[Floats, Affine]:
    """Average blocks of ``factors`` voxels: the means, float32, and the (4, 4) map from blocks to voxels of ``data``.

    Stored values are clamped first, so that very bright voxels do not move an edge. A block that crosses the end of
    the data repeats the last plane.
    """
    array, order = _in_memory_order(data, np.eye(4))
    axes = np.argmax(np.abs(order[:, :3]), axis=1)  # for each axis of the array, its axis of data
    sizes = np.array([factors[axis] for axis in axes])
    blocks = _block_means(array, sizes, np.zeros(3, np.int64), -(-np.array(array.shape) // sizes), clamp)
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag(np.array(factors, float))
    matrix[:3, 3] = (np.array(factors) - 1) / 2
    return blocks.transpose(np.argsort(axes)), matrix


def warm_up() -> None:
    """Compile the kernels for the common stored types, or load them from the cache."""
    for dtype in (np.int16, np.uint8, np.float32):
        cube = np.zeros((4, 4, 4), dtype)
        resample(cube, np.diag([2.0, 2.0, 2.0, 1.0]), (2, 2, 2))
        resample(cube, np.eye(4), (2, 2, 2), nearest=True)


def _in_memory_order(data: Array, voxel_from_out: Affine) -> tuple[Array, Affine]:
    """The data as a C-contiguous array of a native type, and the (3, 4) matrix for its order of axes."""
    matrix = np.ascontiguousarray(voxel_from_out[:3], dtype=np.float64)
    if data.flags.f_contiguous and not data.flags.c_contiguous:
        data, matrix = data.T, np.ascontiguousarray(matrix[::-1])
    return np.ascontiguousarray(data, data.dtype.type if data.dtype.type in NATIVE_TYPES else np.float32), matrix


def _low_passed(array: Array, matrix: Affine, bounds: Affine, shape: tuple[int, ...]) -> tuple[Floats, Affine, Affine]:
    """Blurred block means of the part of the data that the output needs, ready for linear interpolation.

    Returns the blocks, and ``matrix`` and ``bounds`` in coordinates of the blocks. Along each axis the variances of the
    block mean, (k^2 - 1) / 12, of the taps (a, 1 - 2a, a) on blocks, 2 a k^2, and of the interpolation, k^2 / 6, add up
    to the variance of the low-pass.
    """
    variance = (FWHM_TO_SIGMA**2) * (matrix[:, :3] ** 2).sum(axis=1)
    size = np.maximum(1, np.floor(np.sqrt(variance) * BLOCKS_PER_SIGMA)).astype(np.int64)
    taps = np.clip((variance - (size**2 - 1) / 12 - size**2 * LINEAR_VARIANCE) / (2 * size**2), 0, 0.25)

    corners = np.array([[i, j, k, 1] for i in (0, shape[0] - 1) for j in (0, shape[1] - 1) for k in (0, shape[2] - 1)])
    corner_voxels = corners @ matrix.T  # (8, 3) in voxels of the data
    count = -(-np.array(array.shape) // size)
    first = np.clip(np.floor(corner_voxels.min(axis=0) / size) - 2, 0, count - 1).astype(np.int64)
    last = np.clip(np.ceil(corner_voxels.max(axis=0) / size) + 2, 0, count - 1).astype(np.int64)
    blocks = _block_means(array, size, first, last - first + 1)
    _blur(blocks, taps)

    origin = (size - 1) / 2 + first * size  # centre of the first block, in voxels
    moved = matrix.copy()
    moved[:, 3] -= origin
    return blocks, moved / size[:, None], (bounds - origin[:, None]) / size[:, None]


def _block_means(
    array: Array, size: Integers, first: Integers, count: Integers, clamp: tuple[float, float] = (-np.inf, np.inf)
) -> Floats:
    """Means of ``count`` blocks per axis, from block ``first``."""
    if (size == 1).all():
        window = tuple(slice(start, start + n) for start, n in zip(first, count, strict=True))
        blocks = array[window].astype(np.float32, order="C")
        return blocks if clamp == (-np.inf, np.inf) else np.clip(blocks, *clamp, out=blocks)
    is_integer = np.issubdtype(array.dtype, np.integer)
    limits = (np.iinfo(array.dtype).min, np.iinfo(array.dtype).max) if is_integer else (-np.inf, np.inf)
    low, high = (array.dtype.type(np.clip(bound, *limits)) for bound in clamp)
    blocks = np.empty(tuple(count), np.float32)
    row_type = np.int32 if is_integer else np.float32

    def work(start: int, stop: int) -> None:
        row = np.zeros(int(count[2] * size[2]), row_type)
        _block_slab(array, size, first, low, high, blocks[start:stop], start, row)

    run_in_slabs(int(count[0]), work)
    return blocks


def _blur(blocks: Floats, taps: Floats | Affine) -> None:
    """Blur in place by (a, 1 - 2a, a) along each axis; end planes are repeated."""
    if taps[1:].any():
        run_in_slabs(blocks.shape[0], lambda start, stop: _blur_planes(blocks[start:stop], taps[1], taps[2]))
    if taps[0]:
        run_in_slabs(blocks.shape[1], lambda start, stop: _blur_across(blocks, taps[0], start, stop))


@lazy_njit
def _block_slab(
    array: Array, size: Integers, first: Integers, low: Any, high: Any, blocks: Floats, slab: int, row: Array
) -> None:
    """Sum rows of stored values in ``row`` (exact for integers), then along it, so that reads are sequential."""
    planes, rows, columns = array.shape
    begin = first[2] * size[2]
    whole = min(columns - begin, row.size)
    scale = np.float32(1.0 / (size[0] * size[1] * size[2]))
    for a in range(blocks.shape[0]):
        for b in range(blocks.shape[1]):
            row[:] = 0
            for u in range(size[0]):
                plane = min((first[0] + slab + a) * size[0] + u, planes - 1)
                for v in range(size[1]):
                    line = array[plane, min((first[1] + b) * size[1] + v, rows - 1), begin : begin + whole]
                    for c in range(whole):
                        value = line[c]
                        value = max(value, low)
                        row[c] += min(value, high)
            for c in range(whole, row.size):
                row[c] = row[whole - 1]
            _means_along(row, size[2], scale, blocks[a, b])


@lazy_njit
def _means_along(row: Array, width: int, scale: np.float32, means: Floats) -> None:
    if width == 2:  # common widths have their own loop, because the compiler vectorises a fixed stride
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


@lazy_njit
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


@lazy_njit
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


@lazy_njit
def _linear(
    data: Array, matrix: Affine, bounds: Affine, slope: float, inter: float, fill: float, out: Floats, first: int
) -> None:
    """Trilinear interpolation; neighbours outside the data are its end planes."""
    width, flat = out.shape[2], data.reshape(-1)
    for k in range(out.shape[0]):
        for j in range(out.shape[1]):
            start = matrix[:, 1] * j + matrix[:, 2] * (first + k) + matrix[:, 3]
            low, high = 0, width
            for axis in range(3):
                low, high = _interior_range(start[axis], matrix[axis, 0], data.shape[axis], low, high)
            low = min(low, width)
            high = max(low, high)
            row = out[k, j]
            _row_with_bounds(data, matrix, bounds, slope, inter, fill, start, row, 0, low)
            _row_interior(flat, data.shape, matrix, slope, inter, start, row, low, high)
            _row_with_bounds(data, matrix, bounds, slope, inter, fill, start, row, high, width)


@lazy_njit
def _interior_range(start: float, step: float, size: int, low: int, high: int) -> tuple[int, int]:
    """Range of i in low..high-1 with 0 <= start + step i < size - 1; one fewer at each end, against rounding."""
    if abs(step) < MIN_STEP:  # the quotients below would exceed the integers
        inside = 0 <= start < size - 1 and 0 <= start + step * max(high, 0) < size - 1
        return (low, high) if inside else (low, low)
    if step > 0:
        return max(low, int(np.ceil(-start / step)) + 1), min(high, int(np.ceil((size - 1 - start) / step)) - 1)
    return max(low, int(np.floor((size - 1 - start) / step)) + 2), min(high, int(np.floor(-start / step)))


@lazy_njit
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


@lazy_njit
def _row_interior(
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
    """Part of a row where all eight neighbours exist: no comparisons, and unsigned indices, which are faster."""
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


@lazy_njit
def _row_with_bounds(
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


@lazy_njit
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
