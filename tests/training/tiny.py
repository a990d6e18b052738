"""Tiny cohorts and networks: 8-cubed images, one or two clinical facts, hundreds of patients in milliseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from app.evaluation.metrics import auc
from app.imaging.model_grid import Grid
from app.inference import clinical_encoder
from app.network.architecture import Architecture, Fusion
from app.network.daft import Network, build
from app.registry.manifest import ClinicalVariable, VariableKind
from app.sdk.clinical import ClinicalRecord
from app.sdk.types import Channel
from app.training import tasks, trainer
from app.training.dataset import LATENTS, Dataset, Vectors
from app.training.tasks import EndToEnd, TrainingContext
from app.training.trainer import Recipe

GRID = Grid(shape=(8, 8, 8), affine=((20, 0, 0, -70), (0, 20, 0, -70), (0, 0, 20, -70), (0, 0, 0, 1)))
VARIABLES = [ClinicalVariable(name="age", kind=VariableKind.NUMBER)]
RECIPE = Recipe(epochs=10, batch=16, rate=1e-2, average=0.9, patience=10, rotate=False)
LEARN, VALIDATE, FRESH = np.arange(300), np.arange(300, 400), np.arange(400, 2400)  # rows of the XOR cohort


def tiny_dataset(scores: np.ndarray, brightness: np.ndarray, labels: np.ndarray) -> Dataset:
    """Patients whose age encodes ``scores`` and whose NCCT has a central cube of ``brightness``."""
    n = len(labels)
    images = np.random.default_rng(1).normal(0, 0.1, (n, 1, 8, 8, 8)).astype(np.float16)
    images[:, 0, 3:5, 3:5, 3:5] += brightness[:, None, None, None].astype(np.float16)
    return Dataset(
        images=images,
        presence=np.ones((n, 1), bool),
        records=[ClinicalRecord(age=float(60 + 10 * np.clip(score, -4, 4))) for score in scores],
        perfusion=[None] * n,
        labels=labels.astype(np.int64),
        groups=np.arange(n),
        sites=np.full(n, "one"),
        latents=np.full((n, len(LATENTS)), np.nan, np.float32),
    )


def context_of(data: Dataset) -> TrainingContext:
    spec = clinical_encoder.fit(data.records, VARIABLES)
    return TrainingContext(data, Vectors.of(data, spec), GRID, [Channel.NCCT], torch.device("cpu"))


def xor_context() -> TrainingContext:
    """The outcome is the sign of score times brightness: neither factor alone, nor their sum, predicts it.

    400 patients for training and early stopping, and 2000 for scoring, where the SD of a chance-level AUC is 0.013.
    """
    rng = np.random.default_rng(0)
    scores, brightness = rng.choice([-1.0, 1.0], 2400), rng.choice([-1.0, 1.0], 2400)
    scores, brightness = scores + rng.normal(0, 0.2, 2400), brightness + rng.normal(0, 0.2, 2400)
    return context_of(tiny_dataset(scores, brightness, scores * brightness > 0))


def network(fusion: Fusion, seed: int = 3) -> Network:
    torch.manual_seed(seed)
    return build(Architecture(fusion=fusion, in_channels=1, clinical_size=3, filters=4))


def xor_task(model: Network, context: TrainingContext) -> EndToEnd:
    return EndToEnd(model, context, LEARN, VALIDATE, rotate=False, auxiliary=0.0)


def fit_network(
    fusion: Fusion, context: TrainingContext, recipe: Recipe = RECIPE, checkpoint: Path | None = None, seed: int = 3
) -> Network:
    model = network(fusion, seed)
    trainer.fit(xor_task(model, context), recipe, 5, checkpoint=checkpoint)
    return model


def fresh_auc(model: Network, context: TrainingContext) -> float:
    """AUC on patients that were not used in training."""
    return auc(context.data.labels[FRESH], tasks.logits(model, context, FRESH))
