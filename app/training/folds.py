"""The folds of one row of the table: every development patient scored by a fold that never saw it.

Notable choices:
- A row of the table is a fusion and the channels that it may see; everything else is the same for all rows.
- With a warm trunk (``Pretraining`` on phantoms) only the tails are trained, on stored features; otherwise networks are
  trained end to end.
- A fold's checkpoint carries its name, so that a killed run goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.manifest import Architecture
from app.network.daft import Network, build
from app.network.resnet import Trunk
from app.training import loop, tasks
from app.training.dataset import LATENTS
from app.training.loop import Recipe
from app.training.metrics import Array, auc
from app.training.protocol import Split
from app.training.tasks import Bench

Views = Sequence[tuple[Tensor, Tensor]]
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


def pretrain(
    architecture: Architecture, bench: Bench, recipe: Recipe, seed: int, *,
    checkpoint: Path | None = None, advance: Callable[[int, float], None] = lambda *_: None,
) -> tuple[Trunk, dict[str, float]]:  # fmt: skip
    """A trunk that reads latents, learnt on nine tenths of a bench of phantoms, and what it explains of each."""
    torch.manual_seed(seed)
    rows = np.arange(len(bench.data))
    cut = len(rows) - max(len(rows) // 10, 1)
    network = build(architecture)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    task = tasks.Pretraining(network, bench, rows[:cut], rows[cut:])
    loop.run(task, recipe, seed, checkpoint=checkpoint, advance=advance)
    return network.trunk, dict(zip(LATENTS, task.explained().values(), strict=True))


def train(
    architecture: Architecture, bench: Bench, split: Split, recipe: Recipe, seed: int, *,
    views: Views | None = None, trunk: Trunk | None = None, folder: Path | None = None, name: str = "daft",
    advance: Callable[[int, int, float], None] = lambda *_: None,
) -> Trained:  # fmt: skip
    """Train every fold of one row of the table.

    :param trunk: a trunk that stays as it is; needs ``views``, its features of every row
    :param folder: of the checkpoints
    :param advance: told (fold, epoch, score)
    """
    count = len(bench.data)
    out_of_fold = np.full(count, np.nan)
    each = np.full((len(split.folds), count), np.nan)
    others = np.setdiff1d(np.arange(count), split.develop)
    networks, aucs = [], []
    for fold, (learn, validate) in enumerate(split.folds):
        torch.manual_seed(seed * 1000 + fold)
        network = build(architecture)
        task: tasks.EndToEnd | tasks.TailOnly
        if trunk is not None and views is not None:
            network.trunk.load_state_dict(trunk.state_dict())
            task = tasks.TailOnly(network, bench, views, learn, validate)
        else:
            task = tasks.EndToEnd(network, bench, learn, validate, turn=recipe.turn, auxiliary=recipe.auxiliary)
        checkpoint = folder / f"{name}-{fold}.pt" if folder else None
        loop.run(
            task, recipe, seed * 1000 + fold, checkpoint=checkpoint,
            advance=lambda epoch, score, fold=fold: advance(fold, epoch, score),  # type: ignore[misc]
        )  # fmt: skip
        network.eval()
        out_of_fold[validate] = task.logits(validate)
        if len(others):
            each[fold, others] = task.logits(others)
        aucs.append(auc(bench.data.labels[validate], out_of_fold[validate]))
        networks.append(network.cpu())
    return Trained(tuple(networks), out_of_fold, each, tuple(aucs))
