"""How often valid, disturbed, real and wrong inputs are refused, flagged, or called out of distribution.

``python -m bench ood [--only SECTION...] [--phantoms 300] [--served 40] [--disturbed 6] [--version DIR]``. Each input
goes through the input checks of ``prepare`` and through the version. Printed as Markdown, for each kind of input:

- refused: by the input checks;
- other flag: a warning of the input checks;
- features, inputs: out-of-distribution by the features of the network, or by the statistics of the images;
- silent: none of these;
- change: median absolute change of the log-odds against the same patient undisturbed.

Phantoms have a seed that training did not use. Those of the model's grid pass no input check, because they need none.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
from rich.progress import track

from app.dicom.isolated import convert_isolated
from app.imaging.io import nifti
from app.imaging.io.nifti import Volume
from app.inference.model_input import ModelInput
from app.inference.model_version import OUT_OF_DISTRIBUTION, ModelVersion
from app.phantoms import biology, cohort, scene, volumes
from app.phantoms.biology import Patient, Preset
from app.phantoms.nuisance import STRENGTHS, UNITS, Nuisance
from app.phantoms.scene import Variation
from app.registry.manifest import Manifest
from app.registry.model_store import ModelStore
from app.sdk.clinical import ClinicalRecord
from app.sdk.errors import RlvoError
from app.sdk.flags import Severity
from app.sdk.types import Channel, Flag, Input
from bench import input_checks
from bench.input_checks import Study
from bench.model_audit import VARIED, Audit, by_anatomy
from bench.model_stores import DEMO, MODEL_STORE

SEED = 60231  # that of model_audit
PATIENT = 3  # whose study is made wrong
SECTIONS = ("valid", "nuisances", "tensors", "unusual", "wrong", "real")
Spacing = dict[str, tuple[float, float, float]]
IMAGES = {"ncct": Input.NCCT, "cta": Input.CTA, "tmax": Input.TMAX, "cbf": Input.CBF}


@dataclass
class Tally:
    """Answers to one kind of input."""

    studies: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    changes: list[float] = field(default_factory=list)

    def refuse(self, code: str) -> None:
        self.studies += 1
        self.counts["refused"] += 1
        self.codes[code] += 1

    def add(self, flags: tuple[Flag, ...], change: float | None) -> None:
        """Count the warnings of one answer, and the change of its log-odds."""
        self.studies += 1
        warnings = {flag.code for flag in flags if flag.severity is Severity.WARNING} - {OUT_OF_DISTRIBUTION}
        details = [flag.detail for flag in flags if flag.code == OUT_OF_DISTRIBUTION]
        inputs = {detail.partition(":")[0] for detail in details if ":" in detail}
        self.counts["other"] += bool(warnings)
        self.counts["features"] += any(":" not in detail for detail in details)
        self.counts["inputs"] += bool(inputs)
        self.counts["silent"] += not warnings and not details
        self.codes.update(warnings | inputs)
        if change is not None:
            self.changes.append(abs(change))

    def row(self, name: str) -> str:
        """A row of the table."""
        numbers = " | ".join(str(self.counts[key]) for key in ("refused", "other", "features", "inputs", "silent"))
        change = f"{np.median(self.changes):.2f}" if self.changes else ""
        codes = ", ".join(f"{code} {count}" if count > 1 else code for code, count in self.codes.most_common(4))
        return f"| {name} | {self.studies} | {numbers} | {change} | {codes} |"


Rows = Iterator[tuple[str, Tally]]


def table(title: str, rows: Rows) -> None:
    print(f"\n### {title}\n")
    print("| input | studies | refused | other flag | features | inputs | silent | change | by |")
    print("|---" * 9 + "|")
    for name, tally in rows:
        print(tally.row(name), flush=True)


def answer(version: ModelVersion, study: Study, record: ClinicalRecord, tally: Tally, before: float | None) -> float:
    """Send a study through the input checks and the version; returns its log-odds, NaN if it is refused."""
    try:
        prepared = version.prepare(study, record)
    except RlvoError as error:
        tally.refuse(error.code)
        return np.nan
    answered = version.predict(prepared)
    flags = (*prepared.flags, *answered.flags)
    tally.add(flags, None if before is None else answered.log_odds - before)
    return answered.log_odds


def full_size(
    patient: Patient,
    variation: Variation,
    *,
    spacing: Spacing | None = None,
    names: Mapping[str, Input] = IMAGES,
    seed: int = SEED,
) -> Study:
    """The volumes ``names`` of one phantom as a hospital would send them, by default with the usual voxel sizes.

    ``seed``: that of the position of the head.
    """
    drawn = scene.build(patient, variation)
    pose = volumes.draw_pose(np.random.default_rng([seed, 5, patient.index]))
    made = volumes.series(drawn, pose, spacing)
    return {names[one.name]: Volume(one.data, one.affine) for one in made if one.name in names}


def valid(audit: Audit, phantoms: int, served: int) -> Rows:
    """Held-out phantoms, rendered on the grid and full-size through ``prepare``."""
    patients = biology.draw(phantoms, SEED, Preset.INTERACTION)
    served_patients = by_anatomy(patients[:served], SEED, VARIED)
    for name, appearance in (("template and usual scanner", scene.PLAIN), ("varied anatomy and scanner", VARIED)):
        tally = Tally()
        for patient in track(by_anatomy(patients, SEED, appearance), name, transient=True):
            phantom = audit.draw(patient, scene.draw_variation(SEED, patient.index, appearance))
            tally.add(audit.version.predict(audit.model_input(phantom)).flags, None)
        yield f"on the grid, {name}", tally
    tally = Tally()
    for patient in track(served_patients, "full-size", transient=True):
        study = full_size(patient, scene.draw_variation(SEED, patient.index, VARIED))
        answer(audit.version, study, cohort.record(patient), tally, None)
    yield "full-size, varied anatomy and scanner", tally


def disturbed(audit: Audit, count: int) -> Rows:
    """Each nuisance at each strength, of patients with the template's anatomy and the usual scanner."""
    patients = biology.draw(count, SEED, Preset.INTERACTION)
    plain = [(patient, scene.draw_variation(SEED, patient.index)) for patient in patients]
    before = [audit.log_odds(audit.draw(*each)) for each in plain]
    for kind, strengths in STRENGTHS.items():
        for strength in strengths:
            tally = Tally()
            for (patient, variation), odds in zip(plain, before, strict=True):
                changed = audit.draw(patient, Nuisance(kind, strength).apply(variation))
                answered = audit.version.predict(audit.model_input(changed))
                tally.add(answered.flags, answered.log_odds - odds)
            yield f"{kind} {strength:g} {UNITS.get(kind, '')}".strip(), tally


