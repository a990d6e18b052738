"""Versions on a cohort that they may never have seen: what ``rlvo evaluate`` prints.

Notable choices:
- A version answers through its own verbs (``ModelVersion.predict``), one case at a time, as it would when served.
- Several versions answer the same patients, and are compared in pairs (DeLong), each with the first.
- A version speaks of its own target: a cohort with another outcome is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from app.evaluation import subgroups
from app.evaluation.metrics import (
    Array,
    Labels,
    auc,
    average_precision,
    bootstrap,
    brier,
    calibration_error,
    calibration_line,
    delong,
)
from app.inference.model_version import ModelVersion
from app.registry.manifest import Manifest
from app.training import calibration, cohort, preprocess
from app.training import report as reports
from app.training.dataset import Dataset, Vectors
from app.training.errors import CohortFault
from app.training.progress import ProgressReporter

ORACLE = "the oracle"


@dataclass(frozen=True)
class VersionPredictions:
    """What a version said of n patients: ``probabilities`` (n,) and ``kept`` (n, 2): which of (0, 1) it could not
    exclude.
    """

    probabilities: Array
    kept: NDArray[np.bool_]


@dataclass(frozen=True)
class EvalConfig:
    """The arguments of ``rlvo evaluate``. ``since``: only patients of this ISO date or later; ``site``: only these."""

    versions: Sequence[Path]
    cohort: Path
    device: str = "auto"
    drop_unknown: bool = False
    since: str = ""
    site: str = ""
    report: Path | None = None
    jobs: int = 1


def answer(model: ModelVersion, data: Dataset, advance: Callable[[], None] = lambda: None) -> VersionPredictions:
    """Ask the version about every patient."""
    vectors = Vectors.of(data, model.manifest.clinical)
    probabilities, kept = [], []
    for row in range(len(data)):
        outcome = model.predict(calibration.case(data, vectors, model.manifest.clinical, row))
        probabilities.append(outcome.probability)
        said = outcome.decision.conformal or []
        kept.append(["not-refractory" in said, "refractory" in said])
        advance()
    return VersionPredictions(np.array(probabilities), np.array(kept, bool))


def evaluate(inquiry: EvalConfig, board: ProgressReporter | None = None) -> str:
    """The evaluation as Markdown.

    :raises CohortFault: with everything that is wrong with the cohort, or a folder that holds no version
    """
    board = board or ProgressReporter()
    manifests = [_manifest(folder) for folder in inquiry.versions]
    studies = _chosen(cohort.read(inquiry.cohort, drop_unknown=inquiry.drop_unknown), inquiry)
    for manifest in manifests:
        if manifest.training.target != studies.target:
            fault = f"{_name(manifest)} predicts {manifest.training.target}, and the cohort's outcome is another"
            raise CohortFault([f"{fault}: {studies.target}"])
    with board.stage("preparing", len(studies.studies)) as advance:
        fill = preprocess.by_processes(inquiry.jobs)
        data = preprocess.dataset(studies, studies.folder / ".prepared", lambda: advance(1), fill=fill)
    said: dict[str, VersionPredictions] = {}
    with board.stage("asking", len(data) * len(manifests)) as advance:
        for manifest, folder in zip(manifests, inquiry.versions, strict=True):
            model = ModelVersion.load(folder, manifest, inquiry.device)
            said[_name(manifest)] = answer(model, data, lambda: advance(1))
    sections = ["\n".join(_lines(m, data, said[_name(m)])) for m in manifests]
    if len(said) > 1:
        sections.append("\n".join(_compared(data, {name: one.probabilities for name, one in said.items()})))
    if inquiry.report is not None:
        chances = {name: one.probabilities for name, one in said.items()}
        if data.oracle is not None:
            chances[ORACLE] = data.oracle
        first = manifests[0]
        title, rows = f"{', '.join(said)} on {inquiry.cohort.name}", np.arange(len(data))
        place = reports.write(inquiry.report, title, sections, data, rows, chances, _name(first), first.threshold.value)
        return "\n\n".join([*sections, f"Figures, decision curve and subgroups: {place}"])
    for manifest in manifests:
        own = said[_name(manifest)].probabilities
        sections.append(f"{_name(manifest)}\n\n" + "\n".join(reports.decisions(data.labels, own)))
        parts = subgroups.lines(data, np.arange(len(data)), own, manifest.threshold.value)
        sections.append("\n".join(parts))
    return "\n\n".join(sections)


def _name(manifest: Manifest) -> str:
    return f"{manifest.name} {manifest.version}"


def _manifest(folder: Path) -> Manifest:
    try:
        return Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    except (OSError, ValidationError):
        raise CohortFault([f"{folder} holds no model version: give model_store/NAME/VERSION"]) from None


def _chosen(studies: cohort.Cohort, inquiry: EvalConfig) -> cohort.Cohort:
    """The studies of the site and time asked for."""
    found = [
        study
        for study in studies.studies
        if (not inquiry.site or study.site == inquiry.site) and (not inquiry.since or study.date >= inquiry.since)
    ]
    outcomes = {study.outcome for study in found}
    if len(outcomes) < 2:
        raise CohortFault([f"{len(found)} patients are left, of one outcome only: there is nothing to score"])
    return cohort.Cohort(studies.folder, tuple(found), studies.target)


def _lines(manifest: Manifest, data: Dataset, answers: VersionPredictions) -> Iterator[str]:
    labels, chances = data.labels, answers.probabilities
    slope, intercept = calibration_line(labels, chances)
    yield f"{_name(manifest)} on {len(data)} patients, {int(labels.sum())} with the outcome"
    yield ""
    yield "| metric | value (95 % interval) |"
    yield "|---|---|"
    yield f"| AUC | {bootstrap(auc, labels, chances)} |"
    if data.oracle is not None:
        yield f"| AUC of the oracle | {auc(labels, data.oracle):.3f} |"
        yield f"| the oracle minus it | {delong(labels, data.oracle, chances)} |"
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


def _decisions(labels: Labels, decided: NDArray[np.bool_]) -> Iterator[str]:
    parts = {
        "sensitivity": decided[labels == 1],
        "specificity": ~decided[labels == 0],
        "PPV": labels[decided] == 1,
        "NPV": labels[~decided] == 0,
    }
    for name, flags in parts.items():
        yield f"| {name} | {flags.mean():.3f} |" if len(flags) else f"| {name} | no patient |"


def _compared(data: Dataset, chances: dict[str, Array]) -> Iterator[str]:
    """The first version against each other one, on the same patients."""
    (first, own), *others = chances.items()
    yield f"| {first} minus | difference of AUC (95 % interval), DeLong |"
    yield "|---|---|"
    for name, rival in others:
        yield f"| {name} | {delong(data.labels, own, rival)} |"
