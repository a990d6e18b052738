"""Stage 4 of a training run: fit the models of the results table on every split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from app.training import distributed, experiment, pretrained
from app.training.dataset import Dataset
from app.training.experiment import ExperimentConfig, ExperimentResult
from app.training.options import TrainConfig
from app.training.pretrained import Pretrained
from app.training.progress import ProgressReporter
from app.training.split import RunSplits
from app.training.trainer import Recipe

TAIL_RECIPE = Recipe(epochs=8, batch=64, rate=6e-3, patience=8, l2_to_init=1e-4)
"""Recipe of the modulation and the head on a pretrained trunk."""


@dataclass(frozen=True)
class FittedModels:
    """Fitted models of every split.

    Attributes:
        results: One result for each split, in the order of the splits; networks are kept for a single split only.
        notes: Origin of a pretrained trunk, for the model card.
    """

    results: tuple[ExperimentResult, ...]
    config: ExperimentConfig
    notes: tuple[str, ...]


def fit(
    splits: RunSplits, data: Dataset, config: TrainConfig, device: torch.device, progress: ProgressReporter
) -> FittedModels:
    """Fit the table's models on every split. A killed run continues from the checkpoints in the splits' folders."""
    trunk = _pretrained(config, device, splits.folder, progress)
    settings = ExperimentConfig(
        seed=config.seed,
        filters=trunk.network.architecture.filters if trunk else experiment.FILTERS,
        recipe=TAIL_RECIPE if trunk else Recipe(epochs=config.epochs),
        networks=_rows(config),
        variables=config.variables,
    )
    # Under torchrun each fold uses all ranks, so the folds run one after another.
    jobs = 1 if distributed.is_distributed() else config.jobs
    folds = sum(len(part.split.folds) for part in splits.parts)
    results = []
    with progress.stage("training", folds * len(settings.networks) * settings.recipe.epochs) as advance:
        for part in splits.parts:
            result = experiment.fit_models(
                settings,
                data,
                part.split,
                device,
                progress,
                trunk=trunk,
                folder=part.folder,
                shared=splits.folder,
                jobs=jobs,
                advance=advance,
            )
            results.append(replace(result, networks={}) if config.validation.has_many_splits else result)
    return FittedModels(tuple(results), settings, (trunk.note,) if trunk else ())


def _rows(config: TrainConfig) -> tuple[str, ...]:
    """The networks of the results table that are trained, in its order."""
    published = experiment.PUBLISHED[config.model]
    compared = {experiment.PUBLISHED[model] for model in config.compare}
    if config.quick or compared:
        return tuple(name for name in experiment.NETWORKS if name == published or name in compared)
    return tuple(experiment.NETWORKS)


def _pretrained(
    config: TrainConfig, device: torch.device, folder: Path, progress: ProgressReporter
) -> Pretrained | None:
    """The network whose trunk and last block are reused; None: train whole networks."""
    if config.trunk is not None:
        return pretrained.from_version(config.trunk)
    if config.phantoms:
        return pretrained.from_phantoms(config.phantoms, config.seed, device, folder, progress, config.jobs)
    return None
