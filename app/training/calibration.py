"""From folds to a version that can be served: calibration, threshold, conformal sets, background, OOD, golden case.

Notable choices:
- Calibration, threshold and conformal quantiles come from pooled out-of-fold logits: every development patient is
  scored by the one fold that never saw it. Then they are frozen; the test part only measures.
- What is served is the folds' mean, which is less noisy than one fold. Rules learnt from single folds would be too
  timid for it (a calibration slope above one, conformal sets too wide), so the out-of-fold logits are first given the
  spread of the mean (``as_ensemble``). How much the folds disagree is measured where no fold has learnt; no label is
  needed for that.
- The background of the explanations is a sample of development patients, as the network sees them.
- Out-of-distribution statistics describe the ensemble's penultimate features on augmented development patients, some
  without modalities, so that a study with fewer images is not strange for that alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.evaluation.metrics import Array, best_f1_threshold, conformal_thresholds, platt, probabilities_of
from app.inference.clinical_encoder import encode
from app.inference.model_input import ModelInput
from app.network.daft import Network
from app.registry.manifest import Background, Calibration, Clinical, Conformal, OutOfDistribution, Threshold
from app.training.dataset import Dataset, Vectors
from app.training.tasks import TrainingContext

CONFORMAL_LEVEL = 0.9
BACKGROUND = 24
OOD_QUANTILE = 0.995


@dataclass(frozen=True)
class Rules:
    """What turns a mean logit into an answer."""

    calibration: Calibration
    threshold: Threshold
    conformal: Conformal

    def decide(self, logits: Array) -> NDArray[np.bool_]:
        """Whether the outcome is expected."""
        line = self.calibration
        return np.asarray(probabilities_of(logits, line.slope, line.intercept) >= self.threshold.value)


def fold_noise(each: Array) -> float:
    """Variance of one fold's logit about the mean of all folds that could be trained, from what ``each`` fold says
    (folds, n) of rows that none has seen; columns of NaN are left out.
    """
    unseen = each[:, np.isfinite(each).all(axis=0)]
    return float(unseen.var(axis=0, ddof=1).mean()) if unseen.size and len(unseen) > 1 else 0.0


def as_ensemble(labels: NDArray[np.int64], logits: Array, noise: float, folds: int) -> Array:
    """Out-of-fold logits (n,) with the spread that the mean of ``folds`` folds would have had.

    A fold's logit is what all possible folds would say on average, plus a noise of its own of variance ``noise``; of
    that the mean keeps one part in ``folds``. So within a class the variance v falls by noise (1 - 1 / folds) while the
    class's mean stays: each logit moves towards it by the factor sqrt(1 - noise (1 - 1 / folds) / v).
    """
    found = logits.copy()
    for value in (0, 1):
        own = labels == value
        if own.sum() > 1 and (variance := float(logits[own].var())) > 0:
            kept = np.sqrt(max(1 - noise * (1 - 1 / folds) / variance, 0.05))
            found[own] = logits[own].mean() + kept * (logits[own] - logits[own].mean())
    return found


def rules(labels: NDArray[np.int64], logits: Array, *, noise: float = 0.0, folds: int = 1) -> Rules:
    """Learn them from out-of-fold logits (n,), for the mean of ``folds`` folds whose ``fold_noise`` is known."""
    logits = as_ensemble(labels, logits, noise, folds)
    slope, intercept = platt(labels, logits)
    slope = max(slope, 1e-3)  # a model that knows nothing must not turn its ranks around
    probabilities = probabilities_of(logits, slope, intercept)
    negative, positive = conformal_thresholds(labels, probabilities, CONFORMAL_LEVEL)
    return Rules(
        Calibration(slope=slope, intercept=intercept),
        Threshold(value=best_f1_threshold(labels, probabilities), rule="max-f1-out-of-fold"),
        Conformal(level=CONFORMAL_LEVEL, quantile_negative=negative, quantile_positive=positive),
    )


def background(vectors: Vectors, presence: NDArray[np.bool_], rows: NDArray[np.int64], seed: int) -> Background:
    """``BACKGROUND`` clinical vectors of development patients."""
    chosen = np.sort(np.random.default_rng([seed, 10]).choice(rows, min(BACKGROUND, len(rows)), replace=False))
    found = vectors.joined(chosen, presence[chosen])
    return Background(vectors=tuple(tuple(round(float(x), 5) for x in row) for row in found))


@torch.no_grad()
def out_of_distribution(
    networks: Sequence[Network], context: TrainingContext, rows: NDArray[np.int64], seed: int
) -> OutOfDistribution:
    """Mean and precision of the folds' averaged penultimate features, and the distance that few patients exceed."""
    rng = np.random.default_rng([seed, 11])
    weights = [list(network.trunk.state_dict().values()) for network in networks]
    # A taught trunk is the same for all folds: once is enough.
    one = all(torch.equal(a, b) for other in weights[1:] for a, b in zip(weights[0], other, strict=True))
    parts: list[Tensor] = []
    for part in np.array_split(np.sort(rng.permutation(rows)[:512]), 16):
        if not len(part):
            continue
        images, vectors = context.augmented(part, rng, turn=False)
        features = networks[0].trunk(images)
        seen = [network.penultimate(features if one else network.trunk(images), vectors) for network in networks]
        parts.append(torch.stack(seen).mean(dim=0).double().cpu())
    features = torch.cat(parts).numpy()
    mean = features.mean(axis=0)
    covariance = np.cov(features.T)
    shrunk = 0.9 * covariance + 0.1 * np.eye(len(mean)) * np.trace(covariance) / len(mean)
    precision = np.linalg.inv(shrunk)
    apart = np.einsum("ni,ij,nj->n", features - mean, precision, features - mean)
    return OutOfDistribution(
        mean=tuple(round(float(x), 6) for x in mean),
        precision=tuple(tuple(round(float(x), 5) for x in row) for row in precision),
        limit=float(np.quantile(apart, OOD_QUANTILE)),
    )


def case(data: Dataset, vectors: Vectors, spec: Clinical, row: int) -> ModelInput:
    """One row as the model room's ``ModelInput``: a golden case, stored with the version."""
    encoded = encode(data.records[row], spec, data.perfusion[row])
    presence = data.presence[row]
    image = data.images[row].astype(np.float32) * presence[:, None, None, None]
    return ModelInput(
        image=image,
        presence=presence,
        clinical=vectors.joined(np.array([row]), presence[None])[0],
        shown=encoded.shown,
        imputed=encoded.imputed,
        perfusion=data.perfusion[row],
    )
