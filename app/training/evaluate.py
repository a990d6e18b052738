"""A version on a cohort that it may never have seen: what ``rlvo evaluate`` prints.

Notable choices:
- The version answers through its own verbs (``ModelVersion.predict``), one case at a time, as it would when served.
- Subgroups with fewer than five patients of either outcome are named and not scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.manifest import Manifest
from app.model import ModelVersion
from app.training import cohort, prepared, version
from app.training.dataset import Dataset, Vectors
from app.training.metrics import (
    Array,
    auc,
    average_precision,
    bootstrap,
    brier,
    calibration_error,
    calibration_line,
    net_benefit,
)

FEWEST = 5
THRESHOLDS = np.array([0.05, 0.1, 0.15, 0.2, 0.3, 0.4])

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """What a version said of n patients: ``probabilities`` (n,) and ``kept`` (n, 2): which of (0, 1) it could not
    exclude.
    """

    probabilities: Array
    kept: NDArray[np.bool_]


def answer(model: ModelVersion, data: Dataset, advance: Callable[[], None] = lambda: None) -> Answers:
    """Ask the version about every patient."""
    vectors = Vectors.of(data, model.manifest.clinical)
    probabilities, kept = [], []
    for row in range(len(data)):
        outcome = model.predict(version.case(data, vectors, model.manifest.clinical, row))
        probabilities.append(outcome.probability)
        said = outcome.decision.conformal or []
        kept.append(["not-refractory" in said, "refractory" in said])
        advance()
    return Answers(np.array(probabilities), np.array(kept, bool))


def report(folder: Path, table: Path, device: str, *, drop_unknown: bool = False) -> str:
    """The evaluation of the version in ``folder`` on a cohort, as Markdown.

    :raises CohortFault: with everything that is wrong with the cohort
    """
    studies = cohort.read(table, drop_unknown=drop_unknown)
    data = prepared.dataset(studies, studies.folder / ".prepared")
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    answers = answer(ModelVersion.load(folder, manifest, device), data)
    return "\n".join(_lines(manifest, data, answers))


def _lines(manifest: Manifest, data: Dataset, answers: Answers) -> Iterator[str]:
    labels, chances = data.labels, answers.probabilities
    slope, intercept = calibration_line(labels, chances)
    yield f"{manifest.name} {manifest.version} on {len(data)} patients, {int(labels.sum())} with the outcome"
    yield ""
    yield "| metric | value (95 % interval) |"
    yield "|---|---|"
    yield f"| AUC | {bootstrap(auc, labels, chances)} |"
    if data.oracle is not None:
        yield f"| AUC of the oracle | {auc(labels, data.oracle):.3f} |"
    yield f"| AUPRC | {bootstrap(average_precision, labels, chances)} |"
    yield f"| Brier | {bootstrap(brier, labels, chances)} |"
    yield f"| calibration slope, intercept | {slope:.3f}, {intercept:.3f} |"
    yield f"| expected calibration error | {calibration_error(labels, chances):.3f} |"
    yield from _decisions(labels, chances >= manifest.threshold.value)
    if manifest.conformal is not None:
        for value, name in ((0, "not refractory"), (1, "refractory")):
            share = answers.kept[labels == value, value].mean()
            yield f"| conformal coverage, {name} (nominal {manifest.conformal.level:.2f}) | {share:.3f} |"
        yield f"| uncertain (neither class excluded) | {answers.kept.all(axis=1).mean():.3f} |"
    yield ""
    yield "| act above | net benefit | of treating all |"
    yield "|---|---|---|"
    everybody = net_benefit(labels, np.ones(len(labels)), THRESHOLDS)
    for threshold, gain, all_ in zip(THRESHOLDS, net_benefit(labels, chances, THRESHOLDS), everybody, strict=True):
        yield f"| {threshold:.2f} | {gain:+.3f} | {all_:+.3f} |"
    yield ""
    yield "| subgroup | patients | with the outcome | AUC |"
    yield "|---|---|---|---|"
    for name, rows in subgroups(data).items():
        events = int(labels[rows].sum())
        few = min(events, int(rows.sum()) - events) < FEWEST
        score = "too few" if few else f"{auc(labels[rows], chances[rows]):.3f}"
        yield f"| {name} | {int(rows.sum())} | {events} | {score} |"


def _decisions(labels: Labels, decided: NDArray[np.bool_]) -> Iterator[str]:
    parts = {
        "sensitivity": decided[labels == 1],
        "specificity": ~decided[labels == 0],
        "PPV": labels[decided] == 1,
        "NPV": labels[~decided] == 0,
    }
    for name, flags in parts.items():
        yield f"| {name} | {flags.mean():.3f} |" if len(flags) else f"| {name} | no patient |"


def subgroups(data: Dataset) -> dict[str, NDArray[np.bool_]]:
    """Rows by sex, age, atrial fibrillation, side and site."""
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
    return {name: rows for name, rows in found.items() if rows.any()}
