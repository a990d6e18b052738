"""Write the report of a run or an evaluation into one folder: Markdown, JSON, CSV files and four figures."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from app.core import json_text
from app.core.filesystem import atomic_directory
from app.evaluation import curves, figures, metrics, subgroups
from app.evaluation.clusters import Clusters, by_outcome, count, of_patients
from app.evaluation.metrics import Array, Estimate, Labels
from app.training import report_folder
from app.training.dataset import Dataset
from app.training.description import Description
from app.training.errors import CohortFault

THRESHOLDS = np.array([0.05, 0.1, 0.15, 0.2, 0.3, 0.4])


def write(
    folder: Path,
    title: str,
    tables: Sequence[str],
    data: Dataset,
    rows: Labels,
    models: Mapping[str, Array],
    chosen: str,
    decided: Array,
    *,
    description: Description | None = None,
    document: Mapping[str, object] | None = None,
) -> Path:
    """Write the report of ``rows`` of a cohort into ``folder``, in place of an earlier one; returns its path.

    Args:
        folder: New folder, or that of an earlier report.
        title: Title of the report.
        tables: Markdown before the figures.
        data: The cohort.
        rows: Studies (m,) that are scored.
        models: Calibrated probabilities (m,) by name.
        chosen: Model of the decision table, the calibration figure and the subgroups.
        decided: Decisions (m,) of ``chosen``, or shares of the ensembles that decide for the outcome.
        description: Table 1, missing values and flow.
        document: More members of ``report.json``.

    Raises:
        CohortFault: If the folder cannot be written, or is another folder with content.
    """
    report_folder.check(folder)
    labels, clusters = data.labels[rows], of_patients(data.groups[rows])
    try:
        with atomic_directory(folder) as draft:
            names = figures.write(draft, labels, models, chosen, clusters)
            parts = [
                f"# {title}",
                _counts(labels, clusters),
                *tables,
                *(description.sections() if description else ()),
                "## Figures",
                "\n".join(f"![{name.replace('-', ' ')}]({name}.svg)" for name in names),
                f"## Decisions by {chosen}",
                "\n".join(decisions(labels, models[chosen], clusters)),
                f"## Subgroups, {chosen}",
                "\n".join(subgroups.lines(data, rows, models[chosen], decided, clusters=clusters)),
            ]
            (draft / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
            content = {"title": title, **_numbers(data, rows, models, chosen, decided)}
            content |= description.document() if description else {}
            content |= document or {}
            json_text.write(draft / "report.json", content)
            if description:
                description.write(draft)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        fault = f"the report folder {folder} cannot be written ({error.strerror}); give another one with --report"
        raise CohortFault([fault]) from error
    return folder / "report.md"


def _numbers(
    data: Dataset, rows: Labels, models: Mapping[str, Array], chosen: str, decided: Array
) -> dict[str, object]:
    """Scores, decisions and subgroups of a report as JSON; arguments as in ``write``."""
    labels, clusters = data.labels[rows], of_patients(data.groups[rows])
    return {
        "patients": count(clusters, len(labels)),
        "studies": len(labels),
        "events": int(labels.sum()),
        "models": {
            name: {metric: asdict(one) for metric, one in scores(labels, own, clusters).items()}
            for name, own in models.items()
        },
        "chosen": chosen,
        "decision_table": _decision_document(labels, models[chosen], clusters),
        "subgroups": [asdict(row) for row in subgroups.rows_of(data, rows, models[chosen], decided, clusters)],
    }


def _counts(labels: Labels, clusters: Clusters) -> str:
    """Sentence on the patients of a report, and on their studies if some have several."""
    events = int(labels.sum())
    if clusters is None:
        return f"{len(labels)} patients, {events} with the outcome."
    of = by_outcome(labels, clusters)[0]
    studies = f"{len(labels)} studies, {events} with the outcome"
    return f"{count(clusters, len(labels))} patients, {of} with the outcome in any study; {studies}."


def scores(labels: Labels, probabilities: Array, clusters: Clusters = None) -> dict[str, Estimate]:
    """Metrics of calibrated probabilities (n,) with their 95 % intervals."""
    return {
        "auc": metrics.auc_estimate(labels, probabilities, clusters=clusters),
        "auprc": metrics.average_precision_estimate(labels, probabilities, clusters=clusters),
        "brier": metrics.brier_estimate(labels, probabilities, clusters=clusters),
        "calibration_slope": metrics.calibration_slope(labels, probabilities, clusters=clusters),
        "calibration_in_the_large": metrics.calibration_in_the_large(labels, probabilities, clusters=clusters),
    }


def decisions(labels: Labels, probabilities: Array, clusters: Clusters = None) -> list[str]:
    """The decision curve at the thresholds ``THRESHOLDS``, as lines of a Markdown table."""
    lines = ["| act above | net benefit (95 % interval) | of treating all |", "|---|---|---|"]
    for row in _decision_document(labels, probabilities, clusters):
        gain = f"{row['net_benefit']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
        lines.append(f"| {row['threshold']:.2f} | {gain} | {row['of_treating_all']:+.3f} |")
    return lines


def _decision_document(labels: Labels, probabilities: Array, clusters: Clusters) -> list[dict[str, float]]:
    curve = curves.decision(labels, probabilities, THRESHOLDS, clusters)
    treat_all = metrics.net_benefit(labels, np.ones(len(labels)), THRESHOLDS)
    assert curve.low is not None
    assert curve.high is not None
    columns = (curve.x, curve.y, curve.low, curve.high, treat_all)
    names = ("threshold", "net_benefit", "low", "high", "of_treating_all")
    return [dict(zip(names, map(float, values), strict=True)) for values in zip(*columns, strict=True)]
