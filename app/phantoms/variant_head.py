"""Head of an anatomical variant: deformed brain, skull of varying thickness, calcium, and a skull base.

Design notes:
- The brain is the template's, sampled through the deformation. Skull and scalp are shells around the brain as it was
  before it shrank, so CSF fills what atrophy leaves.
- Distances to the brain are computed on voxels of 2 mm and interpolated, because shells are smooth.
- The skull base is made of simple bodies in template coordinates (``skull_base``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from app.phantoms import deformation, skull_base
from app.phantoms.canvas import AIR, BONE, CSF, FAT, GREY, MARROW, MUSCLE, ORIGIN_MM, SHAPE, WHITE, Array
from app.phantoms.template import PhantomHead, brain_of_alignment, template_map
from app.phantoms.variant import Variant

Box = tuple[slice, slice, slice]

_COARSE = 2  # canvas voxels
_THICKNESS_MM, _GAP_MM = 7.0, 2.0  # of the skull; CSF between brain and skull
_SULCUS_MM = 2.0
_CALCIUM_HU = 400.0
# Calcium in template coordinates of the right side: attribute, centre, half-axes, mm.
_CALCIUM = (("choroid", (22.0, -40.0, 10.0), (2.5, 4.0, 2.5)), ("basal_ganglia", (19.0, -4.0, -1.0), (2.5, 5.0, 2.5)))
_MIDLINE_CALCIUM = (("pineal", (0.0, -29.0, 2.0), (2.0, 2.5, 2.0)), ("falx", (0.0, 34.0, 48.0), (1.2, 9.0, 5.0)))


def build(variant: Variant) -> PhantomHead:
    """The head of a variant on the canvas."""
    grey, white, box = _brain(variant)
    away = _distance(variant)
    tissue = _shells(variant, away)
    inside = away[box] <= _GAP_MM
    part = tissue[box]
    part[inside] = (CSF + (GREY - CSF) * grey + (WHITE - CSF) * white)[inside]
    tissue[(away <= _GAP_MM) & ~_within(box)] = CSF
    if variant.skull_base:
        skull_base.add(variant, tissue, away)
    for centre, axes, amount in _calcifications(variant):
        _add_calcium(tissue, centre, axes, amount * _CALCIUM_HU)
    tissue = ndimage.gaussian_filter(tissue, 0.6)
    brain, flow = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    brain[box] = np.clip(grey + white, 0, 1) * inside
    flow[box] = 60 * grey + 24 * white
    return PhantomHead(tissue=tissue, brain=brain, flow=flow)


@cache
def _stored_map(name: str) -> NDArray[np.uint8]:
    """A map of the template on the canvas, 0 to 255, kept small because every variant samples it."""
    return np.rint(template_map(name) * 255).astype(np.uint8)


@cache
def _brain_box() -> Box:
    """The part of the canvas that the brain of every variant lies in."""
    where = ndimage.find_objects((_stored_map("gm") > 0).view(np.uint8))[0]
    x, y, z = (slice(max(a.start - 8, 0), min(a.stop + 8, n)) for a, n in zip(where, SHAPE, strict=True))
    return x, y, z


def _within(box: Box) -> NDArray[np.bool_]:
    mask = np.zeros(SHAPE, bool)
    mask[box] = True
    return mask


def _axes(box: Sequence[slice], step: int = 1) -> list[NDArray[np.float64]]:
    return [np.arange(a.start, a.stop, step) + o for a, o in zip(box, ORIGIN_MM, strict=True)]


@cache
def _brain_map() -> NDArray[np.uint8]:
    """255 in the brain that the alignment fits the skull to, on the canvas."""
    return brain_of_alignment().astype(np.uint8) * np.uint8(255)


def _from_template(values: NDArray[np.uint8], shown: Array) -> Array:
    """A map of the template, 0 to 255 on the canvas, as 0 to 1 at template coordinates (3, X, Y, Z), mm."""
    place = shown - ORIGIN_MM.astype(np.float32)[:, None, None, None]
    return ndimage.map_coordinates(values, place, output=np.float32, order=1) / np.float32(255)


def _sampled(name: str, shown: Array) -> Array:
    """One of nilearn's maps, 0 to 1, at template coordinates (3, X, Y, Z), mm."""
    return _from_template(_stored_map(name), shown)


def _brain(variant: Variant) -> tuple[Array, Array, Box]:
    """Fractions of grey and white matter in a box of the canvas."""
    box = _brain_box()
    shown = deformation.on_box(variant, _axes(box), brain=True)
    grey, white = (_sampled(name, shown) for name in ("gm", "wm"))
    if variant.sulci:
        around = ndimage.uniform_filter(np.clip(grey + white, 0, 1), 2 * int(_SULCUS_MM) + 1)
        kept = (1 - variant.sulci * np.clip((0.97 - around) / 0.4, 0, 1)).astype(np.float32)
        grey, white = grey * kept, white * kept
    return grey, white, box


