"""Scanner and protocol of a phantom patient: what the images show besides the patient.

Design notes:
- ``USUAL`` changes nothing. ``draw_scanner`` draws all parameters; ``acquisition`` applies them.
- Places and limits are in MNI152 millimetres, so that both renderers show the same artefact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from app.sdk.types import Channel

Vector = tuple[float, float, float]

THIN_MM = 1.25  # slices up to this thickness are sampled as points
_SLABS_MM = (None, 160.0, 100.0, 80.0, 40.0)
_SLAB_SHARES = (0.30, 0.25, 0.20, 0.20, 0.05)
_SLAB_CENTRE_MM = 14.0  # usual slabs are centred on the basal ganglia and the upper M1 territory
_CLIPS_MM = ((0.0, 22.0, -12.0), (20.0, 4.0, -12.0), (-20.0, 4.0, -12.0), (-38.0, 0.0, -14.0), (38.0, 0.0, -14.0))
_FILLINGS_MM = ((26.0, 48.0, -92.0), (-26.0, 48.0, -92.0), (18.0, 56.0, -92.0))


@dataclass(frozen=True)
class Metal:
    """A clip or a dental filling at ``place_mm``; ``streak_hu``: amplitude of its streaks, ``angles``: their phases."""

    place_mm: Vector
    hu: float
    streak_hu: float
    angles: Vector


@dataclass(frozen=True)
class Scanner:
    """Scanner and protocol of one patient.

    Attributes:
        kernel_mm2: variance of the blur in the slice; negative for a sharp kernel, which enhances edges.
        noise: noise relative to the usual one.
        offset_hu, scale: a density h is shown as ``scale * h + offset_hu``.
        ncct_slice_mm, cta_slice_mm: thickness and distance of the slices; 0 for thin slices.
        contrast_hu: density that the bolus adds to arterial blood; None for the one drawn with the patient.
        venous: enhancement of the veins relative to the arteries: the phase of the CTA.
        metal: clip in the head or filling of a tooth.
        hardening_hu: depth of the dark band between the petrous bones.
        motion_mm: displacement during the scan, which doubles all edges.
        slab_mm: lowest and highest MNI z of the perfusion maps; None if they cover the head.
        top_mm: highest MNI z of NCCT and CTA; None if they contain the vertex.
        arch: the CTA reaches far down the neck.
        missing: channels that were not acquired.
    """

    kernel_mm2: float = 0.0
    noise: float = 1.0
    offset_hu: float = 0.0
    scale: float = 1.0
    ncct_slice_mm: float = 0.0
    cta_slice_mm: float = 0.0
    contrast_hu: float | None = None
    venous: float = 0.35
    metal: Metal | None = None
    hardening_hu: float = 0.0
    motion_mm: Vector = (0.0, 0.0, 0.0)
    slab_mm: tuple[float, float] | None = None
    top_mm: float | None = None
    arch: bool = False
    missing: tuple[Channel, ...] = ()

    def slice_mm(self, channel: Channel) -> float:
        """Thickness of the slices of NCCT or CTA; 0 for thin slices."""
        return self.ncct_slice_mm if channel is Channel.NCCT else self.cta_slice_mm


USUAL = Scanner()


def draw_scanner(rng: np.random.Generator) -> Scanner:
    """Draw the scanner of one patient."""
    kernel = float(rng.choice([-0.3, 0.0, 0.0, 0.6, 1.2]))
    metal = rng.random()
    moved = rng.random() < 0.15
    motion = rng.standard_normal(3)
    motion *= rng.uniform(1, 3) * moved / np.linalg.norm(motion)
    return Scanner(
        kernel_mm2=kernel,
        noise=float(np.clip(np.exp(rng.normal(0, 0.3) - 0.3 * kernel), 0.4, 2.5)),
        offset_hu=float(np.clip(rng.normal(0, 2.5), -8, 8)),
        scale=float(np.clip(rng.normal(1, 0.015), 0.95, 1.05)),
        ncct_slice_mm=float(rng.choice([0.0, 2.5, 3.0, 5.0], p=[0.35, 0.2, 0.2, 0.25])),
        cta_slice_mm=float(rng.choice([0.0, 1.5, 2.0], p=[0.7, 0.2, 0.1])),
        contrast_hu=float(np.clip(rng.normal(300, 70), 150, 450)),
        venous=float(rng.beta(1.6, 1.8) * 0.9),
        metal=draw_metal(rng, clip=metal < 0.03) if metal < 0.25 else None,
        hardening_hu=float(np.clip(np.abs(rng.normal(0, 6)), 0, 18)),
        motion_mm=(float(motion[0]), float(motion[1]), float(motion[2])),
        slab_mm=_draw_slab(rng),
        top_mm=float(rng.uniform(55, 76)) if rng.random() < 0.08 else None,
        arch=bool(rng.random() < 0.4),
        missing=_draw_missing(rng),
    )


def draw_metal(rng: np.random.Generator, *, clip: bool) -> Metal:
    """Draw a clip at an artery, or a dental filling."""
    places = _CLIPS_MM if clip else _FILLINGS_MM
    angles = rng.uniform(0, 2 * np.pi, 3)
    return Metal(
        places[int(rng.integers(len(places)))],
        hu=float(rng.uniform(2200, 3000)),
        streak_hu=float(rng.uniform(40, 160)),
        angles=(float(angles[0]), float(angles[1]), float(angles[2])),
    )


def slab(height_mm: float, centre_mm: float = _SLAB_CENTRE_MM) -> tuple[float, float]:
    """Lowest and highest MNI z of a perfusion slab of this height."""
    return centre_mm - height_mm / 2, centre_mm + height_mm / 2


def _draw_slab(rng: np.random.Generator) -> tuple[float, float] | None:
    height = _SLABS_MM[int(rng.choice(len(_SLABS_MM), p=_SLAB_SHARES))]
    centre = _SLAB_CENTRE_MM + float(rng.normal(0, 6))
    return None if height is None else slab(height, centre)


def _draw_missing(rng: np.random.Generator) -> tuple[Channel, ...]:
    drawn = rng.random()
    if drawn < 0.10:
        return (Channel.TMAX, Channel.RCBF)
    if drawn < 0.13:
        return (Channel.NCCT,)
    return (Channel.CTA, Channel.VESSELS) if drawn < 0.16 else ()
