"""Submissions: invalid ones are refused with a code and leave nothing; retries with one key are idempotent."""

from __future__ import annotations

import gzip
import hashlib
import json
from base64 import b64encode
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from sqlalchemy import DDL, select

from app.database.tables import AuditRow, PredictionRow
from tests.api.conftest import RunningService, volume

pytestmark = pytest.mark.anyio

CTA = volume()
CANARY = "canary-7f3a"


def file(content: bytes) -> tuple[str, bytes, str]:
    return f"{CANARY}.nii.gz", content, "application/octet-stream"


def text(content: str) -> tuple[None, str]:
    return None, content


Parts = list[tuple[str, Any]]

REFUSED: dict[str, tuple[Parts, int, str]] = {
    "only a clinical record": ([("clinical", text("{}"))], 422, "missing-required-input"),
    "without the volume that the model requires": ([("ncct", file(CTA))], 422, "missing-required-input"),
    "a truncated gzip": ([("cta", file(CTA[:-20]))], 422, "nifti-invalid"),
    "a damaged gzip": ([("cta", file(CTA[:-5] + bytes([CTA[-5] ^ 1]) + CTA[-4:]))], 422, "nifti-invalid"),
    "a text file": ([("cta", file(b"not a volume, " * 100))], 422, "nifti-invalid"),
    "an empty file": ([("cta", file(b""))], 422, "nifti-invalid"),
    "a series as cta": ([("cta", file(volume((4, 4, 4, 5))))], 422, "nifti-invalid"),
    "a mask of another shape": ([("cta", file(CTA)), ("vessels", file(volume((8, 9, 11))))], 422, "geometry-mismatch"),
    "a shifted mask": ([("cta", file(CTA)), ("vessels", file(volume(shift=3)))], 422, "geometry-mismatch"),
    "maps on two grids": (
        [("cta", file(CTA)), ("tmax", file(volume())), ("cbf", file(volume((9, 9, 9))))],
        422,
        "geometry-mismatch",
    ),
    "one file in two fields": ([("cta", file(CTA)), ("ncct", file(CTA))], 422, "modality-implausible"),
    "a volume twice": ([("cta", file(CTA)), ("cta", file(CTA))], 422, "invalid-request"),
    "a record twice": ([("clinical", text("{}")), ("clinical", text("{}"))], 422, "invalid-request"),
    "an unknown part": ([(CANARY, file(CTA))], 422, "invalid-request"),
    "an unknown field": ([("cta", file(CTA)), ("clinical", text('{"agee": 71}'))], 422, "clinical-invalid"),
    "NaN": ([("cta", file(CTA)), ("clinical", text('{"age": NaN}'))], 400, "malformed-json"),
    "a string for a number": ([("cta", file(CTA)), ("clinical", text('{"age": "74"}'))], 422, "clinical-invalid"),
    "an unknown category": (
        [("cta", file(CTA)), ("clinical", text(json.dumps({"sex": CANARY})))],
        422,
        "clinical-invalid",
    ),
    "an empty record": ([("cta", file(CTA)), ("clinical", text(""))], 400, "malformed-json"),
    "a huge record": ([("cta", file(CTA)), ("clinical", text("{" + " " * 5000 + "}"))], 413, "payload-too-large"),
    "a huge field": ([("cta", file(CTA)), ("subject", text("S" * 5000))], 413, "payload-too-large"),
    "a name as subject": ([("cta", file(CTA)), ("subject", text(f"{CANARY} Müller"))], 422, "invalid-request"),
    "an unknown value of explain": ([("cta", file(CTA)), ("explain", text("yes"))], 422, "invalid-request"),
    "an unknown model": ([("cta", file(CTA)), ("model", text("canary"))], 404, "model-not-found"),
    "a path as model": ([("cta", file(CTA)), ("model", text("../../etc/passwd"))], 422, "invalid-request"),
}


@pytest.mark.parametrize(("parts", "status", "code"), REFUSED.values(), ids=REFUSED.keys())
async def test_refusal_gives_the_code_and_stores_nothing(
    shared_service: RunningService, parts: Parts, status: int, code: str
) -> None:
    answer = await shared_service.http.post("/v1/predictions", files=parts)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert CANARY not in answer.text
    assert len(answer.content) < 4096
    assert_nothing_stored(shared_service, problem["trace_id"], code)


