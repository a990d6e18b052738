"""Performance of a version in subgroups of a cohort: sex, age, atrial fibrillation, side, site and scanner.

Design notes:
- A subgroup with fewer than five patients of either outcome is listed without its events and scores. They would be
  noise, and could identify a person.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.evaluation.clusters import Clusters, chosen, rarer_outcome
from app.evaluation.metrics import Array, Estimate, Labels, auc_estimate
from app.sdk.clinical import ClinicalRecord


class Patients(Protocol):
    """The patients (n,) of a cohort: 0/1 ``labels``, ``records``, ``sites``, and ``scanners`` if known."""

    @property
    def labels(self) -> NDArray[np.int64]: ...

    @property
    def records(self) -> Sequence[ClinicalRecord]: ...

    @property
    def sites(self) -> NDArray[np.str_]: ...

    @property
    def scanners(self) -> NDArray[np.str_] | None: ...


MIN_EVENTS = 5


@dataclass(frozen=True)
class SubgroupRow:
    """One subgroup; events and scores are None if one outcome is too rare."""

    name: str
    patients: int
    events: int | None = None
    auc: Estimate | None = None
    sensitivity: float | None = None
    specificity: float | None = None


def masks(data: Patients) -> dict[str, NDArray[np.bool_]]:
    """Return the rows (n,) of each subgroup that is not empty, by its name."""
    groups: dict[str, NDArray[np.bool_]] = {}
    for name, value in (("sex", "female"), ("sex", "male"), ("occlusion_side", "left"), ("occlusion_side", "right")):
        groups[f"{name.replace('_', ' ')}: {value}"] = np.array([r.value(name) == value for r in data.records])
    ages = np.array([np.nan if r.age is None else r.age for r in data.records])
    groups["age under 75"], groups["age 75 and over"] = ages < 75, ages >= 75
    fibrillation = [r.atrial_fibrillation for r in data.records]
    groups["atrial fibrillation"] = np.array([known is True for known in fibrillation])
    groups["no atrial fibrillation"] = np.array([known is False for known in fibrillation])
    for site in np.unique(data.sites):
        groups[f"site {site}"] = data.sites == site
    if data.scanners is not None:
        for scanner in np.unique(data.scanners[data.scanners != ""]):
            groups[f"scanner {scanner}"] = data.scanners == scanner
    return {name: rows for name, rows in groups.items() if rows.any()}


def rows_of(
    data: Patients, rows: Labels, probabilities: Array, decided: Array, clusters: Clusters = None
) -> Iterator[SubgroupRow]:
    """Yield the subgroups of ``rows`` of a cohort.

    ``probabilities`` (len(rows),) are the calibrated probabilities of these rows, and ``decided`` (len(rows),) are the
    decisions at the threshold, as 0 and 1 or as the share of several ensembles. ``clusters`` (len(rows),) number the
    patients if some have several studies.
    """
    for name, mask in masks(data).items():
        inside = mask[rows]
        if not inside.any():
            continue
        labels, own, called = data.labels[rows][inside], probabilities[inside], decided[inside]
        events, patients = int(labels.sum()), chosen(clusters, inside)
        if rarer_outcome(labels, patients) < MIN_EVENTS:
            yield SubgroupRow(name, len(labels))
            continue
        sensitivity, specificity = float(called[labels == 1].mean()), float(1 - called[labels == 0].mean())
        area = auc_estimate(labels, own, clusters=patients)
        yield SubgroupRow(name, len(labels), events, area, sensitivity, specificity)


def lines(
    data: Patients, rows: Labels, probabilities: Array, decided: Array, *, least: int = 0, clusters: Clusters = None
) -> Iterator[str]:
    """Yield the lines of a Markdown table of the subgroups; arguments as for ``rows_of``.

    A number of patients below ``least`` is not shown.
    """
    yield "| subgroup | patients | with the outcome | AUC (95 % interval) | sensitivity | specificity |"
    yield "|---|---|---|---|---|---|"
    for row in rows_of(data, rows, probabilities, decided, clusters):
        if row.events is None:
            patients = f"<{least}" if row.patients < least else str(row.patients)
            yield f"| {row.name} | {patients} | too few of one outcome | | | |"
        else:
            scores = f"{row.auc} | {row.sensitivity:.2f} | {row.specificity:.2f}"
            yield f"| {row.name} | {row.patients} | {row.events} | {scores} |"
