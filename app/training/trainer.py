"""The training loop, for anything that can make a batch, a loss and a score.

Notable choices:
- AdamW, one cycle of the learning rate, gradients clipped at 1, an exponential moving average of the weights (and of
  the normalisation statistics) that is what is scored and kept.
- Early stopping and the choice of the best epoch both use the smoothed score: one lucky epoch decides nothing.
- Resumable at any epoch: a checkpoint after each, written to the side and renamed. All chance of epoch e comes from
  generators seeded by (seed, e), so a resumed run gives the very weights of an uninterrupted one.
- Deterministic on a CPU: same seed, same thread count, same weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from app.training import distributed

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How long and how hard. ``rate``: peak learning rate; ``average``: of the moving average, per step; ``l2_to_init``:
    penalty that keeps a tail near its start.
    """

    epochs: int = 12
    batch: int = 16
    rate: float = 4e-3
    decay: float = 0.02
    average: float = 0.99
    patience: int = 4
    smoothing: float = 0.5
    turn: bool = True
    auxiliary: float = 0.3
    l2_to_init: float = 0.0


class Task(Protocol):
    """What is trained."""

    @property
    def module(self) -> nn.Module:
        """All that has weights to learn."""

    def steps(self, batch: int) -> int:
        """Batches of one epoch."""

    def losses(self, batch: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """One epoch's losses, one a batch, each with its graph."""

    def score(self, module: nn.Module) -> float:
        """How good ``module`` is on rows that it was not trained on; more is better."""


@dataclass
class TrainingState:
    """Where a run stands: what a checkpoint holds besides the tensors."""

    epoch: int = 0
    best: float = -np.inf
    best_epoch: int = -1
    smoothed: float = 0.0
    history: list[float] = field(default_factory=list)


def run(
    task: Task,
    recipe: Recipe,
    seed: int,
    *,
    checkpoint: Path | None = None,
    advance: Callable[[int, float], None] = lambda *_: None,
) -> TrainingState:
    """Train ``task.module`` in place, leaving the averaged weights of its best epoch in it.

    :param checkpoint: file to resume from and to write after every epoch; removed by nobody but the caller
    :param advance: told (epoch, score) after each
    """
    module = task.module
    # Weight decay pulls matrices towards zero; a bias or a normalisation's scale has no reason to be pulled.
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate)
    steps = task.steps(recipe.batch)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.rate, total_steps=recipe.epochs * steps + 1, pct_start=0.25
    )
    average = {name: value.detach().clone() for name, value in module.state_dict().items()}
    best = {name: value.clone() for name, value in average.items()}
    progress = TrainingState()
    distributed.barrier()  # so that nobody looks for a checkpoint while the first rank still writes the last fold's
    if checkpoint is not None and checkpoint.exists():
        progress, average, best = _resume(checkpoint, module, optimizer, cycle)

    while progress.epoch < recipe.epochs and progress.epoch - progress.best_epoch <= recipe.patience:
        rng = np.random.default_rng([seed, 7, progress.epoch])
        module.train()
        for loss in task.losses(recipe.batch, rng):
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            distributed.average_gradients(module)
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            cycle.step()
            _follow(average, module, recipe.average)
        distributed.average_buffers(module, average)
        current = {name: value.clone() for name, value in module.state_dict().items()}
        module.load_state_dict(average)
        module.eval()
        score = distributed.broadcast(
            task.score(module) if distributed.is_first_rank() else 0.0, next(module.parameters()).device
        )
        module.load_state_dict(current)
        weight = recipe.smoothing if progress.history else 0.0
        progress.smoothed = weight * progress.smoothed + (1 - weight) * score
        progress.history.append(score)
        if progress.smoothed > progress.best:
            progress.best, progress.best_epoch = progress.smoothed, progress.epoch
            best = {name: value.clone() for name, value in average.items()}
        progress.epoch += 1
        if checkpoint is not None and distributed.is_first_rank():
            _save(checkpoint, progress, module, average, best, optimizer, cycle)
        advance(progress.epoch, score)
    module.load_state_dict(best)
    module.eval()
    return progress


@torch.no_grad()
def _follow(average: Weights, module: nn.Module, rate: float) -> None:
    """One step of the moving average; counters are copied."""
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - rate)
        else:
            average[name].copy_(value)


def _save(
    path: Path,
    progress: TrainingState,
    module: nn.Module,
    average: Weights,
    best: Weights,
    optimizer: torch.optim.Optimizer,
    cycle: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    state = {
        "progress": vars(progress),
        "module": module.state_dict(),
        "average": average,
        "best": best,
        "optimizer": optimizer.state_dict(),
        "cycle": cycle.state_dict(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    with draft.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _resume(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, cycle: torch.optim.lr_scheduler.LRScheduler
) -> tuple[TrainingState, Weights, Weights]:
    """The run's own checkpoint; weights_only keeps anything but tensors and plain values out."""
    state: dict[str, Any] = torch.load(path, weights_only=True)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    cycle.load_state_dict(state["cycle"])
    return TrainingState(**state["progress"]), state["average"], state["best"]
