"""How a version does in parts of a cohort: by sex, age, atrial fibrillation, side, site and scanner.

Notable choices:
- A part with fewer than five patients of either outcome is named and nothing more: neither its number of events nor any
  score, which would be noise, and could point at a person.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.evaluation.metrics import Array, Labels, auc, bootstrap
from app.sdk.clinical import ClinicalRecord


class Patients(Protocol):
    """The rows (n,) of a cohort: 0/1 ``labels``, ``records``, ``sites``, and ``scanners`` where they are known."""

    @property
    def labels(self) -> NDArray[np.int64]: ...

    @property
    def records(self) -> Sequence[ClinicalRecord]: ...

    @property
    def sites(self) -> NDArray[np.str_]: ...

    @property
    def scanners(self) -> NDArray[np.str_] | None: ...


FEWEST = 5
ROUNDS = 500  # of the bootstrap, a subgroup


def masks(data: Patients) -> dict[str, NDArray[np.bool_]]:
    """Rows (n,) by the subgroup's name; only those that have anybody."""
    found: dict[str, NDArray[np.bool_]] = {}
    for name, value in (("sex", "female"), ("sex", "male"), ("occlusion_side", "left"), ("occlusion_side", "right")):
        found[f"{name.replace('_', ' ')}: {value}"] = np.array([r.value(name) == value for r in data.records])
    ages = np.array([np.nan if r.age is None else r.age for r in data.records])
    found["age under 75"], found["age 75 and over"] = ages < 75, ages >= 75
    fibrillation = [r.atrial_fibrillation for r in data.records]
    found["atrial fibrillation"] = np.array([known is True for known in fibrillation])
    found["no atrial fibrillation"] = np.array([known is False for known in fibrillation])
    for site in np.unique(data.sites):
        found[f"site {site}"] = data.sites == site
    if data.scanners is not None:
        for scanner in np.unique(data.scanners[data.scanners != ""]):
            found[f"scanner {scanner}"] = data.scanners == scanner
    return {name: rows for name, rows in found.items() if rows.any()}


def lines(data: Patients, rows: Labels, chances: Array, threshold: float) -> Iterator[str]:
    """The subgroups of some rows as a Markdown table.

    :param chances: (len(rows),) calibrated probabilities of these rows
    """
    yield "| subgroup | patients | with the outcome | AUC (95 % interval) | sensitivity | specificity |"
    yield "|---|---|---|---|---|---|"
    for name, mask in masks(data).items():
        inside = mask[rows]
        if not inside.any():
            continue
        labels, own = data.labels[rows][inside], chances[inside]
        events = int(labels.sum())
        if min(events, len(labels) - events) < FEWEST:
            yield f"| {name} | {len(labels)} | too few of one outcome | | | |"
            continue
        area = bootstrap(auc, labels, own, rounds=ROUNDS)
        caught, spared = (own[labels == 1] >= threshold).mean(), (own[labels == 0] < threshold).mean()
        yield f"| {name} | {len(labels)} | {events} | {area} | {caught:.2f} | {spared:.2f} |"
