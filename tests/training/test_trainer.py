from __future__ import annotations

import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from app.network.architecture import Fusion
from app.network.daft import Network
from app.training import trainer
from app.training.tasks import EndToEnd, TrainingContext
from app.training.trainer import Recipe
from tests.training.tiny import LEARN, VALIDATE, fit_network, fresh_auc, network


def test_daft_learns_a_product_that_concatenation_cannot_learn(xor: TrainingContext) -> None:
    assert fresh_auc(fit_network(Fusion.DAFT, xor), xor) > 0.95
    # The AUC of one concatenation network varies with its seed (0.50 to 0.59 in 12 runs; mean 0.54, SD 0.03), because
    # early stopping picks the best of several random epochs. The mean of three seeds is stable.
    assert np.mean([fresh_auc(fit_network(Fusion.CONCAT, xor, seed=seed), xor) for seed in (3, 4, 5)]) < 0.6


def test_random_labels_are_not_learned(xor: TrainingContext) -> None:
    shuffled = np.random.default_rng(8).permutation(xor.data.labels)
    null = replace(xor, data=replace(xor.data, labels=shuffled))
    model = fit_network(Fusion.DAFT, null, Recipe(epochs=4, rotate=False))
    assert abs(fresh_auc(model, null) - 0.5) < 3 * 0.013


def weights(model: Network) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


@pytest.fixture(scope="module")
def uninterrupted(xor: TrainingContext) -> bytes:
    return weights(fit_network(Fusion.DAFT, xor, Recipe(epochs=3, rotate=True)))


def test_same_seed_gives_the_same_weights(xor: TrainingContext, uninterrupted: bytes) -> None:
    assert weights(fit_network(Fusion.DAFT, xor, Recipe(epochs=3, rotate=True))) == uninterrupted


def test_killed_run_resumes_to_the_same_weights(xor: TrainingContext, uninterrupted: bytes, tmp_path: Path) -> None:
    checkpoint = tmp_path / "fold.pt"
    killed = subprocess.run([sys.executable, "-m", "tests.training.killed_run", str(checkpoint)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert torch.load(checkpoint, weights_only=True)["progress"]["epoch"] == 2
    assert weights(fit_network(Fusion.DAFT, xor, Recipe(epochs=3, rotate=True), checkpoint)) == uninterrupted


def test_checkpoint_of_another_device_is_read_onto_that_of_the_module(xor: TrainingContext, tmp_path: Path) -> None:
    """The device ``meta`` stands for a GPU: it is another device than that of the checkpoint."""
    checkpoint = tmp_path / "fold.pt"
    fit_network(Fusion.DAFT, xor, Recipe(epochs=1, rotate=False), checkpoint)
    module = torch.nn.ModuleDict({"network": network(Fusion.DAFT)}).to("meta")
    groups = [[p for p in module.parameters() if (p.ndim > 1) is matrix] for matrix in (True, False)]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups])
    steps = torch.load(checkpoint, weights_only=True)["cycle"]["total_steps"]
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    stateful = {"module": module, "optimizer": optimizer, "cycle": cycle}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a copy to meta does nothing
        _, *weights = trainer._load_checkpoint(checkpoint, stateful, torch.device("meta"))
    assert {value.device.type for part in weights for value in part.values()} == {"meta"}
    state = optimizer.state[groups[0][0]]
    assert state["exp_avg"].device.type == "meta"
    assert state["step"].device.type == "cpu"  # read at each step


def test_early_stopping_keeps_the_best_epoch(xor: TrainingContext) -> None:
    class FallingScore(EndToEnd):
        scores = iter([1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0])

        def score(self, module: torch.nn.Module) -> float:
            return next(self.scores)

    task = FallingScore(network(Fusion.NONE), xor, LEARN[:32], VALIDATE, rotate=False, auxiliary=0.0)
    state = trainer.fit(task, Recipe(epochs=7, patience=2, smoothing=0.0, rotate=False), 5)
    assert (state.best_epoch, state.epoch) == (1, 4)
