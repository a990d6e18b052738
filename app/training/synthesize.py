"""Writes a synthetic cohort in the format of ``rlvo train``: table, images and the truth.

Design notes:
- By default the images are already on the model grid (``images.npy``). Full-size volumes are in patient space, and
  ``rlvo train`` preprocesses them.
- The table has the columns of a real cohort. Latents and true probability are in ``truth.csv``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
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
from app.training.dataset import LATENTS, phantoms, standard_latents
from app.training.errors import CohortFault

VOLUMES = ("ncct", "cta", "tmax", "cbf")


def synthesize(
    out: Path,
    patients: int,
    seed: int,
    preset: Preset,
    *,
    appearance: Appearance = PLAIN,
    full_size: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Write a cohort into the new folder ``out``.

    ``appearance``: what varies between the patients besides biology. ``full_size`` writes NIfTI volumes instead of
    prepared images; ``advance`` is called after each phantom.

    Raises:
        CohortFault: The folder exists.
    """
    if out.exists():
        raise CohortFault([f"the folder {out.name} exists; a cohort is never overwritten: choose another folder"])
    with atomic_directory(out) as draft:
        persons = biology.draw(patients, seed, preset)
        rows = [_row(person, seed) for person in persons]
        write = _full_size if full_size else _prepared
        write(draft, persons, rows, seed, preset, appearance, advance)
        pd.DataFrame(rows).to_csv(draft / "cohort.csv", index=False)
        _truth(persons, rows).to_csv(draft / "truth.csv", index=False)


def _full_size(
    folder: Path,
    persons: list[Patient],
    rows: list[dict[str, Any]],
    seed: int,
    preset: Preset,
    appearance: Appearance,
    advance: Callable[[], None],
) -> None:
    """Write the volumes of each patient, and add their paths to the rows."""
    # Patients of one anatomical variant follow each other, because a head is slow to build.
    for number, _, _ in cohort.scenes(persons, seed, appearance):
        person, row = persons[number], rows[number]
        paths = cohort.write_patient(
            folder / row["patient"], seed, preset=preset, index=person.index, appearance=appearance
        )
        row.update({name: f"{row['patient']}/{name}.nii.gz" for name in VOLUMES if name in paths})
        advance()


def _prepared(
    folder: Path,
    persons: list[Patient],
    rows: list[dict[str, Any]],
    seed: int,
    preset: Preset,
    appearance: Appearance,
    advance: Callable[[], None],
) -> None:
    """Write images on the model grid, and add their place and the perfusion numbers to the rows."""
    shape = (len(persons), len(defaults.CHANNELS), *defaults.GRID.shape)
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.float16, shape)
    grid, channels = defaults.GRID, defaults.CHANNELS
    dataset = phantoms(len(persons), seed, preset, grid, channels, appearance=appearance, into=images, advance=advance)
    images.flush()
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
