"""Groups of patients of a validation: sex, side, age, atrial fibrillation, scanner, and those with several studies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app.evaluation import subgroups
from app.evaluation.clusters import Clusters, count
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


def repeated_note(clusters: Clusters) -> str:
    """Sentence on patients with several studies; empty if ``clusters`` (n,) is None, because none has."""
    if clusters is None:
        return ""
    return (
        f"The {len(clusters)} studies are of {count(clusters, len(clusters))} patients. Intervals and p values take "
        "the studies of a patient together: those of an AUC are Obuchowski's (1997), bootstraps draw patients, and the "
        "others have the variance of sums over patients."
    )
