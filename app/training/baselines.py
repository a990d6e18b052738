"""What an imaging network has to beat: models of the clinical record alone.

Notable choices:
- They see the very same clinical vectors (imputed, scaled, with missing bits) and the very same folds.
- Logistic regression is L2-penalised with C = 0.3, fixed beforehand: with some hundred patients a search for it would
  cost more than it gains. It can become a version of its own.
- Gradient boosting is shallow and slow-learning, for the same reason.
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
from app.inference.model_version import LogisticFold
from app.training.splits import Split


class Baseline(StrEnum):
    LOGISTIC = "logistic"
    BOOSTING = "boosting"


@dataclass(frozen=True)
class FittedBaseline:
    """Four folds of a baseline: as ``folds.Trained``, and the coefficients where it is logistic."""

    out_of_fold: Array
    each: Array
    aucs: tuple[float, ...]
    logistic: tuple[LogisticFold, ...]

    @property
    def mean(self) -> Array:
        return np.asarray(self.each.mean(axis=0))


def fit(
    kind: Baseline,
    vectors: NDArray[np.float32],
    labels: NDArray[np.int64],
    split: Split,
    columns: NDArray[np.bool_],
    seed: int,
) -> FittedBaseline:
    """Fit a baseline on the clinical vectors (n, v), of which it sees ``columns`` (v,)."""
    seen = vectors[:, columns].astype(np.float64)
    out_of_fold = np.full(len(labels), np.nan)
    each = np.full((len(split.folds), len(labels)), np.nan)
    others = np.setdiff1d(np.arange(len(labels)), split.develop)
    aucs, logistic = [], []
    for fold, (learn, validate) in enumerate(split.folds):
        if kind is Baseline.LOGISTIC:
            model = LogisticRegression(C=0.3, max_iter=2000).fit(seen[learn], labels[learn])
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
            ).fit(seen[learn], labels[learn])
        for rows, into in ((validate, out_of_fold), (others, each[fold])):
            if len(rows):
                into[rows] = logit(np.clip(model.predict_proba(seen[rows])[:, 1], 1e-6, 1 - 1e-6))
        aucs.append(auc(labels[validate], out_of_fold[validate]))
    return FittedBaseline(out_of_fold, each, tuple(aucs), tuple(logistic))
