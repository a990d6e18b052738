"""Apply a scanner to the images of a phantom, on a model's grid and on full-size volumes.

Design notes:
- On a grid, slices, kernel and motion are blurs of the same variance as their effect after resampling; a blur of three
  taps has any variance, also a negative one (a sharp kernel).
- Artefacts are functions of MNI coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from app.phantoms.canvas import AIR, Array
from app.phantoms.scanner import THIN_MM, Metal, Scanner
from app.sdk.types import Channel

Floats = NDArray[np.floating]

_LINEAR_VARIANCE = 1 / 6  # of linear interpolation between slices, slices squared
FINE_NOISE_HU, THICK_NOISE = 0.92, 1.27
"""Noise of a scan on a grid of 2 mm, thin slices; thick slices relative to it. Measured on volumes of noise."""
_METAL_MM, _STREAK_MM, _STREAK_REACH_MM = 2.0, 4.0, 60.0
_LOBES = (2, 4, 6)
_HARDENED_MM = ((0.0, -30.0, -42.0), (28.0, 16.0, 9.0))  # centre and widths of the dark band
_SHARP_MM = 1.0  # width of the unsharp mask of a sharp kernel
_LARGEST_TAP = 0.3


@dataclass(frozen=True)
class GridFrame:
    """MNI millimetres of the planes of a grid along each axis, the spacing, and the blur of the renderer (sd, mm)."""

    axes_mm: tuple[Array, Array, Array]
    spacing_mm: tuple[float, float, float]
    blur_mm: tuple[float, float, float]


def on_grid(image: Array, channel: Channel, scanner: Scanner, frame: GridFrame) -> Array:
    """NCCT or CTA (X, Y, Z), HU, as the scanner shows it, without noise and limits of the field of view."""
    thickness = scanner.slice_mm(channel)
    through = 0.0
    if thickness > THIN_MM:
        # The slice is a box, and resampling adds what its interpolation blurs more than its own low-pass.
        through = thickness**2 / 12 + max(0.0, thickness**2 * _LINEAR_VARIANCE - frame.blur_mm[2] ** 2)
    moved = [length**2 / 4 for length in scanner.motion_mm]
    for axis, variance in enumerate((scanner.kernel_mm2 + moved[0], scanner.kernel_mm2 + moved[1], through + moved[2])):
        image = _blurred(image, axis, variance / frame.spacing_mm[axis] ** 2)
    x, y, z = frame.axes_mm
    added = artefacts(scanner, (x[:, None, None], y[None, :, None], z[None, None, :]), frame.blur_mm[2])
    return shown_density(image if added is None else image + added, scanner)


def shown_density(image: Array, scanner: Scanner) -> Array:
    """Densities as a scanner with another scale shows them."""
    if scanner.scale == 1 and scanner.offset_hu == 0:
        return image
    return np.float32(scanner.scale) * image + np.float32(scanner.offset_hu)


def covered(channel: Channel, scanner: Scanner, z_mm: Floats) -> NDArray[np.bool_] | None:
    """Planes at MNI z (n,) that the series of a channel shows, or None for all."""
    if channel in (Channel.TMAX, Channel.RCBF):
        return None if scanner.slab_mm is None else (z_mm >= scanner.slab_mm[0]) & (z_mm <= scanner.slab_mm[1])
    return None if scanner.top_mm is None else z_mm <= scanner.top_mm


def cut(values: dict[Channel, Array], scanner: Scanner, frame: GridFrame) -> dict[Channel, Array]:
    """The channels with air, or no data, outside the field of view of their series."""
    for channel, image in values.items():
        planes = covered(channel, scanner, frame.axes_mm[2])
        if planes is not None:
            image[:, :, ~planes] = AIR if channel in (Channel.NCCT, Channel.CTA) else 0
    return values


def grain(channel: Channel, scanner: Scanner) -> float:
    """Noise on the grid relative to the usual one: thicker slices give fewer voxels to average."""
    return scanner.noise * float(np.sqrt(max(scanner.slice_mm(channel), THIN_MM) / THIN_MM))


def fine_grain(white: Array, channel: Channel, scanner: Scanner, frame: GridFrame) -> Array:
    """Noise (X, Y, Z), HU, on a grid of 2 mm, from ``white`` noise of SD 1; thick slices smooth it along z."""
    thickness = scanner.slice_mm(channel)
    level = FINE_NOISE_HU * scanner.noise
    if thickness <= THIN_MM:
        return white * np.float32(level)
    smooth = _blurred(white, 2, thickness**2 * _LINEAR_VARIANCE / frame.spacing_mm[2] ** 2)
    return smooth * np.float32(level * THICK_NOISE / smooth.std())


def artefacts(scanner: Scanner, mni_mm: Sequence[Floats], blur_mm: float = 0.0) -> Array | None:
    """Density that metal and beam hardening add at points, HU, or None without artefacts.

    Args:
        scanner: the scanner.
        mni_mm: x, y and z of the points; arrays that broadcast.
        blur_mm: standard deviation of a blur that the artefacts undergo.
    """
    added = None
    if scanner.metal is not None:
        added = _metal(scanner.metal, mni_mm, blur_mm)
    if scanner.hardening_hu:
        centre, widths = _HARDENED_MM
        square = sum(((v - c) / w) ** 2 for v, c, w in zip(mni_mm, centre, widths, strict=True))
        band = (-scanner.hardening_hu * np.exp(-0.5 * square)).astype(np.float32)
        added = band if added is None else added + band
    return added


def _metal(metal: Metal, mni_mm: Sequence[Floats], blur_mm: float) -> Array:
    x, y, z = (v - c for v, c in zip(mni_mm, metal.place_mm, strict=True))
    square = x**2 + y**2
    wide = _METAL_MM**2 + blur_mm**2
    solid = metal.hu * (_METAL_MM**2 / wide) ** 1.5 * np.exp(-0.5 * (square + z**2) / wide)
    angle, radius = np.arctan2(y, x), np.sqrt(square)
    lobes = sum(np.cos(n * angle + phase) for n, phase in zip(_LOBES, metal.angles, strict=True)) / len(_LOBES)
    fading = np.exp(-radius / _STREAK_REACH_MM) * (1 - np.exp(-square / 16))
    tall = _STREAK_MM**2 + blur_mm**2
    plane = np.sqrt(_STREAK_MM**2 / tall) * np.exp(-0.5 * z**2 / tall)
    added: Array = (solid + metal.streak_hu * lobes * fading * plane).astype(np.float32)
    return added


def _blurred(image: Array, axis: int, variance: float) -> Array:
    """Blur along an axis by this variance, planes squared, in steps of three taps."""
    if variance == 0:
        return image
    steps = max(1, int(np.ceil(abs(variance) / (2 * _LARGEST_TAP))))
    tap = variance / steps / 2
    for _ in range(steps):
        image = ndimage.correlate1d(image, [tap, 1 - 2 * tap, tap], axis=axis, mode="nearest")
    return image


def filtered(values: Array, scanner: Scanner, spacing_mm: Sequence[float]) -> Array:
    """A full-size volume (X, Y, Z) after the reconstruction kernel."""
    if scanner.kernel_mm2 == 0:
        return values
    width = np.sqrt(scanner.kernel_mm2) if scanner.kernel_mm2 > 0 else _SHARP_MM
    smooth = ndimage.gaussian_filter(values, [width / spacing_mm[0], width / spacing_mm[1], 0], truncate=3)
    if scanner.kernel_mm2 > 0:
        return smooth
    return values - np.float32(scanner.kernel_mm2 / _SHARP_MM**2) * (values - smooth)


def add_artefacts(values: Array, scanner: Scanner, mni_from_voxel: NDArray[np.float64]) -> None:
    """Add the artefacts to a full-size volume (X, Y, Z) in place."""
    if scanner.metal is None and not scanner.hardening_hu:
        return
    across, down = (np.arange(n, dtype=np.float32) for n in values.shape[:2])
    for plane in range(values.shape[2]):
        x, y, z = (
            (row[0] * across[:, None] + row[1] * down + (row[2] * plane + row[3])).astype(np.float32)
            for row in mni_from_voxel[:3]
        )
        added = artefacts(scanner, (x, y, z))
        if added is not None:
            values[:, :, plane] += added
