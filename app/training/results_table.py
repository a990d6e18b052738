"""Results table: every model scored on the same validation folds and on the same test part.

Design notes:
- The table has the paper's statistics: mean and SD over folds, the ensemble's AUC with its interval, and the
  difference from DAFT by DeLong's test.
- F1 of a fold is at the threshold of the other folds, so that no patient helps to choose the own threshold.
- For phantoms the true probabilities are known; the oracle that predicts them is a model of the table, and its upper
  limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from app.evaluation.clusters import Clusters, chosen, rarer_outcome
from app.evaluation.metrics import Array, Comparison, Estimate, auc, auc_estimate, delong, f1, multiplicity_note
from app.training.calibration import Rules, fold_noise, rules
from app.training.splits import Split

ORACLE = "oracle (the true chances)"
MIN_EVENTS = 10
"""Fewest test patients of the rarer outcome for which the best model of the test part is named."""


@dataclass(frozen=True)
class ResultRow:
    """One model of the table.

    Attributes:
        folds: Mean and SD of the folds' AUC.
        test: AUC of the ensemble on the test part.
        f1: F1 of the ensemble on the test part, at the out-of-fold threshold.
        comparison: AUC of the reference model minus that of this one; None for the reference.
        folds_f1: Mean and SD of the folds' F1.
        events: Test patients of the rarer outcome.
    """

    name: str
    folds: tuple[float, float]
    test: Estimate
    f1: float
    comparison: Comparison | None
    folds_f1: tuple[float, float] = (0.0, 0.0)
    events: int = MIN_EVENTS


@dataclass(frozen=True)
class ModelScores:
    """Logits of one model on the n rows of a cohort.

    Attributes:
        out_of_fold: (n,), each development row by the fold that was not trained on it; NaN elsewhere.
        each: (folds, n), each fold on the rows outside development; NaN elsewhere.
        aucs: AUC of each fold on its validation rows.
    """

    out_of_fold: Array
    each: Array
    aucs: tuple[float, ...]

    @property
    def mean(self) -> Array:
        """The ensemble's logits (n,) on the rows outside development, NaN elsewhere."""
        return np.asarray(self.each.mean(axis=0))

    def rules(self, labels: NDArray[np.int64], develop: NDArray[np.int64]) -> Rules:
        """Learn the ensemble's rules from the development rows."""
        return rules(labels[develop], self.out_of_fold[develop], noise=fold_noise(self.each), folds=len(self.each))


def of_oracle(probabilities: Array, labels: NDArray[np.int64], split: Split) -> ModelScores:
    """Scores of the oracle, which predicts the true ``probabilities`` (n,)."""
    logits = np.asarray(logit(np.clip(probabilities, 1e-6, 1 - 1e-6)))
    aucs = tuple(auc(labels[validate], logits[validate]) for _, validate in split.folds)
    return ModelScores(logits, logits[None], aucs)


def table(
    scored: Mapping[str, ModelScores],
    labels: NDArray[np.int64],
    split: Split,
    reference: str,
    clusters: Clusters = None,
) -> list[ResultRow]:
    """One row for each model, compared with ``reference`` on the test rows.

    ``clusters`` (n,) number the patients if some have several studies.
    """
    rows, test, patients = [], split.test, chosen(clusters, split.test)
    for name, model in scored.items():
        ensemble_rules = model.rules(labels, split.develop)
        by_fold = [
            _f1_of_fold(model.out_of_fold, labels, np.setdiff1d(split.develop, own), own) for _, own in split.folds
        ]
        comparison = None
        if name != reference and reference in scored:
            comparison = delong(labels[test], scored[reference].mean[test], model.mean[test], clusters=patients)
        rows.append(
            ResultRow(
                name=name,
                folds=(float(np.mean(model.aucs)), float(np.std(model.aucs, ddof=1))),
                test=auc_estimate(labels[test], model.mean[test], clusters=patients),
                f1=f1(labels[test], ensemble_rules.decide(model.mean[test])),
                comparison=comparison,
                folds_f1=(float(np.mean(by_fold)), float(np.std(by_fold, ddof=1))),
                events=rarer_outcome(labels[test], patients),
            )
        )
    return rows


def _f1_of_fold(logits: Array, labels: NDArray[np.int64], others: NDArray[np.int64], own: NDArray[np.int64]) -> float:
    """F1 of the fold with the rows ``own``, at the threshold of the ``others``."""
    return f1(labels[own], rules(labels[others], logits[others]).decide(logits[own]))


def markdown(rows: Sequence[ResultRow], reference: str, *, least: int = 0) -> str:
    """The table as Markdown, and one sentence that names the best model; counts below ``least`` are not shown."""
    heads = (
        "model",
        "AUC, folds (mean ± SD)",
        "F1, folds (mean ± SD)",
        "AUC, ensemble on test (95 % interval)",
        "F1 on test",
        f"{reference} minus it",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        (area, spread), (score, scatter) = row.folds, row.folds_f1
        lines.append(
            f"| {row.name} | {area:.3f} ± {spread:.3f} | {score:.2f} ± {scatter:.2f} | {row.test} | {row.f1:.2f} "
            f"| {row.comparison or ('reference' if reference in row.name else '')} |"
        )
    note = multiplicity_note(sum(row.comparison is not None for row in rows))
    return "\n".join([*lines, "", verdict(rows, least), *([note] if note else [])])


def verdict(rows: Sequence[ResultRow], least: int = 0) -> str:
    """Name the best model on the folds and, with enough events, on the test part; the oracle is left out.

    A number of events below ``least`` is not shown.
    """
    models = [row for row in rows if row.name != ORACLE]
    on_folds = max(models, key=lambda row: row.folds[0])
    if (events := min(row.events for row in rows)) < MIN_EVENTS:
        count = f"Fewer than {least}" if events < least else str(events)
        floor = f"{count} test patients of the rarer outcome are too few to name a best model; {MIN_EVENTS} are needed"
        return f"Best on the folds: {on_folds.name}. {floor}."
    on_test = max(models, key=lambda row: row.test.value)
    if on_folds is on_test:
        return f"Best on the folds and on the test part: {on_folds.name}."
    return f"Best on the folds: {on_folds.name}. Best on the test part: {on_test.name}."
