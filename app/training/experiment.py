"""Fit every model of the results table on one split, all of them on the same folds and the same rows.

Design notes:
- Statistics of the clinical variables (imputation, scale) come from the development patients and are shared by the
  folds, because a version has one clinical vector. They use no outcome.
- A network that may see few channels is built with these channels only, unless it shares a pretrained trunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from app.inference import clinical_encoder, defaults
from app.inference.fold_files import LogisticFold
from app.inference.reference_head import ReferenceHead
from app.network.architecture import Fusion
from app.network.daft import Network
from app.registry.manifest import Clinical
from app.training import baselines, folds, pretrained, reference
from app.training import variables as clinical_variables
from app.training.baselines import Baseline
from app.training.dataset import Dataset, Vectors
from app.training.options import PublishedModel
from app.training.pretrained import Pretrained
from app.training.progress import Advance, ProgressReporter
from app.training.results_table import ORACLE, ModelScores, of_oracle
from app.training.splits import Split
from app.training.tasks import TrainingContext, Views
from app.training.trainer import Recipe

CHANNEL_NAMES = tuple(channel.name for channel in defaults.CHANNELS)

DAFT = "imaging + clinical, DAFT"
LOGISTIC = "clinical + CTP, logistic regression"

NETWORKS: dict[str, tuple[Fusion, tuple[str, ...]]] = {
    "NCCT": (Fusion.NONE, ("ncct",)),
    "CTA + vessels": (Fusion.NONE, ("cta", "vessels")),
    "all imaging": (Fusion.NONE, CHANNEL_NAMES),
    "imaging + clinical, concatenation": (Fusion.CONCAT, CHANNEL_NAMES),
    "imaging + clinical, FiLM": (Fusion.FILM, CHANNEL_NAMES),
    DAFT: (Fusion.DAFT, CHANNEL_NAMES),
}
"""The rows of the table that are networks: fusion, and visible channels."""

FILTERS = 8
"""Width of a network that is trained as a whole."""

PUBLISHED = {
    PublishedModel.DAFT: DAFT,
    PublishedModel.FILM: "imaging + clinical, FiLM",
    PublishedModel.CONCAT: "imaging + clinical, concatenation",
    PublishedModel.IMAGING: "all imaging",
    PublishedModel.LOGISTIC: LOGISTIC,
}
"""The row of the table for each model that can be published."""


@dataclass(frozen=True)
class ExperimentConfig:
    """Training settings that all models of the table share.

    Attributes:
        networks: Rows of ``NETWORKS`` to train.
        variables: Names of the clinical variables; (): the default ones and the own ones of the cohort.
        views: Views of each patient, one plain and the others augmented, on a pretrained trunk.
        filters: Width of the networks.
    """

    seed: int = 0
    recipe: Recipe = field(default_factory=Recipe)
    networks: tuple[str, ...] = tuple(NETWORKS)
    variables: tuple[str, ...] = ()
    views: int = 2
    filters: int = FILTERS


@dataclass(frozen=True)
class ExperimentResult:
    """Models of the table, fitted on one split of n patients.

    Attributes:
        spec: Clinical variables with the statistics of the development patients.
        vectors: Clinical vectors of all patients.
        scores: Logits of every model by its row of the table, the oracle included.
        networks: Folds of each network by its row of the table.
        logistic: Folds of the row ``LOGISTIC``.
        reference: Reference head of the networks.
        left: (n,) whether the left side is affected.
    """

    split: Split
    spec: Clinical
    vectors: Vectors
    scores: dict[str, ModelScores]
    networks: dict[str, tuple[Network, ...]]
    logistic: tuple[LogisticFold, ...]
    reference: ReferenceHead | None = None
    left: NDArray[np.bool_] | None = None


def fit_models(
    config: ExperimentConfig,
    data: Dataset,
    split: Split,
    device: torch.device,
    progress: ProgressReporter,
    *,
    trunk: Pretrained | None = None,
    folder: Path | None = None,
    shared: Path | None = None,
    jobs: int = 1,
    advance: Advance = lambda _: None,
) -> ExperimentResult:
    """Fit the baselines and the networks of the table, and compute their logits.

    Args:
        config: Settings of all models.
        data: The n patients.
        split: Rows of the folds and of the test part.
        device: Device of the networks.
        progress: Receives messages and the stage of the trunk's features.
        trunk: Pretrained network whose trunk and last block are reused without training; None: train whole networks,
            relative to the mean head of the development patients.
        folder: Folder of this split's checkpoints.
        shared: Folder of the pretrained trunk's features, which all splits of a run share.
        jobs: Folds that run at the same time.
        advance: Receives the epochs done, of ``len(config.networks) * len(split.folds) * config.recipe.epochs``.
    """
    spec = clinical_encoder.fit(
        [data.records[row] for row in split.develop], clinical_variables.select(config.variables, data.own)
    )
    vectors = Vectors.of(data, spec)
    scores, logistic = _fit_baselines(config, data, vectors, split, progress)
    head = reference.make(data, split.develop, defaults.GRID) if trunk is None else trunk.reference
    left = reference.left_sided(data)
    box = trunk.network.architecture.box if trunk else None
    networks: dict[str, tuple[Network, ...]] = {}
    features: dict[tuple[str, ...], Views] = {}
    for name in config.networks:
        fusion, channels = NETWORKS[name]
        visible = tuple(CHANNEL_NAMES.index(channel) for channel in channels)
        given = visible if trunk is None and len(visible) < len(CHANNEL_NAMES) else None
        context = TrainingContext(data.only(visible), vectors, defaults.GRID, CHANNEL_NAMES, device, given, head, left)
        if trunk is not None and channels not in features:
            path = shared / f"views-{'-'.join(channels)}.safetensors" if shared else None
            features[channels] = pretrained.views(trunk.network, context, config.views, config.seed, path, progress)
        epochs = _EpochCounter(name, len(split.folds), config.recipe.epochs, progress, advance)
        fitted = folds.fit(
            defaults.architecture(fusion, spec, filters=config.filters, channels=len(given or CHANNEL_NAMES), box=box),
            context,
            split,
            config.recipe,
            config.seed,
            pretrained_network=trunk.network if trunk else None,
            views=features.get(channels),
            folder=folder,
            name="-".join((fusion.value, *channels)),
            jobs=jobs,
            advance=epochs.update,
        )
        epochs.finish()
        networks[name] = fitted.networks
        scores[name] = ModelScores(fitted.out_of_fold, fitted.each, fitted.aucs)
    if data.oracle is not None:
        scores[ORACLE] = of_oracle(data.oracle, data.labels, split)
    return ExperimentResult(split, spec, vectors, scores, networks, logistic, head, left)


class _EpochCounter:
    """Reports the epochs of one model's folds, which may run at the same time."""

    def __init__(self, name: str, count: int, epochs: int, progress: Callable[[str], None], advance: Advance) -> None:
        self._name, self._epochs, self._progress, self._advance = name, epochs, progress, advance
        self._done = [0] * count

    def update(self, fold: int, epoch: int, score: float) -> None:
        self._progress(f"{self._name}, fold {fold + 1}, epoch {epoch}: {score:.3f}")
        self._advance(epoch - self._done[fold])
        self._done[fold] = epoch

    def finish(self) -> None:
        """Count the epochs of folds that stopped early."""
        self._advance(self._epochs * len(self._done) - sum(self._done))


