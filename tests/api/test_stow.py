"""STOW-RS stores instances and answers with the data set of PS3.18."""

from __future__ import annotations

import io
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from app.database.study_tables import InstanceRow, StudyRow
from app.dicom.head import read_head
from app.dicom.reception import Reception
from app.sdk.errors import StorageFull
from tests.api.conftest import RunningService
from tests.api.responses import problem
from tests.api.server import started
from tests.conftest import needed_program
from tests.deployment import free_port
from tests.dicom.studies import contents, plan, voxels

pytestmark = pytest.mark.anyio
RELATED = 'multipart/related; type="application/dicom"; boundary=X'


def body(*parts: bytes, kind: str = "application/dicom") -> bytes:
    joined = b"".join(b"--X\r\nContent-Type: %s\r\n\r\n%s\r\n" % (kind.encode(), part) for part in parts)
    return joined + b"--X--\r\n"


async def store(service: RunningService, content: bytes, media_type: str = RELATED) -> httpx.Response:
    return await service.http.post("/dicomweb/studies", content=content, headers={"Content-Type": media_type})


def uids(answer: httpx.Response, sequence: str) -> list[str]:
    return [item["00081155"]["Value"][0] for item in answer.json().get(sequence, {"Value": []})["Value"]]


def data_set_uid(content: bytes) -> bytes:
    return read_head(io.BytesIO(content)).sop_uid.encode()


def rows(service: RunningService) -> tuple[list[StudyRow], list[InstanceRow]]:
    service.services.index_all()  # waits for the service, which indexes at the same time
    with service.services.database.reading() as session:
        return list(session.scalars(select(StudyRow))), list(session.scalars(select(InstanceRow)))


async def test_a_study_is_stored_and_each_instance_is_named_in_the_answer(service: RunningService) -> None:
    sent = contents(plan())
    answer = await store(service, body(*sent))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/dicom+json"
    (study,), instances = rows(service)
    assert sorted(uids(answer, "00081199")) == sorted(each.uid for each in instances)
    assert (study.instances, study.caller, len(sent)) == (16, "local", 16)
    again = await store(service, body(*sent[:2]))
    assert (again.status_code, len(uids(again, "00081199"))) == (200, 2)
    assert len(rows(service)[1]) == 16


async def test_a_part_that_cannot_be_stored_is_listed_beside_those_that_are(service: RunningService) -> None:
    sent, other = contents(plan()), contents(plan(data=voxels(1)))
    await store(service, body(sent[0]))
    uid = data_set_uid(sent[2])
    misnamed = sent[2].replace(uid, uid[:-1] + bytes([uid[-1] ^ 1]), 1)  # in the file meta information only
    answer = await store(service, body(other[0], sent[1], b"no DICOM", misnamed))
    assert answer.status_code == 202
    assert len(uids(answer, "00081199")) == 1
    (failure,) = answer.json()["00081198"]["Value"]
    assert failure["00081197"]["Value"] == [0x0111]
    assert [each["00081197"]["Value"] for each in answer.json()["0008119A"]["Value"]] == [[0xC000], [0xA900]]
    refused = await store(service, body(other[0], b"no DICOM"))
    assert refused.status_code == 409
    assert uids(refused, "00081198") == uids(answer, "00081198")


async def test_many_parts_are_stored_some_at_a_time_and_named_in_their_order(service: RunningService) -> None:
    sent = contents(*(plan(number=number, data=voxels(number)) for number in range(5)))
    assert len(sent) == 80
    answer = await store(service, body(*sent[:40], b"no DICOM", *sent[40:]))
    assert answer.status_code == 202
    assert uids(answer, "00081199") == [data_set_uid(each).rstrip(b"\0").decode() for each in sent]
    assert len(answer.json()["0008119A"]["Value"]) == 1
    assert list(service.services.reception.incoming.glob("*")) == []


@pytest.mark.parametrize(
    ("content", "media_type", "expected"),
    [
        (body(b"x"), "application/dicom", (415, "unsupported-media")),
        (body(b"x"), "multipart/form-data; boundary=X", (415, "unsupported-media")),
        (body(b"x"), 'multipart/related; type="application/dicom+json"; boundary=X', (415, "unsupported-media")),
        (body(b"x", kind="application/dicom+json"), RELATED, (415, "unsupported-media")),
        (body(b"x"), "multipart/related", (400, "malformed-multipart")),
        (body(b"x")[:-6], RELATED, (400, "malformed-multipart")),
        (b"--X--\r\n", RELATED, (422, "invalid-request")),
    ],
)
async def test_another_body_is_refused(
    shared_service: RunningService, content: bytes, media_type: str, expected: tuple[int, str]
) -> None:
    assert problem(await store(shared_service, content, media_type)) == expected
    assert list(shared_service.services.reception.incoming.glob("*")) == []


async def test_a_request_that_breaks_off_leaves_no_part(shared_service: RunningService) -> None:
    answer = await store(shared_service, body(contents(plan())[0])[:-3000])
    assert problem(answer) == (400, "malformed-multipart")
    assert list(shared_service.services.reception.incoming.glob("*")) == []


async def test_a_full_disk_ends_the_request(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StorageFull

    monkeypatch.setattr(Reception, "accept_all", full)
    assert problem(await store(service, body(contents(plan())[0]))) == (507, "storage-full")


def test_the_service_starts_its_listener(tmp_path: Path, model_store: Path) -> None:
    echo = needed_program("echoscu")
    port = free_port()
    with started(tmp_path, model_store, dicom_port=str(port)):
        deadline = time.monotonic() + 60
        while subprocess.run([echo, "-aec", "RLVO", "127.0.0.1", str(port)], capture_output=True).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.2)
