"""Baseline models of the clinical record alone: logistic regression and gradient boosting.

Design notes:
- They use the same clinical vectors (imputed, scaled, with missing bits) and the same folds as the networks.
- The L2 penalty of the logistic regression is fixed (C = 0.3): some hundred patients are too few for a search.
- Gradient boosting has shallow trees and a low learning rate for the same reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from app.evaluation.metrics import Array, auc
from app.inference.fold_files import LogisticFold
from app.training.splits import Split


class Baseline(StrEnum):
    """Kind of baseline model."""

    LOGISTIC = "logistic"
    BOOSTING = "boosting"


@dataclass(frozen=True)
class FittedBaseline:
    """Folds of a baseline: scores as in ``folds.Trained``, and coefficients of a logistic regression."""

    out_of_fold: Array
    each: Array
    aucs: tuple[float, ...]
    logistic: tuple[LogisticFold, ...]

    @property
    def mean(self) -> Array:
        """(n,) mean logits of the folds on rows outside ``develop``, NaN elsewhere."""
        return np.asarray(self.each.mean(axis=0))


def fit(
    kind: Baseline,
    vectors: NDArray[np.float32],
    labels: NDArray[np.int64],
    split: Split,
    columns: NDArray[np.bool_],
    seed: int,
) -> FittedBaseline:
    """Fit a baseline on ``columns`` (v,) of the clinical ``vectors`` (n, v); ``labels`` (n,) are 0 or 1."""
    inputs = vectors[:, columns].astype(np.float64)
    out_of_fold = np.full(len(labels), np.nan)
    each = np.full((len(split.folds), len(labels)), np.nan)
    others = np.setdiff1d(np.arange(len(labels)), split.develop)
    aucs, logistic = [], []
    for fold, (learn, validate) in enumerate(split.folds):
        if kind is Baseline.LOGISTIC:
            model = LogisticRegression(C=0.3, max_iter=2000).fit(inputs[learn], labels[learn])
            coefficients = np.zeros(vectors.shape[1])
            coefficients[columns] = model.coef_[0]
            logistic.append(LogisticFold(tuple(map(float, coefficients)), float(model.intercept_[0])))
        else:
            model = HistGradientBoostingClassifier(
                learning_rate=0.04,
                max_iter=120,
                max_leaf_nodes=8,
                min_samples_leaf=20,
                l2_regularization=1.0,
                random_state=seed,
            ).fit(inputs[learn], labels[learn])
        for rows, target in ((validate, out_of_fold), (others, each[fold])):
            if len(rows):
                target[rows] = logit(np.clip(model.predict_proba(inputs[rows])[:, 1], 1e-6, 1 - 1e-6))
        aucs.append(auc(labels[validate], out_of_fold[validate]))
    return FittedBaseline(out_of_fold, each, tuple(aucs), tuple(logistic))
