"""A DICOM study in a ZIP archive is accepted like volumes, and its series are in the answer."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pydicom
import pytest
from sqlalchemy import select

from app.api import dicom_uploads
from app.core.config import Settings
from app.database.tables import PredictionRow
from app.dicom.isolated import convert_isolated
from app.sdk.errors import InvalidDicom
from tests.api.conftest import RunningService, volume
from tests.dicom.studies import TILTED, contents, plan, voxels

pytestmark = pytest.mark.anyio
CANARY = "canary-7f3a"


def archive(*written: bytes) -> tuple[str, bytes, str]:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made:
        for number, content in enumerate(written):
            made.writestr(f"{CANARY}/{number}", content)
    return f"{CANARY}.zip", packed.getvalue(), "application/zip"


def cta(**changes: Any) -> list[bytes]:
    described = {"truth": "cta", "description": "CTA head", "number": 4, "contrast": "Iomeprol"}
    return contents(plan(TILTED, **(described | changes)))


def ncct() -> list[bytes]:
    return contents(plan(TILTED, voxels(1), description=f"Head native {CANARY}"))


def of_another(written: list[bytes]) -> list[bytes]:
    """The same files with another patient id."""
    return [each.replace(b"SYNTHETIC ", b"CANARY7F3A") for each in written]


def incoming(service: RunningService) -> list[Path]:
    root = dicom_uploads.incoming(service.services.settings)
    return list(root.iterdir()) if root.is_dir() else []


async def test_study_is_accepted_and_its_series_are_shown(service: RunningService) -> None:
    mixed = contents(plan(TILTED, voxels(1), description=f"Head native {CANARY}"))
    response = await service.http.post(
        "/v1/predictions", files=[("study", archive(*mixed, *cta()))], headers={"Prefer": "wait=0"}
    )
    assert response.status_code == 202, response.text
    answer = response.json()
    assert answer["inputs"]["cta"]["shape"] == list(voxels().shape)
    shown = {each["number"]: (each["role"], each["used"], each["rule"]) for each in answer["series"]}
    assert shown == {3: ("ncct", True, "words-ncct"), 4: ("cta", True, "words-cta")}
    assert incoming(service) == []
    with service.services.database.reading() as session:
        row = session.scalars(select(PredictionRow)).one()
        stored = json.dumps([row.series, row.intake_flags, row.inputs])
    assert CANARY not in stored
    assert "SYNTHETIC" not in stored
    assert "2.25." not in stored


async def test_archive_in_a_field_and_a_repeated_request(service: RunningService) -> None:
    parts = [("cta", archive(*cta(description="", contrast="")))]
    headers = {"Prefer": "wait=0", "Idempotency-Key": "k"}
    first = await service.http.post("/v1/predictions", files=parts, headers=headers)
    again = await service.http.post("/v1/predictions", files=parts, headers=headers)
    assert first.status_code == again.status_code == 202, first.text
    assert first.json()["id"] == again.json()["id"]
    assert [(each["role"], each["rule"]) for each in first.json()["series"]] == [("cta", "field")]


async def test_two_archives_of_one_patient_are_one_study(service: RunningService) -> None:
    parts = [("ncct", archive(*ncct())), ("cta", archive(*cta()))]
    response = await service.http.post("/v1/predictions", files=parts, headers={"Prefer": "wait=0"})
    assert response.status_code == 202, response.text
    assert sorted(response.json()["inputs"]) == ["cta", "ncct"]


@pytest.mark.parametrize("part", ["study", "cta"])
@pytest.mark.parametrize("same", [True, False])
async def test_another_study_uid_than_that_of_the_files_is_flagged(
    service: RunningService, part: str, same: bool
) -> None:
    uid = pydicom.dcmread(io.BytesIO(cta()[0])).StudyInstanceUID if same else "1.2.840.113619.2.55.3"
    parts = [(part, archive(*cta())), ("study_instance_uid", (None, uid))]
    response = await service.http.post("/v1/predictions", files=parts, headers={"Prefer": "wait=0"})
    assert (response.status_code, response.json()["study_instance_uid"]) == (202, uid), response.text
    study = service.worker.begin(response.json()["id"])
    flags = {flag.code: flag for flag in study.intake_flags}
    assert ("study-uid-differs" in flags) is not same
    assert uid not in str(flags)


async def test_role_that_the_caller_states_and_a_file_of_its_own_take_precedence(service: RunningService) -> None:
    parts = [
        ("study", archive(*cta(), *contents(plan(description="strange", image_type=("DERIVED", "PRIMARY"))))),
        ("series_roles", (None, '{"3": "ncct"}')),
        ("cta", ("x", volume(), "application/octet-stream")),
    ]
    response = await service.http.post("/v1/predictions", files=parts, headers={"Prefer": "wait=0"})
    assert response.status_code == 202, response.text
    series = {each["number"]: (each["rule"], each["used"]) for each in response.json()["series"]}
    assert series == {3: ("stated", True), 4: ("words-cta", False)}
    assert response.json()["inputs"]["cta"]["shape"] == [8, 9, 10]


REFUSED: dict[str, tuple[list[tuple[str, Any]], str, str]] = {
    "missing slices": ([("study", archive(*cta()[:6], *cta()[8:]))], "dicom-invalid", "missing at"),
    "no DICOM": ([("study", archive(b"text"))], "dicom-invalid", "no DICOM file"),
    "no archive": ([("study", ("x", b"text", "text/plain"))], "dicom-invalid", "not a ZIP archive"),
    "two patients": (
        [("study", archive(*cta()[:8], *(each.replace(b"SYNTHETIC ", b"CANARY7F3A") for each in cta()[8:])))],
        "patient-mismatch",
        "the patient id differs",
    ),
    "two patients in two archives": (
        [("ncct", archive(*ncct())), ("cta", archive(*of_another(cta())))],
        "patient-mismatch",
        "the patient id differs between archives",
    ),
    "another patient beside a study": (
        [("study", archive(*of_another(cta()))), ("ncct", archive(*ncct()))],
        "patient-mismatch",
        "the patient id differs between archives",
    ),
    "roles without a study": (
        [("cta", ("x", volume(), "x/y")), ("series_roles", (None, '{"3": "ncct"}'))],
        "invalid-request",
        "needs a study",
    ),
    "roles that are none": (
        [("study", archive(*cta())), ("series_roles", (None, f'{{"{CANARY}": 3}}'))],
        "invalid-request",
        "series_roles",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_refusal_names_what_is_wrong_and_leaves_nothing(service: RunningService, case: str) -> None:
    parts, code, named = REFUSED[case]
    response = await service.http.post("/v1/predictions", files=parts)
    assert (response.status_code, response.json()["code"]) == (422, code), response.text
    assert named in response.json()["detail"]
    assert "CANARY" not in response.text.upper()
    assert incoming(service) == []


async def test_empty_part_of_a_form_counts_as_not_sent(service: RunningService) -> None:
    parts = [("cta", ("x", volume(), "x/y")), ("study", ("", b"", "x/y")), ("series_roles", (None, ""))]
    response = await service.http.post("/v1/predictions", files=parts, headers={"Prefer": "wait=0"})
    assert response.status_code == 202, response.text
    assert "series" not in response.json()


def test_what_a_killed_service_has_left_is_deleted(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    old, new = dicom_uploads.incoming(settings) / "old", dicom_uploads.incoming(settings) / "new"
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    dicom_uploads.clear(settings)
    assert not old.exists()
    assert new.exists()


def test_conversion_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(InvalidDicom, match="could not be converted within"):
        convert_isolated(tmp_path, tmp_path, timeout_s=0.01)