def _fit_baselines(
    config: ExperimentConfig, data: Dataset, vectors: Vectors, split: Split, progress: ProgressReporter
) -> tuple[dict[str, ModelScores], tuple[LogisticFold, ...]]:
    """Scores of the baselines by their row of the table, and the folds of the row ``LOGISTIC``, which is the last.

    If all clinical variables are perfusion numbers, the record alone has no model.
    """
    joined = vectors.joined(np.arange(len(data)), data.presence)
    with_perfusion = np.arange(joined.shape[1]) < vectors.size  # without presence bits: a baseline sees no image
    record_only = with_perfusion & ~_perfusion_columns(vectors, joined.shape[1])
    scores: dict[str, ModelScores] = {}
    for name, kind, columns in (
        ("clinical, logistic regression", Baseline.LOGISTIC, record_only),
        ("clinical, gradient boosting", Baseline.BOOSTING, record_only),
        (LOGISTIC, Baseline.LOGISTIC, with_perfusion),
    ):
        if not columns.any():
            continue
        fitted = baselines.fit(kind, joined, data.labels, split, columns, config.seed)
        scores[name] = ModelScores(fitted.out_of_fold, fitted.each, fitted.aucs)
        progress(f"{name}: folds {np.mean(fitted.aucs):.3f}")
    return scores, fitted.logistic


def _perfusion_columns(vectors: Vectors, size: int) -> NDArray[np.bool_]:
    """Columns (size,) of the clinical vector that hold perfusion numbers or their missing bits."""
    flags = np.zeros(size, bool)
    columns = len(vectors.owner)
    flags[:columns] = vectors.scalars[vectors.owner]
    flags[columns : columns + len(vectors.scalars)] = vectors.scalars
    return flags
