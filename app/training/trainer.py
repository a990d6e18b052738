"""Training loop for any task that gives batches, a loss and a validation score.

Design notes:
- AdamW with a one-cycle learning rate. The moving average of weights and batch-norm statistics is scored and kept.
- Early stopping and the best epoch use the smoothed score, so that a single outlier decides nothing.
- Epoch e draws from the seed (seed, e), so a run resumed from a checkpoint gives the same weights.
- On a CPU, the same seed and the same thread count give the same weights.
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
from app.training.errors import CohortFault

Weights = dict[str, Tensor]

WARM_UP = 0.25
"""Share of the steps in which the learning rate rises. A run of few steps rises in half a step, because the schedule
divides by the length of this phase."""


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of one fit.

    ``rate``: peak learning rate; ``decay``: weight decay; ``average``: decay of the moving average per step;
    ``rotate``: rotate training images; ``auxiliary``: weight of the latent loss; ``l2_to_init``: see
    ``frozen_trunk.TailOnly``.
    """

    epochs: int = 12
    batch: int = 16
    rate: float = 4e-3
    decay: float = 0.02
    average: float = 0.99
    patience: int = 4
    smoothing: float = 0.5
    rotate: bool = True
    auxiliary: float = 0.3
    l2_to_init: float = 0.0


class Task(Protocol):
    """A module with its training loss and its validation score."""

    @property
    def module(self) -> nn.Module:
        """The module whose weights are trained."""

    def steps(self, batch: int) -> int:
        """Number of batches in one epoch."""

    def losses(self, batch: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """Losses of one epoch, one per batch, each with its autograd graph."""

    def score(self, module: nn.Module) -> float:
        """Score of ``module`` on the validation rows; higher is better."""


@dataclass
class TrainingState:
    """Progress of a fit; a checkpoint stores it with the tensors."""

    epoch: int = 0
    best: float = -np.inf
    best_epoch: int = -1
    smoothed: float = 0.0
    history: list[float] = field(default_factory=list)


def fit(
    task: Task,
    recipe: Recipe,
    seed: int,
    *,
    checkpoint: Path | None = None,
    advance: Callable[[int, float], None] = lambda *_: None,
) -> TrainingState:
    """Train ``task.module`` in place; at the end it holds the averaged weights of the best epoch.

    ``checkpoint`` is the file to resume from and to write after every epoch; the caller removes it. ``advance`` is
    called with (epoch, score) after each epoch.

    Raises:
        CohortFault: There are too many ranks for a batch, or for these patients.
    """
    module = task.module
    # Biases and normalisation scales take no weight decay.
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate)
    steps = task.steps(recipe.batch)
    if steps == 0 and distributed.is_distributed():
        ranks = distributed.rank_count()
        raise CohortFault([f"{ranks} processes are too many: each needs two patients of every batch of {recipe.batch}"])
    total = recipe.epochs * steps + 1
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.rate, total_steps=total, pct_start=WARM_UP if WARM_UP * total > 1 else 1.5 / total
    )
    stateful = {"module": module, "optimizer": optimizer, "cycle": cycle}
    average = {name: value.detach().clone() for name, value in module.state_dict().items()}
    best = {name: value.clone() for name, value in average.items()}
    state = TrainingState()
    distributed.barrier()  # the first rank may still be writing the checkpoint of the previous fold
    if checkpoint is not None and checkpoint.exists():
        state, average, best = _load_checkpoint(checkpoint, stateful, next(module.parameters()).device)

    while state.epoch < recipe.epochs and state.epoch - state.best_epoch <= recipe.patience:
        rng = np.random.default_rng([seed, 7, state.epoch])
        module.train()
        for loss in task.losses(recipe.batch, rng):
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            distributed.average_gradients(module)
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            cycle.step()
            _update_average(average, module, recipe.average)
        distributed.average_buffers(module, average)
        current = {name: value.clone() for name, value in module.state_dict().items()}
        module.load_state_dict(average)
        module.eval()
        score = distributed.broadcast(
            task.score(module) if distributed.is_first_rank() else 0.0, next(module.parameters()).device
        )
        module.load_state_dict(current)
        weight = recipe.smoothing if state.history else 0.0
        state.smoothed = weight * state.smoothed + (1 - weight) * score
        state.history.append(score)
        if state.smoothed > state.best:
            state.best, state.best_epoch = state.smoothed, state.epoch
            best = {name: value.clone() for name, value in average.items()}
        state.epoch += 1
        if checkpoint is not None and distributed.is_first_rank():
            _save_checkpoint(checkpoint, state, {"average": average, "best": best}, stateful)
        advance(state.epoch, score)
    module.load_state_dict(best)
    module.eval()
    return state


@torch.no_grad()
def _update_average(average: Weights, module: nn.Module, rate: float) -> None:
    """One step of the moving average; integer counters are copied."""
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - rate)
        else:
            average[name].copy_(value)


def _save_checkpoint(path: Path, state: TrainingState, weights: dict[str, Weights], stateful: dict[str, Any]) -> None:
    """Write a checkpoint atomically."""
    content = {"progress": vars(state), **weights, **{name: part.state_dict() for name, part in stateful.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    with draft.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _load_checkpoint(
    path: Path, stateful: dict[str, Any], device: torch.device
) -> tuple[TrainingState, Weights, Weights]:
    """Read a checkpoint onto ``device``: the run may have begun on another one, and ranks have one each.

    The file is read onto the CPU, and the module and its optimizer copy their parts to their own device. The optimizer
    leaves its step counters on the CPU: on a GPU each step would wait for all kernels to read them.
    """
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in stateful.items():
        part.load_state_dict(content[name])
    average, best = ({name: value.to(device) for name, value in content[key].items()} for key in ("average", "best"))
    return TrainingState(**content["progress"]), average, best
