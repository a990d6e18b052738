from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from app.evaluation.metrics import auc
from app.network.architecture import Architecture, Fusion
from app.network.daft import Network, build
from app.training import tasks, trainer
from app.training.tasks import EndToEnd, TrainingContext
from app.training.trainer import Recipe

RECIPE = Recipe(epochs=10, batch=16, rate=1e-2, average=0.9, patience=10, turn=False)
LEARN, VALIDATE, FRESH = np.arange(300), np.arange(300, 400), np.arange(400, 2400)


def network(fusion: Fusion, start: int = 3) -> Network:
    torch.manual_seed(start)
    return build(Architecture(fusion=fusion, in_channels=1, clinical_size=3, filters=4))


def trained(
    fusion: Fusion, bench: TrainingContext, recipe: Recipe = RECIPE, checkpoint: Path | None = None, start: int = 3
) -> Network:
    model = network(fusion, start)
    task = EndToEnd(model, bench, LEARN, VALIDATE, turn=False, auxiliary=0.0)
    trainer.run(task, recipe, 5, checkpoint=checkpoint)
    return model


def score(model: Network, bench: TrainingContext) -> float:
    return auc(bench.data.labels[FRESH], tasks.logits(model, bench, FRESH))


def test_daft_learns_the_product_that_concatenation_cannot(xor: TrainingContext) -> None:
    assert score(trained(Fusion.DAFT, xor), xor) > 0.95
    # From one start to another concatenation scores 0.50 to 0.59 (12 runs: mean 0.54, SD 0.03), because its early
    # stopping picks a lucky epoch: three starts together are a steady number.
    assert np.mean([score(trained(Fusion.CONCAT, xor, start=start), xor) for start in (3, 4, 5)]) < 0.6


def test_labels_that_mean_nothing_are_not_learnt(xor: TrainingContext) -> None:
    from dataclasses import replace

    shuffled = np.random.default_rng(8).permutation(xor.data.labels)
    null = replace(xor, data=replace(xor.data, labels=shuffled))
    assert abs(score(trained(Fusion.DAFT, null, Recipe(epochs=4, turn=False)), null) - 0.5) < 3 * 0.013


def weights(model: Network) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


@pytest.fixture(scope="module")
def uninterrupted(xor: TrainingContext) -> bytes:
    return weights(trained(Fusion.DAFT, xor, Recipe(epochs=3, turn=True)))


def test_the_same_seed_gives_the_same_weights(xor: TrainingContext, uninterrupted: bytes) -> None:
    assert weights(trained(Fusion.DAFT, xor, Recipe(epochs=3, turn=True))) == uninterrupted


def test_a_run_killed_between_epochs_goes_on_to_the_same_weights(
    xor: TrainingContext, uninterrupted: bytes, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "fold.pt"
    killed = subprocess.run([sys.executable, "-m", "tests.training.killed_run", str(checkpoint)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert torch.load(checkpoint, weights_only=True)["progress"]["epoch"] == 2
    assert weights(trained(Fusion.DAFT, xor, Recipe(epochs=3, turn=True), checkpoint)) == uninterrupted


def kill_at_second_epoch(bench: TrainingContext, checkpoint: Path) -> None:
    """What tests/training/killed.py runs in a process of its own."""
    task = EndToEnd(network(Fusion.DAFT), bench, LEARN, VALIDATE, turn=False, auxiliary=0.0)

    def advance(epoch: int, _: float) -> None:
        if epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.run(task, Recipe(epochs=3, turn=True), 5, checkpoint=checkpoint, advance=advance)


def test_early_stopping_keeps_the_best_epoch_and_stops(xor: TrainingContext) -> None:
    class Falling(EndToEnd):
        scores = iter([1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0])

        def score(self, module: torch.nn.Module) -> float:
            return next(self.scores)

    task = Falling(network(Fusion.NONE), xor, LEARN[:32], VALIDATE, turn=False, auxiliary=0.0)
    progress = trainer.run(task, Recipe(epochs=7, patience=2, smoothing=0.0, turn=False), 5)
    assert (progress.best_epoch, progress.epoch) == (1, 4)
