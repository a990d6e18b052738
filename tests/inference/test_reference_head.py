"""A version with a reference head: the network sees the intracranial space alone, relative to the mean head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.inference import export, model_version
from app.inference.ensemble_predictor import EXACT_METHOD, ExplanationMethod
from app.inference.export import GraphFormat
from app.inference.model_input import ModelInput
from app.inference.model_version import ModelVersion
from app.inference.reference_head import ReferenceHead
from app.network.architecture import BoxPath
from app.registry.manifest import Manifest
from app.registry.model_store import ModelStore
from app.sdk.clinical import ClinicalRecord, Side
from app.sdk.errors import ModelNotReady
from app.sdk.types import Channel, Input
from tests.factory import GRID, random_network, tiny_case, tiny_manifest
from tests.imaging import heads

SHAPE = (2, *GRID.shape)


def reference_head() -> ReferenceHead:
    """A mask that is symmetric along x, and a mean head inside it."""
    mask = np.zeros(GRID.shape, bool)
    mask[3:13, 2:14, 4:12] = True
    mean = np.random.default_rng(3).normal(size=SHAPE).astype(np.float16).astype(np.float32) * mask
    return ReferenceHead(mask, mean)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    manifest = tiny_manifest()
    box = BoxPath(start=(8, 0, 0), size=(8, 16, 8), filters=2)
    manifest = manifest.model_copy(update={"architecture": manifest.architecture.model_copy(update={"box": box})})
    folds = [random_network(manifest.architecture, seed) for seed in (0, 1)]
    golden = [replace(tiny_case(manifest), affected=Side.LEFT)]
    folder = tmp_path_factory.mktemp("store") / manifest.name / manifest.version
    model_version.save(folder, manifest, folds, golden=golden, card="# Tiny\n", reference=reference_head())
    return folder


def load(folder: Path) -> ModelVersion:
    return ModelVersion.load(folder, Manifest.model_validate_json((folder / "manifest.json").read_bytes()), "cpu")


@pytest.fixture(scope="module")
def version(folder: Path) -> ModelVersion:
    return load(folder)


def mirror(case: ModelInput, side: Side | None) -> ModelInput:
    return replace(case, image=np.ascontiguousarray(case.image[:, ::-1]), affected=side)


def test_file_keeps_mask_and_mean() -> None:
    head = reference_head()
    read = ReferenceHead.from_bytes(head.to_bytes(), SHAPE)
    assert np.array_equal(read.mask, head.mask)
    assert np.array_equal(read.mean, head.mean)
    with pytest.raises(ValueError, match="another grid or other channels"):
        ReferenceHead.from_bytes(head.to_bytes(), (3, *GRID.shape))
    with pytest.raises(ValueError, match="holds no reference head"):
        ReferenceHead.from_bytes(head.to_bytes()[:50], SHAPE)


def test_nothing_outside_the_mask_changes_a_prediction(version: ModelVersion) -> None:
    case, head = tiny_case(version.manifest, seed=1), reference_head()
    loud = replace(case, image=np.where(head.mask, case.image, 40).astype(np.float32))
    assert version.predict(loud).log_odds == version.predict(case).log_odds
    changed = case.image.copy()
    changed[:, 5:10, 5:10, 5:10] += 5  # inside the mask: it must count
    assert abs(version.predict(replace(case, image=changed)).log_odds - version.predict(case).log_odds) > 1e-4


def test_the_mean_head_is_the_same_as_no_image_but_for_the_presence_bits(version: ModelVersion) -> None:
    case = tiny_case(version.manifest, seed=1)
    network_sees = reference_head().to_network(reference_head().mean, case.presence, mirrored=False)
    assert not network_sees.any()
    absent = np.array([True, False])
    assert not reference_head().to_network(case.image, absent, mirrored=False)[1].any()


@pytest.mark.parametrize("method", [ExplanationMethod(), EXACT_METHOD])
@pytest.mark.parametrize("side", [Side.LEFT, Side.RIGHT, None])
def test_explanation_adds_up_and_stays_inside_the_mask(
    version: ModelVersion, method: ExplanationMethod, side: Side | None
) -> None:
    case = replace(tiny_case(version.manifest, seed=2), affected=side)
    attribution, maps = version.explain(case, method=method)
    parts = sum(part.contribution for part in (*attribution.clinical, *attribution.imaging))
    assert attribution.base + parts == pytest.approx(version.predict(case).log_odds, abs=1e-5)
    for part in attribution.imaging:
        values = maps[f"aligned-attribution-{part.modality}"].array
        assert values.sum() == pytest.approx(part.contribution, abs=1e-5)
        assert np.abs(values).max() > 0
        assert not values[~reference_head().mask].any()
    assert np.array_equal(maps["aligned-intracranial"].array, reference_head().mask)
    assert sorted(maps) == sorted(attribution.maps)


def test_left_sided_patient_is_read_as_the_mirrored_right_sided_one(version: ModelVersion) -> None:
    right = replace(tiny_case(version.manifest, seed=4), affected=Side.RIGHT)
    left = mirror(right, Side.LEFT)
    assert version.predict(left).log_odds == version.predict(right).log_odds
    assert version.predict(mirror(right, None)).log_odds != version.predict(right).log_odds
    (_, of_right), (_, of_left) = version.explain(right), version.explain(left)
    name = f"aligned-attribution-{Channel.NCCT}"
    assert np.allclose(of_left[name].array[::-1], of_right[name].array, atol=1e-7)


def test_golden_case_of_a_left_sided_patient_is_reproduced(version: ModelVersion, folder: Path) -> None:
    assert version.check(folder) < 1e-5


@pytest.mark.parametrize("graph", [GraphFormat.TORCHSCRIPT, GraphFormat.OPENVINO])
def test_exported_graph_holds_the_reference_head(folder: Path, graph: GraphFormat, tmp_path: Path) -> None:
    assert export.export(load(folder), folder, graph, tmp_path).difference < 1e-5


def test_store_copies_and_verifies_the_reference_head(folder: Path, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    entry = store.add(folder)
    assert load(entry.folder).check(entry.folder) < 1e-5
    file = entry.folder / "reference-head.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelNotReady):
        store.verify(entry)
    with pytest.raises(ModelNotReady, match="differs from its manifest"):
        load(entry.folder)


def test_schema_1_has_no_reference_head(version: ModelVersion) -> None:
    document = version.manifest.model_dump()
    with pytest.raises(ValueError, match="need schema_version 2"):
        Manifest.model_validate(document | {"schema_version": 1})
    old = tiny_manifest().model_dump() | {"schema_version": 1}
    assert Manifest.model_validate(old).schema_version == 1


def test_box_outside_the_grid_is_refused(version: ModelVersion) -> None:
    document = version.manifest.model_dump()
    document["architecture"]["box"]["start"] = (16, 0, 0)
    with pytest.raises(ValueError, match="within the grid"):
        Manifest.model_validate(document)


@pytest.mark.parametrize(("side", "codes"), [(Side.LEFT, []), (None, ["side-unknown"])])
def test_images_whose_side_nobody_knows_give_a_warning(
    version: ModelVersion, side: Side | None, codes: list[str]
) -> None:
    shape = (64, 80, 64)
    head = heads.ct(heads.grid(shape, (3.0, 3.0, 3.0)), shape)
    prepared = version.prepare({Input.CTA: head}, ClinicalRecord(age=70.0, occlusion_side=side))
    assert [flag.code for flag in prepared.flags if flag.code.startswith("side-")] == codes
