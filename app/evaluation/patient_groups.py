"""Groups of patients of a validation: sex, side, age, atrial fibrillation, scanner, and those with several studies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app.evaluation import subgroups
from app.evaluation.subgroups import Patients
from app.evaluation.validation import Groups


def patient_groups(data: Patients) -> dict[str, Groups]:
    """Levels of each variable of the patients (n,); the site is not one of them."""
    found: dict[str, dict[str, NDArray[np.bool_]]] = {}
    for name, mask in subgroups.masks(data).items():
        variable, _, level = name.partition(": ")
        if name.startswith("age "):
            variable, level = "age", name.removeprefix("age ")
        elif "atrial fibrillation" in name:
            variable, level = "atrial fibrillation", "no" if name.startswith("no ") else "yes"
        elif name.startswith("scanner "):
            variable, level = "scanner", name.removeprefix("scanner ")
        elif name.startswith("site "):
            continue
        found.setdefault(variable, {})[level] = mask
    result = {}
    for variable, by_level in found.items():
        levels = np.full(len(data.records), "", dtype=f"<U{max(map(len, by_level))}")
        for level, mask in by_level.items():
            levels[mask] = level
        result[variable] = Groups(levels, (*by_level, ""))
    return result


def repeated_note(patients: NDArray[np.str_]) -> str:
    """Sentence on the studies of ``patients`` (n,), "" if unknown, of whom some have several; else empty."""
    named = patients[patients != ""].tolist()
    several = len(named) - len(set(named))
    if not several:
        return ""
    return (
        f"The {len(patients)} studies are of {len(patients) - several} patients. Each study counts as a patient of its "
        "own, so the intervals are too narrow and the p values too small."
    )
