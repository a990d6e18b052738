"""A study is fetched from an archive of its tenant, and found by its accession number."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.core.config import Settings
from app.database import destinations
from app.database.destinations import DestinationKind
from app.worker.queue import PULL_JOB
from tests.api.conftest import RunningService, running, settings_in
from tests.api.responses import problem
from tests.api.test_stow import body as related
from tests.api.test_stow import store
from tests.deployment import free_port
from tests.orthanc import Orthanc
from tests.orthanc import running as orthanc
from tests.worker.test_dicom_pull import ACCESSION, BASIC, KEY, SENT, UID

pytestmark = pytest.mark.anyio


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
async def keyed(tmp_path: Path, model_store: Path, port: int) -> AsyncIterator[RunningService]:
    given = {
        "dicom_return_key": base64.b64encode(KEY).decode(),
        "dicom_hosts": f"http://127.0.0.1:{port}",
        "dicom_quiet": 3600.0,
    }
    async with running(Settings(**(settings_in(tmp_path, model_store).model_dump() | given))) as service:
        yield service


def archive(service: RunningService, url: str, tenant: str = "local") -> str:
    from app.core.sealing import seal_text

    with service.services.database.session() as session:
        secret = seal_text(BASIC, KEY)
        return destinations.create(session, tenant, "PACS", DestinationKind.STOW, url, secret=secret).id


async def test_a_study_is_found_by_its_accession_number_with_a_key(keyed: RunningService) -> None:
    assert (await store(keyed, related(*SENT[:2]))).status_code == 200
    keyed.services.index_all()
    found = await keyed.http.get("/v1/studies", params={"accession_number": ACCESSION})
    assert [each["uid"] for each in found.json()["items"]] == [UID]
    assert (await keyed.http.get("/v1/studies?accession_number=OTHER")).json()["items"] == []
    assert problem(await keyed.http.get("/v1/studies?accession_number=%20")) == (422, "invalid-request")


async def test_without_a_key_an_accession_number_is_not_kept_and_not_asked_for(service: RunningService) -> None:
    answer = await service.http.get("/v1/studies", params={"accession_number": ACCESSION})
    assert problem(answer) == (422, "invalid-request")
    assert "RLVO_DICOM_RETURN_KEY" in answer.json()["detail"]
    assert ACCESSION not in answer.text


async def test_a_request_to_fetch_is_queued_for_an_archive_of_the_tenant(keyed: RunningService) -> None:
    assert problem(await keyed.http.post("/v1/studies/1.2.3/pull")) == (422, "invalid-request")
    archive(keyed, "http://127.0.0.1:9/studies", tenant="other")
    assert problem(await keyed.http.post("/v1/studies/1.2.3/pull")) == (422, "invalid-request")
    archive(keyed, "http://127.0.0.1:9/studies")
    answer = await keyed.http.post("/v1/studies/1.2.3/pull?source=PACS")
    assert answer.status_code == 202
    assert (answer.json()["state"], answer.json()["pull"]) == (
        "waiting",
        {"source": "PACS", "state": "waiting", "reason": None},
    )
    with keyed.services.database.reading() as session:
        jobs = keyed.services.queue._client.list_workflows(name=PULL_JOB)
        assert len(jobs) == 1
        assert "1.2.3" not in repr(vars(jobs[0]))  # a job carries ids only
        assert session is not None
    assert (await keyed.http.delete("/v1/studies/1.2.3")).status_code == 204


async def test_studies_are_fetched_by_accession_number(keyed: RunningService, tmp_path: Path, port: int) -> None:
    with orthanc(tmp_path / "orthanc", http_port=port) as pacs:
        await _by_accession(keyed, pacs)
    answer = await keyed.http.post("/v1/study-pulls", params={"accession_number": ACCESSION})
    assert problem(answer) == (503, "archive-unavailable")
    assert ACCESSION not in answer.text


async def _by_accession(keyed: RunningService, pacs: Orthanc) -> None:
    archive(keyed, pacs.studies_url)
    for content in SENT[:2]:
        pacs.upload(content)
    answer = await keyed.http.post("/v1/study-pulls", params={"accession_number": ACCESSION})
    assert answer.status_code == 202, answer.text
    assert [each["uid"] for each in answer.json()["items"]] == [UID]
    other = await keyed.http.post("/v1/study-pulls", params={"accession_number": "OTHER"})
    assert problem(other) == (404, "not-found")


async def test_a_study_is_complete_by_a_stated_number(keyed: RunningService) -> None:
    await store(keyed, related(*SENT[:2]))
    await keyed.http.put(f"/v1/studies/{UID}/clinical", json={})
    early = await keyed.http.post(f"/v1/studies/{UID}/complete?instances=4")
    assert (early.status_code, early.json()["expected"], early.json()["completed"]) == (202, 4, None)
    await store(keyed, related(*SENT[2:4]))
    keyed.services.index_all()
    assert (await keyed.http.get(f"/v1/studies/{UID}")).json()["completed"] == "count"
    for wrong in (0, 2001, "x"):
        answer = await keyed.http.post(f"/v1/studies/{UID}/complete?instances={wrong}")
        assert problem(answer) == (422, "invalid-request")
