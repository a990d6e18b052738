"""Synthetic patients as a study to upload, or as a cohort to train on.

Design notes:
- ``write_patient`` writes the files of a hospital (volumes, clinical document), and the ground truth (latents, masks,
  probability of rLVO) in the subfolder ``truth/``.
- The clinical document contains only facts that are known before the puncture; some are missing, as in real data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.imaging.io import nifti
from app.imaging.model_grid import ChannelSpec, Grid
from app.phantoms import biology, render, scene, volumes
from app.phantoms.biology import Patient, Preset
from app.phantoms.render import GridOffset
from app.phantoms.scene import PLAIN, Appearance, Scene
from app.sdk.clinical import ClinicalRecord
from app.sdk.types import PerfusionSummary

OFFSETS = 16
OFFSETS_PER_VARIANT = 4
MISSING = 0.04  # probability that a fact is missing in the record
_ALWAYS_KNOWN = ("age", "sex", "occlusion_side", "occlusion_site")


def record(patient: Patient, rng: np.random.Generator | None = None) -> ClinicalRecord:
    """The patient's clinical document; with ``rng``, each fact is missing with probability ``MISSING``."""
    facts: dict[str, Any] = {
        "age": round(patient.age, 1),
        "sex": "male" if patient.male else "female",
        "atrial_fibrillation": patient.atrial_fibrillation,
        "hypertension": patient.hypertension,
        "diabetes": patient.diabetes,
        "dyslipidemia": patient.dyslipidemia,
        "smoking": "current" if patient.smoking else "never",
        "coronary_disease": patient.coronary_disease,
        "prior_stroke": patient.prior_stroke,
        "anticoagulant": patient.anticoagulant,
        "nihss": patient.nihss,
        "systolic_bp": round(patient.systolic_bp),
        "glucose": round(patient.glucose),
        "onset_to_door": round(patient.onset_to_door),
        "ivt": patient.ivt,
        "occlusion_side": "left" if patient.left else "right",
        "occlusion_site": {"ica-terminus": "ica-terminus", "m1": "m1-proximal", "m2": "m2"}[patient.site],
    }
    if rng is not None:
        drop = rng.random(len(facts)) < MISSING
        facts = {n: v for (n, v), out in zip(facts.items(), drop, strict=True) if n in _ALWAYS_KNOWN or not out}
    return ClinicalRecord.model_validate(facts)


def write_patient(
    folder: Path,
    seed: int,
    *,
    preset: Preset = Preset.INTERACTION,
    index: int = 0,
    spacing_mm: dict[str, tuple[float, float, float]] | None = None,
    appearance: Appearance = PLAIN,
) -> dict[str, Path]:
    """Write patient ``index`` of the cohort of a seed as a study; the same seed gives the same voxels.

    ``spacing_mm`` overrides the voxel size of ``ncct``, ``cta`` or ``perfusion``. Returns the paths by upload field:
    ``ncct``, ``cta``, ``tmax``, ``cbf`` (.nii.gz) and ``clinical`` (.json); no path for a series that is missing.
    """
    patient = biology.draw(index + 1, seed, preset)[index]
    patient_scene = scene.build(patient, scene.draw_variation(seed, index, appearance))
    pose = volumes.draw_pose(np.random.default_rng([seed, 5, index]))
    truth = folder / "truth"
    truth.mkdir(parents=True, exist_ok=True)
    paths = {}
    for one in volumes.series(patient_scene, pose, spacing_mm):
        uploaded = one.name in ("ncct", "cta", "tmax", "cbf")
        path = (folder if uploaded else truth) / f"{one.name}.nii.gz"
        nifti.write(path, one.data, one.affine, description="rlvo phantom")
        if uploaded:
            paths[one.name] = path
    paths["clinical"] = folder / "clinical.json"
    document = record(patient).model_dump(mode="json", exclude_none=True)
    paths["clinical"].write_text(json.dumps(document, indent=2) + "\n")
    known = asdict(patient) | {"seed": seed, "preset": preset, "world_from_mni": pose.world_from_mni.tolist()}
    variation = patient_scene.variation
    known |= {"variant": variation.variant.number, "scanner": asdict(variation.scanner)}
    (truth / "patient.json").write_text(json.dumps(known, indent=2) + "\n")
    return paths


