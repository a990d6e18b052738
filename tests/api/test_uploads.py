"""Submissions as they may come: refused with the reason, and then nothing is left of them."""

from __future__ import annotations

import gzip
import hashlib
import json
from base64 import b64encode
from typing import Any

import anyio
import httpx
import pytest
from sqlalchemy import select

from app.database.tables import AuditRow, PredictionRow
from tests.api.conftest import House, volume

pytestmark = pytest.mark.anyio

CTA = volume()
CANARY = "canary-7f3a"


def file(content: bytes) -> tuple[str, bytes, str]:
    return f"{CANARY}.nii.gz", content, "application/octet-stream"


def text(content: str) -> tuple[None, str]:
    return None, content


Parts = list[tuple[str, Any]]

REFUSED: dict[str, tuple[Parts, int, str]] = {
    "no parts but a record": ([("clinical", text("{}"))], 422, "missing-required-input"),
    "without the volume that the model requires": ([("ncct", file(CTA))], 422, "missing-required-input"),
    "a truncated gzip": ([("cta", file(CTA[:-20]))], 422, "nifti-invalid"),
    "a damaged gzip": ([("cta", file(CTA[:-5] + bytes([CTA[-5] ^ 1]) + CTA[-4:]))], 422, "nifti-invalid"),
    "a text file": ([("cta", file(b"not a volume, " * 100))], 422, "nifti-invalid"),
    "an empty file": ([("cta", file(b""))], 422, "nifti-invalid"),
    "a series as cta": ([("cta", file(volume((4, 4, 4, 5))))], 422, "nifti-invalid"),
    "a mask of another shape": ([("cta", file(CTA)), ("vessels", file(volume((8, 9, 11))))], 422, "geometry-mismatch"),
    "a mask elsewhere": ([("cta", file(CTA)), ("vessels", file(volume(shift=3)))], 422, "geometry-mismatch"),
    "maps on two grids": (
        [("cta", file(CTA)), ("tmax", file(volume())), ("cbf", file(volume((9, 9, 9))))],
        422,
        "geometry-mismatch",
    ),
    "a volume twice": ([("cta", file(CTA)), ("cta", file(CTA))], 422, "invalid-request"),
    "a record twice": ([("clinical", text("{}")), ("clinical", text("{}"))], 422, "invalid-request"),
    "a part with no place": ([(CANARY, file(CTA))], 422, "invalid-request"),
    "an unknown field": ([("cta", file(CTA)), ("clinical", text('{"agee": 71}'))], 422, "clinical-invalid"),
    "NaN": ([("cta", file(CTA)), ("clinical", text('{"age": NaN}'))], 400, "malformed-json"),
    "a string for a number": ([("cta", file(CTA)), ("clinical", text('{"age": "74"}'))], 422, "clinical-invalid"),
    "another word": ([("cta", file(CTA)), ("clinical", text(json.dumps({"sex": CANARY})))], 422, "clinical-invalid"),
    "an empty record": ([("cta", file(CTA)), ("clinical", text(""))], 400, "malformed-json"),
    "a huge record": ([("cta", file(CTA)), ("clinical", text("{" + " " * 5000 + "}"))], 413, "payload-too-large"),
    "a huge field": ([("cta", file(CTA)), ("subject", text("S" * 5000))], 413, "payload-too-large"),
    "a name as subject": ([("cta", file(CTA)), ("subject", text(f"{CANARY} Müller"))], 422, "invalid-request"),
    "explain by another word": ([("cta", file(CTA)), ("explain", text("yes"))], 422, "invalid-request"),
    "a model that is not there": ([("cta", file(CTA)), ("model", text("canary"))], 404, "model-not-found"),
    "a model by a path": ([("cta", file(CTA)), ("model", text("../../etc/passwd"))], 422, "invalid-request"),
}


@pytest.mark.parametrize(("parts", "status", "code"), REFUSED.values(), ids=REFUSED.keys())
async def test_a_refusal_says_why_and_leaves_nothing(empty_house: House, parts: Parts, status: int, code: str) -> None:
    answer = await empty_house.http.post("/v1/predictions", files=parts)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert CANARY not in answer.text
    assert len(answer.content) < 4096
    assert_nothing_kept(empty_house, problem["trace_id"], code)


def assert_nothing_kept(house: House, trace_id: str, code: str) -> None:
    """No bytes, no rows; only the audit's note of the refusal."""
    assert house.blobs() == []
    assert house.leftovers() == []
    with house.services.database.reading() as session:
        assert session.scalars(select(PredictionRow)).all() == []
        (note,) = session.scalars(select(AuditRow).where(AuditRow.target == trace_id)).all()
        assert (note.actor, note.action, note.detail) == ("local", "prediction.refuse", {"code": code})


async def test_a_bomb_is_refused_by_its_header(empty_house: House) -> None:
    head = bytearray(gzip.decompress(CTA)[:352])
    for axis in range(3):
        head[42 + 2 * axis : 44 + 2 * axis] = (30_000).to_bytes(2, "little")
    answer = await empty_house.http.post("/v1/predictions", files=[("cta", file(gzip.compress(bytes(head))))])
    assert (answer.status_code, answer.json()["code"]) == (413, "decompressed-too-large")


