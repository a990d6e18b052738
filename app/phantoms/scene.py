"""Scene of one patient: position of the clot, filling of the arteries behind it, and ischaemic tissue.

Design notes:
- ``draw_variation`` draws the random numbers that biology leaves open; ``build`` is a pure function of them.
- Both renderers (onto a model's grid, into full-size volumes) use the same scene, so they show the same patient.
- Tissue is ranked by the potential; the first ``core_ml``, ``tmax10`` and ``tmax6`` millilitres are the core and the
  delayed tissue, so the volumes equal the ground truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from app.phantoms import anatomy, deformation
from app.phantoms.anatomy import Arteries
from app.phantoms.biology import Patient
from app.phantoms.scanner import USUAL, Scanner, draw_scanner
from app.phantoms.variant import TEMPLATE, Variant, draw_variant

Array = NDArray[np.float32]

WAVES = 16
LATTICE_STEP = 2  # canvas voxels; perfusion is smooth, so 2 mm suffices
_M1_MM = 23.5  # length of the M1 centre line of the template
_SIPHON_MM = 88.0  # place of the calcified siphon on the template's carotid artery
_VERTEBRAL_MM = 20.0  # place of a calcified plaque in the vertebral artery
_STAGNANT = 0.6  # enhancement of the stagnant column in front of a clot at the end of the carotid artery
_VISIBLE_HU = 60.0  # contrast below which an artery is not visible


@dataclass(frozen=True)
class Variation:
    """Random appearance of a patient, independent of biology.

    ``waves`` (WAVES,) shape the lesion. ``variant`` is the anatomy of the patient, ``scanner`` how it was scanned.
    """

    bolus: float
    clot_place: float
    superior: bool
    filling: float
    siphon: tuple[float, float]
    offset_hu: float
    waves: NDArray[np.float64]
    noise_seed: int
    variant: Variant = TEMPLATE
    scanner: Scanner = USUAL

    @property
    def contrast_hu(self) -> float:
        """Density that the bolus adds to the blood of the arteries."""
        return self.bolus if self.scanner.contrast_hu is None else self.scanner.contrast_hu


@dataclass(frozen=True)
class Appearance:
    """What varies between the patients of a cohort besides biology.

    ``variants``: each patient has one of so many anatomical variants, from number ``first`` on; 1 and 0: all have the
    template's anatomy. ``scanners``: each patient has another scanner and protocol.
    """

    variants: int = 1
    scanners: bool = False
    first: int = 0


PLAIN = Appearance()


@dataclass(frozen=True)
class Scene:
    """Artery voxels (n,) of a patient: ``density`` (HU above blood), ``enhancement`` (share of the bolus), ``clot``."""

    patient: Patient
    variation: Variation
    density: Array
    enhancement: Array
    clot: NDArray[np.bool_]

    @property
    def tree(self) -> Arteries:
        """The vessels of the patient."""
        return anatomy.arteries(self.variation.variant)

    @property
    def visible(self) -> NDArray[np.bool_]:
        """(n,): True where an artery or a vein is visible on CTA."""
        contrast = self.enhancement * np.float32(self.variation.contrast_hu)
        visible: NDArray[np.bool_] = (contrast > _VISIBLE_HU) & ((self.enhancement > 0.3) | self.tree.vein)
        return visible

    @property
    def patency(self) -> NDArray[np.bool_]:
        """(n,): True where the artery is visible on CTA."""
        return self.visible & ~self.tree.vein


@dataclass(frozen=True)
class Lattice:
    """The brain, m voxels of ``mask`` (X, Y, Z), on every second canvas voxel of its bounding box.

    ``affine``: voxel -> MNI mm; ``xyz`` (m, 3), mm of the template that the voxels show; ``waves`` (m, WAVES);
    ``flow`` (m,), normal flow / its mean.
    """

    mask: NDArray[np.bool_]
    affine: NDArray[np.float64]
    xyz: Array
    waves: Array
    flow: Array


def draw_variation(seed: int, index: int, appearance: Appearance = PLAIN) -> Variation:
    """Draw the variation of patient ``index`` of a cohort, independent of the other patients."""
    number = appearance.first + int(np.random.default_rng([seed, 7, index]).integers(appearance.variants))
    scanner = draw_scanner(np.random.default_rng([seed, 8, index])) if appearance.scanners else USUAL
    rng = np.random.default_rng([seed, 3, index])
    old = rng.random(2) < 0.6
    return Variation(
        bolus=float(np.clip(rng.normal(anatomy.CONTRAST, 35), 200, 420)),
        clot_place=float(rng.random()),
        superior=bool(rng.random() < 0.6),
        filling=float(rng.normal(0, 0.06)),
        siphon=(float(old[0] * rng.random()), float(old[1] * rng.random())),
        offset_hu=float(rng.normal(0, 1.0)),
        waves=rng.standard_normal(WAVES),
        noise_seed=int(rng.integers(2**31)),
        variant=draw_variant(number),
        scanner=scanner,
    )


def _trunk(patient: Patient, variation: Variation) -> str:
    """The M2 trunk of an M2 occlusion: the drawn one, or the other one where it is absent."""
    side = 0 if patient.left else 1
    superior, inferior = variation.variant.m2_superior[side], variation.variant.m2_inferior[side]
    wanted = variation.superior if min(superior, inferior) > 0 else superior > 0
    return "m2-superior" if wanted else "m2-inferior"


def _clot(patient: Patient, variation: Variation, tree: Arteries) -> list[tuple[str, float, float]]:
    """Segments of artery that the thrombus fills: (branch, from mm, to mm).

    Truncal: it ends before the bifurcation. Branching-site: it covers it. These are the types as CT angiography shows
    them (Lee et al., Front Neurol 2019;9:1195, doi 10.3389/fneur.2018.01195).
    """
    length = patient.clot_length_mm
    side = "left" if patient.left else "right"
    if patient.site == "ica-terminus":
        carotid = tree.length_mm(f"{side}/ica")
        if patient.truncal:
            return [("ica", carotid - 2 - length, carotid - 2)]
        branches = [("ica", carotid - 4, carotid), ("m1", 0, max(length - 4, 2))]
        return branches if _a1_is_missing(patient, variation) else [*branches, ("aca", 0, 3)]
    if patient.site == "m1":
        m1 = _M1_MM * _relative_length(tree, f"{side}/m1")
        if patient.truncal:
            start = 1 + variation.clot_place * max(m1 - 3.5 - length - 1, 0)
            return [("m1", start, min(start + length, m1 - 2.5))]
        return [("m1", max(m1 + 3 - length, 0), m1 + 1), ("m2-superior", 0, 3), ("m2-inferior", 0, 3)]
    start = 10.0 if patient.truncal else 0.0
    return [(_trunk(patient, variation), start, start + length)]


def _relative_length(tree: Arteries, name: str) -> float:
    """Length of a branch relative to that of the template."""
    return tree.length_mm(name) / anatomy.arteries().length_mm(name)


def _a1_is_missing(patient: Patient, variation: Variation) -> bool:
    return variation.variant.a1[0 if patient.left else 1] == 0


def _filling(patient: Patient, variation: Variation, clot: list[tuple[str, float, float]]) -> dict[str, list[float]]:
    """Enhancement of each branch behind the clot: [first 8 mm, farther on]; collaterals determine the second."""
    collateral = float(np.clip(1.05 - 1.35 * patient.intensity + variation.filling, 0.05, 0.95))
    near = max(collateral, 0.9) if patient.truncal else collateral
    behind = [near, collateral]
    if patient.site == "m2":
        return {clot[0][0]: behind}
    if patient.site == "m1":
        return {"m1": behind, "m2-superior": behind, "m2-inferior": behind}
    filling = {"m1": behind, "m2-superior": [collateral] * 2, "m2-inferior": [collateral] * 2, "aca": [0.8, 0.8]}
    if _a1_is_missing(patient, variation):
        del filling["aca"]  # the other side feeds it
    if variation.variant.fetal_pca[0 if patient.left else 1]:
        filling["pca"] = [_STAGNANT] * 2
    return filling


def build(patient: Patient, variation: Variation) -> Scene:
    """Build the scene of one patient (a pure function)."""
    tree = anatomy.arteries(variation.variant)
    density, enhancement = np.zeros(len(tree.index), np.float32), np.ones(len(tree.index), np.float32)
    clot = np.zeros(len(tree.index), bool)
    side = "left" if patient.left else "right"
    pieces = _clot(patient, variation, tree)
    ends = {branch: end for branch, _, end in pieces}
    if patient.site == "ica-terminus":
        enhancement[tree.of(f"{side}/ica")] = _STAGNANT
    for branch, (near, far) in _filling(patient, variation, pieces).items():
        voxels, end = tree.of(f"{side}/{branch}"), ends.get(branch, 0.0)
        behind = voxels & (tree.arc_mm > end)
        enhancement[behind] = np.where(tree.arc_mm[behind] < end + 8, near, far)
    for branch, start, end in pieces:
        clot |= tree.of(f"{side}/{branch}") & (tree.arc_mm >= start) & (tree.arc_mm <= end)
    density[clot] = patient.clot_hu - anatomy.BLOOD
    enhancement[clot] = 0.0
    enhancement[tree.vein] = variation.scanner.venous
    if patient.calcified:
        branch, start, _ = pieces[0]
        density[tree.of(f"{side}/{branch}") & (np.abs(tree.arc_mm - start) <= 2)] = anatomy.PLAQUE
    for name, amount in zip(("left", "right"), variation.siphon, strict=True):
        place = _SIPHON_MM * _relative_length(tree, f"{name}/ica")
        siphon = tree.of(f"{name}/ica") & (np.abs(tree.arc_mm - place) <= 4)
        density[siphon] += np.float32(amount * anatomy.SIPHON)
    for name, amount in zip(("left", "right"), variation.variant.vertebral_calcium, strict=True):
        if amount and f"{name}/vertebral" in tree.names:
            plaque = tree.of(f"{name}/vertebral") & (np.abs(tree.arc_mm - _VERTEBRAL_MM) <= 3)
            density[plaque] += np.float32(amount * anatomy.SIPHON)
    return Scene(patient, variation, density, enhancement, clot)


def lattice(variant: Variant = TEMPLATE) -> Lattice:
    """The lattice of the brain, with sixteen fixed smooth waves that shape the lesions."""
    return _lattice(variant)


@lru_cache(maxsize=8)
def _lattice(variant: Variant) -> Lattice:
    head = anatomy.head(variant)
    step = (slice(None, None, LATTICE_STEP),) * 3
    whole = np.argwhere(head.brain[step] > 0.5)
    low, high = np.maximum(whole.min(0) - 4, 0), whole.max(0) + 5  # a margin, because outside the box counts as zero
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    mask = (head.brain[step] > 0.5)[box]
    affine = np.diag([LATTICE_STEP, LATTICE_STEP, LATTICE_STEP, 1.0])
    affine[:3, 3] = anatomy.ORIGIN_MM + LATTICE_STEP * low
    points = (np.argwhere(mask) * LATTICE_STEP + affine[:3, 3]).astype(np.float64)
    xyz = (points if variant.is_template else deformation.to_template(variant, points)).astype(np.float32)
    rng = np.random.default_rng(20250112)  # the waves belong to the anatomy: the same for every patient
    directions = rng.standard_normal((WAVES, 3))
    directions *= (2 * np.pi / rng.uniform(28, 80, WAVES) / np.linalg.norm(directions, axis=1))[:, None]
    waves = np.cos(xyz @ directions.T + rng.uniform(0, 2 * np.pi, WAVES)).astype(np.float32)
    normal = head.flow[step][box][mask]
    return Lattice(mask, affine, xyz, waves, normal / normal.mean())


@lru_cache(maxsize=16)
def _hemisphere(left: bool, variant: Variant) -> tuple[NDArray[np.int64], Array, Array]:
    """Lattice rows of one hemisphere, with their ``xyz`` and ``waves``."""
    brain = lattice(variant)
    rows = np.flatnonzero(brain.xyz[:, 0] * (-1.0 if left else 1.0) > 1)
    return rows, brain.xyz[rows], brain.waves[rows]


# Centre and half-axes (mm) of the tissue at risk on the right side; M2 by its trunk.
_TERRITORY = {
    "ica-terminus": ((36, -8, 18), (34, 62, 44)),
    "m1": ((42, -14, 16), (28, 52, 40)),
    "m2-superior": ((44, 6, 26), (26, 36, 36)),
    "m2-inferior": ((46, -42, 16), (26, 38, 34)),
}


def ranks_ml(scene: Scene, volume_scale: float = 1.0) -> Array:
    """Rank of each lattice voxel (m,): millilitres of tissue with worse perfusion; infinite in the other hemisphere.

    ``volume_scale``: millilitres of the patient's brain per millilitre of the MNI brain.
    """
    patient, variation = scene.patient, scene.variation
    brain = lattice(variation.variant)
    centre, axes = _TERRITORY[_trunk(patient, variation) if patient.site == "m2" else patient.site]
    sign = -1.0 if patient.left else 1.0
    rows, xyz, waves = _hemisphere(patient.left, variation.variant)
    apart = (xyz - np.array(centre, np.float32) * [sign, 1, 1]) / np.array(axes, np.float32)
    badness = -np.linalg.norm(apart, axis=1) + waves @ (0.09 * variation.waves).astype(np.float32)
    ranks = np.full(len(brain.xyz), np.inf, np.float32)
    ranks[rows[np.argsort(-badness, kind="stable")]] = (
        (np.arange(len(rows)) + 0.5) * (LATTICE_STEP**3 / 1000 * volume_scale)
    ).astype(np.float32)
    return ranks


def tmax_s(ranks: Array, patient: Patient) -> Array:
    """Tmax (m,), seconds: above 10 s in the first HIR x V millilitres, above 6 s in the first V, 2 s when normal."""
    late, delayed = patient.tmax6_ml * patient.intensity, patient.tmax6_ml
    return np.interp(ranks, [0, late, delayed, 1.5 * delayed + 10], [13.5, 10.0, 6.0, 2.0]).astype(np.float32)


def flow(ranks: Array, patient: Patient, variant: Variant = TEMPLATE, normal: Array | None = None) -> Array:
    """Blood flow / mean of the brain (m,): 0.10 to 0.30 in the core, at least 0.36 farther on, else normal.

    Grey and white matter have the same threshold of the core (30 % of the mean), as in perfusion software. The flow
    crosses it without a step: beside a step, the volume below 30 % depends on the voxels that the flow is sampled in.
    ``normal``: flow / mean without a stroke (m,), that of the lattice of ``variant`` if it is not given.
    """
    normal = lattice(variant).flow if normal is None else normal
    core, delayed = patient.core_ml, patient.tmax6_ml
    spared = np.interp(ranks, [core, delayed, 1.4 * delayed + 10], [0.45, 0.75, 1.0])
    at_risk = np.where(ranks < 1.4 * delayed + 10, np.maximum(normal * spared, 0.36), normal)
    severe = 0.10 + 0.20 * ranks / max(core, 1e-6)
    return np.asarray(np.minimum(severe, at_risk), np.float32)
