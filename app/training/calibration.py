"""Learn the rules, the explanation background and the OOD statistics of a model version.

Design notes:
- Calibration, threshold and conformal quantiles are learnt from pooled out-of-fold logits. The test part only measures.
- The ensemble's mean is less noisy than one fold, so out-of-fold logits are first narrowed to the spread of the mean
  (``as_ensemble``); else the calibration slope exceeds one and conformal sets are too wide.
- OOD statistics include augmented patients without some modalities, so a study with few images alone raises no flag.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logit
from torch import Tensor

from app.evaluation.metrics import (
    Array,
    auc,
    best_f1_threshold,
    conformal_thresholds,
    intercept_at,
    platt,
    probabilities_of,
)
from app.network.daft import Network
from app.registry.manifest import Background, Calibration, Conformal, OutOfDistribution, Threshold
from app.training import tasks
from app.training.dataset import Vectors
from app.training.tasks import TrainingContext

CONFORMAL_LEVEL = 0.9
MIN_SLOPE, MAX_SLOPE = 1e-3, 500.0
"""Limits of the calibration slope. A larger one is that of logits that separate the outcomes or hardly differ."""
BACKGROUND = 24
OOD_QUANTILE = 0.995
OOD_PATIENTS, OOD_PARTS = 2048, 4
"""Most patients of the statistics, and parts into which they are divided to find the limit."""


@dataclass(frozen=True)
class Rules:
    """Rules that turn an ensemble's logit into a probability, a decision and a conformal set."""

    calibration: Calibration
    threshold: Threshold
    conformal: Conformal

    def probabilities(self, logits: Array) -> Array:
        """Calibrated probabilities (n,) of the ensemble's logits (n,)."""
        return probabilities_of(logits, self.calibration.slope, self.calibration.intercept)

    def decide(self, logits: Array) -> NDArray[np.bool_]:
        """Whether the calibrated probability of each logit (n,) reaches the threshold."""
        return np.asarray(self.probabilities(logits) >= self.threshold.value)


def fold_noise(each: Array) -> float:
    """Variance of one fold's logit about the mean of all possible folds; needs no labels.

    Args:
        each: Logits (folds, n) of rows that no fold was trained on; columns of NaN are left out.
    """
    unseen = each[:, np.isfinite(each).all(axis=0)]
    return float(unseen.var(axis=0, ddof=1).mean()) if unseen.size and len(unseen) > 1 else 0.0


def as_ensemble(labels: NDArray[np.int64], logits: Array, noise: float, folds: int) -> Array:
    """Narrow out-of-fold logits (n,) to the spread that the mean of ``folds`` folds would have.

    A fold's logit is the mean over all possible folds plus noise of variance ``noise``; the mean of the folds keeps
    ``noise / folds``. Within a class of variance v, each logit is therefore scaled about the class's mean by
    sqrt(1 - noise (1 - 1 / folds) / v). The variance v contains the noise, so this root is at least sqrt(1 / folds); a
    smaller one comes from the few patients of which noise and v are estimated (docs/experiments.md).
    """
    narrowed = logits.copy()
    for value in (0, 1):
        own = labels == value
        if own.sum() > 1 and (variance := float(logits[own].var())) > 0:
            kept = np.sqrt(max(1 - noise * (1 - 1 / folds) / variance, 1 / folds))
            narrowed[own] = logits[own].mean() + kept * (logits[own] - logits[own].mean())
    return narrowed


def rules(labels: NDArray[np.int64], logits: Array, *, noise: float = 0.0, folds: int = 1) -> Rules:
    """Learn the rules from out-of-fold logits (n,), for the mean of ``folds`` folds with this ``fold_noise``.

    The slope is at least ``MIN_SLOPE``, so that the order of patients is kept, and at most ``MAX_SLOPE``. A model whose
    AUC is below 0.5 gets the slope 0: it gives every patient the prevalence. The mean probability is always the
    prevalence.
    """
    ranks_patients = auc(labels, logits) >= 0.5
    logits = as_ensemble(labels, logits, noise, folds)
    slope, intercept = platt(labels, logits) if ranks_patients else (0.0, float(logit(labels.mean())))
    if ranks_patients and not MIN_SLOPE <= slope <= MAX_SLOPE:
        slope = float(np.clip(slope, MIN_SLOPE, MAX_SLOPE))
        intercept = intercept_at(labels, slope * logits)
    probabilities = probabilities_of(logits, slope, intercept)
    negative, positive = conformal_thresholds(labels, probabilities, CONFORMAL_LEVEL)
    return Rules(
        Calibration(slope=slope, intercept=intercept),
        Threshold(value=best_f1_threshold(labels, probabilities), rule="max-f1-out-of-fold"),
        Conformal(level=CONFORMAL_LEVEL, quantile_negative=negative, quantile_positive=positive),
    )


def background(vectors: Vectors, presence: NDArray[np.bool_], rows: NDArray[np.int64], seed: int) -> Background:
    """Draw ``BACKGROUND`` clinical vectors of development patients: the reference of the explanations."""
    chosen = np.sort(np.random.default_rng([seed, 10]).choice(rows, min(BACKGROUND, len(rows)), replace=False))
    joined = vectors.joined(chosen, presence[chosen])
    return Background(vectors=tuple(tuple(round(float(x), 5) for x in row) for row in joined))


@torch.no_grad()
def out_of_distribution(
    networks: Sequence[Network], context: TrainingContext, rows: NDArray[np.int64], seed: int
) -> OutOfDistribution:
    """Mean and precision of the ensemble's penultimate features (mean over folds) on augmented development patients.

    The limit is the squared Mahalanobis distance that a share of 1 - ``OOD_QUANTILE`` of these patients exceeds. Each
    distance is measured with the statistics of the other parts: patients lie nearer to a mean that they belong to, so a
    limit from their own statistics would flag many new patients.
    """
    rng = np.random.default_rng([seed, 11])
    shared = tasks.share_a_trunk(networks)
    parts: list[Tensor] = []
    chosen = rng.permutation(rows)[:OOD_PATIENTS]
    for part in np.array_split(chosen, -(-len(chosen) // 32)):
        images, vectors = context.augmented(part, rng, rotate=False)
        features = networks[0].trunk(images)
        penultimate = [
            network.penultimate(features if shared else network.trunk(images), vectors) for network in networks
        ]
        parts.append(torch.stack(penultimate).mean(dim=0).double().cpu())
    features = torch.cat(parts).numpy()
    places = np.arange(len(features)) % OOD_PARTS
    distances = np.empty(len(features))
    for place in range(OOD_PARTS):
        mean, precision = _mean_and_precision(features[places != place])
        offset = features[places == place] - mean
        distances[places == place] = np.einsum("ni,ij,nj->n", offset, precision, offset)
    mean, precision = _mean_and_precision(features)
    return OutOfDistribution(
        mean=tuple(round(float(x), 6) for x in mean),
        precision=tuple(tuple(round(float(x), 5) for x in row) for row in precision),
        limit=float(np.quantile(distances, OOD_QUANTILE)),
    )


def _mean_and_precision(features: Array) -> tuple[Array, Array]:
    """Mean (c,) and precision (c, c) of features (n, c); the covariance is shrunk by a tenth towards a sphere."""
    covariance = np.atleast_2d(np.cov(features.T))
    sphere = np.eye(len(covariance)) * np.trace(covariance) / len(covariance)
    return features.mean(axis=0), np.linalg.inv(0.9 * covariance + 0.1 * sphere)
