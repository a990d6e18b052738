"""Pretraining on noise images with one informative voxel at the arteries of the affected side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from app.inference import clinical_encoder, defaults
from app.network.architecture import Architecture, BoxPath, Fusion
from app.network.daft import Network, build, pool
from app.sdk.clinical import ClinicalRecord, Side
from app.sdk.types import Channel
from app.training import pretraining, reference, tasks, trainer
from app.training.dataset import LATENTS, Vectors
from app.training.progress import ProgressReporter
from app.training.tasks import TrainingContext
from app.training.trainer import Recipe
from tests.training.tiny import VARIABLES, network, tiny_dataset

PATIENTS = 240
SIGN = LATENTS.index("truncal")
BOX = BoxPath(start=defaults.BOX.start, size=defaults.BOX.size, filters=4)


def two_paths() -> Network:
    torch.manual_seed(3)
    return build(Architecture(fusion=Fusion.NONE, in_channels=1, clinical_size=3, filters=2, box=BOX))


@pytest.fixture(scope="module")
def signs() -> TrainingContext:
    """One artery voxel of the affected side encodes ``truncal``; no voxel encodes another latent."""
    rng = np.random.default_rng(2)
    data = tiny_dataset(rng.normal(size=PATIENTS), np.zeros(PATIENTS), rng.random(PATIENTS) < 0.3)
    latents = rng.normal(size=(PATIENTS, len(LATENTS))).astype(np.float32)
    left = rng.random(PATIENTS) < 0.5
    images = rng.normal(0, 0.1, (PATIENTS, 1, *defaults.GRID.shape)).astype(np.float16)
    box = defaults.BOX.slices
    cells = pretraining.artery_cells(defaults.GRID, box, 2)
    cell = np.unravel_index(cells[10], [(part.stop - part.start) // 2 for part in box])
    x, y, z = (int(2 * index + part.start) for index, part in zip(cell, box, strict=True))
    x_of_side = np.where(left, defaults.GRID.shape[0] - 1 - x, x)
    images[np.arange(PATIENTS), 0, x_of_side, y, z] += latents[:, SIGN].astype(np.float16)
    records = [ClinicalRecord(age=70.0, occlusion_side=Side.LEFT if is_left else Side.RIGHT) for is_left in left]
    data = replace(data, images=images, latents=latents, records=records)
    vectors = Vectors.of(data, clinical_encoder.fit(data.records, VARIABLES))
    return TrainingContext(
        data,
        vectors,
        defaults.GRID,
        [Channel.NCCT],
        torch.device("cpu"),
        reference=reference.make(data, np.arange(PATIENTS), defaults.GRID),
        left=reference.left_sided(data),
    )


def test_box_contains_the_arteries_at_every_depth() -> None:
    counts = [len(pretraining.artery_cells(defaults.GRID, BOX.slices, step)) for step in (1, 2, 4, 8)]
    assert counts == [96, 46, 20, 8]


def test_one_informative_voxel_is_learned_on_both_sides(signs: TrainingContext) -> None:
    task = pretraining.LessonTask(two_paths(), signs, np.arange(200), np.arange(200, PATIENTS))
    trainer.fit(task, Recipe(epochs=8, batch=16, rate=1e-2, average=0.9, patience=8), 5)
    by_head = task.explained_by_head()
    assert by_head["block1"]["truncal"] > 0.6
    assert max(share for name, share in by_head["block1"].items() if name != "truncal") < 0.2


def test_a_network_of_one_path_is_refused(signs: TrainingContext) -> None:
    with pytest.raises(ValueError, match="needs a network with a path over the box"):
        pretraining.LessonTask(network(Fusion.NONE), signs, np.arange(200), np.arange(200, PATIENTS))


def test_marked_clot_lowers_the_loss(signs: TrainingContext) -> None:
    """The clot of a left-sided patient is marked on the right, where the network sees it."""
    clots = np.zeros((PATIENTS, *(length // 2 for length in defaults.GRID.shape)), np.float16)
    left = signs.left
    assert left is not None
    clots[np.where(left)[0], 4, 12, 8] = 0.1
    clots[np.where(~left)[0], 15, 12, 8] = 0.1
    context = replace(signs, data=replace(signs.data, clots=clots))
    seen = context.clots(np.arange(PATIENTS))
    assert seen is not None
    assert (seen[:, 15, 12, 8] > 0).all()
    assert seen.sum() == pytest.approx(float(seen[:, 15, 12, 8].sum()))
    task = pretraining.LessonTask(two_paths(), context, np.arange(200), np.arange(200, PATIENTS))
    rows, usable = np.arange(4), np.ones(4, bool)
    right = torch.full((4, 12, 12, 12), -6.0)
    wrong = right.clone()
    right[:, 15 - 8, 12 - 8, 8 - 4] = 6.0
    wrong[:, 3, 4, 4] = 6.0
    assert task._clot_loss(right, rows, usable) < task._clot_loss(wrong, rows, usable)
    assert task._clot_loss(right, rows, ~usable) == 0


def test_pretraining_resumes_from_its_checkpoints(signs: TrainingContext, tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, batch=16, patience=3)
    config = pretraining.PretrainConfig(recipe, recipe, whole=48, views=2, measure=32)
    few = signs.first(64)
    whole, resumed = two_paths(), two_paths()
    explained = pretraining.pretrain(whole, few, 1, ProgressReporter(), config, folder=tmp_path)
    assert set(explained) == set(LATENTS)
    assert pretraining.pretrain(resumed, few, 1, ProgressReporter(), config, folder=tmp_path) == explained
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    features = pool(tasks.views(whole, few, 1, 0)[0][0].float())
    assert features.std(dim=0).median().item() == pytest.approx(1, abs=0.5)


def test_explained_shares_are_those_of_phantoms_that_no_part_was_trained_on(signs: TrainingContext) -> None:
    """The last block is trained on the first phantoms; of these, the lesson has seen even those that it holds out."""
    recipe = Recipe(epochs=1, batch=16, patience=3)
    config = pretraining.PretrainConfig(recipe, last_block=recipe, whole=48, views=1, measure=32)
    few, shares = signs.first(64), []
    for sign in (1, -1):
        latents = few.data.latents.copy()
        latents[58:] *= sign  # the tenth that the lesson holds out
        changed = replace(few, data=replace(few.data, latents=latents))
        shares.append(pretraining.pretrain(two_paths(), changed, 1, ProgressReporter(), config))
    assert shares[0] != shares[1]
    assert all(np.isfinite(list(each.values())).all() for each in shares)


def test_unit_spread_only_rescales_the_channels() -> None:
    model = network(Fusion.NONE).eval()
    features = torch.rand(64, 16, 6, 6, 6)
    with torch.no_grad():
        before = pool(model.block(features))
        factors = pretraining.unit_spread(model.block, before)
        after = pool(model.block(features))
    assert torch.allclose(after, before * factors, rtol=1e-4, atol=1e-5)
    assert after.std(dim=0).max() == pytest.approx(1, abs=0.01)
