"""The path that marks the clot learns where it is, and whether it is calcified, from very few voxels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from app.inference import clinical_encoder, defaults
from app.network.architecture import Architecture, BoxPath, Fusion
from app.network.daft import build
from app.network.resnet import MARKED, MarkPath, MultiPathTrunk
from app.sdk.clinical import ClinicalRecord, Side
from app.sdk.types import Channel
from app.training import mark_lesson, pretraining, reference, trainer
from app.training.dataset import LATENTS, Vectors
from app.training.progress import ProgressReporter
from app.training.tasks import TrainingContext
from app.training.trainer import Recipe
from tests.training.tiny import VARIABLES, tiny_dataset

PATIENTS = 200
CALCIFIED = LATENTS.index("calcified")
BOX = BoxPath(start=defaults.BOX.start, size=defaults.BOX.size, filters=4, marks=6)
TRAIN, VALIDATE = np.arange(160), np.arange(160, PATIENTS)


def path() -> MarkPath:
    torch.manual_seed(4)
    trunk = build(Architecture(fusion=Fusion.NONE, in_channels=1, clinical_size=3, filters=2, box=BOX)).trunk
    assert isinstance(trunk, MultiPathTrunk)
    assert trunk.marks is not None
    return trunk.marks


@pytest.fixture(scope="module")
def clots() -> TrainingContext:
    """A clot of 8 voxels, dark, or with one bright voxel if it is calcified; bright voxels elsewhere mean nothing."""
    rng = np.random.default_rng(3)
    data = tiny_dataset(rng.normal(size=PATIENTS), np.zeros(PATIENTS), rng.random(PATIENTS) < 0.3)
    latents = rng.normal(size=(PATIENTS, len(LATENTS))).astype(np.float32)
    calcified = rng.random(PATIENTS) < 0.4
    latents[:, CALCIFIED] = np.where(calcified, 1.2, -0.8)
    images = rng.normal(0, 0.1, (PATIENTS, 1, *defaults.GRID.shape)).astype(np.float16)
    shares = np.zeros((PATIENTS, *(length // 2 for length in defaults.GRID.shape)), np.float16)
    left = rng.random(PATIENTS) < 0.5
    for patient, place in enumerate(rng.integers((9, 9, 5), (18, 18, 14), (PATIENTS, 3))):
        x, y, z = place
        x = defaults.GRID.shape[0] // 2 - 1 - x if left[patient] else x
        shares[patient, x, y, z] = 0.1
        images[patient, 0, 2 * x : 2 * x + 2, 2 * y : 2 * y + 2, 2 * z : 2 * z + 2] = -1.5
        if calcified[patient]:
            images[patient, 0, 2 * x, 2 * y, 2 * z] = 3.0
        images[patient, 0, 20, 22, rng.integers(10, 28)] = 3.0
    sides = [Side.LEFT if is_left else Side.RIGHT for is_left in left]
    records = [ClinicalRecord(age=70.0, occlusion_side=side) for side in sides]
    data = replace(data, images=images, latents=latents, records=records, clots=shares)
    vectors = Vectors.of(data, clinical_encoder.fit(data.records, VARIABLES))
    head = reference.make(data, np.arange(PATIENTS), defaults.GRID)
    head = replace(head, mask=np.ones_like(head.mask), mean=np.zeros_like(head.mean))
    aligned = reference.left_sided(data)
    return TrainingContext(
        data, vectors, defaults.GRID, [Channel.NCCT], torch.device("cpu"), reference=head, left=aligned
    )


def task_of(context: TrainingContext) -> mark_lesson.MarkTask:
    boxes = mark_lesson.cut_boxes(context, BOX.slices)
    assert boxes.shape == (PATIENTS, 1, *BOX.size)
    return mark_lesson.MarkTask(path(), context, boxes, BOX.slices, TRAIN, VALIDATE)


def test_calcified_clots_are_told_from_others_and_from_other_bright_spots(clots: TrainingContext) -> None:
    task = task_of(clots)
    before = task.score(task.module)
    trainer.fit(task, Recipe(epochs=16, batch=16, rate=2e-2, average=0.9, patience=16), 5)
    assert task.score(task.module) > before
    with torch.no_grad():
        signs = task._predict(mark_lesson.cut_boxes(clots, BOX.slices)[VALIDATE].float())[0]
    cells = task._clots[VALIDATE] > 0
    assert signs.shape[1] == len(MARKED)
    by_patient = signs[:, 1].flatten(1)
    calcified = torch.from_numpy(clots.data.latents[VALIDATE, CALCIFIED] > 0)
    at_clot = by_patient[torch.arange(len(VALIDATE)), cells.flatten(1).float().argmax(1)]
    higher = (at_clot[calcified][:, None] > at_clot[~calcified][None]).float().mean()
    assert higher > 0.95
    marked = signs[:, 0].flatten(1)
    lower = marked < marked[torch.arange(len(VALIDATE)), cells.flatten(1).float().argmax(1)][:, None]
    assert lower.float().mean() > 0.98


def test_loss_counts_the_few_cells_with_clot_as_much_as_all_others() -> None:
    clots = torch.zeros(2, 4, 4, 4)
    clots[:, 1, 1, 1] = 1.0
    latents = torch.zeros(2, len(LATENTS))
    latents[0, CALCIFIED], latents[1, CALCIFIED] = 1.2, -0.8
    signs = torch.zeros(2, 3, 4, 4, 4)
    right, wrong = signs.clone(), signs.clone()
    right[:, 1, 1, 1, 1] = torch.tensor([3.0, -3.0])
    wrong[:, 1, 1, 1, 1] = torch.tensor([-3.0, 3.0])
    losses = [float(mark_lesson.marked_loss(each, clots, latents)) for each in (right, signs, wrong)]
    assert losses[0] < losses[1] - 0.5 < losses[2] - 1.5


def test_marks_need_known_clots(clots: TrainingContext) -> None:
    unknown = replace(clots, data=replace(clots.data, clots=None))
    boxes = mark_lesson.cut_boxes(unknown, BOX.slices)
    with pytest.raises(ValueError, match="phantoms whose clots are known"):
        mark_lesson.MarkTask(path(), unknown, boxes, BOX.slices, TRAIN, VALIDATE)


def test_partial_heads_keep_only_channels_of_a_known_combination(clots: TrainingContext) -> None:
    channels = [channel.name for channel in defaults.CHANNELS]
    task = task_of(clots)
    task._context = replace(clots, channels=channels)
    drawn = {tuple(np.array(channels)[row]) for row in task._drawn(2000, np.random.default_rng(0))}
    assert drawn == {tuple(channels), *mark_lesson.KEPT}


def test_pretraining_keeps_the_marks_that_were_learned_first(clots: TrainingContext, tmp_path: Path) -> None:
    """The lesson reads the marks and does not change them, and a resumed run gives the same network."""
    recipe = Recipe(epochs=1, batch=16, patience=3)
    config = pretraining.PretrainConfig(recipe, recipe, recipe, whole=48, views=2, measure=32)
    few, networks = clots.first(64), []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(build(Architecture(fusion=Fusion.NONE, in_channels=1, clinical_size=3, filters=2, box=BOX)))
        pretraining.pretrain(networks[-1], few, 1, ProgressReporter(), config, folder=tmp_path)
    for name, value in networks[0].state_dict().items():
        assert torch.equal(value, networks[1].state_dict()[name]), name
    stored = torch.load(tmp_path / "marks.pt", weights_only=True)["average"]
    for name, value in networks[0].trunk.state_dict().items():
        if name.startswith("marks.") and not name.startswith("marks.signs.sums"):
            assert torch.equal(value, stored["path." + name.removeprefix("marks.")]), name
    lesson = torch.load(tmp_path / "lesson.pt", weights_only=True)["module"]
    assert not [name for name in lesson if "marks" in name]
