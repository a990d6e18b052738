"""The template's own head: a CT-like head around the MNI brain.

Design notes:
- Brain tissue comes from the grey and white matter maps of nilearn (ICBM 2009a). CSF, skull and scalp are shells around
  it; face and neck are a cylinder with a spine. No patient's scan is used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from app.imaging.registration import brain_mask
from app.imaging.registration.brain_mask import template_image
from app.phantoms.canvas import AIR, BONE, CANVAS, CSF, FAT, GREY, MARROW, MUSCLE, ORIGIN_MM, SHAPE, WHITE, Array


@dataclass(frozen=True)
class PhantomHead:
    """Maps on the canvas (X, Y, Z) that are the same for every patient of a variant.

    Attributes:
        tissue: HU without blood vessels.
        brain: fraction of grey and white matter.
        flow: normal cerebral blood flow, mL/100 g/min.
    """

    tissue: Array
    brain: Array
    flow: Array


def template_map(name: str) -> Array:
    """One of nilearn's ICBM 2009a maps, 0 to 1, on the canvas (both have 1 mm voxels at whole millimetres)."""
    image = template_image(name)
    values = np.asarray(image.dataobj, dtype=np.float32) / 255
    canvas = np.zeros(SHAPE, np.float32)
    start = np.rint(image.affine[:3, 3] - ORIGIN_MM).astype(int)
    low, high = np.maximum(start, 0), np.minimum(start + values.shape, SHAPE)
    inside = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
    canvas[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = values[inside]
    return canvas


def brain_of_alignment() -> NDArray[np.bool_]:
    """The voxels of the canvas within the surface that the alignment fits the skull to."""
    inside: NDArray[np.bool_] = brain_mask.distance(CANVAS, SHAPE, np.eye(4)) < 0
    return inside


def build() -> PhantomHead:
    """The head of the template on the canvas."""
    grey, white = template_map("gm"), template_map("wm")
    brain = np.clip(grey + white, 0, 1)
    away = ndimage.distance_transform_edt(~brain_of_alignment()).astype(np.float32)

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
