"""Score model versions on a cohort: the output of ``rlvo evaluate``.

Design notes:
- A version predicts one patient at a time with ``ModelVersion.predict``, as the service does.
- Several versions score the same patients. The first is compared with each other one (DeLong).
- A cohort whose outcome is not the version's target is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.evaluation import subgroups
from app.evaluation.baseline_table import SMALL
from app.evaluation.clusters import count, of_patients
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
from app.evaluation.patient_groups import repeated_note
from app.inference.model_version import ModelVersion
from app.registry.manifest import Manifest
from app.sdk.types import Flag
from app.training import (
    cells,
    cohort,
    description,
    dicom_studies,
    input_checks,
    patient_files,
    provenance,
    report,
    report_folder,
    suspicious,
    training_overlap,
    unread_columns,
)
from app.training.dataset import Dataset, Vectors, to_model_input
from app.training.errors import CohortFault, FaultList
from app.training.options import Target
from app.training.own_variables import OwnColumns
from app.training.patient_files import Predictions, Source
from app.training.preprocess import preprocess
from app.training.progress import ProgressReporter
from app.training.provenance import channels_of, read_manifest

ORACLE = "the oracle"


@dataclass(frozen=True)
class VersionPredictions:
    """Predictions of one version for n patients.

    Attributes:
        probabilities: (n,) calibrated probabilities.
        log_odds: (n,) calibrated log-odds.
        kept: (n, 2), whether class 0 and class 1 are in the conformal set.
        flags: Flags (n) that the version gives, such as out-of-distribution.
    """

    probabilities: Array
    log_odds: Array
    kept: NDArray[np.bool_]
    flags: Sequence[Sequence[Flag]] = ()


@dataclass(frozen=True)
class EvalConfig:
    """Arguments of ``rlvo evaluate``. ``since``: only patients of this ISO date or later; ``site``: only this site.

    Own variables of the versions need no file ``own_variables``, because the manifests declare them.

    ``dicom`` is the folder of DICOM studies. ``report`` is the report's folder; None: a folder in ``reports`` beside
    the table. ``accept_flags`` scores doubtful images too; ``i_know`` scores patients that a version was trained on;
    ``accept`` names the codes of suspicious values that are accepted.
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
    own_variables: Path | None = None
    dicom: Path | None = None
    accept_flags: bool = False
    i_know: bool = False
    accept: str = ""


def predict_all(model: ModelVersion, data: Dataset, advance: Callable[[], None] = lambda: None) -> VersionPredictions:
    """Predict every patient with one version."""
    vectors = Vectors.of(data, model.manifest.clinical)
    probabilities, log_odds, kept, flags = [], [], [], []
    for row in range(len(data)):
        answer = model.predict(to_model_input(data, vectors, model.manifest.clinical, row))
        probabilities.append(answer.probability)
        log_odds.append(answer.log_odds)
        conformal_set = answer.decision.conformal or []
        kept.append(["not-refractory" in conformal_set, "refractory" in conformal_set])
        flags.append(answer.flags)
        advance()
    return VersionPredictions(np.array(probabilities), np.array(log_odds), np.array(kept, bool), flags)


@dataclass(frozen=True)
class ScoredCohort:
    """A cohort and the predictions of the versions for it.

    Attributes:
        manifests: Manifests of the versions.
        read: The cohort as it was read.
        patients: The selected studies (n).
        data: Their arrays.
        predictions: Predictions by ``NAME VERSION``.
        remarks: What was found on the cohort.
    """

    manifests: tuple[Manifest, ...]
    read: cohort.Cohort
    patients: cohort.Cohort
    data: Dataset
    predictions: Mapping[str, VersionPredictions]
    remarks: tuple[str, ...]


def predict_cohort(config: EvalConfig, progress: ProgressReporter) -> ScoredCohort:
    """Read a cohort, check it, prepare it, and predict it with every version.

    Raises:
        CohortFault: With every fault of the cohort, or if a folder holds no version.
    """
    manifests = [read_manifest(folder) for folder in config.versions]
    read = cohort.read(
        config.cohort,
        drop_unknown=config.drop_unknown,
        target=config.target,
        rules=config.columns,
        date_format=config.date_format,
        own=OwnColumns(config.own_variables, {_name(m): m.clinical.own for m in manifests}),
    )
    if len({_name(manifest) for manifest in manifests}) < len(manifests):
        raise CohortFault(["one version is given twice; give each version once"])
    patients = _select(read, config)
    for manifest in manifests:
        if manifest.training.target != patients.target:
            fault = f"{_name(manifest)} predicts {manifest.training.target}, and the cohort's outcome is another"
            raise CohortFault([f"{fault}: {patients.target}"])
    return _predicted(manifests, read, patients, config, progress)


def predict_unlabelled(config: EvalConfig, progress: ProgressReporter) -> ScoredCohort:
    """Like ``predict_cohort``, for one version and every study, whether its outcome is known or not.

    The label of an unknown outcome is ``preprocess.UNKNOWN``.

    Raises:
        CohortFault: With every fault of the cohort, or if the folder holds no version.
    """
    (folder,) = config.versions
    manifest = read_manifest(folder)
    read = cohort.read_unlabelled(
        config.cohort,
        manifest.training.target,
        rules=config.columns,
        date_format=config.date_format,
        own=OwnColumns(config.own_variables, {_name(manifest): manifest.clinical.own}),
    )
    return _predicted([manifest], read, read, config, progress, needs_outcomes=False)


