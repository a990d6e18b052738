"""A model version: load, prepare, predict, explain, save."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_tensors
from scipy.ndimage import map_coordinates

from app.imaging.aligned_study import PatientGrid
from app.imaging.io import nifti
from app.inference.attribution.atlas import NAMES, TREE
from app.inference.ensemble_predictor import EXACT_METHOD, ExplanationMethod, ModalityRule, NetworkFolds, VoxelRule
from app.inference.explain import clinical_players
from app.inference.model_input import ModelInput
from app.inference.model_version import ModelVersion, save
from app.network.unet import UNet
from app.registry.manifest import (
    Background,
    Clinical,
    Conformal,
    Manifest,
    OutOfDistribution,
    SegmenterManifest,
    SegmenterRef,
)
from app.sdk.clinical import ClinicalRecord
from app.sdk.errors import MissingInput, ModelNotReady
from app.sdk.types import Channel, FoldSpread, Input
from tests.factory import random_network, tiny_case, tiny_manifest, tiny_version
from tests.imaging import heads


def load_version(folder: Path) -> ModelVersion:
    return ModelVersion.load(folder, Manifest.model_validate_json((folder / "manifest.json").read_bytes()), "cpu")


@pytest.fixture(params=["network", "logistic"])
def version(request: pytest.FixtureRequest, tmp_path: Path) -> ModelVersion:
    return load_version(tiny_version(tmp_path, kind=request.param))


@pytest.mark.parametrize(
    "method",
    [
        ExplanationMethod(),
        ExplanationMethod(VoxelRule.GRADIENTS, ModalityRule.EXACT, steps=8),
        ExplanationMethod(budget=10**6),
        ExplanationMethod(budget=20),
        EXACT_METHOD,
    ],
)
def test_contributions_sum_to_the_log_odds(version: ModelVersion, method: ExplanationMethod) -> None:
    case = tiny_case(version.manifest, seed=1)
    answer = version.predict(case)
    attribution, _ = version.explain(case, method=method)
    parts = sum(part.contribution for part in attribution.clinical) + sum(
        part.contribution for part in attribution.imaging
    )
    assert attribution.base + parts == pytest.approx(attribution.total, abs=1e-6)
    assert attribution.total == pytest.approx(answer.log_odds, abs=1e-5)
    assert answer.probability == pytest.approx(1 / (1 + np.exp(-attribution.total)), abs=1e-6)


def test_map_sums_to_its_modality(tmp_path: Path) -> None:
    version = load_version(tiny_version(tmp_path))
    attribution, maps = version.explain(tiny_case(version.manifest))
    for part in attribution.imaging:
        array, affine = maps[f"attribution-{part.modality}"]
        assert array.shape == version.manifest.grid.shape
        assert array.sum() == pytest.approx(part.contribution, abs=1e-5)
        assert np.array_equal(affine, np.asarray(version.manifest.grid.affine))
    assert sorted(maps) == sorted(attribution.maps)


def test_absent_channel_has_no_contribution(tmp_path: Path) -> None:
    version = load_version(tiny_version(tmp_path))
    attribution, maps = version.explain(tiny_case(version.manifest, absent=[Channel.NCCT]))
    assert [part.modality for part in attribution.imaging] == [Channel.CTA]
    assert list(maps) == ["attribution-cta", "aligned-attribution-cta"]


def test_clinical_contributions_sum_to_the_log_odds_without_images(tmp_path: Path) -> None:
    version = load_version(tiny_version(tmp_path))
    case = tiny_case(version.manifest, absent=[Channel.NCCT, Channel.CTA])
    attribution, maps = version.explain(case)
    assert attribution.imaging == []
    assert maps == {}
    assert attribution.base + sum(part.contribution for part in attribution.clinical) == pytest.approx(
        attribution.total, abs=1e-6
    )


def test_flipped_bit_is_refused(tmp_path: Path) -> None:
    folder = tiny_version(tmp_path)
    weights = bytearray((folder / "fold-1.safetensors").read_bytes())
    weights[-100] ^= 1
    (folder / "fold-1.safetensors").write_bytes(weights)
    with pytest.raises(ModelNotReady, match=r"fold-1\.safetensors"):
        load_version(folder)


def test_missing_fold_is_refused(tmp_path: Path) -> None:
    folder = tiny_version(tmp_path)
    (folder / "fold-0.safetensors").unlink()
    with pytest.raises(ModelNotReady, match=r"fold-0\.safetensors"):
        load_version(folder)


def test_version_uses_the_segmenter_of_its_manifest(tmp_path: Path) -> None:
    segment = tmp_path / "segmenters" / "vessels" / "2.0.0"
    segment.mkdir(parents=True)
    network = UNet(2)
    with torch.no_grad():
        network.last.weight.zero_()
        network.last.bias.fill_(9.0)  # every bright block is vessel
    content = save_tensors(network.state_dict())
    named = SegmenterRef(name="vessels", version="2.0.0", sha256=hashlib.sha256(content).hexdigest())
    described = SegmenterManifest(**named.model_dump(), filters=2, file="weights.safetensors", training="none")
    (segment / "weights.safetensors").write_bytes(content)
    (segment / "manifest.json").write_text(described.model_dump_json())

    folder = tiny_version(tmp_path, channels=(Channel.CTA, Channel.VESSELS))
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    trained = ModelVersion.load(folder, manifest.model_copy(update={"segmenter": named}), "cpu")
    shape = (64, 72, 64)
    head = heads.ct(heads.grid(shape, (3, 3, 3)), shape, noise=60)
    marked, classical = (
        each.prepare({Input.CTA: head}, ClinicalRecord()).sources[Channel.VESSELS].computed
        for each in (trained, load_version(folder))
    )
    assert marked is not None
    assert classical is not None
    assert marked.data.sum() > 2 * classical.data.sum() > 0

    (segment / "weights.safetensors").write_bytes(content[:-1])
    with pytest.raises(ModelNotReady, match=r"weights\.safetensors"):
        ModelVersion.load(folder, manifest.model_copy(update={"segmenter": named}), "cpu")
    (segment / "manifest.json").unlink()
    with pytest.raises(ModelNotReady, match="vessel segmenter"):
        ModelVersion.load(folder, manifest.model_copy(update={"segmenter": named}), "cpu")


def test_version_reproduces_its_golden_cases(tmp_path: Path) -> None:
    folder = tiny_version(tmp_path)
    version = load_version(folder)
    assert len(version.manifest.golden) == 1
    assert version.check(folder) < 1e-5


def test_version_is_never_overwritten(tmp_path: Path) -> None:
    folder = tiny_version(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError):
        tiny_version(tmp_path, seed=5)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_spread_is_the_lowest_and_the_highest_fold(version: ModelVersion) -> None:
    answer = version.predict(tiny_case(version.manifest, seed=2))
    assert answer.interval == FoldSpread(low=min(answer.folds), high=max(answer.folds))
    assert answer.interval.low < answer.probability < answer.interval.high
    assert len(answer.folds) == 2
    assert answer.decision.refractory == (answer.probability >= version.manifest.threshold.value)


def test_serialised_input_gives_the_same_prediction(tmp_path: Path) -> None:
    version = load_version(tiny_version(tmp_path))
    case = tiny_case(version.manifest, seed=4)
    again = ModelInput.from_bytes(case.to_bytes())
    assert np.array_equal(again.image, case.image)
    assert (again.shown, again.imputed, again.flags) == (case.shown, case.imputed, case.flags)
    assert version.predict(again) == version.predict(case)


def test_map_is_resampled_to_the_patients_grid(tmp_path: Path) -> None:
    version = load_version(tiny_version(tmp_path))
    # The patient's world is MNI space shifted by 20 mm to the right; voxels are finer, and x runs to the left.
    affine = np.array([[-4.0, 0, 0, 70], [0, 4.0, 0, -110], [0, 0, 5.0, -70], [0, 0, 0, 1]])
    shift = np.eye(4)
    shift[0, 3] = 20.0
    grid = PatientGrid(affine=affine, shape=(40, 48, 32), mni_from_world=shift)
    case = replace(tiny_case(version.manifest), grids={Channel.CTA: grid})
    _, patient_maps = version.explain(ModelInput.from_bytes(case.to_bytes()))
    _, grid_maps = version.explain(tiny_case(version.manifest))
    on_patient, on_grid = patient_maps["attribution-cta"], grid_maps["attribution-cta"]
    assert on_patient.array.shape == (40, 48, 32)
    assert np.array_equal(on_patient.affine, affine)
    inverse = np.linalg.inv(on_grid.affine)
    for voxel in ((12, 20, 10), (30, 9, 21)):
        position = inverse @ shift @ affine @ (*voxel, 1)
        expected = map_coordinates(on_grid.array, position[:3, None], order=1)[0]
        assert on_patient.array[voxel] == pytest.approx(expected, abs=1e-6)
    assert patient_maps["attribution-ncct"].array.shape == version.manifest.grid.shape


@pytest.mark.parametrize("vessels", [False, True], ids=["without vessels", "with vessels"])
def test_regions_sum_to_imaging(tmp_path: Path, vessels: bool) -> None:
    """Without known arteries there is no vessel tree."""
    version = load_version(tiny_version(tmp_path, channels=[Channel.CTA, *([Channel.VESSELS] if vessels else [])]))
    attribution, _ = version.explain(tiny_case(version.manifest))
    for part in attribution.imaging:
        shares = {each.region: each.contribution for each in attribution.regions if each.modality is part.modality}
        assert set(shares) == {name for name in NAMES if vessels or TREE not in name}
        assert sum(shares.values()) == pytest.approx(part.contribution, abs=1e-5)


def test_missing_value_contributes_nothing_if_the_background_misses_it_too(tmp_path: Path) -> None:
    version = load_version(tiny_version(tmp_path))
    columns = next(player.columns for player in clinical_players(version.manifest) if player.name == "nihss")
    assert len(columns) == 2  # the value and its missing bit
    case = tiny_case(version.manifest)
    case.clinical[columns] = (0.0, 1.0)
    vectors = np.asarray(version.manifest.background.vectors)
    vectors[:, columns] = (0.0, 1.0)
    background = Background(vectors=tuple(map(tuple, vectors.tolist())))
    version.manifest = version.manifest.model_copy(update={"background": background})
    attribution, _ = version.explain(replace(case, shown={**case.shown, "nihss": None}))
    (part,) = (part for part in attribution.clinical if part.variable == "nihss")
    assert part.imputed
    assert part.contribution == pytest.approx(0, abs=1e-9)


def test_grouped_variables_are_one_contribution(tmp_path: Path) -> None:
    version = load_version(tiny_version(tmp_path))
    attribution, _ = version.explain(tiny_case(version.manifest))
    assert [part.variable for part in attribution.clinical] == [
        "age",
        "atrial_fibrillation",
        "nihss",
        "smoking",
        "blood pressure",
        "perfusion.core_ml",
    ]
    assert attribution.clinical[4].value == "systolic BP 150 mmHg, diastolic BP 85 mmHg"


def test_out_of_distribution_patient_is_flagged(tmp_path: Path) -> None:
    version = load_version(tiny_version(tmp_path))
    case = tiny_case(version.manifest)
    features = version.predictor.predict(case.image, case.clinical, with_features=True).penultimate
    assert features is not None
    near = OutOfDistribution(mean=tuple(features.tolist()), precision=tuple(map(tuple, np.eye(16).tolist())), limit=1.0)
    far = near.model_copy(update={"mean": tuple((features + 1).tolist())})
    for reference, flags in ((near, []), (far, ["out-of-distribution"])):
        version.manifest = version.manifest.model_copy(update={"out_of_distribution": reference})
        assert [flag.code for flag in version.predict(case).flags] == flags


def test_prediction_makes_one_pass_over_the_images(tmp_path: Path) -> None:
    version = load_version(tiny_version(tmp_path))
    reference = OutOfDistribution(mean=(0.0,) * 16, precision=tuple(map(tuple, np.eye(16).tolist())), limit=1.0)
    version.manifest = version.manifest.model_copy(update={"out_of_distribution": reference})
    assert isinstance(version.predictor, NetworkFolds)
    passes: list[object] = []
    for fold in version.predictor.ensemble.folds:
        fold.trunk.register_forward_hook(lambda *_: passes.append(None))
    version.predict(tiny_case(version.manifest))
    assert len(passes) == len(version.manifest.folds)


@pytest.mark.parametrize("quantiles", [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0)])
def test_conformal_classes(tmp_path: Path, quantiles: tuple[float, float]) -> None:
    version = load_version(tiny_version(tmp_path))
    conformal = Conformal(level=0.9, quantile_negative=quantiles[0], quantile_positive=quantiles[1])
    version.manifest = version.manifest.model_copy(update={"conformal": conformal})
    expected = {(0.0, 0.0): ["refractory", "not-refractory"], (1.0, 1.0): [], (0.0, 1.0): ["not-refractory"]}
    assert version.predict(tiny_case(version.manifest)).decision.conformal == expected[quantiles]


@pytest.mark.parametrize("kind", ["network", "logistic"])
def test_weights_of_another_shape_are_refused(tmp_path: Path, kind: str) -> None:
    folder = tiny_version(tmp_path, kind=kind)
    manifest = load_version(folder).manifest
    variables = manifest.clinical.variables[:-1]
    fewer = manifest.model_copy(update={"clinical": Clinical(variables=variables)})
    with pytest.raises(ModelNotReady):
        ModelVersion.load(folder, fewer, "cpu")


def test_missing_required_volume_is_refused(tmp_path: Path) -> None:
    version = load_version(tiny_version(tmp_path))
    with pytest.raises(MissingInput, match="cta"):
        version.prepare({}, ClinicalRecord())


def test_failed_save_leaves_no_files(tmp_path: Path) -> None:
    manifest = tiny_manifest()
    other = random_network(manifest.architecture.model_copy(update={"filters": 3}))
    with pytest.raises(ModelNotReady):
        save(tmp_path / "tiny" / "1.0.0", manifest, [other])
    assert list((tmp_path / "tiny").iterdir()) == []


def test_real_head_ct_from_volume_to_map(tmp_path: Path, real_images: Path) -> None:
    version = load_version(tiny_version(tmp_path, channels=[Channel.NCCT]))
    volume = nifti.read(real_images / "ncct_human_ge_deskewed.nii.gz", field=Input.NCCT)
    case = version.prepare({Input.NCCT: volume}, ClinicalRecord(age=70.0))
    assert case.presence.tolist() == [True]
    assert "imputed" in [flag.code for flag in case.flags]
    attribution, maps = version.explain(case)
    array, affine = maps["attribution-ncct"]
    assert array.shape == volume.shape
    assert np.array_equal(affine, volume.affine)
    assert attribution.total == pytest.approx(version.predict(case).log_odds, abs=1e-5)
