"""What phantoms teach, on noise with a sign planted where the arteries run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from app.imaging.model_grid import Grid
from app.inference import clinical_encoder, defaults
from app.network.architecture import Architecture, Fusion
from app.network.daft import Network, build, pool
from app.sdk.clinical import ClinicalRecord, Side
from app.sdk.types import Channel
from app.training import pretraining, tasks, trainer
from app.training.dataset import LATENTS, Vectors
from app.training.progress import ProgressReporter
from app.training.tasks import TrainingContext
from app.training.trainer import Recipe
from tests.training.conftest import VARIABLES, tiny

PATIENTS = 240
SIGN = LATENTS.index("truncal")


def network(fusion: Fusion = Fusion.NONE, seed: int = 3) -> Network:
    torch.manual_seed(seed)
    return build(Architecture(fusion=fusion, in_channels=1, clinical_size=3, filters=4))


@pytest.fixture(scope="module")
def signs() -> TrainingContext:
    """Noise in which one voxel of the affected side's arteries says ``truncal``; the other latents are chance."""
    rng = np.random.default_rng(2)
    data = tiny(rng.normal(size=PATIENTS), np.zeros(PATIENTS), rng.random(PATIENTS) < 0.3)
    latents = rng.normal(size=(PATIENTS, len(LATENTS))).astype(np.float32)
    left = rng.random(PATIENTS) < 0.5
    images = rng.normal(0, 0.1, (PATIENTS, 1, *defaults.GRID.shape)).astype(np.float16)
    near = pretraining.box(defaults.GRID)
    place = np.unravel_index(pretraining.cells(defaults.GRID, near, 2)[10], [(s.stop - s.start) // 2 for s in near])
    x, y, z = (int(2 * cell + part.start) for cell, part in zip(place, near, strict=True))
    where = np.where(left, defaults.GRID.shape[0] - 1 - x, x)
    images[np.arange(PATIENTS), 0, where, y, z] += latents[:, SIGN].astype(np.float16)
    records = [ClinicalRecord(age=70.0, occlusion_side=Side.LEFT if one else Side.RIGHT) for one in left]
    data = replace(data, images=images, latents=latents, records=records)
    spec = clinical_encoder.fit(data.records, VARIABLES)
    return TrainingContext(data, Vectors.of(data, spec), defaults.GRID, [Channel.NCCT], torch.device("cpu"))


def test_the_box_holds_the_arteries_and_starts_where_the_trunk_s_cells_do() -> None:
    near = pretraining.box(defaults.GRID)
    assert near == (slice(16, 40), slice(16, 40), slice(8, 32))
    assert [len(pretraining.cells(defaults.GRID, near, step)) for step in (2, 4, 8)] == [46, 20, 8]
    small = Grid(shape=(16, 16, 16), affine=defaults.GRID.affine)
    with pytest.raises(ValueError, match="arteries' box"):
        pretraining.box(small)


def test_a_sign_of_one_voxel_is_learnt_on_either_side(signs: TrainingContext) -> None:
    model = network()
    near = pretraining.ArteryBoxTask(model, signs, np.arange(200), np.arange(200, PATIENTS))
    trainer.run(near, Recipe(epochs=6, batch=16, rate=1e-2, average=0.9, patience=6), 5)
    found = near.explained()
    assert found["truncal"] > 0.6
    assert max(share for name, share in found.items() if name != "truncal") < 0.2


def test_a_lesson_given_again_takes_up_its_checkpoints(signs: TrainingContext, tmp_path: Path) -> None:
    def lesson(near: int, block: int) -> pretraining.PretrainConfig:
        one = Recipe(epochs=2, batch=16, patience=3)
        return pretraining.PretrainConfig(
            replace(one, epochs=near), replace(one, epochs=block), whole=48, views=2, measure=32
        )

    few = signs.first(64)
    whole, resumed = network(), network()
    explained = pretraining.teach(whole, few, 1, ProgressReporter(), lesson(2, 2), folder=tmp_path)
    assert set(explained) == set(LATENTS)
    assert pretraining.teach(resumed, few, 1, ProgressReporter(), lesson(2, 2), folder=tmp_path) == explained
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    features = pool(tasks.views(whole, few, 1, 0)[0][0].float())
    assert features.std(dim=0).median().item() == pytest.approx(1, abs=0.35)


def test_unit_spread_changes_scales_and_nothing_else() -> None:
    model = network().eval()
    features = torch.rand(64, 16, 6, 6, 6)
    with torch.no_grad():
        before = pool(model.block(features))
        factors = pretraining.unit_spread(model.block, before)
        after = pool(model.block(features))
    assert torch.allclose(after, before * factors, rtol=1e-4, atol=1e-5)
    assert after.std(dim=0).max() == pytest.approx(1, abs=0.01)
