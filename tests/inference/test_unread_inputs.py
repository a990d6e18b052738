"""Fields and volumes that were sent, and that a version does not predict from, are told with the flag ``not-used``."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from app.imaging.io import nifti
from app.inference.model_version import ModelVersion
from app.inference.unread_inputs import ReadInputs, flags, given_fields, mask_flags
from app.network.architecture import Fusion
from app.registry.manifest import Manifest, SegmenterRef, Training
from app.sdk.clinical import ClinicalRecord
from app.sdk.types import Channel, Input
from tests.factory import tiny_manifest, tiny_version

MODEL_STORE = Path(__file__).resolve().parents[2] / "model_store"
NETWORK = tiny_manifest(channels=list(Channel))
LOGISTIC = tiny_manifest(kind="logistic", channels=list(Channel))
ALL_READ = {"age": 70.0, "atrial_fibrillation": True, "nihss": 12, "smoking": "never", "occlusion_side": "left"}


def unread(manifest: Manifest, *volumes: Input, **fields: object) -> set[str]:
    found = flags(manifest, volumes, ClinicalRecord.model_validate(fields))
    assert len(found) <= 1
    assert all(flag.code == "not-used" for flag in found)
    return set(found[0].detail.partition(": given")[0].split(", ")) if found else set()


@pytest.mark.parametrize("version", ["rlvo-synthetic/1.0.0", "rlvo-synthetic-lr/1.0.0"])
def test_published_version_tells_every_field_that_is_no_variable(version: str) -> None:
    manifest = Manifest.model_validate_json((MODEL_STORE / version / "manifest.json").read_bytes())
    fields = {"age": 70.0, "inr": 1.1, "platelets": 220.0, "imaging_signs": {"clot_length_mm": 12.0}}
    assert unread(manifest, **fields) == {"inr", "platelets", "imaging_signs.clot_length_mm"}
    assert unread(manifest, age=70.0, occlusion_side="left", perfusion={"core_ml": 5.0, "software": "x 1"}) == set()


def test_each_field_of_the_record_is_told_by_a_version_without_it() -> None:
    record = ClinicalRecord.model_validate(ALL_READ | {"glucose_mmol_l": 6.1, "perfusion": {"tmax4_ml": 5.0}})
    assert ", ".join(given_fields(record)) == (
        "age, atrial_fibrillation, smoking, nihss, glucose, occlusion_side, perfusion.tmax4_ml"
    )
    assert ReadInputs(frozenset(), frozenset({"age"})).unread((), record) == (
        "atrial_fibrillation",
        "smoking",
        "nihss",
        "glucose",
        "perfusion.tmax4_ml",
    )


@pytest.mark.parametrize(
    ("manifest", "volumes", "expected"),
    [
        (NETWORK, ["ncct", "cta", "vessels", "tmax", "cbf"], set()),
        (NETWORK, ["ncct", "cta", "ctp"], set()),
        (NETWORK, ["ncct", "tmax", "ctp"], set()),
        (NETWORK, ["ncct", "tmax", "cbf", "ctp"], {"ctp"}),
        (NETWORK, ["ncct", "tmax", "cbf", "cbv", "mtt"], {"cbv", "mtt"}),
        (tiny_manifest(channels=[Channel.NCCT], fusion=Fusion.NONE), ["ncct", "cta", "tmax"], {"cta", "tmax"}),
        (tiny_manifest(channels=[Channel.VESSELS], fusion=Fusion.NONE), ["ncct", "cta"], set()),
        (tiny_manifest(channels=[Channel.VESSELS], fusion=Fusion.NONE), ["cta", "vessels"], {"cta"}),
        (LOGISTIC, ["ncct", "cta", "vessels"], {"ncct", "cta", "vessels"}),
        (LOGISTIC, ["ncct", "cta", "tmax", "cbf"], {"ncct", "cta"}),
        (LOGISTIC, ["ncct", "ctp"], {"ncct"}),
    ],
)
def test_volume_without_effect_on_the_version_is_told(
    manifest: Manifest, volumes: list[str], expected: set[str]
) -> None:
    assert unread(manifest, *map(Input, volumes)) == expected


def test_map_is_not_used_by_a_logistic_version_if_the_record_has_its_numbers() -> None:
    assert unread(LOGISTIC, Input.CTP, perfusion={"core_ml": 5.0}) == {"ctp"}


def test_imaging_version_reads_no_record() -> None:
    assert unread(tiny_manifest(fusion=Fusion.NONE), age=70.0, nihss=12) == {"age", "nihss"}


REAL_PATIENTS = Training(data="patients of one hospital", synthetic=False)
SEGMENTER = SegmenterRef(name="vessels", version="1.0.0", sha256="0" * 64)


@pytest.mark.parametrize(
    ("manifest", "volumes", "told"),
    [
        (NETWORK, [Input.CTA, Input.VESSELS], True),
        (NETWORK, [Input.VESSELS], True),
        (NETWORK.model_copy(update={"training": REAL_PATIENTS, "segmenter": SEGMENTER}), [Input.VESSELS], False),
        (NETWORK.model_copy(update={"training": REAL_PATIENTS}), [Input.CTA, Input.VESSELS], False),  # not known
        (NETWORK, [Input.CTA], False),
        (LOGISTIC, [Input.CTA, Input.VESSELS], False),  # ``not-used`` tells it
        (tiny_manifest(channels=[Channel.CTA], fusion=Fusion.NONE), [Input.CTA, Input.VESSELS], False),
    ],
)
def test_mask_unlike_those_of_training_is_told(manifest: Manifest, volumes: list[Input], told: bool) -> None:
    assert [flag.code for flag in mask_flags(manifest, volumes)] == ["vessels-sent"] * told


def test_prepared_study_tells_what_is_not_used(tmp_path: Path, real_images: Path) -> None:
    folder = tiny_version(tmp_path, channels=[Channel.NCCT], kind="logistic")
    version = ModelVersion.load(folder, Manifest.model_validate_json((folder / "manifest.json").read_bytes()), "cpu")
    volume = nifti.read(real_images / "ncct_human_ge_deskewed.nii.gz", field=Input.NCCT)
    case = version.prepare({Input.NCCT: volume}, ClinicalRecord(age=70.0, inr=1.1))
    (detail,) = [flag.detail for flag in case.flags if flag.code == "not-used"]
    assert detail == "ncct, inr: given, but this version does not predict from it"


@pytest.mark.parametrize("channels", [list(Channel), [Channel.CTA], [Channel.VESSELS], [Channel.RCBF]])
@pytest.mark.parametrize("kind", ["network", "logistic"])
def test_described_volumes_are_those_that_some_study_needs(channels: list[Channel], kind: str) -> None:
    read = ReadInputs.of(tiny_manifest(kind=kind, channels=channels))
    record = ClinicalRecord()
    sets = [set(each) for size in range(len(Input) + 1) for each in combinations(Input, size)]
    assert read.volumes == {volume for sent in sets for volume in sent if volume.value not in read.unread(sent, record)}
