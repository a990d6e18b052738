"""Anatomical variants: the parameters in which the heads and arteries of phantoms differ.

Design notes:
- ``Variant()`` is the template's own anatomy. ``draw_variant`` draws the others from a fixed numbered list, so that a
  slow head is built once for many patients.
- Pairs are (left, right). Sizes and frequencies have their sources in docs/training.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

Pair = tuple[float, float]

VARIANTS = 48
"""Anatomies of the phantoms that teach; audits take the next ones, which no version has seen."""
_SEED = 20261129
_FETAL, _HYPOPLASTIC_A1, _MISSING_A1, _EARLY, _DOMINANT_M2, _ABSENT_M2 = 0.15, 0.10, 0.03, 0.12, 0.3, 0.05
_CHOROID, _PINEAL, _FALX, _BASAL_GANGLIA, _VERTEBRAL = 0.66, 0.7, 0.12, 0.05, 0.3


@dataclass(frozen=True)
class Variant:
    """One anatomy.

    Attributes:
        number: place in the fixed list; it seeds waves, courses and shapes.
        deformation_mm: standard deviation of the smooth displacement along each axis.
        asymmetry_mm: right frontal and left occipital lobe protrude by this length (negative: the other way).
        atrophy: relative shrinkage of the brain in the skull, along each axis.
        sulci: share of the cortex at the sulci that is CSF.
        ventricles: magnification of the lateral ventricles minus one, along each axis.
        course_mm: standard deviation of the control points of the vessels along each axis.
        calibre: spread of the radii, 0.2 for up to 20 %.
        fetal_pca: the posterior cerebral artery leaves the carotid artery.
        a1: relative radius of the first segment of the anterior cerebral artery; 0 if missing.
        early_bifurcation: M1 is shorter by 7 mm.
        m2_superior, m2_inferior: relative radius of the trunk; 0 if absent.
        veins: relative radius of dural sinuses and deep veins, with vertebral arteries; 0 without these vessels.
        transverse: relative radius of the transverse and sigmoid sinus.
        vertebral_calcium: density of a plaque in the vertebral artery, relative to that of the siphon.
        choroid, basal_ganglia: relative amount of calcium.
        pineal, falx: relative amount of calcium.
        skull: spread of the thickness of the skull.
        skull_base: share of a base with petrous and sphenoid bone, air cells, orbits and spinal canal; 0 without it.
    """

    number: int = 0
    deformation_mm: float = 0.0
    asymmetry_mm: float = 0.0
    atrophy: float = 0.0
    sulci: float = 0.0
    ventricles: float = 0.0
    course_mm: float = 0.0
    calibre: float = 0.0
    fetal_pca: tuple[bool, bool] = (False, False)
    a1: Pair = (1.0, 1.0)
    early_bifurcation: tuple[bool, bool] = (False, False)
    m2_superior: Pair = (1.0, 1.0)
    m2_inferior: Pair = (1.0, 1.0)
    veins: float = 0.0
    transverse: Pair = (1.0, 1.0)
    vertebral_calcium: Pair = (0.0, 0.0)
    choroid: Pair = (0.0, 0.0)
    basal_ganglia: Pair = (0.0, 0.0)
    pineal: float = 0.0
    falx: float = 0.0
    skull: float = 0.0
    skull_base: float = 0.0

    @property
    def is_template(self) -> bool:
        """Whether nothing differs from the template."""
        return replace(self, number=0) == Variant()

    def rng(self, stream: int) -> np.random.Generator:
        """Random numbers of this variant, independent for each ``stream``."""
        return np.random.default_rng([_SEED, self.number, stream])


TEMPLATE = Variant()


def draw_variant(number: int) -> Variant:
    """Variant ``number`` of the fixed list; 0 is the template."""
    if number == 0:
        return TEMPLATE
    rng = Variant(number).rng(0)
    age = rng.random()  # older brains have less tissue, larger ventricles and more calcium
    a1 = _a1(rng)
    superior, inferior = _m2(rng)
    weak_left = bool(rng.random() < 0.4)
    return Variant(
        number=number,
        deformation_mm=float(rng.uniform(0.8, 1.7)),
        asymmetry_mm=float(np.clip(rng.normal(1.5, 1.2), -1.5, 4.0)),
        atrophy=float(np.clip(0.045 * age + rng.normal(0, 0.008), 0, 0.06)),
        sulci=float(np.clip(0.6 * age + rng.normal(0, 0.1), 0, 0.7)),
        ventricles=float(np.clip(-0.1 + 0.6 * age + rng.normal(0, 0.12), -0.2, 0.7)),
        course_mm=float(rng.uniform(0.8, 1.8)),
        calibre=0.2,
        fetal_pca=_flags(rng, _FETAL),
        a1=a1,
        early_bifurcation=_flags(rng, _EARLY),
        m2_superior=superior,
        m2_inferior=inferior,
        veins=float(rng.uniform(0.8, 1.2)),
        transverse=(0.6, 1.1) if weak_left else (1.0, 1.0),
        vertebral_calcium=_amounts(rng, _VERTEBRAL * 2 * age),
        choroid=_amounts(rng, _CHOROID),
        basal_ganglia=_amounts(rng, _BASAL_GANGLIA),
        pineal=_amounts(rng, _PINEAL)[0],
        falx=_amounts(rng, _FALX)[0],
        skull=float(rng.uniform(0.1, 0.3)),
        skull_base=1.0,
    )


def _flags(rng: np.random.Generator, share: float) -> tuple[bool, bool]:
    left, right = rng.random(2) < share
    return bool(left), bool(right)


def _amounts(rng: np.random.Generator, share: float) -> Pair:
    """Each side has an amount from 0.3 to 1 with probability ``share``, else 0."""
    left, right = np.where(rng.random(2) < share, rng.uniform(0.3, 1, 2), 0.0)
    return float(left), float(right)


def _a1(rng: np.random.Generator) -> Pair:
    """At most one side is hypoplastic or missing, because the other one feeds both."""
    drawn, left = rng.random(), rng.random() < 0.5
    weak = 0.0 if drawn < 2 * _MISSING_A1 else 0.5 if drawn < 2 * (_MISSING_A1 + _HYPOPLASTIC_A1) else 1.0
    return (weak, 1.0) if left else (1.0, weak)


def _m2(rng: np.random.Generator) -> tuple[Pair, Pair]:
    """Relative radii of both trunks; at most one of a side is weak or absent."""
    pairs = []
    for _ in range(2):
        drawn, first = rng.random(), rng.random() < 0.5
        weak = 0.0 if drawn < _ABSENT_M2 else 0.65 if drawn < _ABSENT_M2 + _DOMINANT_M2 else 1.0
        strong = 1.0 if weak == 1.0 else 1.2
        pairs.append((weak, strong) if first else (strong, weak))
    (left_superior, left_inferior), (right_superior, right_inferior) = pairs
    return (left_superior, right_superior), (left_inferior, right_inferior)
