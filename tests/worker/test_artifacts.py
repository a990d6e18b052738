"""Maps as files, and the figures and the report that are drawn from them, for all kinds of studies."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from datetime import UTC, datetime

import nibabel
import numpy as np
import pytest

from app.imaging.aligned_study import PatientGrid, Source
from app.imaging.io.nifti import Volume
from app.inference.model_input import ModelInput
from app.inference.model_version import MapVolume, ModelVersion
from app.registry.manifest import Manifest
from app.sdk import published_scores
from app.sdk.clinical import ClinicalRecord
from app.sdk.types import Channel, Decision, Input, ModelRef, PerfusionSummary, Prediction, Status
from app.worker import artifacts
from app.worker.artifacts import ArtifactFile
from app.worker.drawing_data import DATA, wanted
from app.worker.drawing_process import drawn_files
from tests.factory import tiny_case, tiny_version

# The head is shifted by 6 mm to the left and 4 mm up, and rotated by 10 degrees about z.
_C, _S = np.cos(np.radians(10)), np.sin(np.radians(10))
MNI_FROM_WORLD = np.array([[_C, -_S, 0, 6], [_S, _C, 0, 0], [0, 0, 1, -4], [0, 0, 0, 1.0]])
AFFINE = np.array([[-3.0, 0, 0, 96], [0, 3, 0, -130], [0, 0, 4, -70], [0, 0, 0, 1]])
SHAPE = (64, 76, 44)
RECORD = ClinicalRecord(atrial_fibrillation=False, hypertension=True, nihss=12)
SPOT_MM = np.array([30.0, -20, 10])  # in MNI space


def ct(channel: Channel) -> Volume:
    """A head of 40 (HU, s or 1) with one bright ball around the spot, on the patient's grid."""
    voxels = np.stack([*np.indices(SHAPE), np.ones(SHAPE)])
    mni = np.tensordot(MNI_FROM_WORLD @ AFFINE, voxels, axes=1)[:3]
    ball = np.linalg.norm(mni - SPOT_MM[:, None, None, None], axis=0) < 8
    if channel is Channel.VESSELS:
        return Volume(np.asfortranarray(ball.astype(np.uint8)), AFFINE)
    return Volume(np.asfortranarray(np.where(ball, 300, 40).astype(np.int16)), AFFINE)


def patient(manifest: Manifest, sources: dict[Channel, Source]) -> ModelInput:
    grids = {channel: PatientGrid(AFFINE, SHAPE, MNI_FROM_WORLD) for channel in sources}
    return replace(tiny_case(manifest), grids=grids, sources=sources)


def make_files(version: ModelVersion, case: ModelInput, **replaced: MapVolume) -> dict[str, ArtifactFile]:
    """All files of a case by name; ``replaced`` are maps that replace those of the explanation."""
    attribution, maps = version.explain(case)
    prediction = Prediction(
        id="0192",
        status=Status.SUCCEEDED,
        model=ModelRef(name="tiny", version="1.0.0", digest=version.digest),
        probability=0.3,
        decision=Decision(refractory=False, threshold=0.4, rule="chosen for tests"),
        attribution=attribution,
        perfusion=PerfusionSummary(core_ml=12.0),
        created=datetime(2026, 11, 24, tzinfo=UTC),
    )
    kinds = {Input.NCCT: Channel.NCCT, Input.CTA: Channel.CTA}
    maps = maps | {name.replace("_", "-"): volume for name, volume in replaced.items()}
    made = artifacts.files(
        prediction, case, version.manifest, maps, lambda field: ct(kinds[field]), card="# The card\n", record=RECORD
    )
    return {file.name: file for file in made}


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    folder = tiny_version(tmp_path_factory.mktemp("models"), channels=(Channel.NCCT, Channel.CTA, Channel.VESSELS))
    return ModelVersion.load(folder, Manifest.model_validate_json((folder / "manifest.json").read_bytes()), "cpu")


@pytest.fixture(scope="module")
def files(version: ModelVersion) -> dict[str, ArtifactFile]:
    case = patient(
        version.manifest,
        {
            Channel.NCCT: Source(Input.NCCT),
            Channel.CTA: Source(Input.CTA, 2.0),
            Channel.VESSELS: Source(computed=ct(Channel.VESSELS)),
        },
    )
    return make_files(version, case)


def image(file: ArtifactFile) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(file.content))


def test_all_files_are_made(files: dict[str, ArtifactFile]) -> None:
    channels = ("ncct", "cta", "vessels")
    maps = {
        f"maps/{kind}-{name}.nii.gz" for kind in ("attribution", "aligned-attribution", "aligned") for name in channels
    }
    assert set(files) == {*maps, "maps/vessels.nii.gz", "alignment.json", "drawing.json"}
    assert {f"maps/{file.map_name}.nii.gz" for file in files.values() if file.map_name} == maps | {
        "maps/vessels.nii.gz"
    }


def test_alignment_has_the_place_of_each_image_of_the_patient(
    version: ModelVersion, files: dict[str, ArtifactFile]
) -> None:
    alignment = json.loads(files["alignment.json"].content)
    assert set(alignment) == {"ncct", "cta", "vessels"}
    assert files["alignment.json"].media_type == "application/json"
    for matrices in alignment.values():
        np.testing.assert_allclose(matrices["affine"], AFFINE)
        np.testing.assert_allclose(matrices["mni_from_world"], MNI_FROM_WORLD)
    without_grids = make_files(version, tiny_case(version.manifest))
    assert json.loads(without_grids["alignment.json"].content) == {}


