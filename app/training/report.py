"""What a run or an evaluation leaves to be read: ``report.md`` with its tables, and the four figures beside it.

Notable choices:
- Written from the numbers that were just computed; the folder appears whole, in place of an earlier report of the run.
"""

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
    threshold: float,
) -> Path:
    """Write the report of ``rows`` of a cohort; its path.

    :param tables: Markdown, in their order
    :param models: calibrated probabilities (len(rows),) by name, ``chosen`` among them
    :param threshold: of the chosen one's decision
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
            "\n".join(subgroups.lines(data, rows, models[chosen], threshold)),
        ]
        (draft / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
    return folder / "report.md"


def decisions(labels: Labels, chances: Array) -> list[str]:
    """The decision curve at a few thresholds, as a Markdown table."""
    lines = ["| act above | net benefit | of treating all |", "|---|---|---|"]
    everybody = net_benefit(labels, np.ones(len(labels)), THRESHOLDS)
    for threshold, gain, all_ in zip(THRESHOLDS, net_benefit(labels, chances, THRESHOLDS), everybody, strict=True):
        lines.append(f"| {threshold:.2f} | {gain:+.3f} | {all_:+.3f} |")
    return lines
