"""Score model versions on a cohort: the output of ``rlvo evaluate``.

Design notes:
- A version predicts one patient at a time with ``ModelVersion.predict``, as the service does.
- Several versions score the same patients. The first is compared with each other one (DeLong).
- A cohort whose outcome is not the version's target is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.evaluation import subgroups
from app.evaluation.metrics import (
    Array,
    Labels,
    auc,
    auc_estimate,
    average_precision_estimate,
    brier_estimate,
    calibration_error,
    calibration_in_the_large,
    calibration_slope,
    delong,
    multiplicity_note,
)
from app.inference.model_version import ModelVersion
from app.registry.manifest import Manifest
from app.training import cells, cohort, input_checks, report, suspicious, training_overlap, unread_columns
from app.training.dataset import Dataset, Vectors, to_model_input
from app.training.errors import CohortFault, FaultList
from app.training.options import Target
from app.training.preprocess import preprocess
from app.training.progress import ProgressReporter
from app.training.provenance import check_layout, read_manifest

ORACLE = "the oracle"


@dataclass(frozen=True)
class VersionPredictions:
    """Predictions of one version for n patients.

    Attributes:
        probabilities: (n,) calibrated probabilities.
        kept: (n, 2), whether class 0 and class 1 are in the conformal set.
    """

    probabilities: Array
    kept: NDArray[np.bool_]


@dataclass(frozen=True)
class EvalConfig:
    """Arguments of ``rlvo evaluate``. ``since``: only patients of this ISO date or later; ``site``: only this site.

    ``accept_flags`` scores doubtful images too; ``i_know`` scores patients that a version was trained on; ``accept``
    names the codes of suspicious values that are accepted.
    """

    versions: Sequence[Path]
    cohort: Path
    device: str = "auto"
    drop_unknown: bool = False
    since: str = ""
    site: str = ""
    report: Path | None = None
    jobs: int = 1
    target: Target | None = None
    columns: Path | None = None
    date_format: str = ""
    accept_flags: bool = False
    i_know: bool = False
    accept: str = ""


def predict_all(model: ModelVersion, data: Dataset, advance: Callable[[], None] = lambda: None) -> VersionPredictions:
    """Predict every patient with one version."""
    vectors = Vectors.of(data, model.manifest.clinical)
    probabilities, kept = [], []
    for row in range(len(data)):
        answer = model.predict(to_model_input(data, vectors, model.manifest.clinical, row))
        probabilities.append(answer.probability)
        conformal_set = answer.decision.conformal or []
        kept.append(["not-refractory" in conformal_set, "refractory" in conformal_set])
        advance()
    return VersionPredictions(np.array(probabilities), np.array(kept, bool))


def score(config: EvalConfig, progress: ProgressReporter | None = None) -> str:
    """Score the versions, write a report if one is requested, and return the tables as Markdown.

    Raises:
        CohortFault: With every fault of the cohort, or if a folder holds no version.
    """
    progress = progress or ProgressReporter()
    manifests = [read_manifest(folder) for folder in config.versions]
    patients = _select(
        cohort.read(
            config.cohort,
            drop_unknown=config.drop_unknown,
            target=config.target,
            rules=config.columns,
            date_format=config.date_format,
        ),
        config,
    )
    if len({_name(manifest) for manifest in manifests}) < len(manifests):
        raise CohortFault(["one version is given twice; give each version once"])
    if config.report is not None and config.report.exists() and not config.report.is_dir():
        raise CohortFault([f"--report: {config.report.name} is a file; name a folder"])
    for manifest in manifests:
        check_layout(manifest)
        if manifest.training.target != patients.target:
            fault = f"{_name(manifest)} predicts {manifest.training.target}, and the cohort's outcome is another"
            raise CohortFault([f"{fault}: {patients.target}"])
    suspicions = suspicious.check(patients, config.accept, accept_images=config.accept_flags)
    data = preprocess(patients, progress, jobs=config.jobs)
    remarks = [training_overlap.check(manifest, patients, data, accept=config.i_know) for manifest in manifests]
    repeats = suspicious.SAME_IMAGE in suspicious.accepted(config.accept)
    remarks.append(input_checks.check(patients, data, accept=config.accept_flags, accept_repeats=repeats))
    remarks += [suspicions, *(unread_columns.of_version(patients, manifest) for manifest in manifests)]
    remarks = [*filter(None, remarks)]
    predictions: dict[str, VersionPredictions] = {}
    with progress.stage("predicting", len(data) * len(manifests)) as advance:
        for manifest, folder in zip(manifests, config.versions, strict=True):
            model = ModelVersion.load(folder, manifest, config.device)
            predictions[_name(manifest)] = predict_all(model, data, lambda: advance(1))
    probabilities = {name: one.probabilities for name, one in predictions.items()}
    sections = [*remarks, *("\n".join(_metrics(m, data, predictions[_name(m)])) for m in manifests)]
    if len(probabilities) > 1:
        sections.append("\n".join(_comparison(data, probabilities)))
    rows = np.arange(len(data))
    if config.report is not None:
        first, title = manifests[0], f"{', '.join(probabilities)} on {config.cohort.name}"
        models = probabilities if data.oracle is None else probabilities | {ORACLE: data.oracle}
        decided = (probabilities[_name(first)] >= first.threshold.value).astype(np.float64)
        path = report.write(config.report, title, sections, data, rows, models, _name(first), decided)
        return "\n\n".join([*sections, f"Figures, decision curve and subgroups: {path}"])
    for manifest in manifests:
        own = probabilities[_name(manifest)]
        sections.append(f"{_name(manifest)}\n\n" + "\n".join(report.decisions(data.labels, own)))
        sections.append(
            "\n".join(subgroups.lines(data, rows, own, (own >= manifest.threshold.value).astype(np.float64)))
        )
    return "\n\n".join(sections)


def _name(manifest: Manifest) -> str:
    return f"{manifest.name} {manifest.version}"


def _select(patients: cohort.Cohort, config: EvalConfig) -> cohort.Cohort:
    """The studies of the requested site and dates."""
    selected = [study for study in patients.studies if not config.site or study.site == config.site]
    if config.since:
        selected = _since(selected, config.since)
    outcomes = {study.outcome for study in selected}
    if len(outcomes) < 2:
        raise CohortFault([f"{len(selected)} patients are left, of one outcome only: there is nothing to score"])
    return replace(patients, studies=tuple(selected))


def _since(studies: Sequence[cohort.CohortRow], since: str) -> list[cohort.CohortRow]:
    """The studies of this ISO date or later. Every study needs a date, because none is left out silently."""
    try:
        first = cells.parse_day(since)
    except ValueError:
        raise CohortFault(["--since: expected an ISO date (YYYY-MM-DD)"]) from None
    faults = FaultList()
    for study in studies:
        if not study.date:
            faults.add("missing; --since needs it", row=study.row, column="date")
    faults.check()
    return [study for study in studies if date.fromisoformat(study.date) >= first]


def _metrics(manifest: Manifest, data: Dataset, predictions: VersionPredictions) -> Iterator[str]:
    """Lines of one version's table of metrics."""
    labels, probabilities = data.labels, predictions.probabilities
    yield f"{_name(manifest)} on {len(data)} patients, {int(labels.sum())} with the outcome"
    yield ""
    yield "| metric | value (95 % interval) |"
    yield "|---|---|"
    yield f"| AUC | {auc_estimate(labels, probabilities)} |"
    if data.oracle is not None:
        yield f"| AUC of the oracle | {auc(labels, data.oracle):.3f} |"
        yield f"| the oracle minus it | {delong(labels, data.oracle, probabilities)} |"
    yield f"| AUPRC | {average_precision_estimate(labels, probabilities)} |"
    yield f"| Brier | {brier_estimate(labels, probabilities)} |"
    yield f"| calibration slope (ideal: 1) | {calibration_slope(labels, probabilities)} |"
    yield f"| calibration in the large (ideal: 0) | {calibration_in_the_large(labels, probabilities)} |"
    yield f"| expected calibration error | {calibration_error(labels, probabilities):.3f} |"
    yield from _decisions(labels, probabilities >= manifest.threshold.value)
    if manifest.conformal is not None:
        for value, name in ((0, "not refractory"), (1, "refractory")):
            share = predictions.kept[labels == value, value].mean()
            yield f"| conformal coverage, {name} (nominal {manifest.conformal.level:.2f}) | {share:.3f} |"
        yield f"| uncertain (neither class excluded) | {predictions.kept.all(axis=1).mean():.3f} |"


def _decisions(labels: Labels, decided: NDArray[np.bool_]) -> Iterator[str]:
    parts = {
        "sensitivity": decided[labels == 1],
        "specificity": ~decided[labels == 0],
        "PPV": labels[decided] == 1,
        "NPV": labels[~decided] == 0,
    }
    for name, flags in parts.items():
        yield f"| {name} | {flags.mean():.3f} |" if len(flags) else f"| {name} | no patient |"


def _comparison(data: Dataset, probabilities: dict[str, Array]) -> Iterator[str]:
    """Lines of the table that compares the first version with each other one on the same patients."""
    (first, own), *others = probabilities.items()
    yield f"| {first} minus | difference of AUC (95 % interval), DeLong |"
    yield "|---|---|"
    for name, other in others:
        yield f"| {name} | {delong(data.labels, own, other)} |"
    if note := multiplicity_note(len(others)):
        yield ""
        yield note
