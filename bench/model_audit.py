"""What the demo version uses and where it looks, on phantoms that training did not use.

``python -m bench model_audit [--patients 2000] [--explained 60] [--varied] [--quick] [--version NAME@VERSION]``. Images
are rendered on the model's grid (``bench.prepared_vs_served`` and ``bench.served_nuisances`` use the service's own
preparation). Printed as Markdown, with ``--varied`` the first part only:

- discrimination and calibration beside the true chance, with each source alone and left out;
- signs: change of the log-odds when a sign is put in or taken out, beside the change of the true log-odds;
- attribution: share outside the intracranial space, rank of the clot's region, distance of the peak from the clot;
- nuisances: change of the log-odds by a change that means nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.progress import track

from app.evaluation import metrics
from app.inference import clinical_encoder
from app.inference.attribution import atlas
from app.inference.model_input import ModelInput
from app.inference.model_version import ModelVersion
from app.network.architecture import Fusion
from app.phantoms import anatomy, biology, cohort, render, scene
from app.phantoms.biology import Patient, Preset
from app.phantoms.nuisance import STRENGTHS, UNITS, Nuisance
from app.phantoms.scene import Appearance, Scene, Variation
from app.phantoms.variant import VARIANTS
from app.registry.model_store import ModelStore
from app.sdk.types import Channel, PerfusionSummary
from app.training import reference
from bench.model_stores import DEMO, MODEL_STORE

SEED, VARIED_SEED = 60231, 60232  # not used in training
VARIED = Appearance(variants=48, scanners=True, first=VARIANTS)  # anatomies that training did not use either
SIGNED, DISTURBED = 150, 13
KEPT = 600  # phantoms in memory for the sections that need images; 1.9 MB each
PEAK_MM = 8.0
CTA, MAPS = (Channel.CTA, Channel.VESSELS), (Channel.TMAX, Channel.RCBF)
SOURCES = {"NCCT": (Channel.NCCT,), "CTA and vessels": CTA, "perfusion maps and numbers": MAPS}


@dataclass(frozen=True)
class Phantom:
    """One patient: scene, normalised image (c, x, y, z), presence (c,) and the numbers of its perfusion maps."""

    scene: Scene
    image: np.ndarray
    presence: np.ndarray
    perfusion: PerfusionSummary | None

    @property
    def patient(self) -> Patient:
        """Facts and latents."""
        return self.scene.patient


class Audit:
    """Phantoms and predictions of one version."""

    def __init__(self, version: ModelVersion, appearance: Appearance = scene.PLAIN, seed: int = SEED) -> None:
        self.version, self.manifest, self.appearance, self.seed = version, version.manifest, appearance, seed
        self.names = [channel.name for channel in self.manifest.channels]

    def draw(self, patient: Patient, variation: Variation | None = None) -> Phantom:
        """Render one patient on the model's grid, with the numbers that perfusion software would measure."""
        variation = variation or scene.draw_variation(self.seed, patient.index, self.appearance)
        drawn, rng = scene.build(patient, variation), np.random.default_rng([SEED, 6, patient.index])
        renderer = render.renderer(self.manifest.grid, self.manifest.channels, variant=variation.variant)
        image = render.normalise(renderer.render(drawn), self.manifest.channels)
        presence = cohort.presence(drawn, self.manifest.channels)
        image[~presence] = 0
        measured = cohort.measured_perfusion(patient, rng, cohort.covered_ml(drawn))
        return Phantom(drawn, image, presence, measured if presence[self.names.index(Channel.TMAX)] else None)

    def model_input(self, phantom: Phantom, absent: Sequence[Channel] = ()) -> ModelInput:
        """The input of the version without the channels ``absent``; without maps there are no numbers either."""
        presence = phantom.presence & np.array([name not in absent for name in self.names])
        numbers = None if Channel.TMAX in absent else phantom.perfusion
        record = cohort.record(phantom.patient)
        encoded = clinical_encoder.encode(record, self.manifest.clinical, numbers)
        vector = np.concatenate([encoded.values, encoded.missing, presence.astype(np.float32)])
        image = phantom.image * presence[:, None, None, None]
        return ModelInput(image, presence, vector, shown=encoded.shown, affected=record.occlusion_side)

    def log_odds(self, phantom: Phantom, absent: Sequence[Channel] = ()) -> float:
        """The version's log-odds."""
        return self.version.predict(self.model_input(phantom, absent)).log_odds


def by_anatomy(patients: Sequence[Patient], seed: int, appearance: Appearance) -> list[Patient]:
    """The patients in the order of their anatomies, so that few heads are in memory."""
    return sorted(patients, key=lambda patient: scene.draw_variation(seed, patient.index, appearance).variant.number)


