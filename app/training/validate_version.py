"""Validates one model version on a cohort: ``rlvo validate VERSION COHORT``.

Design notes:
- The version predicts as for ``rlvo evaluate``; the statistics and the report are those of any table of predictions.
- Rows of unknown outcome are not prepared. With ``--drop-unknown`` the flow counts them.
- Patients are compared with the training patients by the means and SDs of the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from app.evaluation import validation, validation_report
from app.evaluation.baseline_table import Characteristic
from app.evaluation.patient_groups import patient_groups
from app.evaluation.report_sections import ReportTable, Section, parts_of
from app.evaluation.validation import PredictionTable
from app.registry.manifest import Manifest, VariableKind
from app.training import description, report_folder
from app.training.dataset import Dataset, Vectors
from app.training.progress import ProgressReporter
from app.training.score import EvalConfig, ScoredCohort, VersionPredictions, predict_cohort, stages_of


def validate_version(
    config: EvalConfig, out: Path, *, rounds: int = 1000, progress: ProgressReporter | None = None
) -> tuple[str, PredictionTable, ScoredCohort]:
    """Validate the one version of ``config`` on its cohort and write the report into ``out``.

    Returns:
        The report as Markdown, the predictions with their outcomes, and the cohort.

    Raises:
        CohortFault: With every fault of the cohort, or if the folder holds no version.
    """
    report_folder.check(out, "--out")
    scored = predict_cohort(config, progress or ProgressReporter())
    (manifest,), (predicted,) = scored.manifests, scored.predictions.values()
    table = prediction_table(scored, predicted, config)
    level = None if manifest.conformal is None else manifest.conformal.level
    result = validation.validate(table, threshold=manifest.threshold.value, level=level, rounds=rounds)
    name = f"{manifest.name}@{manifest.version}"
    remarks = [part for remark in scored.remarks for part in parts_of(remark)]
    items = {
        "12g": f"{name} predicted each patient as the service does.",
        "16": "See the section on the training patients.",
        "20c": "See the section on the training patients.",
        "8a": f"Outcome {manifest.training.target}, as the columns of the table define it.",
    }
    if scored.read.counts and scored.read.counts.dropped:
        items["11"] = f"{scored.read.counts.dropped_note()} The extremes over their outcomes are not known."
    title = f"Validation of {name} on {config.cohort.name}"
    text = validation_report.write(
        out,
        title,
        result,
        config.cohort.name,
        first=[Section("Remarks on the cohort", remarks)],
        more=[_compared(manifest, scored.data)],
        items=items,
    )
    return text, table, scored


def prediction_table(scored: ScoredCohort, predicted: VersionPredictions, config: EvalConfig) -> PredictionTable:
    """The predictions of a version as a table, with the subgroups of every report."""
    data = scored.data
    groups = patient_groups(data)
    described = description.describe(data, scored.read, stages_of(scored.read, config))
    flow = [(step.name, step.studies) for step in described.flow]
    dates = np.array([study.date for study in scored.patients.studies])
    return PredictionTable(
        probabilities=predicted.probabilities,
        outcomes=data.labels.astype(np.float64),
        sites=data.sites if len(set(data.sites.tolist())) > 1 else None,
        dates=dates if any(dates) else None,
        groups=groups,
        characteristics={one.name: one.values for one in _characteristics(data)},
        kept=predicted.kept if scored.manifests[0].conformal is not None else None,
        flow=tuple(flow),
        records=tuple(data.records),
        patients=np.array([study.patient for study in scored.patients.studies]),
    )


def _characteristics(data: Dataset) -> Sequence[Characteristic]:
    return [one for one in description.characteristics(data) if any(value is not None for value in one.values)]


def _compared(manifest: Manifest, data: Dataset) -> Section:
    """Mean of each number and flag, minus that of the training patients, in training SDs."""
    vectors = Vectors.of(data, manifest.clinical)
    rows, column = [], 0
    for place, variable in enumerate(manifest.clinical.variables):
        known = ~vectors.missing[:, place].astype(bool)
        values = vectors.values[known, column]
        column += variable.width
        if variable.kind is VariableKind.CATEGORY:
            continue
        shift = f"{values.mean():+.2f}" if len(values) else ""
        rows.append([variable.name, f"{int((~known).sum())} of {len(known)}", shift])
    note = (
        f"{len(data)} patients against {manifest.training.patients} of the training. The difference is the mean minus "
        "the training mean, in training SDs; for a variable with a logarithm, of its logarithm."
    )
    head = ["variable", "missing here", "difference in SD"]
    return Section("Training patients", [note, ReportTable(head, rows)] if rows else [])
