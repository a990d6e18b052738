"""Writes a synthetic cohort in the format of ``rlvo train``: table, images and the truth.

Design notes:
- By default the images are already on the model grid (``images.npy``). Full-size volumes are in patient space, and
  ``rlvo train`` preprocesses them.
- The table has the columns of a real cohort. Latents and true probability are in ``truth.csv``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from app.core.filesystem import atomic_directory
from app.inference import defaults
from app.inference.preprocess_cache import layout
from app.phantoms import biology, cohort
from app.phantoms.biology import Patient, Preset
from app.phantoms.scene import PLAIN, Appearance
from app.training import phantom_drawing
from app.training.dataset import LATENTS, Drawn, phantoms, standard_latents
from app.training.errors import CohortFault
from app.training.process_pool import Tell, side_by_side

VOLUMES = ("ncct", "cta", "tmax", "cbf")
PREPARED_EACH, FULL_SIZE_EACH = 50, 4  # patients for which another process is worth its start
FULL_SIZE_GROUP = 8  # most full-size patients of one task


def synthesize(
    out: Path,
    patients: int,
    seed: int,
    preset: Preset,
    *,
    appearance: Appearance = PLAIN,
    full_size: bool = False,
    jobs: int = 1,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Write a cohort into the new folder ``out``.

    ``appearance``: what varies between the patients besides biology. ``full_size`` writes NIfTI volumes instead of
    prepared images; ``jobs`` processes draw them, which changes no voxel; ``advance`` is called after each phantom.

    Raises:
        CohortFault: The folder exists.
    """
    if out.exists():
        raise CohortFault([f"the folder {out.name} exists; a cohort is never overwritten: choose another folder"])
    with atomic_directory(out) as draft:
        persons = biology.draw(patients, seed, preset)
        rows = [_row(person, seed) for person in persons]
        # A process takes seconds to start, as long as a few full-size patients or some dozens on the grid.
        useful = max(patients // (FULL_SIZE_EACH if full_size else PREPARED_EACH), 1)
        drawn = _Cohort(persons, seed, preset, appearance, min(jobs, useful))
        (_full_size if full_size else _prepared)(draft, drawn, rows, advance)
        pd.DataFrame(rows).to_csv(draft / "cohort.csv", index=False)
        _truth(persons, rows).to_csv(draft / "truth.csv", index=False)


@dataclass(frozen=True)
class _Cohort:
    """What defines the patients, and the number of processes that draw them."""

    persons: list[Patient]
    seed: int
    preset: Preset
    appearance: Appearance
    jobs: int


def _full_size(folder: Path, drawn: _Cohort, rows: list[dict[str, Any]], advance: Callable[[], None]) -> None:
    """Write the volumes of each patient, and add their paths to the rows."""
    groups = [
        _Group(folder, drawn.seed, drawn.preset, drawn.appearance, tuple((n, rows[n]["patient"]) for n in numbers))
        for numbers in phantom_drawing.rows_by_anatomy(drawn.persons, drawn.seed, drawn.appearance, FULL_SIZE_GROUP)
    ]
    for written in side_by_side(_write_group, groups, drawn.jobs, lambda _: advance()):
        for number, paths in written.items():
            rows[number].update(paths)


@dataclass(frozen=True)
class _Group:
    """Patients of one anatomy: their places in the cohort and their names."""

    folder: Path
    seed: int
    preset: Preset
    appearance: Appearance
    patients: tuple[tuple[int, str], ...]


def _write_group(group: _Group, tell: Tell) -> dict[int, dict[str, str]]:
    """Write full-size patients; returns the paths of each, relative to the cohort."""
    written = {}
    for number, name in group.patients:
        paths = cohort.write_patient(
            group.folder / name, group.seed, preset=group.preset, index=number, appearance=group.appearance
        )
        written[number] = {volume: f"{name}/{volume}.nii.gz" for volume in VOLUMES if volume in paths}
        tell(1)
    return written


def _prepared(folder: Path, drawn: _Cohort, rows: list[dict[str, Any]], advance: Callable[[], None]) -> None:
    """Write images on the model grid, and add their place and the perfusion numbers to the rows."""
    persons, seed, appearance = drawn.persons, drawn.seed, drawn.appearance
    grid, channels, images = defaults.GRID, defaults.CHANNELS, folder / "images.npy"
    protocols = phantom_drawing.draw(
        persons, seed, grid, channels, appearance, images, jobs=drawn.jobs, advance=advance
    )
    found = Drawn(np.load(images, mmap_mode="r"), protocols)
    dataset = phantoms(len(persons), seed, drawn.preset, grid, channels, appearance=appearance, drawn=found)
    if not dataset.presence.all():
        np.save(folder / "presence.npy", dataset.presence)
    (folder / "images.json").write_text(json.dumps(layout(), indent=1))
    for number, (row, perfusion) in enumerate(zip(rows, dataset.perfusion, strict=True)):
        known = perfusion.model_dump(exclude_none=True) if perfusion else {}
        row.update({f"perfusion.{name}": round(value, 3) for name, value in known.items()}, prepared=number)


def _row(person: Patient, seed: int) -> dict[str, Any]:
    """Table row of one patient: components of the outcome and the clinical record."""
    rng = np.random.default_rng([seed, 12, person.index])
    component = rng.integers(3)  # drawn for every patient, so that the later draws stay the same
    positive = component if person.refractory else None
    outcome = {
        "final_stenosis_percent": int(rng.integers(55, 100) if positive == 0 else rng.integers(0, 45)),
        "etici": str(rng.choice(["0", "1", "2a"]) if positive == 1 else rng.choice(["2b", "2c", "3"])),
        "rescue_treatment": int(positive == 2),
    }
    clinical = cohort.record(person, np.random.default_rng([seed, 6, person.index])).model_dump(
        mode="json", exclude_none=True
    )
    return {"patient": f"phantom-{seed}-{person.index:05d}", "site": "phantom", **outcome, **clinical}


def _truth(persons: list[Patient], rows: list[dict[str, Any]]) -> pd.DataFrame:
    truth = pd.DataFrame([standard_latents(person) for person in persons], columns=list(LATENTS))
    truth.insert(0, "patient", [row["patient"] for row in rows])
    truth["probability"] = [person.probability for person in persons]
    return truth