def true_change(patient: Patient, changed: Patient) -> float:
    """Change of the true log-odds of the preset ``interaction`` between two patients with the same record."""
    weights = biology.WEIGHTS[Preset.INTERACTION]
    terms = {
        "truncal": (0.9, "truncal"),
        "intensity": (-1.2, "intensity"),
        "clot_length_mm": (-0.7, "length"),
        "clot_hu": (-0.3, "density"),
        "calcified": (0.7, "calcified"),
    }
    step = sum(
        weight * (float(getattr(changed, name)) - float(getattr(patient, name))) / biology.STANDARD[scale][1]
        for name, (weight, scale) in terms.items()
    )
    before = np.arctanh(np.clip(patient.imaging_score / 1.35, -0.999999, 0.999999)) * 1.6
    after = 1.35 * np.tanh((before + step / biology.STANDARD["imaging"][1]) / 1.6)
    return float((weights.imaging + weights.product * patient.clinical_score) * (after - patient.imaging_score))


SIGNS: dict[str, tuple[Callable[[Patient], bool], Callable[[Patient], Patient]]] = {
    "clot made isodense (NCCT)": (lambda p: p.clot_hu > 50, lambda p: replace(p, clot_hu=anatomy.BLOOD)),
    "calcification taken out": (lambda p: p.calcified, lambda p: replace(p, calcified=False)),
    "calcification put in": (lambda p: not p.calcified, lambda p: replace(p, calcified=True)),
    "truncal clot made branching-site": (lambda p: p.truncal, lambda p: replace(p, truncal=False)),
    "branching-site clot made truncal": (lambda p: not p.truncal, lambda p: replace(p, truncal=True)),
    "clot 6 mm longer": (lambda p: p.clot_length_mm < 14, lambda p: replace(p, clot_length_mm=p.clot_length_mm + 6)),
    "collaterals worse (HIR + .2)": (lambda p: p.intensity < 0.6, lambda p: replace(p, intensity=p.intensity + 0.2)),
}
"""Each sign: the patients in whom it can be changed, and the change."""


def source_sets(audit: Audit) -> dict[str, tuple[Channel, ...]]:
    """Names of the sets of sources, and the channels that each leaves out."""
    sets: dict[str, tuple[Channel, ...]] = {"everything": (), "record alone": tuple(audit.names)}
    for name, own in SOURCES.items():
        others = tuple(channel for channel in audit.names if channel not in own)
        sets |= {f"record and {name}": others, f"everything but {name}": own}
    return sets


def discrimination(audit: Audit, patients: Sequence[Patient], answers: dict[str, np.ndarray]) -> None:
    """Print AUC, calibration and coverage of log-odds (n) of each set of sources."""
    labels = np.array([patient.refractory for patient in patients], np.int64)
    truth = np.array([patient.probability for patient in patients])
    print("| known to the version | AUC (95 % interval) | oracle minus it |\n|---|---|---|")
    oracle = metrics.auc(labels, truth)
    for name, odds in answers.items():
        print(f"| {name} | {metrics.auc_estimate(labels, odds)} | {oracle - metrics.auc(labels, odds):+.3f} |")
    print(f"| the true chance | {metrics.auc_estimate(labels, truth)} | |")
    probabilities = 1 / (1 + np.exp(-answers["everything"]))
    conformal = audit.manifest.conformal
    assert conformal is not None
    print(f"\nCalibration slope {metrics.calibration_slope(labels, probabilities)}, ", end="")
    print(f"ECE {metrics.calibration_error(labels, probabilities):.3f}. ", end="")
    kept = probabilities[labels == 1] >= conformal.quantile_positive
    spared = 1 - probabilities[labels == 0] >= conformal.quantile_negative
    print(f"Conformal coverage {kept.mean():.3f} (refractory), {spared.mean():.3f} (not), nominal {conformal.level}.")


def signs(audit: Audit, phantoms: Sequence[Phantom]) -> None:
    print("| sign | patients | change of the log-odds: mean size | true change: mean size | same direction | slope |")
    print("|---|---|---|---|---|---|")
    for name, (can, change) in SIGNS.items():
        chosen = [phantom for phantom in phantoms if can(phantom.patient)][:SIGNED]
        model, true = [], []
        for phantom in track(chosen, name, transient=True):
            other = audit.draw(change(phantom.patient))
            if "NCCT" in name:  # the clot is as before on the CTA
                index = audit.names.index(Channel.NCCT)
                image = phantom.image.copy()
                image[index] = other.image[index]
                other = replace(other, image=image)
            model.append(audit.log_odds(other) - audit.log_odds(phantom))
            true.append(true_change(phantom.patient, other.patient))
        x, y = np.array(true), np.array(model)
        same = np.mean(np.sign(x) == np.sign(y))
        sizes = f"{np.abs(y).mean():.3f} | {np.abs(x).mean():.3f}"
        print(f"| {name} | {len(y)} | {sizes} | {same:.0%} | {x @ y / (x @ x):.2f} |")