def varied_studies(version: ModelVersion, *, wrong: bool) -> Rows:
    """Valid but unusual, or wrong, full-size studies of one patient (bench/variations)."""
    patient = biology.draw(PATIENT + 1, input_checks.SEED, Preset.INTERACTION)[PATIENT]
    record, usual = cohort.record(patient), dict(input_checks.phantom(PATIENT))
    tally = Tally()
    before = answer(version, usual, record, tally, None)
    yield "as drawn", tally
    for module, (good, bad) in input_checks.modules().items():
        chosen = {name: change for name, (change, _) in bad.items()} if wrong else good
        for name, change in chosen.items():
            tally = Tally()
            answer(version, change(dict(usual), np.random.default_rng(5)), record, tally, before)
            yield f"{module}: {name}".replace("_", " "), tally


def cropped(volume: Volume, field_mm: tuple[float, float, float]) -> Volume:
    """The middle of a volume, of at most this size."""
    edges = np.linalg.norm(volume.affine[:3, :3], axis=0)
    size = np.minimum(np.rint(np.array(field_mm) / edges).astype(int), volume.shape[:3])
    start = (np.array(volume.shape[:3]) - size) // 2
    part = volume.data[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]
    shift = np.eye(4)
    shift[:3, 3] = start
    return replace(volume, data=np.asfortranarray(part), affine=volume.affine @ shift)


def crops(version: ModelVersion) -> Rows:
    """Small parts of a full-size study."""
    usual = input_checks.phantom(PATIENT)
    for field_mm in ((41.0, 36.0, 22.0), (100.0, 100.0, 60.0), (140.0, 170.0, 90.0)):
        tally, part = Tally(), {name: cropped(usual[name], field_mm) for name in (Input.NCCT, Input.CTA)}
        answer(version, part, ClinicalRecord(), tally, None)
        yield f"crop of {' x '.join(f'{mm:g}' for mm in field_mm)} mm", tally


def tensors(audit: Audit, count: int) -> Rows:
    """Wrong tensors, as only ``/v2`` or a fault of the preparation could give them."""
    rows: dict[str, Tally] = {}
    for patient in biology.draw(count, SEED, Preset.INTERACTION):
        phantom = audit.draw(patient)
        usual = audit.model_input(phantom)
        before = audit.version.predict(usual).log_odds
        for name, changed in wrong_tensors(audit.manifest, usual, np.random.default_rng([SEED, patient.index])):
            answered = audit.version.predict(changed)
            rows.setdefault(name, Tally()).add(answered.flags, answered.log_odds - before)
    yield from rows.items()


