"""A synthetic cohort on disk, as ``rlvo train`` reads it: a table, images, and the truth beside them.

Notable choices:
- By default the images come prepared, on the model's grid (``images.npy``): thousands of patients take minutes and a
  gigabyte a thousand. ``full_size`` writes every volume as a scanner would, so that preparation is exercised too.
- The table holds what a real one would: facts (some missing), paths or prepared rows, and the outcome's components,
  never the truth. ``truth.csv`` holds the latents and the true chance.
- The folder appears whole: it is made beside its place and renamed.
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
from app.training.dataset import LATENTS, phantoms, standard_latents
from app.training.errors import CohortFault

VOLUMES = ("ncct", "cta", "tmax", "cbf")


def synthesize(
    out: Path,
    patients: int,
    seed: int,
    preset: Preset,
    *,
    full_size: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Write a cohort into the new folder ``out``.

    :raises CohortFault: where the folder exists
    """
    if out.exists():
        raise CohortFault([f"the folder {out.name} exists; a cohort is never written over another"])
    with atomic_directory(out) as draft:
        people = biology.draw(patients, seed, preset)
        rows = [_row(person, seed) for person in people]
        if full_size:
            for person, row in zip(people, rows, strict=True):
                cohort.write_patient(draft / row["patient"], seed, preset=preset, index=person.index)
                row.update({name: f"{row['patient']}/{name}.nii.gz" for name in VOLUMES})
                advance()
        else:
            shape = (patients, len(defaults.CHANNELS), *defaults.GRID.shape)
            images = np.lib.format.open_memmap(draft / "images.npy", "w+", np.float16, shape)
            made = phantoms(patients, seed, preset, defaults.GRID, defaults.CHANNELS, into=images, advance=advance)
            images.flush()
            (draft / "images.json").write_text(json.dumps(layout(), indent=1))
            for number, (row, perfusion) in enumerate(zip(rows, made.perfusion, strict=True)):
                known = perfusion.model_dump(exclude_none=True) if perfusion else {}
                row.update({f"perfusion.{name}": round(value, 3) for name, value in known.items()}, prepared=number)
        pd.DataFrame(rows).to_csv(draft / "cohort.csv", index=False)
        _truth(people, rows).to_csv(draft / "truth.csv", index=False)


def _row(person: Patient, seed: int) -> dict[str, Any]:
    """The table's row of one patient: an outcome in its components, the facts of the record."""
    rng = np.random.default_rng([seed, 12, person.index])
    how = rng.integers(3)
    outcome = {
        "final_stenosis_percent": int(rng.integers(55, 100) if person.refractory and how == 0 else rng.integers(0, 45)),
        "etici": str(rng.choice(["0", "1", "2a"]) if person.refractory and how == 1 else rng.choice(["2b", "2c", "3"])),
        "rescue_treatment": int(person.refractory and how == 2),
    }
    facts = cohort.record(person, np.random.default_rng([seed, 6, person.index])).model_dump(
        mode="json", exclude_none=True
    )
    return {"patient": f"phantom-{seed}-{person.index:05d}", "site": "phantom", **outcome, **facts}


def _truth(people: list[Patient], rows: list[dict[str, Any]]) -> pd.DataFrame:
    truth = pd.DataFrame([standard_latents(person) for person in people], columns=list(LATENTS))
    truth.insert(0, "patient", [row["patient"] for row in rows])
    truth["probability"] = [person.probability for person in people]
    return truth
