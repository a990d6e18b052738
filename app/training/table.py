"""The paper's table, on the same rows: what clinical data, images and their fusions are worth on this cohort.

Notable choices:
- Every entry is scored on the same validation folds and on the same test part; a simple model that wins is said to.
- mean +- SD over folds as in the paper; the ensemble with a stratified bootstrap interval; DAFT against each by DeLong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.training.metrics import Array, Comparison, Estimate, auc, bootstrap, delong, f1, probabilities_of
from app.training.version import rules


@dataclass(frozen=True)
class Row:
    """One line: ``folds`` AUC mean and SD; ``test`` AUC of the ensemble; ``f1`` at the out-of-fold threshold;
    ``rival``: the reference's AUC minus this one's.
    """

    name: str
    folds: tuple[float, float]
    test: Estimate
    f1: float
    rival: Comparison | None


@dataclass(frozen=True)
class Scored:
    """A model's logits: ``out_of_fold`` (n,) on development rows, ``mean`` (n,) on the others; AUC of each fold."""

    out_of_fold: Array
    mean: Array
    aucs: tuple[float, ...]


def table(
    scored: Mapping[str, Scored], labels: NDArray[np.int64], develop: NDArray[np.int64], test: NDArray[np.int64],
    reference: str, seed: int = 0,
) -> list[Row]:  # fmt: skip
    """One row a model, compared with ``reference`` on the test rows."""
    rows = []
    for name, model in scored.items():
        learnt = rules(labels[develop], model.out_of_fold[develop])
        decided = (
            probabilities_of(model.mean[test], learnt.calibration.slope, learnt.calibration.intercept)
            >= learnt.threshold.value
        )
        rival = None
        if name != reference and reference in scored:
            rival = delong(labels[test], scored[reference].mean[test], model.mean[test])
        rows.append(
            Row(
                name=name,
                folds=(float(np.mean(model.aucs)), float(np.std(model.aucs))),
                test=bootstrap(auc, labels[test], model.mean[test], seed=seed),
                f1=f1(labels[test], decided),
                rival=rival,
            )
        )
    return rows


def markdown(rows: list[Row], reference: str) -> str:
    """The table as Markdown."""
    lines = [
        f"| model | AUC, folds (mean ± SD) | AUC, ensemble on test (95 % interval) | F1 | {reference} minus it |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        mean, spread = row.folds
        lines.append(
            f"| {row.name} | {mean:.3f} ± {spread:.3f} | {row.test} | {row.f1:.2f} | {row.rival or 'reference'} |"
        )
    return "\n".join(lines)
