"""A run uses checkpoints only of the same data, code and arguments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from app.inference import defaults
from app.sdk.clinical import ClinicalRecord
from app.training import experiment, pretrained, process_pool, provenance, split, tasks
from app.training.cohort import Cohort, CohortRow
from app.training.dataset import Dataset, Vectors
from app.training.options import PublishedModel, TrainConfig, Validation
from app.training.progress import ProgressReporter
from app.training.split import RunSplits
from app.training.tasks import TrainingContext
from tests.training.tiny import GRID, tiny_dataset

LABELS = np.arange(60) % 2
CPU = torch.device("cpu")
TRUNK = Path(__file__).resolve().parents[2] / "model_store" / "rlvo-synthetic" / "2.3.0"


def config(**given: object) -> TrainConfig:
    plain = TrainConfig(Path("c"), None, None, 0, 12, 0, "cpu", quick=True, drop_unknown=False)
    return replace(plain, **given)  # type: ignore[arg-type]


def cohort_in(folder: Path) -> Cohort:
    rows = [
        CohortRow(
            row=number + 2,
            patient=f"p{number}",
            site=("east", "west")[number // 2 % 2],
            date="2024-01-01",
            fold=("test", "a", "b")[number // 2 % 3],
            volumes={},
            prepared=number,
            record=ClinicalRecord(age=70),
            outcome=int(label),
        )
        for number, label in enumerate(LABELS)
    ]
    return Cohort(folder, tuple(rows))


def data_of(cohort: Cohort, change_image: bool = False) -> Dataset:
    labels = np.array([study.outcome for study in cohort.studies])
    data = tiny_dataset(np.zeros(60), np.zeros(60), labels)
    if change_image:
        data.images[7, 0, 1, 2, 3] += 1
    presence = np.zeros(len(defaults.CHANNELS), bool) | (np.arange(len(defaults.CHANNELS)) == 0)
    images = np.repeat(data.images, len(defaults.CHANNELS), axis=1)
    return replace(
        data,
        records=[study.record for study in cohort.studies],
        sites=np.array([study.site for study in cohort.studies]),
        digests=[provenance.image_digests(image, presence, {}) for image in images],
    )


def run(cohort: Cohort, options: TrainConfig | None = None, change_image: bool = False) -> RunSplits:
    return split.split(cohort, data_of(cohort, change_image), options or config(), CPU)


def edited(cohort: Cohort, row: int = 7, **change: object) -> Cohort:
    studies = list(cohort.studies)
    studies[row] = replace(studies[row], **change)  # type: ignore[arg-type]
    return replace(cohort, studies=tuple(studies))


@pytest.mark.parametrize(
    "change",
    [
        {"record": ClinicalRecord(age=71)},
        {"record": ClinicalRecord(age=70, atrial_fibrillation=True)},
        {"patient": "other"},
        {"site": "south"},
        {"scanner": "other"},
        {"date": "2024-01-02"},
        {"fold": "c"},
        {"outcome": 0},
    ],
    ids=lambda change: "-".join(change),
)
def test_edited_cell_starts_another_run_with_another_data_digest(tmp_path: Path, change: dict[str, object]) -> None:
    cohort = cohort_in(tmp_path)
    if "fold" in change:  # one fold of few rows has one outcome only; all its rows change
        other = replace(cohort, studies=tuple(replace(s, fold=s.fold.replace("b", "c")) for s in cohort.studies))
    else:
        other = edited(cohort, **change)
    before, after = run(cohort), run(other)
    assert before.folder != after.folder
    assert before.digest != after.digest


def test_edited_voxel_or_target_starts_another_run(tmp_path: Path) -> None:
    cohort = cohort_in(tmp_path)
    runs = [run(cohort), run(cohort, change_image=True), run(replace(cohort, target="unsuccessful_reperfusion"))]
    assert len({one.digest for one in runs}) == len({one.folder for one in runs}) == 3


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"epochs": 3}, {"phantoms": 10}, {"quick": False}, {"validation": Validation.NESTED}, {"repeats": 2}],
    ids=lambda change: "-".join(change),
)
def test_option_that_changes_a_number_starts_another_run(tmp_path: Path, change: dict[str, object]) -> None:
    cohort = cohort_in(tmp_path)
    assert run(cohort).folder != run(cohort, config(**change)).folder


def test_code_and_device_start_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = cohort_in(tmp_path)
    before = run(cohort)
    assert split.split(cohort, data_of(cohort), config(), torch.device("cuda")).folder != before.folder
    monkeypatch.setattr(provenance, "code_digest", lambda: "another release")
    assert run(cohort).folder != before.folder


def test_reused_version_is_known_by_its_content(tmp_path: Path) -> None:
    trunk, copy = tmp_path / "a" / "1.0.0", tmp_path / "b" / "1.0.0"
    for folder in (trunk, copy):
        folder.mkdir(parents=True)
        for name in ("manifest.json", provenance.read_manifest(TRUNK).folds[0].file):
            (folder / name).write_bytes((TRUNK / name).read_bytes())
    cohort = cohort_in(tmp_path)
    before = run(cohort, config(trunk=trunk))
    assert run(cohort, config(trunk=copy)).folder == before.folder
    assert run(cohort).folder != before.folder
    manifest = (trunk / "manifest.json").read_text()
    (trunk / "manifest.json").write_text(manifest.replace("Research use only.", "Research only."))
    assert run(cohort, config(trunk=trunk)).folder != before.folder


@pytest.mark.parametrize(
    "given",
    [
        {"jobs": 7},
        {"report": Path("elsewhere")},
        {"out": Path("m/1.0.0")},
        {"compare": (PublishedModel.FILM,)},
        {"cohort": Path("/elsewhere/c")},
        {"model": PublishedModel.LOGISTIC},
        {"device": "auto"},
    ],
    ids=lambda given: "-".join(given),
)
def test_unchanged_data_and_numbers_continue_the_same_run(tmp_path: Path, given: dict[str, object]) -> None:
    cohort = cohort_in(tmp_path)
    moved = replace(cohort, studies=tuple(replace(study, row=study.row + 3) for study in cohort.studies))
    before, after = run(cohort), run(moved, config(**given))
    assert before.folder == after.folder
    assert before.digest == after.digest


@pytest.mark.parametrize("names", [("a b", "a-b"), ("Ward", "ward"), ("a/b", "a b"), ("../x", "x"), ("á", "é")])
def test_each_site_has_a_folder_inside_the_run(tmp_path: Path, names: tuple[str, str]) -> None:
    cohort = cohort_in(tmp_path)
    studies = tuple(replace(study, site=names[study.site == "west"], fold="") for study in cohort.studies)
    result = run(replace(cohort, studies=studies), config(validation=Validation.SITES))
    folders = [part.folder for part in result.parts]
    assert len({str(folder).lower() for folder in folders}) == 2
    assert {folder.resolve().parent for folder in folders} == {result.folder.resolve()}


def test_different_images_are_not_shared_through_one_file(tmp_path: Path) -> None:
    def context(brightness: float) -> TrainingContext:
        data = tiny_dataset(np.zeros(60), np.full(60, brightness), LABELS)
        spec = experiment.clinical_encoder.fit(data.records, [*defaults.VARIABLES])
        return TrainingContext(data, Vectors.of(data, spec), GRID, ["ncct"], CPU)  # type: ignore[list-item]

    one, other = context(0.0), context(1.0)
    shared = [process_pool.share(each, tmp_path).context.data.images for each in (one, other, one)]
    assert np.array_equal(shared[0], one.data.images)
    assert np.array_equal(shared[1], other.data.images)
    assert len(list(tmp_path.iterdir())) == 2  # the same images are written once


def test_splits_share_features_and_not_clinical_vectors(tmp_path: Path) -> None:
    """The scale of the variables depends on the development patients of a split."""
    data = tiny_dataset(np.linspace(-2, 2, 60), np.zeros(60), LABELS)
    images = np.zeros((60, len(defaults.CHANNELS), *defaults.GRID.shape), np.float16)
    data = replace(data, images=images, presence=np.ones((60, len(defaults.CHANNELS)), bool))
    network = pretrained.from_version(TRUNK).network
    first, second = (
        TrainingContext(
            data,
            Vectors.of(data, experiment.clinical_encoder.fit(data.records[part], [*defaults.VARIABLES])),
            defaults.GRID,
            pretrained.CHANNEL_NAMES,
            CPU,
        )
        for part in (slice(0, 30), slice(30, 60))
    )
    path = tmp_path / "views.safetensors"
    pretrained.views(network, first, 2, 4, path, ProgressReporter())
    computed = tasks.views(network, second, 2, 4)
    loaded = pretrained.views(network, second, 2, 4, path, ProgressReporter())
    for (features, vectors), (own_features, own_vectors) in zip(loaded, computed, strict=True):
        assert torch.equal(features, own_features)
        assert torch.equal(vectors, own_vectors)
