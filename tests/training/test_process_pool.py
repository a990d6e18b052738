"""Folds in several processes, and one fold over several ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from app.network.architecture import Architecture, Fusion
from app.training import folds, process_pool
from app.training.splits import Split
from app.training.tasks import TrainingContext
from app.training.trainer import Recipe

ARCHITECTURE = Architecture(fusion=Fusion.DAFT, in_channels=1, clinical_size=3, filters=4)
RECIPE = Recipe(epochs=2, batch=16, rate=1e-2, average=0.9, rotate=True)
ROWS = np.arange(160)
PART = ROWS[:120] % 3
SPLIT = Split(ROWS[:120], ROWS[120:], tuple((ROWS[:120][k != PART], ROWS[:120][k == PART]) for k in range(3)))


def small(context: TrainingContext) -> TrainingContext:
    """The first 160 patients."""
    data = context.data
    few = replace(
        data,
        images=data.images[ROWS],
        presence=data.presence[ROWS],
        records=data.records[:160],
        perfusion=data.perfusion[:160],
        labels=data.labels[ROWS],
        groups=data.groups[ROWS],
        sites=data.sites[ROWS],
        latents=data.latents[ROWS],
    )
    vectors = replace(context.vectors, values=context.vectors.values[ROWS], missing=context.vectors.missing[ROWS])
    return replace(context, data=few, vectors=vectors)


def bytes_of(trained: folds.Trained) -> list[bytes]:
    return [b"".join(v.numpy().tobytes() for v in network.state_dict().values()) for network in trained.networks]


def test_folds_in_processes_have_the_same_weights_as_folds_in_sequence(xor: TrainingContext, tmp_path: Path) -> None:
    context, reports = small(xor), []
    one = folds.fit(ARCHITECTURE, context, SPLIT, RECIPE, 3)
    two = folds.fit(
        ARCHITECTURE,
        context,
        SPLIT,
        RECIPE,
        3,
        jobs=2,
        folder=tmp_path,
        advance=lambda fold, epoch, score: reports.append((fold, epoch)),
    )
    assert bytes_of(one) == bytes_of(two)
    assert np.array_equal(one.out_of_fold, two.out_of_fold, equal_nan=True)
    assert np.array_equal(one.each, two.each, equal_nan=True)
    assert sorted(reports) == [(fold, epoch) for fold in range(3) for epoch in (1, 2)]


def tf32_allowed(_: int, __: process_pool.Tell) -> bool:
    return torch.backends.cudnn.allow_tf32


def test_processes_compute_exact_float32_on_a_gpu() -> None:
    """cuDNN's TF32 is on in a new process; it is a setting, so it can be read without a GPU."""
    assert process_pool.side_by_side(tf32_allowed, [1, 2], 2, lambda _: None) == [False, False]


def test_shared_context_maps_the_same_images(xor: TrainingContext, tmp_path: Path) -> None:
    shared = process_pool.share(small(xor), tmp_path)
    assert np.array_equal(shared.context.data.images, xor.data.images[ROWS])
    mapped = replace(shared.context.data)
    again = process_pool.share(replace(xor, data=mapped), tmp_path / "unused")
    assert np.array_equal(again.context.data.images, mapped.images)
    assert not (tmp_path / "unused").exists()  # images that are in a file are not written again


def test_ranks_of_torchrun_train_the_same_network(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--module"]
    done = subprocess.run(
        [*launch, "tests.training.distributed_run", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first["weights"] == second["weights"]
    assert first["shares"] == [8] * 8  # of batches of 16
    assert first["rows"] != second["rows"]
    assert first["small"] == second["small"] == [[2], 1]  # of 4 and 3 patients: one patient has no batch statistics
    assert first["refusal"] == "2 processes are too many: each needs two patients of every batch of 3"
    assert first["auc"] > 0.9
    assert (tmp_path / "fold.pt").exists()
