"""Write the report of a run or an evaluation: ``report.md`` with its tables, and four figures in the same folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from app.core.filesystem import atomic_directory
from app.evaluation import figures, subgroups
from app.evaluation.metrics import Array, Labels, net_benefit
from app.training.dataset import Dataset

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
) -> Path:
    """Write the report of ``rows`` of a cohort into ``folder``, in place of an earlier one; returns its path.

    ``tables`` are Markdown; ``models`` are calibrated probabilities (len(rows),) by name. The decision curve and the
    subgroups are those of the model ``chosen``; ``decided`` (len(rows),) are its decisions, or shares of ensembles.
    """
    labels = data.labels[rows]
    with atomic_directory(folder) as draft:
        names = figures.write(draft, labels, models, chosen)
        parts = [
            f"# {title}",
            f"{len(labels)} patients, {int(labels.sum())} with the outcome.",
            *tables,
            "## Figures",
            "\n".join(f"![{name.replace('-', ' ')}]({name}.svg)" for name in names),
            f"## Decisions by {chosen}",
            "\n".join(decisions(labels, models[chosen])),
            f"## Subgroups, {chosen}",
            "\n".join(subgroups.lines(data, rows, models[chosen], decided)),
        ]
        (draft / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
    return folder / "report.md"


def decisions(labels: Labels, probabilities: Array) -> list[str]:
    """The decision curve at the thresholds ``THRESHOLDS``, as lines of a Markdown table."""
    lines = ["| act above | net benefit | of treating all |", "|---|---|---|"]
    treat_all = net_benefit(labels, np.ones(len(labels)), THRESHOLDS)
    for threshold, gain, gain_of_all in zip(
        THRESHOLDS, net_benefit(labels, probabilities, THRESHOLDS), treat_all, strict=True
    ):
        lines.append(f"| {threshold:.2f} | {gain:+.3f} | {gain_of_all:+.3f} |")
    return lines
