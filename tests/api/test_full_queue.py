"""A full queue over HTTP: who is refused, when, and who is not."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.core.config import Settings
from app.database import api_keys
from tests.api.conftest import RunningService, running, volume

pytestmark = pytest.mark.anyio


async def test_full_queue_is_reported_before_the_body_is_read(service: RunningService) -> None:
    service.services.settings = service.services.settings.model_copy(update={"queue_limit": 1})
    assert (await service.submit()).status_code == 202

    async def body() -> Any:
        pytest.fail("the body was read")
        yield b""

    headers = {"Content-Type": "multipart/form-data; boundary=x", "Expect": "100-continue"}
    answer = await service.http.post("/v1/predictions", content=body(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (429, "queue-full")
    assert int(answer.headers["retry-after"]) >= 1


async def test_concurrent_studies_do_not_exceed_the_limit(settings: Settings, database_url: str) -> None:
    """All of them see a free place before the first body arrives."""
    form = httpx.Request("POST", "http://localhost", files={"cta": ("x.nii.gz", volume(), "application/octet-stream")})
    content, headers = form.read(), {"Content-Type": form.headers["Content-Type"], "Prefer": "respond-async"}
    all_begun = asyncio.Barrier(12)

    async def body() -> AsyncIterator[bytes]:
        await all_begun.wait()
        yield content

    limits = {"queue_limit": 3, "queue_tenant_share": 1.0, "database_url": database_url}
    async with running(settings.model_copy(update=limits)) as service:
        posts = (service.http.post("/v1/predictions", content=body(), headers=headers) for _ in range(12))
        answers = await asyncio.gather(*posts)
        statuses = Counter(answer.status_code for answer in answers)
        assert statuses == {202: 3, 429: 9}
        assert {answer.json()["code"] for answer in answers if answer.status_code == 429} == {"queue-full"}
        assert len((await service.http.get("/v1/predictions")).json()["items"]) == 3
        assert service.leftovers() == []


async def test_full_batch_queue_of_a_tenant_does_not_refuse_other_studies(settings: Settings) -> None:
    async with running(settings.model_copy(update={"auth": "keys", "queue_limit": 10})) as service:
        keys = [await service.services.write(api_keys.create, name, ["predict"]) for name in ("research", "pacs")]
        research, pacs = ({"Authorization": f"Bearer {key}", "Prefer": "respond-async"} for key in keys)

        async def submit(headers: dict[str, str]) -> int:
            files = {"cta": ("x.nii.gz", volume(), "application/octet-stream")}
            return (await service.http.post("/v1/predictions", files=files, headers=headers)).status_code

        batch = {"Priority": "u=5"}
        while (status := await submit(research | batch)) == 202:
            pass
        assert status == 429
        assert await submit(research) == 202
        assert await submit(pacs | batch) == 202
        assert await submit(pacs) == 202


async def test_repeated_request_of_an_accepted_study_needs_no_place(service: RunningService) -> None:
    service.services.settings = service.services.settings.model_copy(update={"queue_limit": 1})
    body = {"files": {"cta": ("x.nii.gz", volume(), "application/octet-stream")}}
    headers = {"Prefer": "respond-async", "Idempotency-Key": "first"}
    first = await service.http.post("/v1/predictions", headers=headers, **body)
    again = await service.http.post("/v1/predictions", headers=headers, **body)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json()["id"] == first.json()["id"]
    for _ in range(2):  # a refusal reserves no key
        other = await service.http.post("/v1/predictions", headers=headers | {"Idempotency-Key": "other"}, **body)
        assert (other.status_code, other.json()["code"]) == (429, "queue-full")
    service.worker.succeed(first.json()["id"])
    other = await service.http.post("/v1/predictions", headers=headers | {"Idempotency-Key": "other"}, **body)
    assert other.status_code == 202
