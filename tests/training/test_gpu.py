"""Training on a CUDA device (`make test-gpu`); skipped without one, and needs few packages (docs/gpu.md)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.network.architecture import Fusion
from app.training import trainer
from app.training.folds import fit
from app.training.splits import Split
from tests.training.tiny import LEARN, RECIPE, VALIDATE, fresh_auc, network, xor_context, xor_task

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_network_learns_on_a_gpu() -> None:
    context = replace(xor_context(), device=torch.device("cuda"))
    model = network(Fusion.DAFT)
    trainer.fit(xor_task(model, context), RECIPE, 5)
    assert fresh_auc(model, context) > 0.9


def test_run_of_a_gpu_resumes_on_a_cpu_and_back(tmp_path: Path) -> None:
    context, checkpoint = xor_context(), tmp_path / "fold.pt"

    def stop(*_: object) -> None:
        raise InterruptedError

    for epoch, device in enumerate(("cuda", "cpu", "cuda"), start=1):
        model = network(Fusion.DAFT)
        task = xor_task(model, replace(context, device=torch.device(device)))
        with pytest.raises(InterruptedError):
            trainer.fit(task, RECIPE, 5, checkpoint=checkpoint, advance=stop)
        assert torch.load(checkpoint, weights_only=True)["progress"]["epoch"] == epoch
        assert {parameter.device.type for parameter in model.parameters()} == {device}


def test_folds_share_a_gpu(tmp_path: Path) -> None:
    context = replace(xor_context(), device=torch.device("cuda"))
    split = Split(LEARN, VALIDATE, ((LEARN[::2], LEARN[1::2]), (LEARN[1::2], LEARN[::2])))
    recipe = replace(RECIPE, epochs=1)
    fitted = fit(network(Fusion.DAFT).architecture, context, split, recipe, 3, jobs=2, folder=tmp_path)
    assert len(fitted.networks) == 2