@pytest.mark.parametrize(("name", "bright"), [("ncct", 300), ("cta", 600), ("vessels", 1)])
def test_shown_image_is_in_mni_space(files: dict[str, ArtifactFile], name: str, bright: float) -> None:
    shown = image(files[f"maps/aligned-{name}.nii.gz"])
    assert shown.shape == (91, 109, 91)
    values = shown.get_fdata()
    voxel = np.linalg.inv(shown.affine) @ [*SPOT_MM, 1]
    assert values[tuple(np.rint(voxel[:3]).astype(int))] == pytest.approx(bright, rel=0.02)
    centre = np.argwhere(values > 0.7 * bright).mean(axis=0)
    assert (shown.affine @ [*centre, 1])[:3] == pytest.approx(SPOT_MM, abs=0.7)


def test_map_on_the_patients_grid_has_half_a_step_of_error(
    version: ModelVersion, files: dict[str, ArtifactFile]
) -> None:
    case = patient(version.manifest, {Channel.NCCT: Source(Input.NCCT)})
    _, maps = version.explain(case)
    stored = image(files["maps/attribution-ncct.nii.gz"])
    assert stored.get_data_dtype() == np.int8
    assert stored.shape == SHAPE
    np.testing.assert_allclose(stored.affine, AFFINE)
    exact = maps["attribution-ncct"].array
    assert np.abs(stored.get_fdata() - exact).max() <= 0.51 * np.abs(exact).max() / 127
    aligned = image(files["maps/aligned-attribution-ncct.nii.gz"])
    assert np.array_equal(aligned.get_fdata(dtype=np.float32), maps["aligned-attribution-ncct"].array)


def test_computed_mask_is_stored_on_its_grid(files: dict[str, ArtifactFile]) -> None:
    mask = image(files["maps/vessels.nii.gz"])
    np.testing.assert_allclose(mask.affine, AFFINE)
    assert np.array_equal(np.asarray(mask.dataobj), ct(Channel.VESSELS).data)


def test_case_without_volumes_shows_the_input_of_the_network(version: ModelVersion) -> None:
    case = tiny_case(version.manifest)
    made = make_files(version, case)
    spec = version.manifest.channels[1]
    shown = image(made["maps/aligned-cta.nii.gz"])
    np.testing.assert_allclose(shown.affine, np.asarray(version.manifest.grid.affine))
    np.testing.assert_allclose(shown.get_fdata(), case.image[1] * spec.std + spec.mean, atol=0.51)
    assert "maps/vessels.nii.gz" not in made


def test_lesion_masks_are_stored_on_the_grid_of_the_perfusion_maps(version: ModelVersion) -> None:
    core = Volume((ct(Channel.VESSELS).data[:8] > 0).astype(np.uint8), AFFINE)
    case = replace(tiny_case(version.manifest), lesions={"core": core})
    stored = image(make_files(version, ModelInput.from_bytes(case.to_bytes()))["maps/core.nii.gz"])
    np.testing.assert_allclose(stored.affine, AFFINE)
    assert np.array_equal(np.asarray(stored.dataobj), core.data)


@pytest.fixture(scope="module")
def drawn(files: dict[str, ArtifactFile]) -> dict[str, bytes]:
    return drawn_files({name: files[name].content for name in wanted(files)})


def test_all_figures_are_drawn_from_the_files(drawn: dict[str, bytes]) -> None:
    names = {"waterfall", "perfusion", "position", "overlay-ncct", "overlay-cta", "overlay-vessels"}
    assert set(drawn) == {"report.html", *(f"figures/{name}.{kind}" for name in names for kind in ("png", "svg"))}


def test_report_shows_the_published_scores_with_their_missing_items_and_their_target(drawn: dict[str, bytes]) -> None:
    text = drawn["report.html"].decode()
    assert ">Score-ICAD</td>" in text
    assert "6 to 20 of 20 points" in text
    assert "borderzone infarct; calcification of the carotid siphon of that side" in text
    assert published_scores.TARGET_NOTE in text


def test_report_of_a_release_without_published_scores_is_drawn(files: dict[str, ArtifactFile]) -> None:
    stored = {name: files[name].content for name in wanted(files)}
    earlier = json.loads(stored[DATA])
    del earlier["scores"]
    text = drawn_files(stored | {DATA: json.dumps(earlier).encode()})["report.html"].decode()
    assert "Published scores" not in text


def test_report_contains_the_figures_and_the_model_card(drawn: dict[str, bytes]) -> None:
    html = drawn["report.html"].decode()
    assert "# The card" in html
    for caption in ("What every variable and image adds", "CTA: where it raised and lowered the probability"):
        assert caption in html


def test_map_of_zeros_does_not_divide_by_zero(version: ModelVersion) -> None:
    zero = MapVolume(np.zeros((4, 4, 4), np.float32), np.eye(4))
    made = make_files(version, tiny_case(version.manifest), attribution_cta=zero)
    assert not image(made["maps/attribution-cta.nii.gz"]).get_fdata().any()


def test_sources_survive_serialization(version: ModelVersion) -> None:
    sources = {
        Channel.CTA: Source(Input.CTA, 0.25),
        Channel.VESSELS: Source(computed=ct(Channel.VESSELS)),
        Channel.NCCT: Source(computed=Volume(np.asfortranarray(ct(Channel.NCCT).data.astype(np.float32)), AFFINE)),
    }
    case = patient(version.manifest, sources)
    back = ModelInput.from_bytes(case.to_bytes())
    assert back.sources[Channel.CTA] == sources[Channel.CTA]
    for channel in (Channel.VESSELS, Channel.NCCT):
        computed, original = back.sources[channel].computed, sources[channel].computed
        assert computed is not None
        assert original is not None
        assert computed.data.dtype == original.data.dtype
        assert np.array_equal(computed.data, original.data)
        np.testing.assert_allclose(computed.affine, AFFINE)