def attribution(audit: Audit, phantoms: Sequence[Phantom]) -> None:
    grid = audit.manifest.grid
    mask, places = reference.intracranial(grid), atlas.labels(grid.shape, grid.affine)
    origin, step = np.asarray(grid.affine)[:3, 3], np.asarray(grid.spacing_mm)
    outside: dict[Channel, list[float]] = {name: [] for name in audit.names}
    rank: dict[Channel, list[int]] = {Channel.NCCT: [], Channel.CTA: []}
    near: dict[Channel, list[bool]] = {Channel.NCCT: [], Channel.CTA: []}
    for phantom in track(phantoms, "explaining", transient=True):
        explained, maps = audit.version.explain(audit.model_input(phantom))
        clot = render.renderer(grid).clot(phantom.scene)
        region = atlas.NAMES[int(np.bincount(places.ravel(), weights=clot.ravel()).argmax())]
        clot_mm = np.argwhere(clot > 0.05) * step + origin
        for name in audit.names:
            values = np.abs(maps[f"aligned-attribution-{name}"].array)
            outside[name].append(float(values[~mask].sum() / values.sum()))
            if name in rank:
                own = [part.region for part in explained.regions if part.modality == name]
                rank[name].append(own.index(region) + 1)
                peak = np.array(np.unravel_index(values.argmax(), values.shape)) * step + origin
                near[name].append(bool(np.linalg.norm(clot_mm - peak, axis=1).min() <= PEAK_MM))
    print(
        "| channel | attribution outside the intracranial space | clot's region in the top 3 | its median rank | ",
        end="",
    )
    print("peak within 8 mm of the clot |\n|---|---|---|---|---|")
    for name in audit.names:
        line = f"| {name} | {np.mean(outside[name]):.1%} | "
        if name in rank:
            line += (
                f"{np.mean(np.array(rank[name]) <= 3):.0%} | {np.median(rank[name]):.0f} | {np.mean(near[name]):.0%} |"
            )
        print(line if name in rank else line + "| | |")


def nuisances(audit: Audit, patients: Sequence[Patient]) -> None:
    plain = [(patient, scene.draw_variation(SEED, patient.index)) for patient in patients]
    before = np.array([audit.log_odds(audit.draw(*each)) for each in plain])
    rows = [(kind, strength) for kind, strengths in STRENGTHS.items() for strength in strengths]
    print("| nuisance | strength | median change | largest | over .3 |\n|---|---|---|---|---|")
    changes = []
    for kind, strength in track(rows, "nuisances", transient=True):
        change = Nuisance(kind, strength)
        after = [audit.log_odds(audit.draw(patient, change.apply(variation))) for patient, variation in plain]
        size = np.abs(np.array(after) - before)
        changes.append(size)
        unit = f" {UNITS[kind]}" if kind in UNITS else ""
        over = f"{int((size > 0.3).sum())} of {len(size)}"
        print(f"| {kind} | {strength:g}{unit} | {np.median(size):.3f} | {size.max():.2f} | {over} |")
    every = np.concatenate(changes)
    print(f"\nAll: median {np.median(every):.3f}; over .3: {int((every > 0.3).sum())} of {len(every)}.")


def sections(audit: Audit, patients: Sequence[Patient], explained: int) -> Iterator[tuple[str, Callable[[], None]]]:
    sets, phantoms = source_sets(audit), []
    answers = {name: np.empty(len(patients)) for name in sets}
    for number, patient in enumerate(track(patients, "patients", transient=True)):
        phantom = audit.draw(patient)
        for name, absent in sets.items():
            answers[name][number] = audit.log_odds(phantom, absent)
        if number < KEPT:
            phantoms.append(phantom)
    yield "Discrimination and calibration", lambda: discrimination(audit, patients, answers)
    if (
        audit.appearance != scene.PLAIN
    ):  # the other sections change one thing, beside the template and the usual scanner
        return
    yield "Signs", lambda: signs(audit, phantoms)
    if audit.manifest.kind == "network" and audit.manifest.architecture.fusion is not Fusion.NONE:
        yield "Attribution", lambda: attribution(audit, phantoms[:explained])
    yield "Nuisances", lambda: nuisances(audit, patients[:DISTURBED])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=2000)
    parser.add_argument("--version", default=DEMO, help="NAME or NAME@VERSION in model_store")
    parser.add_argument("--explained", type=int, default=60, help=f"patients with explanations, at most {KEPT}")
    parser.add_argument("--varied", action="store_true", help="discrimination with varied anatomies and scanners only")
    parser.add_argument("--quick", action="store_true", help="60 patients")
    arguments = parser.parse_args()
    entry = ModelStore(MODEL_STORE).resolve(arguments.version)
    version = ModelVersion.load(entry.folder, entry.manifest, "cpu")
    audit = Audit(version, VARIED, VARIED_SEED) if arguments.varied else Audit(version)
    count = 60 if arguments.quick else arguments.patients
    print(f"{entry.name}@{entry.version}, {count} phantoms of the seed {audit.seed}")
    patients = by_anatomy(biology.draw(count, audit.seed, Preset.INTERACTION), audit.seed, audit.appearance)
    for title, show in sections(audit, patients, arguments.explained):
        print(f"\n### {title}\n", flush=True)
        show()


if __name__ == "__main__":
    main()
