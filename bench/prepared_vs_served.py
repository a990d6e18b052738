"""Differences between the images that training sees and those that the service computes of the same patients.

``python -m bench prepared_vs_served [--patients 100] [--varied] [--quick]``. Each phantom is drawn twice: rendered
directly onto the model's grid, as for training, and as full-size NCCT, CTA, Tmax and CBF, which ``preprocess.prepare``
processes as in the service (alignment, vessel mask, perfusion numbers). Printed, with the trained demo version:

- channels: mean absolute difference within the brain, in standard deviations of the channel;
- vessels: sum of the service's mask over the sum of training's, for each branch;
- rCBF: median of the service over that of training, in tissue at least 8 mm deep without delay;
- volumes: Tmax > 6 s and core of the service over the truth, by the true core;
- log-odds: mean absolute difference, and the share of decisions that differ, between both ways and, for comparison,
  between two acquisitions of one patient whose images differ in noise only;
- AUC of both beside that of the true chance.

``--varied``: phantoms with anatomies that training did not use and with varied scanners, and with all series. Printed
are the log-odds, of all phantoms and of those whose answer has no warning and no flag of the vessel mask, and the AUC.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.progress import track
from scipy.spatial import cKDTree

from app.evaluation import metrics
from app.imaging import preprocess
from app.imaging.model_grid import Grid
from app.imaging.preprocess import PreprocessedImages
from app.imaging.registration import brain_mask
from app.inference import clinical_encoder
from app.inference.model_input import ModelInput
from app.inference.model_version import ModelAnswer, ModelVersion
from app.phantoms import anatomy, biology, cohort, render, scene
from app.phantoms.biology import Patient, Preset
from app.phantoms.scene import Scene
from app.registry.manifest import Manifest
from app.registry.model_store import ModelStore
from app.sdk.flags import Severity
from app.sdk.types import Channel, PerfusionSummary
from bench.model_audit import VARIED, VARIED_SEED, Audit, by_anatomy
from bench.model_stores import DEMO, MODEL_STORE
from bench.ood import full_size

SEED = 8117  # not used in training
NEAR_MM = 7.0  # a grid point belongs to the branch whose axis is nearest and not farther away
DEEP_MM = 8.0
CORE_ML = (1.0, 5.0, 15.0, 40.0, np.inf)
VESSEL_FLAGS = ("vessels-weak", "contrast-weak")


@dataclass(frozen=True)
class Comparison:
    """One patient by both ways.

    Attributes:
        patient: The truth.
        channels: Mean |difference| within the brain of each channel (c,), SD.
        branches: Sum of the vessel mask (2, b) of each branch: training, service.
        rcbf: Median rCBF of the service over that of training.
        found: Numbers of the perfusion maps in the service.
        training: Answer to the images of training.
        service: Answer to the images of the service.
        again: Answers of both ways to a second acquisition, whose noise is another.
    """

    patient: Patient
    channels: np.ndarray
    branches: np.ndarray
    rcbf: float
    found: PerfusionSummary
    training: ModelAnswer
    service: ModelAnswer
    again: tuple[ModelAnswer, ModelAnswer]


@dataclass(frozen=True)
class Varied:
    """One varied patient by both ways; ``doubtful``: the answer has a warning, or a flag of the vessel mask."""

    patient: Patient
    training: ModelAnswer
    service: ModelAnswer
    doubtful: bool


@dataclass(frozen=True)
class Places:
    """Parts of the grid (X, Y, Z): ``depth`` from the surface of the brain, mm, and ``branch``, -1 if none is near."""

    depth: np.ndarray
    branch: np.ndarray
    names: list[str]

    @classmethod
    def of(cls, grid: Grid) -> Places:
        affine, tree = np.asarray(grid.affine), anatomy.arteries()
        depth = brain_mask.distance(affine, grid.shape, np.eye(4))
        names = sorted({name.partition("/")[2] for name in tree.names})
        number = np.array([names.index(name.partition("/")[2]) for name in tree.names])
        xyz = np.stack(np.unravel_index(tree.index, anatomy.SHAPE), axis=-1) + anatomy.ORIGIN_MM
        points = np.indices(grid.shape).reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3]
        distance, nearest = cKDTree(xyz).query(points)
        branch = np.where(distance < NEAR_MM, number[tree.branch[nearest]], -1).reshape(grid.shape)
        return cls(depth, branch, names)


def truth(patient: Patient) -> PerfusionSummary:
    """Return the true numbers of the perfusion maps."""
    tmax10 = patient.tmax6_ml * patient.intensity
    return PerfusionSummary(
        core_ml=patient.core_ml,
        tmax6_ml=patient.tmax6_ml,
        tmax10_ml=tmax10,
        mismatch_ml=patient.tmax6_ml - patient.core_ml,
        mismatch_ratio=patient.tmax6_ml / max(patient.core_ml, 1.0),
        hypoperfusion_intensity_ratio=patient.intensity,
    )


def model_input(manifest: Manifest, patient: Patient, image: np.ndarray, perfusion: PerfusionSummary) -> ModelInput:
    record = cohort.record(patient)
    encoded = clinical_encoder.encode(record, manifest.clinical, perfusion)
    presence = np.ones(len(manifest.channels), dtype=bool)
    vector = np.concatenate([encoded.values, encoded.missing, presence.astype(np.float32)])
    return ModelInput(image.astype(np.float32), presence, vector, shown=encoded.shown, affected=record.occlusion_side)


def compare(version: ModelVersion, places: Places, patient: Patient) -> Comparison:
    """Draw one patient both ways and compare."""
    manifest = version.manifest
    variation = scene.draw_variation(SEED, patient.index)
    drawn = scene.build(patient, variation)
    again = scene.build(patient, replace(variation, noise_seed=variation.noise_seed + 1))
    (fast, answered), (_, answered_again) = (_rendered(version, one) for one in (drawn, again))
    (prepared, served), (_, served_again) = (_served(version, one) for one in (drawn, again))
    images = np.stack([fast, prepared.image])
    names = [channel.name for channel in manifest.channels]
    tubes, flows, delays = (
        images[:, index] * manifest.channels[index].std + manifest.channels[index].mean
        for index in map(names.index, (Channel.VESSELS, Channel.RCBF, Channel.TMAX))
    )
    normal = (places.depth < -DEEP_MM) & (delays < 3).all(axis=0)
    assert prepared.perfusion is not None, "Tmax and CBF were sent"
    return Comparison(
        patient=patient,
        channels=np.abs(images[1] - images[0])[:, places.depth < 0].mean(axis=1),
        branches=np.array([[tube[places.branch == n].sum() for n in range(len(places.names))] for tube in tubes]),
        rcbf=float(np.median(flows[1][normal]) / np.median(flows[0][normal])),
        found=prepared.perfusion,
        training=answered,
        service=served,
        again=(answered_again, served_again),
    )


def _rendered(version: ModelVersion, drawn: Scene) -> tuple[np.ndarray, ModelAnswer]:
    """The images of training, and the answer to them."""
    manifest = version.manifest
    image = render.normalise(render.renderer(manifest.grid, manifest.channels).render(drawn), manifest.channels)
    return image, version.predict(model_input(manifest, drawn.patient, image, truth(drawn.patient)))


def _served(version: ModelVersion, drawn: Scene) -> tuple[PreprocessedImages, ModelAnswer]:
    """What the service makes of full-size series, and its answer."""
    manifest = version.manifest
    sent = full_size(drawn.patient, drawn.variation, seed=SEED)
    prepared = preprocess.prepare(sent, manifest.grid, manifest.channels)
    assert prepared.perfusion is not None, "Tmax and CBF were sent"
    return prepared, version.predict(model_input(manifest, drawn.patient, prepared.image, prepared.perfusion))


def compare_varied(audit: Audit, patient: Patient) -> Varied:
    """Draw one patient with a varied anatomy and scanner both ways, and answer both."""
    variation = scene.draw_variation(audit.seed, patient.index, audit.appearance)
    variation = replace(variation, scanner=replace(variation.scanner, missing=()))
    rendered = audit.version.predict(audit.model_input(audit.draw(patient, variation)))
    sent = full_size(patient, variation, seed=audit.seed)
    prepared = audit.version.prepare(sent, cohort.record(patient))
    served = audit.version.predict(prepared)
    flags = (*prepared.flags, *served.flags)
    doubtful = any(flag.severity is Severity.WARNING or flag.code in VESSEL_FLAGS for flag in flags)
    return Varied(patient, rendered, served, doubtful)


def print_varied(results: Sequence[Varied]) -> None:
    print_log_odds(
        {
            f"service - training, {len(some)} phantoms {which}": [(one.training, one.service) for one in some]
            for which, some in (
                ("in all", results),
                ("without such a flag", [one for one in results if not one.doubtful]),
            )
        }
    )
    print_auc(results)


def print_log_odds(pairs: Mapping[str, Sequence[tuple[ModelAnswer, ModelAnswer]]]) -> None:
    print("\n| log-odds | mean absolute difference | median | mean | largest | decisions that differ |")
    print("|---" * 6 + "|")
    for name, answers in pairs.items():
        difference = np.array([after.log_odds - before.log_odds for before, after in answers])
        flipped = np.mean([before.decision != after.decision for before, after in answers])
        size = np.abs(difference)
        numbers = f"{size.mean():.3f} | {np.median(size):.3f} | {difference.mean():+.3f} | {size.max():.3f}"
        print(f"| {name} | {numbers} | {flipped:.1%} |")


def print_tables(manifest: Manifest, places: Places, results: Sequence[Comparison]) -> None:
    print("| channel | mean absolute difference, SD |\n|---|---|")
    for channel, value in zip(manifest.channels, np.mean([one.channels for one in results], axis=0), strict=True):
        print(f"| {channel.name} | {value:.3f} |")
    training, service = np.sum([one.branches for one in results], axis=0)
    print("\n| vessels | service / training |\n|---|---|")
    for name, ratio in zip([*places.names, "all"], [*service / training, service.sum() / training.sum()], strict=True):
        print(f"| {name} | {ratio:.3f} |")
    print("\n| true core, mL | patients | core / truth: mean, lowest, highest | Tmax > 6 s / truth: mean |")
    print("|---|---|---|---|")
    for low, high in itertools.pairwise(CORE_ML):
        of_size = [one for one in results if low <= one.patient.core_ml < high]
        if of_size:
            core = np.array([(one.found.core_ml or 0) / one.patient.core_ml for one in of_size])
            late = np.mean([(one.found.tmax6_ml or 0) / one.patient.tmax6_ml for one in of_size])
            shares = f"{core.mean():.3f}, {core.min():.3f}, {core.max():.3f}"
            print(f"| {low:.0f} to {high:.0f} | {len(of_size)} | {shares} | {late:.3f} |")
    flow = [one.rcbf for one in results]
    print(f"\nrCBF, service / training: mean {np.mean(flow):.3f}, {min(flow):.3f} to {max(flow):.3f}")
    pairs = {
        "service - training": [(one.training, one.service) for one in results],
        "training, another noise": [(one.training, one.again[0]) for one in results],
        "service, another noise": [(one.service, one.again[1]) for one in results],
    }
    print_log_odds(pairs)
    print_auc(results)


def print_auc(results: Sequence[Comparison] | Sequence[Varied]) -> None:
    labels = np.array([one.patient.refractory for one in results]).astype(int)
    by_way = {
        "training": np.array([one.training.log_odds for one in results]),
        "service": np.array([one.service.log_odds for one in results]),
    }
    oracle = np.array([one.patient.probability for one in results])
    print("\n| images | AUC (95 % interval) | oracle minus it |\n|---|---|---|")
    for name, odds in by_way.items():
        lost = metrics.auc(labels, oracle) - metrics.auc(labels, odds)
        print(f"| {name} | {metrics.auc_estimate(labels, odds)} | {lost:+.3f} |")
    print(f"| the true chance | {metrics.auc_estimate(labels, oracle)} | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=100)
    parser.add_argument("--varied", action="store_true", help="anatomies that training did not use, varied scanners")
    parser.add_argument("--quick", action="store_true", help="four patients")
    arguments = parser.parse_args()
    count = 4 if arguments.quick else arguments.patients
    entry = ModelStore(MODEL_STORE).resolve(DEMO)
    version = ModelVersion.load(entry.folder, entry.manifest, "cpu")
    if arguments.varied:
        audit = Audit(version, VARIED, VARIED_SEED)
        chosen = by_anatomy(biology.draw(count, audit.seed, Preset.INTERACTION), audit.seed, audit.appearance)
        print(f"{entry.name}@{entry.version}, {count} varied phantoms")
        print_varied([compare_varied(audit, patient) for patient in track(chosen, "Comparing", transient=True)])
        return
    places, patients = Places.of(entry.manifest.grid), biology.draw(count, SEED, Preset.INTERACTION)
    results = [compare(version, places, patient) for patient in track(patients, "Comparing", transient=True)]
    print(f"{entry.name}@{entry.version}, {count} phantoms\n")
    print_tables(entry.manifest, places, results)


if __name__ == "__main__":
    main()
