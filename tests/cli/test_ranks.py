"""A training run with pretraining, under torchrun, as two processes without a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from app.inference.model_version import ModelVersion
from app.phantoms.biology import Preset
from app.registry.manifest import Manifest
from app.training.synthesize import synthesize

PHANTOMS = 8


@pytest.mark.soak
@pytest.mark.timeout(600)  # eight phantoms are drawn, which takes a minute on a busy machine
def test_two_ranks_pretrain_on_phantoms_and_write_one_version(tmp_path: Path) -> None:
    cohort, out = tmp_path / "cohort", tmp_path / "store" / "ranks" / "1.0.0"
    synthesize(cohort, 40, 7, Preset.INTERACTION)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--out", out, "--quick", "--phantoms", PHANTOMS, "--publish-anyway", "--device", "cpu"]
    command = [*launch, "-m", "app.cli", "train", cohort, *options]
    done = subprocess.run([str(part) for part in command], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Report, figures and predictions") == 1  # the first rank reports
    manifest = Manifest.model_validate_json((out / "manifest.json").read_bytes())
    assert len(manifest.folds) == 4
    ModelVersion.load(out, manifest, "cpu").verify_golden_cases(out)
    assert not list(cohort.rglob("*.part"))
    (file,) = cohort.rglob("pretrained.safetensors")
    pretrained = load_file(file)
    assert all(torch.isfinite(value).all() for value in pretrained.values())
    assert pretrained["trunk.marks.stem.norm.num_batches_tracked"] > 0
