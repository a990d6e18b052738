"""The return address of a study is kept sealed, its objects can be read, and it is shown nowhere else."""

from __future__ import annotations

import base64
import io
import logging
import zipfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest

from app.core.config import Settings
from app.database.study_tables import ReturnAddressRow
from app.dicom.return_address import key_of, open_sealed
from tests.api.conftest import RunningService, running, settings_in, volume
from tests.api.test_dicom import archive, cta
from tests.dicom.studies import TILTED, contents, plan, voxels

pytestmark = pytest.mark.anyio
NAME = b"CANARY^ANNA      "  # as long as the name of the phantom
KEY = base64.b64encode(bytes(range(32))).decode()


def study(*more: bytes) -> list[bytes]:
    """Two series of a patient with values that occur nowhere else."""
    written = [*contents(plan(TILTED, voxels(1))), *cta(), *more]
    return [each.replace(b"SYNTHETIC^PHANTOM", NAME) for each in written]


@pytest.fixture(scope="module")
async def keyed(tmp_path_factory: pytest.TempPathFactory, model_store: Path) -> AsyncIterator[RunningService]:
    """One service with a key for all tests of this module."""
    settings = settings_in(tmp_path_factory.mktemp("keyed"), model_store)
    async with running(settings.model_copy(update={"dicom_return_key": KEY})) as service:
        yield service


async def accepted(service: RunningService, *written: bytes) -> str:
    parts: list[tuple[str, Any]] = [("study", archive(*written))]
    response = await service.http.post("/v1/predictions", files=parts, headers={"Prefer": "wait=0"})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def sealed_address(service: RunningService, prediction_id: str) -> bytes | None:
    with service.services.database.reading() as session:
        row = session.get(ReturnAddressRow, prediction_id)
        return None if row is None else row.sealed


async def test_the_address_is_sealed_with_all_instances_used(keyed: RunningService) -> None:
    localizer = contents(plan(description="Topogram", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"), number=1))
    sealed = sealed_address(keyed, await accepted(keyed, *study(*localizer)))
    assert sealed is not None
    assert b"CANARY" not in sealed
    key = key_of(KEY)
    assert key is not None
    address = open_sealed(sealed, key)
    assert address.patient_name == NAME.decode().strip()
    assert address.study_instance_uid.startswith("2.25.")
    assert len(address.instances) == 2 * voxels().shape[2]
    assert len({each.series_uid for each in address.instances}) == 2


async def test_the_address_of_two_archives_names_the_instances_of_both(keyed: RunningService) -> None:
    written = study()
    half = voxels().shape[2]
    parts: list[tuple[str, Any]] = [("ncct", archive(*written[:half])), ("cta", archive(*written[half:]))]
    response = await keyed.http.post("/v1/predictions", files=parts, headers={"Prefer": "wait=0"})
    assert response.status_code == 202, response.text
    sealed, key = sealed_address(keyed, response.json()["id"]), key_of(KEY)
    assert sealed is not None
    assert key is not None
    address = open_sealed(sealed, key)
    assert len({each.series_uid for each in address.instances}) == 2
    assert len(address.instances) == 2 * half


async def test_without_a_key_no_address_is_kept(service: RunningService) -> None:
    prediction_id = await accepted(service, *study())
    assert sealed_address(service, prediction_id) is None
    service.worker.succeed(prediction_id)
    response = await service.http.get(f"/v1/predictions/{prediction_id}/dicom")
    assert (response.status_code, response.json()["code"]) == (404, "not-found")
    assert "RLVO_DICOM_RETURN_KEY" in response.json()["detail"]


async def test_objects_are_read_in_one_archive_and_by_kind(keyed: RunningService) -> None:
    prediction_id = await accepted(keyed, *study())
    early = await keyed.http.get(f"/v1/predictions/{prediction_id}/dicom")
    assert (early.status_code, early.json()["code"]) == (409, "not-finished")
    keyed.worker.succeed(prediction_id)
    response = await keyed.http.get(f"/v1/predictions/{prediction_id}/dicom")
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "private, no-store"
    with zipfile.ZipFile(io.BytesIO(response.content)) as packed:
        assert packed.namelist() == ["report-1.dcm", "document-1.dcm"]
        report = pydicom.dcmread(io.BytesIO(packed.read("report-1.dcm")))
    assert report.PatientName == "CANARY^ANNA"
    one = await keyed.http.get(f"/v1/predictions/{prediction_id}/dicom?kind=document")
    with zipfile.ZipFile(io.BytesIO(one.content)) as packed:
        assert packed.namelist() == ["document-1.dcm"]
    assert not list((keyed.services.settings.incoming).iterdir())
    wrong = await keyed.http.get(f"/v1/predictions/{prediction_id}/dicom?kind=all")
    assert wrong.status_code == 422


async def test_volumes_alone_have_no_address(keyed: RunningService) -> None:
    prediction_id = (await keyed.submit(cta=("x", volume(), "x/y"))).json()["id"]
    keyed.worker.succeed(prediction_id)
    assert sealed_address(keyed, prediction_id) is None
    assert (await keyed.http.get(f"/v1/predictions/{prediction_id}/dicom")).status_code == 404


async def test_an_erasure_deletes_the_address(keyed: RunningService) -> None:
    prediction_id = await accepted(keyed, *study())
    keyed.worker.succeed(prediction_id)
    assert sealed_address(keyed, prediction_id) is not None
    assert (await keyed.http.delete(f"/v1/predictions/{prediction_id}")).status_code == 204
    assert sealed_address(keyed, prediction_id) is None
    assert (await keyed.http.get(f"/v1/predictions/{prediction_id}/dicom")).status_code == 410


async def test_the_identity_is_in_no_answer_metric_log_or_stored_file(
    keyed: RunningService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    prediction_id = await accepted(keyed, *study())
    keyed.worker.succeed(prediction_id)
    await keyed.http.get(f"/v1/predictions/{prediction_id}/dicom")
    shown = [caplog.text]
    for path in (f"/v1/predictions/{prediction_id}", f"/v1/predictions/{prediction_id}/fhir", "/metrics"):
        shown.append((await keyed.http.get(path)).text)
    stored = [each for each in Path(keyed.services.settings.data_dir).rglob("*") if each.is_file()]
    shown += [each.read_bytes().decode("latin-1") for each in stored]
    assert not [text for text in shown if "CANARY" in text]
    assert KEY not in repr(keyed.services.settings)


async def test_a_wrong_key_is_refused_at_the_start(settings: Settings) -> None:
    with pytest.raises(ValueError, match="32 bytes in base64"):
        async with running(settings.model_copy(update={"dicom_return_key": "short"})):
            pass


async def test_another_key_reads_no_address(keyed: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    prediction_id = await accepted(keyed, *study())
    keyed.worker.succeed(prediction_id)
    monkeypatch.setattr(keyed.services, "result_objects", replace(keyed.services.result_objects, key=bytes(32)))
    response = await keyed.http.get(f"/v1/predictions/{prediction_id}/dicom")
    assert response.status_code == 404
    assert "is not the key" in response.json()["detail"]
