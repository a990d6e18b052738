"""Folds side by side, and a fold over several ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from app.network.architecture import Architecture, Fusion
from app.training import folds, process_pool
from app.training.splits import Split
from app.training.tasks import TrainingContext
from app.training.trainer import Recipe

ARCHITECTURE = Architecture(fusion=Fusion.DAFT, in_channels=1, clinical_size=3, filters=4)
RECIPE = Recipe(epochs=2, batch=16, rate=1e-2, average=0.9, turn=True)
ROWS = np.arange(160)
PART = ROWS[:120] % 3
SPLIT = Split(ROWS[:120], ROWS[120:], tuple((ROWS[:120][k != PART], ROWS[:120][k == PART]) for k in range(3)))


def small(bench: TrainingContext) -> TrainingContext:
    data = bench.data
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
    vectors = replace(bench.vectors, values=bench.vectors.values[ROWS], missing=bench.vectors.missing[ROWS])
    return replace(bench, data=few, vectors=vectors)


def bytes_of(trained: folds.Trained) -> list[bytes]:
    return [b"".join(v.numpy().tobytes() for v in network.state_dict().values()) for network in trained.networks]


def test_folds_side_by_side_have_the_weights_of_folds_one_by_one(xor: TrainingContext, tmp_path: Path) -> None:
    bench, told = small(xor), []
    one = folds.train(ARCHITECTURE, bench, SPLIT, RECIPE, 3)
    two = folds.train(
        ARCHITECTURE,
        bench,
        SPLIT,
        RECIPE,
        3,
        jobs=2,
        folder=tmp_path,
        advance=lambda fold, epoch, score: told.append((fold, epoch)),
    )
    assert bytes_of(one) == bytes_of(two)
    assert np.array_equal(one.out_of_fold, two.out_of_fold, equal_nan=True)
    assert np.array_equal(one.each, two.each, equal_nan=True)
    assert sorted(told) == [(fold, epoch) for fold in range(3) for epoch in (1, 2)]


def test_a_lent_bench_maps_the_very_images(xor: TrainingContext, tmp_path: Path) -> None:
    lent = process_pool.share(small(xor), tmp_path)
    assert np.array_equal(lent.bench.data.images, xor.data.images[ROWS])
    mapped = replace(lent.bench.data)
    again = process_pool.share(replace(xor, data=mapped), tmp_path / "nowhere")
    assert np.array_equal(again.bench.data.images, mapped.images)
    assert not (tmp_path / "nowhere").exists()  # what is a file already is not written again


def test_ranks_started_by_torchrun_train_one_network(tmp_path: Path) -> None:
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
    assert first["auc"] > 0.9
    assert (tmp_path / "fold.pt").exists()