async def test_more_zeros_than_voxels_are_refused_without_being_stored(empty_house: House) -> None:
    bomb = gzip.compress(gzip.decompress(CTA) + bytes(100_000_000), 9)
    answer = await empty_house.http.post("/v1/predictions", files=[("cta", file(bomb))])
    assert (answer.status_code, answer.json()["code"]) == (422, "nifti-invalid")
    assert empty_house.leftovers() == []


async def test_empty_pickers_and_fields_of_a_form_count_as_not_sent(house: House) -> None:
    parts: Parts = [
        ("cta", file(CTA)),
        ("ncct", ("", b"", "application/octet-stream")),
        ("ctp", text("")),
        ("subject", text("")),
    ]
    answer = await house.http.post("/v1/predictions", files=parts, headers={"Prefer": "respond-async"})
    assert answer.status_code == 202
    assert list(answer.json()["inputs"]) == ["cta"]
    assert "subject" not in answer.json()


@pytest.mark.parametrize(
    ("content_type", "body", "status", "code"),
    [
        ("application/json", b"{}", 415, "unsupported-media"),
        (None, b"", 415, "unsupported-media"),
        ("multipart/form-data; boundary=X", b"--X\r\nnonsense", 400, "malformed-multipart"),
        ("multipart/form-data", b"--X--", 400, "malformed-multipart"),
    ],
)
async def test_what_is_no_form_is_refused(
    empty_house: House, content_type: str | None, body: bytes, status: int, code: str
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    answer = await empty_house.http.post("/v1/predictions", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert_nothing_kept(empty_house, answer.json()["trace_id"], code)


async def test_the_body_is_checked_against_the_digest_sent_along(house: House) -> None:
    request = house.http.build_request("POST", "/v1/predictions", files=[("cta", file(CTA))])
    body = await request.aread()
    for content, status in ((body, 202), (body + b" ", 400)):
        digest = b64encode(hashlib.sha256(body).digest()).decode()
        headers = {"Content-Type": request.headers["content-type"], "Content-Digest": f"sha-256=:{digest}:"}
        headers["Prefer"] = "respond-async"
        answer = await house.http.post("/v1/predictions", content=content, headers=headers)
        assert answer.status_code == status
    assert answer.json()["code"] == "digest-mismatch"


# idempotency ----------------------------------------------------------------------------------------------------------


async def send(house: House, key: str, **parts: Any) -> httpx.Response:
    """With a boundary of its own each time."""
    files = {"cta": file(CTA), **parts}
    return await house.http.post(
        "/v1/predictions", files=files, headers={"Idempotency-Key": key, "Prefer": "respond-async"}
    )


async def test_the_same_key_and_body_are_the_same_prediction(house: House) -> None:
    first = await send(house, "k-1", subject=text("S-1"))
    again = await house.http.post(
        "/v1/predictions",
        files=[("subject", text("S-1")), ("cta", ("other-name.nii.gz", CTA, "application/gzip"))],
        headers={"Idempotency-Key": "k-1", "Prefer": "respond-async"},
    )
    assert (first.json()["id"], again.status_code) == (again.json()["id"], 202)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    other = await send(house, "k-2", subject=text("S-1"))
    assert other.json()["id"] != first.json()["id"]
    assert house.leftovers() == []


async def test_the_same_key_with_another_body_is_refused(house: House) -> None:
    await send(house, "k-1")
    answer = await send(house, "k-1", subject=text("S-2"))
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency-key-reused")


async def test_a_refused_request_gives_its_key_back(house: House) -> None:
    refused = await send(house, "k-1", clinical=text('{"age": 3}'))
    assert refused.status_code == 422
    assert (await send(house, "k-1", clinical=text('{"age": 30}'))).status_code == 202


async def test_many_at_once_with_one_key_make_one_prediction(house: House) -> None:
    answers: list[httpx.Response] = []

    async def one() -> None:
        answers.append(await send(house, "k-1"))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(one)
    assert {answer.status_code for answer in answers} <= {202, 409}
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 202}) == 1
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} <= {"request-in-progress"}
    with house.services.database.reading() as session:
        assert len(session.scalars(select(PredictionRow)).all()) == 1


async def test_a_key_can_be_made_compulsory(house: House) -> None:
    house.services.settings = house.services.settings.model_copy(update={"require_idempotency_key": True})
    answer = await house.submit()
    assert (answer.status_code, answer.json()["code"]) == (400, "idempotency-key-missing")


async def test_a_database_that_is_away_is_503_and_nothing_is_kept(house: House) -> None:
    path = house.services.settings.data_dir / "rlvo.sqlite"
    kept = path.read_bytes()
    house.services.database.close()
    path.unlink()
    path.mkdir()
    answer = await house.submit(clinical=text(json.dumps({"age": 71})))
    assert (answer.status_code, answer.json()["code"]) == (503, "database-unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert house.blobs() == []
    path.rmdir()
    path.write_bytes(kept)
    assert (await house.submit()).status_code == 202