def measured_perfusion(
    patient: Patient, rng: np.random.Generator, covered_ml: tuple[float, float, float] | None = None
) -> PerfusionSummary:
    """Perfusion summary as software would measure it: the ground truth with a log-normal error of 4 %.

    ``covered_ml``: core, Tmax > 6 s and Tmax > 10 s inside the field of view; by default those of the whole brain.
    """
    whole = (patient.core_ml, patient.tmax6_ml, patient.tmax6_ml * patient.intensity)
    core, tmax6, tmax10 = (volume * float(np.exp(rng.normal(0, 0.04))) for volume in covered_ml or whole)
    return PerfusionSummary(
        core_ml=core,
        tmax6_ml=tmax6,
        tmax10_ml=tmax10,
        mismatch_ml=max(tmax6 - core, 0.0),
        mismatch_ratio=tmax6 / max(core, 1.0),
        hypoperfusion_intensity_ratio=min(tmax10 / tmax6, 1.0) if tmax6 else None,
    )


def covered_ml(patient_scene: Scene) -> tuple[float, float, float] | None:
    """Core, Tmax > 6 s and Tmax > 10 s (mL) inside the slab of the perfusion series; None if it covers the head."""
    slab, patient = patient_scene.variation.scanner.slab_mm, patient_scene.patient
    if slab is None:
        return None
    brain = scene.lattice(patient_scene.variation.variant)
    height = np.argwhere(brain.mask)[:, 2] * brain.affine[2, 2] + brain.affine[2, 3]
    ranks = scene.ranks_ml(patient_scene)[(height >= slab[0]) & (height <= slab[1])]
    voxel = float(np.prod(np.diag(brain.affine)[:3])) / 1000
    whole = (patient.core_ml, patient.tmax6_ml, patient.tmax6_ml * patient.intensity)
    core, tmax6, tmax10 = (float((ranks < volume).sum()) * voxel for volume in whole)
    return core, tmax6, tmax10


def scenes(
    patients: Sequence[Patient], seed: int, appearance: Appearance = PLAIN, offsets: int = OFFSETS
) -> Iterator[tuple[int, Scene, GridOffset]]:
    """Place in ``patients``, scene and registration error of each patient; patients of one variant follow each other.

    With several variants each of them has only ``OFFSETS_PER_VARIANT`` registration errors, so that few renderers are
    built.
    """
    variations = [scene.draw_variation(seed, patient.index, appearance) for patient in patients]
    errors = render.grid_offsets(offsets)
    choices = offsets if appearance.variants == 1 else min(OFFSETS_PER_VARIANT, offsets)
    for row in sorted(range(len(patients)), key=lambda row: variations[row].variant.number):
        variation = variations[row]
        error = (variation.variant.number * choices + variation.noise_seed % choices) % offsets
        yield row, scene.build(patients[row], variation), errors[error]


@dataclass(frozen=True)
class PhantomImages:
    """Images of one patient on a model's grid.

    Attributes:
        row: place of the patient in the cohort.
        images: (C, X, Y, Z) float16, normalised, zero where ``presence`` (C,) is False.
        covered_ml: as ``covered_ml`` returns it.
        clot: (X, Y, Z) float16, share of each voxel that the clot fills.
    """

    row: int
    images: NDArray[np.float16]
    presence: NDArray[np.bool_]
    covered_ml: tuple[float, float, float] | None
    clot: NDArray[np.float16]


def presence(patient_scene: Scene, channels: Sequence[ChannelSpec]) -> NDArray[np.bool_]:
    """(C,): True for the channels that the protocol of the patient has."""
    missing = patient_scene.variation.scanner.missing
    return np.array([channel.name not in missing for channel in channels])


def grouped_images(
    patients: Sequence[Patient],
    seed: int,
    grid: Grid,
    channels: Sequence[ChannelSpec],
    offsets: int = OFFSETS,
    appearance: Appearance = PLAIN,
) -> Iterator[PhantomImages]:
    """Render each patient directly onto the grid, in the order of ``scenes``, the same for the same seed and index.

    ``offsets`` is the number of grid offsets; 1 is a perfect registration of every patient.
    """
    for row, patient_scene, error in scenes(patients, seed, appearance, offsets):
        renderer = render.renderer(grid, channels, error, patient_scene.variation.variant)
        shown = render.normalise(renderer.render(patient_scene), channels).astype(np.float16)
        present = presence(patient_scene, channels)
        shown[~present] = 0
        clot = renderer.clot(patient_scene).astype(np.float16)
        yield PhantomImages(row, shown, present, covered_ml(patient_scene), clot)


def images(
    patients: Sequence[Patient], seed: int, grid: Grid, channels: Sequence[ChannelSpec], offsets: int = OFFSETS
) -> Iterator[NDArray[np.float16]]:
    """Images (C, X, Y, Z) of each patient in turn, all with the template's anatomy; see ``grouped_images``."""
    return (one.images for one in grouped_images(patients, seed, grid, channels, offsets))