def assert_nothing_stored(service: RunningService, trace_id: str, code: str) -> None:
    """Checks that no file and no row is stored, except the audit entry of the refusal."""
    assert service.blobs() == []
    assert service.leftovers() == []
    with service.services.database.reading() as session:
        assert session.scalars(select(PredictionRow)).all() == []
        (entry,) = session.scalars(select(AuditRow).where(AuditRow.target == trace_id)).all()
        assert (entry.actor, entry.action, entry.detail) == ("local", "prediction.refuse", {"code": code})


async def test_decompression_bomb_is_refused_by_its_header(shared_service: RunningService) -> None:
    head = bytearray(gzip.decompress(CTA)[:352])
    for axis in range(3):
        head[42 + 2 * axis : 44 + 2 * axis] = (30_000).to_bytes(2, "little")
    answer = await shared_service.http.post("/v1/predictions", files=[("cta", file(gzip.compress(bytes(head))))])
    assert (answer.status_code, answer.json()["code"]) == (413, "decompressed-too-large")


async def test_more_zeros_than_voxels_are_refused_without_being_stored(shared_service: RunningService) -> None:
    bomb = gzip.compress(gzip.decompress(CTA) + bytes(100_000_000), 9)
    answer = await shared_service.http.post("/v1/predictions", files=[("cta", file(bomb))])
    assert (answer.status_code, answer.json()["code"]) == (422, "nifti-invalid")
    assert shared_service.leftovers() == []


async def test_empty_file_inputs_and_fields_count_as_not_sent(service: RunningService) -> None:
    parts: Parts = [
        ("cta", file(CTA)),
        ("ncct", ("", b"", "application/octet-stream")),
        ("ctp", text("")),
        ("subject", text("")),
    ]
    answer = await service.http.post("/v1/predictions", files=parts, headers={"Prefer": "respond-async"})
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
async def test_body_that_is_not_a_form_is_refused(
    shared_service: RunningService, content_type: str | None, body: bytes, status: int, code: str
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    answer = await shared_service.http.post("/v1/predictions", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert_nothing_stored(shared_service, answer.json()["trace_id"], code)


async def test_body_is_checked_against_its_content_digest(service: RunningService) -> None:
    request = service.http.build_request("POST", "/v1/predictions", files=[("cta", file(CTA))])
    body = await request.aread()
    for content, status in ((body, 202), (body + b" ", 400)):
        digest = b64encode(hashlib.sha256(body).digest()).decode()
        headers = {"Content-Type": request.headers["content-type"], "Content-Digest": f"sha-256=:{digest}:"}
        headers["Prefer"] = "respond-async"
        answer = await service.http.post("/v1/predictions", content=content, headers=headers)
        assert answer.status_code == status
    assert answer.json()["code"] == "digest-mismatch"


# idempotency ----------------------------------------------------------------------------------------------------------


async def send(service: RunningService, key: str, **parts: Any) -> httpx.Response:
    """Submits with an idempotency key and a new multipart boundary."""
    files = {"cta": file(CTA), **parts}
    return await service.http.post(
        "/v1/predictions", files=files, headers={"Idempotency-Key": key, "Prefer": "respond-async"}
    )


async def test_same_key_and_body_give_the_same_prediction(service: RunningService) -> None:
    first = await send(service, "k-1", subject=text("S-1"))
    again = await service.http.post(
        "/v1/predictions",
        files=[("subject", text("S-1")), ("cta", ("other-name.nii.gz", CTA, "application/gzip"))],
        headers={"Idempotency-Key": "k-1", "Prefer": "respond-async"},
    )
    assert (first.json()["id"], again.status_code) == (again.json()["id"], 202)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    other = await send(service, "k-2", subject=text("S-1"))
    assert other.json()["id"] != first.json()["id"]
    assert service.leftovers() == []


async def test_same_key_with_another_body_is_refused(service: RunningService) -> None:
    await send(service, "k-1")
    answer = await send(service, "k-1", subject=text("S-2"))
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency-key-reused")


async def test_refused_request_releases_its_key(service: RunningService) -> None:
    refused = await send(service, "k-1", clinical=text('{"age": 3}'))
    assert refused.status_code == 422
    assert (await send(service, "k-1", clinical=text('{"age": 30}'))).status_code == 202


async def test_refusal_by_an_unexpected_error_has_the_code_of_its_answer(service: RunningService) -> None:
    with service.services.database.session() as session:
        session.execute(DDL("CREATE TRIGGER x BEFORE INSERT ON predictions BEGIN SELECT RAISE(ABORT, 'x'); END"))
    answer = await send(service, "k-1")  # the error of SQLAlchemy has a code of its own
    assert (answer.status_code, answer.json()["code"]) == (500, "internal-error")
    with service.services.database.reading() as session:
        (entry,) = session.scalars(select(AuditRow).where(AuditRow.target == answer.json()["trace_id"])).all()
    assert entry.detail == {"code": "internal-error"}


async def test_concurrent_requests_with_one_key_make_one_prediction(service: RunningService) -> None:
    answers: list[httpx.Response] = []

    async def one() -> None:
        answers.append(await send(service, "k-1"))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(one)
    assert {answer.status_code for answer in answers} <= {202, 409}
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 202}) == 1
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} <= {"request-in-progress"}
    with service.services.database.reading() as session:
        assert len(session.scalars(select(PredictionRow)).all()) == 1


