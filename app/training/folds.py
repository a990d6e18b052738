"""Trains all folds of one row of the results table and scores each development patient out of fold.

Design notes:
- A row of the table is one fusion and one set of visible channels; everything else is the same for all rows.
- With a pretrained network only modulation and head are trained, on stored features; otherwise the whole network is.
- Each fold has its own checkpoint file, so that an interrupted run resumes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from app.evaluation.metrics import Array, auc
from app.network.architecture import Architecture
from app.network.daft import Network, build
from app.training import tasks, trainer
from app.training.frozen_trunk import TailOnly
from app.training.process_pool import SharedContext, Tell, share, side_by_side
from app.training.splits import Split
from app.training.tasks import TrainingContext, Views
from app.training.trainer import Recipe

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Trained:
    """Trained folds and their scores on n patients.

    Attributes:
        out_of_fold: (n,) validation logits of development rows, NaN elsewhere.
        each: (folds, n) logits of each fold on rows outside ``develop``, NaN elsewhere.
        aucs: AUC of each fold on its validation rows.
    """

    networks: tuple[Network, ...]
    out_of_fold: Array
    each: Array
    aucs: tuple[float, ...]

    @property
    def mean(self) -> Array:
        """(n,) mean logits of the ensemble on rows outside ``develop``, NaN elsewhere."""
        return np.asarray(self.each.mean(axis=0))


@dataclass(frozen=True)
class _FoldJob:
    """Input of one fold; it can be sent to another process."""

    number: int
    architecture: Architecture
    context: TrainingContext | SharedContext
    learn: Rows
    validate: Rows
    others: Rows
    recipe: Recipe
    seed: int
    checkpoint: Path | None
    views: Views | None = None
    pretrained_network: Network | None = None


@dataclass(frozen=True)
class _FoldResult:
    """Weights of one fold (arrays, so that they can be pickled) and its logits of ``validate`` and ``others``."""

    weights: dict[str, NDArray[np.generic]]
    validate: Array
    others: Array


def _fit_fold(job: _FoldJob, tell: Tell) -> _FoldResult:
    """Train one fold; report (fold, epoch, score) after each epoch."""
    context = job.context.context if isinstance(job.context, SharedContext) else job.context
    torch.manual_seed(job.seed)
    network = build(job.architecture)
    task: tasks.EndToEnd | TailOnly
    if job.pretrained_network is not None and job.views is not None:
        network.trunk.load_state_dict(job.pretrained_network.trunk.state_dict())
        network.block.load_state_dict(job.pretrained_network.block.state_dict())
        task = TailOnly(network, context, job.views, job.learn, job.validate, l2_to_init=job.recipe.l2_to_init)
    else:
        recipe = job.recipe
        task = tasks.EndToEnd(
            network, context, job.learn, job.validate, rotate=recipe.rotate, auxiliary=recipe.auxiliary
        )
    trainer.fit(
        task,
        job.recipe,
        job.seed,
        checkpoint=job.checkpoint,
        advance=lambda epoch, score: tell((job.number, epoch, score)),
    )
    network.eval()
    scores = task.logits(job.validate), task.logits(job.others) if len(job.others) else np.empty(0)
    if isinstance(task, TailOnly):
        task.finish()
    return _FoldResult({name: value.cpu().numpy() for name, value in network.state_dict().items()}, *scores)


def fit(
    architecture: Architecture,
    context: TrainingContext,
    split: Split,
    recipe: Recipe,
    seed: int,
    *,
    views: Views | None = None,
    pretrained_network: Network | None = None,
    folder: Path | None = None,
    name: str = "daft",
    jobs: int = 1,
    advance: Callable[[int, int, float], None] = lambda *_: None,
) -> Trained:
    """Train every fold of one row of the table.

    Trunk and last block of a ``pretrained_network`` stay frozen, ``views`` are its features of every row, and all folds
    run in this process. Otherwise ``jobs`` folds run at once, each in its own process. Checkpoints
    are ``folder/name-FOLD.pt``. ``advance`` is called with (fold, epoch, score) after each epoch.
    """
    count = len(context.data)
    others = np.setdiff1d(np.arange(count), split.develop)
    in_processes = jobs > 1 and pretrained_network is None
    with ExitStack() as stack:
        if in_processes:
            folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shared = share(context, folder) if in_processes and folder else context
        fold_jobs = [
            _FoldJob(
                fold,
                architecture,
                shared,
                learn,
                validate,
                others,
                recipe,
                seed * 1000 + fold,
                folder / f"{name}-{fold}.pt" if folder else None,
                views,
                pretrained_network,
            )
            for fold, (learn, validate) in enumerate(split.folds)
        ]
        results = side_by_side(_fit_fold, fold_jobs, jobs if in_processes else 1, lambda message: advance(*message))
    out_of_fold = np.full(count, np.nan)
    each = np.full((len(fold_jobs), count), np.nan)
    aucs = []
    for job, result in zip(fold_jobs, results, strict=True):
        out_of_fold[job.validate] = result.validate
        each[job.number, others] = result.others
        aucs.append(auc(context.data.labels[job.validate], result.validate))
    return Trained(tuple(_network(architecture, result.weights) for result in results), out_of_fold, each, tuple(aucs))


def _network(architecture: Architecture, weights: dict[str, NDArray[np.generic]]) -> Network:
    network = build(architecture)
    network.load_state_dict({name: torch.from_numpy(np.asarray(value)) for name, value in weights.items()})
    return network.eval()