def _predicted(
    manifests: Sequence[Manifest],
    read: cohort.Cohort,
    patients: cohort.Cohort,
    config: EvalConfig,
    progress: ProgressReporter,
    *,
    needs_outcomes: bool = True,
) -> ScoredCohort:
    """Prepare, check and predict the selected ``patients`` of the cohort ``read`` with every version."""
    layouts = [channels_of(manifest) for manifest in manifests]
    patients = dicom_studies.convert(patients, config.dicom, progress, jobs=config.jobs)
    suspicions = suspicious.check(patients, config.accept, accept_images=config.accept_flags)
    prepare = partial(preprocess, patients, progress, jobs=config.jobs, needs_outcomes=needs_outcomes)
    seen = {channels: prepare(channels=channels) for channels in dict.fromkeys(layouts)}
    data = seen[layouts[0]]
    remarks = [training_overlap.check(manifest, patients, data, accept=config.i_know) for manifest in manifests]
    repeats = suspicious.SAME_IMAGE in suspicious.accepted(config.accept)
    remarks.append(input_checks.check(patients, data, accept=config.accept_flags, accept_repeats=repeats))
    remarks.append(read.counts.dropped_note(least=SMALL) if read.counts else "")
    remarks.append(repeated_note(of_patients(data.groups)))
    remarks += [suspicions, *(unread_columns.of_version(patients, manifest) for manifest in manifests)]
    predictions: dict[str, VersionPredictions] = {}
    with progress.stage("predicting", len(data) * len(manifests)) as advance:
        for manifest, folder, channels in zip(manifests, config.versions, layouts, strict=True):
            model = ModelVersion.load(folder, manifest, config.device)
            predictions[_name(manifest)] = predict_all(model, seen[channels], lambda: advance(1))
    return ScoredCohort(tuple(manifests), read, patients, data, predictions, tuple(filter(None, remarks)))


def score(config: EvalConfig, progress: ProgressReporter | None = None) -> str:
    """Score the versions, write a report, and return the tables as Markdown.

    Raises:
        CohortFault: With every fault of the cohort, or if a folder holds no version.
    """
    report_folder.check(config.report)
    scored = predict_cohort(config, progress or ProgressReporter())
    manifests, data, predictions = scored.manifests, scored.data, scored.predictions
    probabilities = {name: one.probabilities for name, one in predictions.items()}
    sections = [*scored.remarks, *("\n".join(_metrics(m, data, predictions[_name(m)])) for m in manifests)]
    if len(probabilities) > 1:
        sections.append("\n".join(_comparison(data, probabilities)))
    folder = _write_report(config, manifests, scored.read, data, predictions, sections)
    for manifest in manifests:
        own = probabilities[_name(manifest)]
        sections.append(
            f"{_name(manifest)}\n\n" + "\n".join(report.decisions(data.labels, own, of_patients(data.groups)))
        )
        decided = (own >= manifest.threshold.value).astype(np.float64)
        sections.append(
            "\n".join(subgroups.lines(data, np.arange(len(data)), own, decided, clusters=of_patients(data.groups)))
        )
    return "\n\n".join([*sections, f"Report, figures and predictions of each patient: {folder}"])


def _write_report(
    config: EvalConfig,
    manifests: Sequence[Manifest],
    read: cohort.Cohort,
    data: Dataset,
    predictions: Mapping[str, VersionPredictions],
    sections: Sequence[str],
) -> Path:
    """Write the report and ``evaluation.csv``; returns the folder. ``read``: the cohort before the selection."""
    stages = stages_of(read, config)
    patients = replace(read, studies=tuple(stages[-1][1])) if stages else read
    digests = {
        _name(manifest): hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
        for manifest, folder in zip(manifests, config.versions, strict=True)
    }
    data_sha256 = provenance.data_digest(patients, data)
    key = hashlib.sha256(json.dumps([*digests.values(), data_sha256, config.site, config.since]).encode()).hexdigest()
    names = [f"{manifest.name}-{manifest.version}" for manifest in manifests]
    folder = config.report or report_folder.default(patients.folder, config.cohort, names, key)
    probabilities = {name: one.probabilities for name, one in predictions.items()}
    first, rows = manifests[0], np.arange(len(data))
    report.write(
        folder,
        f"{', '.join(probabilities)} on {config.cohort.name}",
        sections,
        data,
        rows,
        probabilities if data.oracle is None else probabilities | {ORACLE: data.oracle},
        _name(first),
        (probabilities[_name(first)] >= first.threshold.value).astype(np.float64),
        description=description.describe(data, read, stages),
        document={
            "versions": digests,
            "data_sha256": data_sha256,
            "target": patients.target,
            "decisions": {
                _name(manifest): _decision_shares(
                    data.labels, probabilities[_name(manifest)] >= manifest.threshold.value
                )
                for manifest in manifests
            },
            "first_minus": {
                name: asdict(delong(data.labels, probabilities[_name(first)], own, clusters=of_patients(data.groups)))
                for name, own in probabilities.items()
                if name != _name(first)
            },
        },
    )
    sources = {_name(m): Source(f"{m.name}@{m.version}", digests[_name(m)]) for m in manifests}
    own = [_for_file(manifest, predictions[_name(manifest)]) for manifest in manifests]
    path = folder / "evaluation.csv"
    patient_files.write(path, patient_files.EVALUATION, own, patients.studies, data, sources)
    return folder


