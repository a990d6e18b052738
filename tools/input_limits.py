"""Write a copy of a trained version whose manifest also holds the input statistics of a cohort, without training.

``python tools/input_limits.py COHORT VERSION OUT [--seed N]``. COHORT is the cohort that the version was trained on,
VERSION its folder, OUT a new folder ``NAME/VERSION``. The statistics of at most 2,048 patients of the cohort are
measured; no outcome is read. Weights, golden cases and card are copied, so the copy answers as before, and flags
unusual inputs too. ``rlvo train`` learns the statistics itself; this is for versions of earlier releases.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from app.core.filesystem import atomic_directory
from app.inference import defaults, fold_files
from app.registry import version_files
from app.registry.manifest import InputGroup, Manifest
from app.training import cohort, input_limits
from app.training.preprocess import preprocess
from app.training.progress import ProgressReporter


def learn(table: Path, folder: Path, manifest: Manifest, seed: int) -> tuple[InputGroup, ...]:
    """Learn the limits of the version in ``folder`` on the cohort ``table``.

    Raises:
        CohortFault: The cohort cannot be used.
        SystemExit: The version has no reference head, no limit of its features, or another grid or other channels.
    """
    reference = fold_files.load_reference(folder, manifest)
    if reference is None or manifest.out_of_distribution is None:
        raise SystemExit("The version has no reference head or no limit of its features: train it again.")
    if (manifest.grid, manifest.channels) != (defaults.GRID, defaults.CHANNELS):
        raise SystemExit("The version has another grid or other channels than this release prepares.")
    patients = cohort.read(table)
    rows = np.sort(input_limits.sample(np.arange(len(patients.studies)), seed))
    data = preprocess(replace(patients, studies=tuple(patients.studies[row] for row in rows)), ProgressReporter())
    every = np.arange(len(data))
    return input_limits.learn(data, every, manifest.channels, manifest.grid, reference, seed)


def write(folder: Path, out: Path, manifest: Manifest, groups: tuple[InputGroup, ...]) -> Manifest:
    """Copy the version in ``folder`` to ``out`` with these limits; its name and number are those of ``out``."""
    assert manifest.out_of_distribution is not None
    limits = manifest.out_of_distribution.model_copy(update={"inputs": groups})
    names = {"name": out.parent.name, "version": out.name}
    changed = Manifest.model_validate(manifest.model_copy(update={"out_of_distribution": limits, **names}).model_dump())
    with atomic_directory(out) as draft:
        for part in manifest.files:
            version_files.copy(folder, draft, part.file)
        version_files.copy(folder, draft, "card.md")
        fold_files.write(draft, "manifest.json", changed.model_dump_json(indent=1).encode())
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("version", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.out.exists():
        raise SystemExit(f"{arguments.out} exists; versions never change: give another folder.")
    manifest = Manifest.model_validate_json((arguments.version / "manifest.json").read_bytes())
    groups = learn(arguments.cohort, arguments.version, manifest, arguments.seed)
    write(arguments.version, arguments.out, manifest, groups)
    for group in groups:
        print(f"{group.name}: {len(group.knots)} statistics, limit {group.limit:.1f}")


if __name__ == "__main__":
    main()
