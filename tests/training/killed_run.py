"""Training run that kills itself (SIGKILL) after its second epoch; test_trainer.py starts it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from app.network.architecture import Fusion
from app.training import trainer
from app.training.trainer import Recipe
from tests.training.tiny import network, xor_context, xor_task


def kill_at_second_epoch(epoch: int, _: float) -> None:
    if epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    task = xor_task(network(Fusion.DAFT), xor_context())
    recipe = Recipe(epochs=3, rotate=True)
    trainer.fit(task, recipe, 5, checkpoint=Path(sys.argv[1]), advance=kill_at_second_epoch)