def _for_file(manifest: Manifest, one: VersionPredictions) -> Predictions:
    count = len(one.probabilities)
    return Predictions(
        model=_name(manifest),
        rows=np.arange(count),
        folds=[""] * count,
        probabilities=one.probabilities,
        decided=one.probabilities >= manifest.threshold.value,
        kept=None if manifest.conformal is None else one.kept,
        flags=one.flags,
    )


def _name(manifest: Manifest) -> str:
    return f"{manifest.name} {manifest.version}"


def _select(patients: cohort.Cohort, config: EvalConfig) -> cohort.Cohort:
    """The studies of the requested site and dates."""
    stages = stages_of(patients, config)
    selected = stages[-1][1] if stages else patients.studies
    outcomes = {study.outcome for study in selected}
    if len(outcomes) < 2:
        raise CohortFault([f"{len(selected)} patients are left, of one outcome only: there is nothing to score"])
    return replace(patients, studies=tuple(selected))


def stages_of(patients: cohort.Cohort, config: EvalConfig) -> list[tuple[str, Sequence[cohort.CohortRow]]]:
    """Each selection: why studies are left out, and the studies that are left."""
    stages: list[tuple[str, Sequence[cohort.CohortRow]]] = []
    selected: Sequence[cohort.CohortRow] = patients.studies
    if config.site:
        selected = [study for study in selected if study.site == cells.composed(config.site)]
        stages.append(("another site (--site)", selected))
    if config.since:
        selected = _since(selected, config.since)
        stages.append((f"before {config.since} (--since)", selected))
    return stages


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
    labels, probabilities, clusters = data.labels, predictions.probabilities, of_patients(data.groups)
    studies = "" if clusters is None else f" ({len(data)} studies)"
    yield f"{_name(manifest)} on {count(clusters, len(data))} patients{studies}, {int(labels.sum())} with the outcome"
    yield ""
    yield "| metric | value (95 % interval) |"
    yield "|---|---|"
    yield f"| AUC | {auc_estimate(labels, probabilities, clusters=clusters)} |"
    if data.oracle is not None:
        yield f"| AUC of the oracle | {auc(labels, data.oracle):.3f} |"
        yield f"| the oracle minus it | {delong(labels, data.oracle, probabilities, clusters=clusters)} |"
    yield f"| AUPRC | {average_precision_estimate(labels, probabilities, clusters=clusters)} |"
    yield f"| Brier | {brier_estimate(labels, probabilities, clusters=clusters)} |"
    slope = calibration_slope(labels, probabilities, clusters=clusters)
    yield f"| calibration slope (ideal: 1) | {slope} |"
    large = calibration_in_the_large(labels, probabilities, clusters=clusters)
    yield f"| calibration in the large (ideal: 0) | {large} |"
    yield f"| expected calibration error | {calibration_error(labels, probabilities):.3f} |"
    yield from _decisions(labels, probabilities >= manifest.threshold.value)
    if manifest.conformal is not None:
        for value, name in ((0, "not refractory"), (1, "refractory")):
            share = predictions.kept[labels == value, value].mean()
            yield f"| conformal coverage, {name} (nominal {manifest.conformal.level:.2f}) | {share:.3f} |"
        yield f"| uncertain (neither class excluded) | {predictions.kept.all(axis=1).mean():.3f} |"


def _decisions(labels: Labels, decided: NDArray[np.bool_]) -> Iterator[str]:
    for name, share in _decision_shares(labels, decided).items():
        yield f"| {name} | {share:.3f} |" if share is not None else f"| {name} | no patient |"


def _decision_shares(labels: Labels, decided: NDArray[np.bool_]) -> dict[str, float | None]:
    """Shares of right decisions; None without a patient."""
    parts = {
        "sensitivity": decided[labels == 1],
        "specificity": ~decided[labels == 0],
        "PPV": labels[decided] == 1,
        "NPV": labels[~decided] == 0,
    }
    return {name: float(flags.mean()) if len(flags) else None for name, flags in parts.items()}


def _comparison(data: Dataset, probabilities: dict[str, Array]) -> Iterator[str]:
    """Lines of the table that compares the first version with each other one on the same patients."""
    (first, own), *others = probabilities.items()
    yield f"| {first} minus | difference of AUC (95 % interval), DeLong |"
    yield "|---|---|"
    for name, other in others:
        yield f"| {name} | {delong(data.labels, own, other, clusters=of_patients(data.groups))} |"
    if note := multiplicity_note(len(others)):
        yield ""
        yield note