async def test_idempotency_key_can_be_required(service: RunningService) -> None:
    service.services.settings = service.services.settings.model_copy(update={"require_idempotency_key": True})
    answer = await service.submit()
    assert (answer.status_code, answer.json()["code"]) == (400, "idempotency-key-missing")


def replace_by_folder(path: Path) -> None:
    """Make a folder of a file that a thread of the service may create again in between."""
    while True:
        path.unlink(missing_ok=True)
        with suppress(FileExistsError):
            path.mkdir()
            return


async def test_database_failure_gives_503_and_stores_nothing(service: RunningService) -> None:
    path = service.services.settings.data_dir / "rlvo.sqlite"
    content = path.read_bytes()
    replace_by_folder(path)
    service.services.database.close()
    answer = await service.submit(clinical=text(json.dumps({"age": 71})))
    assert (answer.status_code, answer.json()["code"]) == (503, "database-unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert service.blobs() == []
    path.rmdir()
    path.write_bytes(content)
    service.services.database.close()
    assert (await service.submit()).status_code == 202


async def test_interval_of_a_series_is_stored_and_part_of_the_fingerprint(service: RunningService) -> None:
    series = {"ctp": ("x.nii.gz", volume((4, 4, 4, 9)), "application/octet-stream")}

    def send(seconds: str, **parts: Any) -> Any:
        headers = {"Idempotency-Key": "k-1", "Prefer": "respond-async"}
        files = {"cta": ("x.nii.gz", CTA, "application/octet-stream"), **parts, "ctp_interval_s": text(seconds)}
        return service.http.post("/v1/predictions", files=files, headers=headers)

    sent = await send("1.5", **series)
    assert (sent.status_code, sent.json()["ctp_interval_s"]) == (202, 1.5)
    assert service.worker.begin(sent.json()["id"]).ctp_interval_s == 1.5
    again = await send("2", **series)
    assert (again.status_code, again.json()["code"]) == (422, "idempotency-key-reused")


@pytest.mark.parametrize("seconds", ["0.1", "7", "1500", "-1", "1,5", "nan"])
async def test_impossible_interval_is_refused(shared_service: RunningService, seconds: str) -> None:
    series = ("x.nii.gz", volume((4, 4, 4, 9)), "application/octet-stream")
    refused = await shared_service.submit(ctp=series, ctp_interval_s=text(seconds))
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "ctp_interval_s")


async def test_interval_without_a_series_is_refused(shared_service: RunningService) -> None:
    refused = await shared_service.submit(ctp_interval_s=text("1.5"))
    assert refused.status_code == 422
    assert "ctp series" in refused.json()["detail"]
    assert (await shared_service.submit(ctp_interval_s=text(""))).status_code == 202  # as a browser sends it


@pytest.mark.parametrize(
    ("sent", "explain", "exact"), [("true", True, False), ("exact", True, True), ("false", False, False)]
)
async def test_explain_option_is_recorded(service: RunningService, sent: str, explain: bool, exact: bool) -> None:
    answer = await service.submit(explain=(None, sent))
    study = service.worker.begin(answer.json()["id"])
    assert (study.explain, study.exact) == (explain, exact)
