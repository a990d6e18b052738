"""The paper's table, on the same rows: what clinical data, images and their fusions are worth on this cohort.

Notable choices:
- Every entry is scored on the same validation folds and on the same test part; a simple model that wins is said to.
- mean +- SD over folds as in the paper; the ensemble with a stratified bootstrap interval; DAFT against each by DeLong.
- Where the true chances are known (phantoms), the oracle stands in the table as a model of its own: nobody can be
  expected to do better than it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from app.evaluation.metrics import Array, Comparison, Estimate, auc, bootstrap, delong, f1
from app.training.calibration import Rules, fold_noise, rules
from app.training.splits import Split

ORACLE = "oracle (the true chances)"


@dataclass(frozen=True)
class ResultRow:
    """One line: ``folds`` AUC mean and SD, ``folds_f1`` the same; ``test`` AUC of the ensemble; ``f1`` at the
    out-of-fold threshold; ``rival``: the reference's AUC minus this one's.
    """

    name: str
    folds: tuple[float, float]
    test: Estimate
    f1: float
    rival: Comparison | None
    folds_f1: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class ModelScores:
    """A model's logits: ``out_of_fold`` (n,) on development rows, ``each`` fold's (folds, n) on the others; AUC of each
    fold on its own validation rows.
    """

    out_of_fold: Array
    each: Array
    aucs: tuple[float, ...]

    @property
    def mean(self) -> Array:
        """The ensemble's logits (n,) of rows that no fold has seen, NaN elsewhere."""
        return np.asarray(self.each.mean(axis=0))

    def rules(self, labels: NDArray[np.int64], develop: NDArray[np.int64]) -> Rules:
        """What turns the ensemble's logit into an answer, learnt from the development rows."""
        return rules(labels[develop], self.out_of_fold[develop], noise=fold_noise(self.each), folds=len(self.each))


def of_oracle(chances: Array, labels: NDArray[np.int64], split: Split) -> ModelScores:
    """The oracle as a model: ``chances`` (n,) are the true ones."""
    logits = np.asarray(logit(np.clip(chances, 1e-6, 1 - 1e-6)))
    aucs = tuple(auc(labels[validate], logits[validate]) for _, validate in split.folds)
    return ModelScores(logits, logits[None], aucs)


def table(
    scored: Mapping[str, ModelScores], labels: NDArray[np.int64], split: Split, reference: str, seed: int = 0
) -> list[ResultRow]:
    """One row a model, compared with ``reference`` on the test rows."""
    rows, test = [], split.test
    for name, model in scored.items():
        learnt = model.rules(labels, split.develop)
        alone = rules(labels[split.develop], model.out_of_fold[split.develop])  # for a fold by itself
        by_fold = [f1(labels[own], alone.decide(model.out_of_fold[own])) for _, own in split.folds]
        rival = None
        if name != reference and reference in scored:
            rival = delong(labels[test], scored[reference].mean[test], model.mean[test])
        rows.append(
            ResultRow(
                name=name,
                folds=(float(np.mean(model.aucs)), float(np.std(model.aucs))),
                test=bootstrap(auc, labels[test], model.mean[test], seed=seed),
                f1=f1(labels[test], learnt.decide(model.mean[test])),
                rival=rival,
                folds_f1=(float(np.mean(by_fold)), float(np.std(by_fold))),
            )
        )
    return rows


def markdown(rows: Sequence[ResultRow], reference: str) -> str:
    """The table as Markdown, and in a sentence who is best."""
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
            f"| {row.rival or ('reference' if reference in row.name else '')} |"
        )
    return "\n".join([*lines, "", verdict(rows)])


def verdict(rows: Sequence[ResultRow]) -> str:
    """Who is best on the folds and on the test part; the oracle does not compete."""
    models = [row for row in rows if row.name != ORACLE]
    on_folds = max(models, key=lambda row: row.folds[0])
    on_test = max(models, key=lambda row: row.test.value)
    if on_folds is on_test:
        return f"Best on the folds and on the test part: {on_folds.name}."
    return f"Best on the folds: {on_folds.name}. Best on the test part: {on_test.name}."
