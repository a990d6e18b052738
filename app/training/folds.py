"""The folds of one row of the table: every development patient scored by a fold that never saw it.

Notable choices:
- A row of the table is a fusion and the channels that it may see; everything else is the same for all rows.
- With an image side that was taught before (app/training/teacher.py) only the tails are trained, on stored features;
  otherwise networks are trained end to end.
- A fold's checkpoint carries its name, so that a killed run goes on where it stopped.
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
    """Four folds and their scores.

    ``networks``: one a fold. ``out_of_fold`` (n,): logits of development rows, NaN elsewhere. ``mean`` (n,): the
    ensemble's mean logits of rows outside ``develop``, NaN elsewhere. ``each`` (folds, n): a fold's own logits there.
    ``aucs``: each fold's on its validation rows.
    """

    networks: tuple[Network, ...]
    out_of_fold: Array
    each: Array
    aucs: tuple[float, ...]

    @property
    def mean(self) -> Array:
        return np.asarray(self.each.mean(axis=0))


@dataclass(frozen=True)
class _Fold:
    """One fold's work, for whichever process does it. ``views``, ``taught``: as `train`."""

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
    taught: Network | None = None


@dataclass(frozen=True)
class _Scored:
    """What comes of a fold: its weights (arrays travel by value), and its logits of ``validate`` and ``others``."""

    weights: dict[str, NDArray[np.generic]]
    validate: Array
    others: Array


def _train_one(work: _Fold, tell: Tell) -> _Scored:
    """Train one fold; tells (fold, epoch, score) after each epoch."""
    context = work.context.context if isinstance(work.context, SharedContext) else work.context
    torch.manual_seed(work.seed)
    network = build(work.architecture)
    task: tasks.EndToEnd | TailOnly
    if work.taught is not None and work.views is not None:
        network.trunk.load_state_dict(work.taught.trunk.state_dict())
        network.block.load_state_dict(work.taught.block.state_dict())
        task = TailOnly(network, context, work.views, work.learn, work.validate, l2_to_init=work.recipe.l2_to_init)
    else:
        recipe = work.recipe
        task = tasks.EndToEnd(network, context, work.learn, work.validate, turn=recipe.turn, auxiliary=recipe.auxiliary)
    trainer.run(
        task,
        work.recipe,
        work.seed,
        checkpoint=work.checkpoint,
        advance=lambda epoch, score: tell((work.number, epoch, score)),
    )
    network.eval()
    found = task.logits(work.validate), task.logits(work.others) if len(work.others) else np.empty(0)
    if isinstance(task, TailOnly):
        task.finish()
    return _Scored({name: value.cpu().numpy() for name, value in network.state_dict().items()}, *found)


def train(
    architecture: Architecture,
    context: TrainingContext,
    split: Split,
    recipe: Recipe,
    seed: int,
    *,
    views: Views | None = None,
    taught: Network | None = None,
    folder: Path | None = None,
    name: str = "daft",
    jobs: int = 1,
    advance: Callable[[int, int, float], None] = lambda *_: None,
) -> Trained:
    """Train every fold of one row of the table.

    :param taught: whose trunk and last block stay as they are; needs ``views``, its trunk's features of every row
    :param folder: of the checkpoints
    :param jobs: folds at once, each in a process of its own; tails on stored features take seconds and stay in this one
    :param advance: told (fold, epoch, score)
    """
    count = len(context.data)
    others = np.setdiff1d(np.arange(count), split.develop)
    apart = jobs > 1 and taught is None
    with ExitStack() as stack:
        if apart:
            folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        seen = share(context, folder) if apart and folder else context
        work = [
            _Fold(
                fold,
                architecture,
                seen,
                learn,
                validate,
                others,
                recipe,
                seed * 1000 + fold,
                folder / f"{name}-{fold}.pt" if folder else None,
                views,
                taught,
            )
            for fold, (learn, validate) in enumerate(split.folds)
        ]
        done = side_by_side(_train_one, work, jobs if apart else 1, lambda told: advance(*told))
    out_of_fold = np.full(count, np.nan)
    each = np.full((len(work), count), np.nan)
    aucs = []
    for one, scored in zip(work, done, strict=True):
        out_of_fold[one.validate] = scored.validate
        each[one.number, others] = scored.others
        aucs.append(auc(context.data.labels[one.validate], scored.validate))
    return Trained(tuple(_network(architecture, one.weights) for one in done), out_of_fold, each, tuple(aucs))


def _network(architecture: Architecture, weights: dict[str, NDArray[np.generic]]) -> Network:
    network = build(architecture)
    network.load_state_dict({name: torch.from_numpy(np.asarray(value)) for name, value in weights.items()})
    return network.eval()
