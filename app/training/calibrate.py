"""Stage 6 of a training run: learn the rules of the published model, and the statistics of its version."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from app.inference import defaults
from app.registry.manifest import Background, OutOfDistribution
from app.training import calibration, input_limits
from app.training.calibration import Rules
from app.training.dataset import Dataset
from app.training.experiment import CHANNEL_NAMES, LOGISTIC, NETWORKS, PUBLISHED
from app.training.fit import FittedModels
from app.training.options import TrainConfig
from app.training.tasks import TrainingContext


@dataclass(frozen=True)
class VersionStatistics:
    """Statistics of the development patients in a version's manifest; a logistic regression has no OOD limits."""

    rules: Rules
    background: Background
    out_of_distribution: OutOfDistribution | None


def calibrate(fitted: FittedModels, data: Dataset, config: TrainConfig) -> VersionStatistics | None:
    """Learn the rules, the background and the OOD statistics of the version; None if none is requested."""
    if config.out is None:
        return None
    name = PUBLISHED[config.model]
    (result,) = fitted.results
    develop, seed = result.split.develop, fitted.config.seed
    rules = result.scores[name].rules(data.labels, develop)
    familiar = None
    if name != LOGISTIC:
        visible = [CHANNEL_NAMES.index(channel) for channel in NETWORKS[name][1]]
        cpu = torch.device("cpu")
        context = TrainingContext(
            data.only(visible),
            result.vectors,
            defaults.GRID,
            CHANNEL_NAMES,
            cpu,
            reference=result.reference,
            left=result.left,
        )
        familiar = calibration.out_of_distribution(result.networks[name], context, develop, seed)
        if result.reference is not None:
            inputs = input_limits.learn(context.data, develop, defaults.CHANNELS, defaults.GRID, result.reference, seed)
            familiar = familiar.model_copy(update={"inputs": inputs})
    background = calibration.background(result.vectors, data.presence, develop, seed)
    return VersionStatistics(rules, background, familiar)