def _distance(variant: Variant) -> Array:
    """Distance from the brain before it shrank, on the canvas, mm; counted from the last voxel inside."""
    whole = [slice(0, n) for n in SHAPE]
    shown = deformation.on_box(variant, _axes(whole, _COARSE), brain=False)
    solid = _from_template(_brain_map(), shown) > 0.5
    # The distance ends at the centre of the first voxel inside, half a voxel beyond the surface.
    outside = ndimage.distance_transform_edt(~solid).astype(np.float32)
    signed = np.where(solid, np.float32(-_COARSE / 2), outside * _COARSE - _COARSE / 2) + np.float32(0.5)
    return np.maximum(_interpolated(signed), 0)


def _interpolated(coarse: Array) -> Array:
    """Values of every second canvas voxel, interpolated to all of them."""
    for axis, length in enumerate(SHAPE):
        wide = np.repeat(coarse, 2, axis=axis)
        odd, even = [slice(None)] * 3, [slice(None)] * 3
        odd[axis], even[axis] = slice(1, -1, 2), slice(2, None, 2)
        wide[tuple(odd)] = (wide[tuple(odd)] + wide[tuple(even)]) / 2
        coarse = np.take(wide, range(length), axis=axis)
    return np.ascontiguousarray(coarse)


def _thickness(variant: Variant) -> Array:
    """Thickness of the skull, mm, on the canvas; it varies smoothly."""
    step = 10
    axes = [np.arange(0, n + step, step) + o for n, o in zip(SHAPE, ORIGIN_MM, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    waves = deformation.smooth_waves(variant.rng(3), 1, points / 1.5).reshape([len(axis) for axis in axes])
    thickness = _THICKNESS_MM * np.clip(1 + variant.skull * (waves + variant.rng(4).normal()), 0.5, 1.7)
    place = np.ix_(*(np.arange(n) / step for n in SHAPE))
    weights = [
        np.clip(1 - np.abs(p.reshape(-1, 1) - np.arange(n)), 0, 1) for p, n in zip(place, waves.shape, strict=True)
    ]
    x, y, z = (w.astype(np.float32) for w in weights)
    inner = y @ (thickness.astype(np.float32) @ z.T)
    wide: Array = (x @ inner.reshape(len(inner), -1)).reshape(SHAPE)
    return wide


def _shells(variant: Variant, away: Array) -> Array:
    """Air, face and neck, scalp and skull around the brain, HU."""
    x, y, z = (np.arange(n, dtype=np.float32) + o for n, o in zip(SHAPE, ORIGIN_MM, strict=True))
    neck = np.hypot(x[:, None] / 64, (y[None, :] + 14) / 84)[:, :, None]
    below = z[None, None, :] < -24
    spine = np.hypot(x[:, None], y[None, :] + 42)[:, :, None]
    out = away - _GAP_MM
    bone = _thickness(variant) if variant.skull else np.float32(_THICKNESS_MM)
    tissue = np.full(SHAPE, AIR, np.float32)
    tissue[(neck <= 1) & below] = MUSCLE
    tissue[(neck <= 1) & (neck > 0.93) & below] = FAT
    beyond = out - bone
    tissue[beyond <= 6] = FAT
    tissue[beyond <= 3] = MUSCLE
    tissue[(spine < 18) & below & (beyond > 0)] = MARROW
    tissue[beyond <= 0] = BONE
    share = out / bone
    tissue[(share > 2 / 7) & (share <= 5 / 7)] = MARROW
    return tissue


def _calcifications(variant: Variant) -> Iterator[tuple[NDArray[np.float64], tuple[float, ...], float]]:
    """Centre on the canvas, half-axes (mm) and relative amount of each calcified spot."""
    spots = []
    for name, centre, axes in _CALCIUM:
        for sign, amount in zip((-1.0, 1.0), getattr(variant, name), strict=True):
            spots.append((np.array(centre) * [sign, 1, 1], axes, amount))
    spots += [(np.array(centre), axes, getattr(variant, name)) for name, centre, axes in _MIDLINE_CALCIUM]
    for place, size, amount in spots:
        if amount:
            yield deformation.from_template(variant, place[None])[0], size, amount


def _add_calcium(tissue: Array, centre: NDArray[np.float64], axes: tuple[float, ...], density: float) -> None:
    """Add ``density`` HU in an ellipsoid with a partial-volume edge."""
    low = np.floor(centre - np.array(axes) - 2 - ORIGIN_MM).astype(int)
    high = np.ceil(centre + np.array(axes) + 3 - ORIGIN_MM).astype(int)
    x, y, z = (np.arange(a, b) + o - c for a, b, o, c in zip(low, high, ORIGIN_MM, centre, strict=True))
    radius = np.sqrt((x[:, None, None] / axes[0]) ** 2 + (y[:, None] / axes[1]) ** 2 + (z / axes[2]) ** 2)
    cover = np.clip((1 - radius) * min(axes) + 0.5, 0, 1)
    tissue[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] += (density * cover).astype(np.float32)
