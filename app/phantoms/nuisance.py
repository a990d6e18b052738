"""One nuisance at a given strength: a change of anatomy, scanner or protocol that a model should not react to.

Design notes:
- A nuisance changes the variation of a patient and nothing of its biology, so the truth stays the same.
- Strengths have the unit of ``UNITS``. ``STRENGTHS`` lists usual ones, from weak to strong, for a table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from app.phantoms.scanner import draw_metal, slab
from app.phantoms.scene import Variation
from app.sdk.types import Channel


class NuisanceKind(StrEnum):
    """What is changed."""

    DEFORMATION = "deformation"
    ASYMMETRY = "asymmetry"
    ATROPHY = "atrophy"
    VENTRICLES = "ventricles"
    COURSE = "vessel-course"
    CALIBRE = "vessel-calibre"
    FETAL_PCA = "fetal-pca"
    A1 = "a1"
    EARLY_BIFURCATION = "early-bifurcation"
    M2 = "m2-trunk"
    VEINS = "veins"
    CALCIUM = "calcium"
    SKULL = "skull"
    SKULL_BASE = "skull-base"
    SMOOTH_KERNEL = "smooth-kernel"
    SHARP_KERNEL = "sharp-kernel"
    NOISE = "noise"
    OFFSET = "hu-offset"
    SCALE = "hu-scale"
    NCCT_SLICES = "ncct-slices"
    CTA_SLICES = "cta-slices"
    CONTRAST = "contrast"
    VENOUS_PHASE = "venous-phase"
    CLIP = "clip"
    DENTAL = "dental-metal"
    HARDENING = "beam-hardening"
    MOTION = "motion"
    SLAB = "perfusion-slab"
    VERTEX = "cropped-vertex"
    ARCH = "arch-to-vertex"
    NO_PERFUSION = "no-perfusion"
    NO_NCCT = "no-ncct"
    NO_CTA = "no-cta"


UNITS: dict[NuisanceKind, str] = {
    NuisanceKind.DEFORMATION: "mm",
    NuisanceKind.ASYMMETRY: "mm",
    NuisanceKind.COURSE: "mm",
    NuisanceKind.SMOOTH_KERNEL: "mm²",
    NuisanceKind.SHARP_KERNEL: "mm²",
    NuisanceKind.OFFSET: "HU",
    NuisanceKind.NCCT_SLICES: "mm",
    NuisanceKind.CTA_SLICES: "mm",
    NuisanceKind.CONTRAST: "HU",
    NuisanceKind.CLIP: "HU",
    NuisanceKind.DENTAL: "HU",
    NuisanceKind.HARDENING: "HU",
    NuisanceKind.MOTION: "mm",
    NuisanceKind.SLAB: "mm",
    NuisanceKind.VERTEX: "mm",
}
"""Units of the strengths; the other kinds have relative strengths, or are on (1) or off (0)."""

STRENGTHS: dict[NuisanceKind, tuple[float, ...]] = {
    NuisanceKind.DEFORMATION: (0.8, 1.7),
    NuisanceKind.ASYMMETRY: (2.0, 4.0),
    NuisanceKind.ATROPHY: (0.03, 0.06),
    NuisanceKind.VENTRICLES: (-0.2, 0.4, 0.7),
    NuisanceKind.COURSE: (1.0, 2.0),
    NuisanceKind.CALIBRE: (0.2,),
    NuisanceKind.FETAL_PCA: (1.0,),
    NuisanceKind.A1: (0.5, 0.0),
    NuisanceKind.EARLY_BIFURCATION: (1.0,),
    NuisanceKind.M2: (0.65, 0.0),
    NuisanceKind.VEINS: (0.8, 1.2),
    NuisanceKind.CALCIUM: (0.5, 1.0),
    NuisanceKind.SKULL: (0.15, 0.3),
    NuisanceKind.SKULL_BASE: (1.0,),
    NuisanceKind.SMOOTH_KERNEL: (0.6, 1.2),
    NuisanceKind.SHARP_KERNEL: (0.3,),
    NuisanceKind.NOISE: (1.5, 2.5),
    NuisanceKind.OFFSET: (-10.0, -5.0, 5.0, 10.0),
    NuisanceKind.SCALE: (0.95, 1.05),
    NuisanceKind.NCCT_SLICES: (2.5, 5.0),
    NuisanceKind.CTA_SLICES: (1.5, 2.0, 5.0),
    NuisanceKind.CONTRAST: (150.0, 220.0, 450.0),
    NuisanceKind.VENOUS_PHASE: (0.0, 0.9),
    NuisanceKind.CLIP: (40.0, 160.0),
    NuisanceKind.DENTAL: (40.0, 160.0),
    NuisanceKind.HARDENING: (10.0, 20.0),
    NuisanceKind.MOTION: (1.5, 3.0),
    NuisanceKind.SLAB: (160.0, 100.0, 80.0, 40.0),
    NuisanceKind.VERTEX: (75.0, 60.0),
    NuisanceKind.ARCH: (1.0,),
    NuisanceKind.NO_PERFUSION: (1.0,),
    NuisanceKind.NO_NCCT: (1.0,),
    NuisanceKind.NO_CTA: (1.0,),
}
"""Usual strengths of each kind. The vertex is cropped above this MNI z."""


@dataclass(frozen=True)
class Nuisance:
    """A change of one kind; ``strength`` in the unit of ``UNITS``."""

    kind: NuisanceKind
    strength: float

    def apply(self, variation: Variation) -> Variation:
        """The variation of a patient with this nuisance, and everything else as before."""
        if self.kind in _ANATOMY:
            return replace(variation, variant=replace(variation.variant, **_ANATOMY[self.kind](self.strength)))
        change = _SCANNER[self.kind](self.strength, np.random.default_rng([variation.noise_seed, 9]))
        return replace(variation, scanner=replace(variation.scanner, **change))


_Change = dict[str, Any]

_ANATOMY: dict[NuisanceKind, Callable[[float], _Change]] = {
    NuisanceKind.DEFORMATION: lambda s: {"deformation_mm": s},
    NuisanceKind.ASYMMETRY: lambda s: {"asymmetry_mm": s},
    NuisanceKind.ATROPHY: lambda s: {"atrophy": s, "sulci": min(10 * s, 0.7)},
    NuisanceKind.VENTRICLES: lambda s: {"ventricles": s},
    NuisanceKind.COURSE: lambda s: {"course_mm": s},
    NuisanceKind.CALIBRE: lambda s: {"calibre": s},
    NuisanceKind.FETAL_PCA: lambda s: {"fetal_pca": (bool(s), bool(s))},
    NuisanceKind.A1: lambda s: {"a1": (s, 1.0)},
    NuisanceKind.EARLY_BIFURCATION: lambda s: {"early_bifurcation": (bool(s), bool(s))},
    NuisanceKind.M2: lambda s: {"m2_superior": (s, s), "m2_inferior": (1.2, 1.2)},
    NuisanceKind.VEINS: lambda s: {"veins": s},
    NuisanceKind.CALCIUM: lambda s: {"choroid": (s, s), "basal_ganglia": (s, s), "pineal": s, "falx": s},
    NuisanceKind.SKULL: lambda s: {"skull": s},
    NuisanceKind.SKULL_BASE: lambda s: {"skull_base": s},
}

_SCANNER: dict[NuisanceKind, Callable[[float, np.random.Generator], _Change]] = {
    NuisanceKind.SMOOTH_KERNEL: lambda s, _: {"kernel_mm2": s},
    NuisanceKind.SHARP_KERNEL: lambda s, _: {"kernel_mm2": -s},
    NuisanceKind.NOISE: lambda s, _: {"noise": s},
    NuisanceKind.OFFSET: lambda s, _: {"offset_hu": s},
    NuisanceKind.SCALE: lambda s, _: {"scale": s},
    NuisanceKind.NCCT_SLICES: lambda s, _: {"ncct_slice_mm": s},
    NuisanceKind.CTA_SLICES: lambda s, _: {"cta_slice_mm": s},
    NuisanceKind.CONTRAST: lambda s, _: {"contrast_hu": s},
    NuisanceKind.VENOUS_PHASE: lambda s, _: {"venous": s},
    NuisanceKind.CLIP: lambda s, rng: {"metal": replace(draw_metal(rng, clip=True), streak_hu=s)},
    NuisanceKind.DENTAL: lambda s, rng: {"metal": replace(draw_metal(rng, clip=False), streak_hu=s)},
    NuisanceKind.HARDENING: lambda s, _: {"hardening_hu": s},
    NuisanceKind.MOTION: lambda s, rng: {"motion_mm": _direction(s, rng)},
    NuisanceKind.SLAB: lambda s, _: {"slab_mm": slab(s)},
    NuisanceKind.VERTEX: lambda s, _: {"top_mm": s},
    NuisanceKind.ARCH: lambda s, _: {"arch": bool(s)},
    NuisanceKind.NO_PERFUSION: lambda s, _: _without(s, Channel.TMAX, Channel.RCBF),
    NuisanceKind.NO_NCCT: lambda s, _: _without(s, Channel.NCCT),
    NuisanceKind.NO_CTA: lambda s, _: _without(s, Channel.CTA, Channel.VESSELS),
}


def _direction(length: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """A displacement of this length in a random direction, mm."""
    drawn = rng.standard_normal(3)
    x, y, z = (float(v) for v in length * drawn / np.linalg.norm(drawn))
    return x, y, z


def _without(strength: float, *channels: Channel) -> _Change:
    return {"missing": channels if strength else ()}