def wrong_tensors(manifest: Manifest, usual: ModelInput, rng: np.random.Generator) -> Iterator[tuple[str, ModelInput]]:
    """Names and wrong inputs that are made of a usual one."""
    names, channels = [channel.name for channel in manifest.channels], manifest.channels
    ncct, cta, _, tmax, rcbf = (names.index(channel) for channel in Channel)
    physical = usual.image * np.array([c.std for c in channels])[:, None, None, None]
    physical += np.array([c.mean for c in channels])[:, None, None, None]

    def made(values: np.ndarray) -> ModelInput:
        image = np.stack([(np.clip(one, *c.window) - c.mean) / c.std for one, c in zip(values, channels, strict=True)])
        return replace(usual, image=image.astype(np.float32) * usual.presence[:, None, None, None])

    def put(**values: np.ndarray) -> ModelInput:
        return made(np.stack([values.get(str(name), physical[n]) for n, name in enumerate(names)]))

    yield "NCCT in the channel of the CTA", put(cta=physical[ncct])
    yield "CTA in the channel of the NCCT", put(ncct=physical[cta])
    yield "NCCT + 40 HU", put(ncct=physical[ncct] + 40)
    yield "NCCT x 0.5", put(ncct=physical[ncct] * 0.5)
    yield "CTA x 2", put(cta=physical[cta] * 2)
    yield "Tmax in tenths of a second", put(tmax=physical[tmax] * 10)
    yield "Tmax in minutes", put(tmax=physical[tmax] / 60)
    yield "rCBF as a fraction of 100", put(rcbf=physical[rcbf] * 100)
    yield "Tmax and rCBF exchanged", put(tmax=physical[rcbf] * 8, rcbf=physical[tmax] / 8)
    yield "maps mirrored", put(tmax=physical[tmax][::-1], rcbf=physical[rcbf][::-1])
    yield "heads upside down", made(physical[:, :, :, ::-1])
    yield "heads turned back to front", made(physical[:, :, ::-1])
    yield "heads displaced by 20 mm", made(np.roll(physical, 5, axis=2))
    yield "vessel mask of everything bright", put(vessels=(physical[cta] > 60).astype(np.float32))
    yield "vessel mask mirrored front to back", put(vessels=physical[2][:, ::-1])
    yield "all images zero", replace(usual, image=np.zeros_like(usual.image))
    yield "all images noise", replace(usual, image=rng.standard_normal(usual.image.shape).astype(np.float32))
    yield "voxels shuffled", made(rng.permuted(physical.reshape(len(names), -1), axis=1).reshape(physical.shape))


def real(version: ModelVersion, shared: Path) -> Rows:
    """Every real volume as NCCT and as CTA, and the DICOM series as they are converted."""
    for path in sorted((shared / "images").glob("*.nii*")):
        for sent in (Input.NCCT, Input.CTA):
            tally = Tally()
            _send_file(version, {sent: path}, tally)
            yield f"{path.name} as {sent}", tally
    for folder in sorted(path for path in (shared / "dicom").glob("*") if path.is_dir()):
        tally = Tally()
        with tempfile.TemporaryDirectory() as target:
            try:
                made = convert_isolated(folder, Path(target), timeout_s=120)
            except RlvoError as error:
                tally.refuse(error.code)
            else:
                _send_file(version, made.volumes, tally, made.flags)
        yield f"DICOM {folder.name}", tally


def _send_file(version: ModelVersion, files: Mapping[Input, Path], tally: Tally, flags: tuple[Flag, ...] = ()) -> None:
    try:
        study = {sent: nifti.read(path, field=sent) for sent, path in files.items()}
        prepared = version.prepare(study, ClinicalRecord())
    except RlvoError as error:
        tally.refuse(error.code)
        return
    tally.add((*flags, *prepared.flags, *version.predict(prepared).flags), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=int, default=300, help="held-out phantoms on the grid, of either kind")
    parser.add_argument("--served", type=int, default=40, help="of them, full-size through the service's preparation")
    parser.add_argument("--disturbed", type=int, default=6, help="patients with each nuisance")
    parser.add_argument("--only", nargs="*", default=[], choices=SECTIONS, help="sections; default: all")
    parser.add_argument("--version", default=DEMO, help="folder of a version, or NAME or NAME@VERSION in model_store")
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="folder of real images")
    options = parser.parse_args()
    folder = Path(options.version)
    if not (folder / "manifest.json").is_file():
        folder = ModelStore(MODEL_STORE).resolve(options.version).folder
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    version = ModelVersion.load(folder, manifest, "cpu")
    audit = Audit(version)
    print(f"{manifest.name}@{manifest.version}, phantoms of the seed {SEED}")
    sections: dict[str, tuple[str, Callable[[], Rows]]] = {
        "valid": ("Valid held-out phantoms", lambda: valid(audit, options.phantoms, options.served)),
        "nuisances": ("Nuisances", lambda: disturbed(audit, options.disturbed)),
        "tensors": ("Wrong tensors", lambda: tensors(audit, options.disturbed)),
        "unusual": ("Valid but unusual studies", lambda: varied_studies(version, wrong=False)),
        "wrong": ("Wrong studies", lambda: chain(varied_studies(version, wrong=True), crops(version))),
        "real": ("Real volumes", lambda: real(version, options.shared)),
    }
    assert tuple(sections) == SECTIONS
    for name, (title, rows) in sections.items():
        if not options.only or name in options.only:
            table(title, rows())


if __name__ == "__main__":
    main()
