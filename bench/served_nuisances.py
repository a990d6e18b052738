"""How much nuisances change the answer to a full-size study, and whether the answer then carries a flag.

``python -m bench served_nuisances [--patients 13] [--all] [--version NAME@VERSION]``. The volumes of each patient are
drawn and sent through ``prepare`` and the version, as they are and with one change that means nothing: those of the
list that this project watches, or with ``--all`` every nuisance of the phantoms. Printed as Markdown, for each:

- the median and the largest change of the log-odds, and in how many patients it is over 0.3;
- in how many of those the answer has no flag that the unchanged study does not have;
- the flags that the change adds.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from rich.progress import track

from app.inference.model_version import ModelVersion
from app.phantoms import biology, cohort, scene
from app.phantoms.biology import Patient, Preset
from app.phantoms.nuisance import STRENGTHS, UNITS, Nuisance, NuisanceKind
from app.phantoms.scene import Variation
from app.registry.model_store import ModelStore
from app.sdk.types import Input
from bench.input_checks import Study
from bench.model_audit import SEED
from bench.model_stores import DEMO, MODEL_STORE
from bench.ood import IMAGES, Spacing, full_size

OVER = 0.3
ANISOTROPIC: Spacing = {"ncct": (0.6, 0.6, 2.5), "cta": (0.5, 0.5, 1.25)}
WATCHED: dict[NuisanceKind, tuple[float, ...]] = {
    NuisanceKind.SLAB: (80.0,),
    NuisanceKind.CLIP: (40.0, 160.0),
    NuisanceKind.DENTAL: (40.0, 160.0),
    NuisanceKind.OFFSET: (-10.0, 10.0),
    NuisanceKind.SMOOTH_KERNEL: (0.6, 1.2),
    NuisanceKind.CONTRAST: (150.0, 220.0),
    NuisanceKind.NCCT_SLICES: (5.0,),
}


def with_nuisance(nuisance: Nuisance, patient: Patient, variation: Variation) -> Study:
    """The volumes of a patient with a nuisance."""
    return full_size(patient, nuisance.apply(variation))


Change = Callable[[Patient, Variation], Study]


def changes(every: bool) -> Iterator[tuple[str, Change]]:
    """Names of the changes, and how a patient's study is drawn with each."""
    yield "true vessel mask sent", partial(full_size, names=IMAGES | {"vessels": Input.VESSELS})
    yield "anisotropic voxels", partial(full_size, spacing=ANISOTROPIC)
    for kind, strengths in (STRENGTHS if every else WATCHED).items():
        for strength in strengths:
            name = f"{kind} {strength:g} {UNITS.get(kind, '')}".strip()
            yield name, partial(with_nuisance, Nuisance(kind, strength))


@dataclass
class Row:
    """Answers to the studies with one change."""

    sizes: list[float] = field(default_factory=list)
    silent: int = 0
    codes: Counter[str] = field(default_factory=Counter)

    def add(self, change: float, codes: set[str]) -> None:
        """Count one answer: the change of its log-odds, and the codes that the unchanged study does not have."""
        self.sizes.append(abs(change))
        self.silent += abs(change) > OVER and not codes
        self.codes.update(codes)

    @property
    def over(self) -> int:
        return sum(size > OVER for size in self.sizes)

    def line(self, name: str) -> str:
        """A row of the table."""
        codes = ", ".join(f"{code} {count}" for code, count in self.codes.most_common(4))
        numbers = (
            f"{np.median(self.sizes):.3f} | {max(self.sizes):.2f} | {self.over} of {len(self.sizes)} | {self.silent}"
        )
        return f"| {name} | {numbers} | {codes} |"


def answer(version: ModelVersion, patient: Patient, study: Study) -> tuple[float, set[str]]:
    """Log-odds, and the codes of all flags."""
    prepared = version.prepare(study, cohort.record(patient))
    answered = version.predict(prepared)
    return answered.log_odds, {flag.code for flag in (*prepared.flags, *answered.flags)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=13)
    parser.add_argument("--all", action="store_true", help="every nuisance of the phantoms")
    parser.add_argument("--version", default=DEMO, help="NAME or NAME@VERSION in model_store")
    arguments = parser.parse_args()
    entry = ModelStore(MODEL_STORE).resolve(arguments.version)
    version = ModelVersion.load(entry.folder, entry.manifest, "cpu")
    patients = biology.draw(arguments.patients, SEED, Preset.INTERACTION)
    plain = [(patient, scene.draw_variation(SEED, patient.index)) for patient in patients]
    before = [
        answer(version, patient, full_size(patient, variation)) for patient, variation in track(plain, transient=True)
    ]
    print(f"{entry.name}@{entry.version}, {len(patients)} full-size phantoms of the seed {SEED}\n")
    print("| change | median | largest | over .3 | without a flag | flags that it adds |\n|---|---|---|---|---|---|")
    rows = []
    for name, change in changes(arguments.all):
        row = Row()
        pairs = zip(plain, before, strict=True)
        for (patient, variation), (odds, codes) in track(pairs, name, total=len(plain), transient=True):
            changed, found = answer(version, patient, change(patient, variation))
            row.add(changed - odds, found - codes)
        print(row.line(name), flush=True)
        rows.append(row)
    studies, silent = sum(len(row.sizes) for row in rows), sum(row.silent for row in rows)
    sizes = np.concatenate([row.sizes for row in rows])
    print(
        f"\nAll: median {np.median(sizes):.3f}; over .3 without a flag: {silent} of {studies}, {silent / studies:.1%}."
    )


if __name__ == "__main__":
    main()
