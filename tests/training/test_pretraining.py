"""Pretraining on noise images with one informative voxel at the arteries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from app.imaging.model_grid import Grid
from app.inference import clinical_encoder, defaults
from app.network.architecture import Fusion
from app.network.daft import pool
from app.sdk.clinical import ClinicalRecord, Side
from app.sdk.types import Channel
from app.training import pretraining, tasks, trainer
from app.training.dataset import LATENTS, Vectors
from app.training.progress import ProgressReporter
from app.training.tasks import TrainingContext
from app.training.trainer import Recipe
from tests.training.tiny import VARIABLES, network, tiny_dataset

PATIENTS = 240
SIGN = LATENTS.index("truncal")


@pytest.fixture(scope="module")
def signs() -> TrainingContext:
    """Noise images; one artery voxel of the affected side encodes ``truncal``, no voxel encodes another latent."""
    rng = np.random.default_rng(2)
    data = tiny_dataset(rng.normal(size=PATIENTS), np.zeros(PATIENTS), rng.random(PATIENTS) < 0.3)
    latents = rng.normal(size=(PATIENTS, len(LATENTS))).astype(np.float32)
    left = rng.random(PATIENTS) < 0.5
    images = rng.normal(0, 0.1, (PATIENTS, 1, *defaults.GRID.shape)).astype(np.float16)
    box = pretraining.artery_box(defaults.GRID)
    cells = pretraining.artery_cells(defaults.GRID, box, 2)
    cell = np.unravel_index(cells[10], [(part.stop - part.start) // 2 for part in box])
    x, y, z = (int(2 * index + part.start) for index, part in zip(cell, box, strict=True))
    x_of_side = np.where(left, defaults.GRID.shape[0] - 1 - x, x)
    images[np.arange(PATIENTS), 0, x_of_side, y, z] += latents[:, SIGN].astype(np.float16)
    records = [ClinicalRecord(age=70.0, occlusion_side=Side.LEFT if is_left else Side.RIGHT) for is_left in left]
    data = replace(data, images=images, latents=latents, records=records)
    spec = clinical_encoder.fit(data.records, VARIABLES)
    return TrainingContext(data, Vectors.of(data, spec), defaults.GRID, [Channel.NCCT], torch.device("cpu"))


def test_artery_box_contains_the_arteries_and_is_aligned_with_the_trunk_stride() -> None:
    box = pretraining.artery_box(defaults.GRID)
    assert box == (slice(16, 40), slice(16, 40), slice(8, 32))
    assert [len(pretraining.artery_cells(defaults.GRID, box, step)) for step in (2, 4, 8)] == [46, 20, 8]
    small = Grid(shape=(16, 16, 16), affine=defaults.GRID.affine)
    with pytest.raises(ValueError, match="does not contain the box around the arteries"):
        pretraining.artery_box(small)


def test_one_informative_voxel_is_learned_on_both_sides(signs: TrainingContext) -> None:
    model = network(Fusion.NONE)
    task = pretraining.ArteryBoxTask(model, signs, np.arange(200), np.arange(200, PATIENTS))
    trainer.fit(task, Recipe(epochs=6, batch=16, rate=1e-2, average=0.9, patience=6), 5)
    explained = task.explained_variance()
    assert explained["truncal"] > 0.6
    assert max(share for name, share in explained.items() if name != "truncal") < 0.2


def test_pretraining_resumes_from_its_checkpoints(signs: TrainingContext, tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, batch=16, patience=3)
    config = pretraining.PretrainConfig(recipe, recipe, whole=48, views=2, measure=32)
    few = signs.first(64)
    whole, resumed = network(Fusion.NONE), network(Fusion.NONE)
    explained = pretraining.pretrain(whole, few, 1, ProgressReporter(), config, folder=tmp_path)
    assert set(explained) == set(LATENTS)
    assert pretraining.pretrain(resumed, few, 1, ProgressReporter(), config, folder=tmp_path) == explained
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    features = pool(tasks.views(whole, few, 1, 0)[0][0].float())
    assert features.std(dim=0).median().item() == pytest.approx(1, abs=0.35)


def test_unit_spread_only_rescales_the_channels() -> None:
    model = network(Fusion.NONE).eval()
    features = torch.rand(64, 16, 6, 6, 6)
    with torch.no_grad():
        before = pool(model.block(features))
        factors = pretraining.unit_spread(model.block, before)
        after = pool(model.block(features))
    assert torch.allclose(after, before * factors, rtol=1e-4, atol=1e-5)
    assert after.std(dim=0).max() == pytest.approx(1, abs=0.01)
