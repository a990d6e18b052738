"""Limits of one caller: requests per minute, bytes per request, and the expiry of its key."""

from __future__ import annotations

import re
from datetime import timedelta

import anyio
import httpx
import pytest

from app.api.rate_limit import RateLimiter, burst
from app.core.config import Settings
from app.database import api_keys
from app.database.session import now
from tests.api.conftest import RunningService, running, volume
from tests.api.responses import problem

pytestmark = pytest.mark.anyio


def secret(service: RunningService, name: str, **limits: object) -> dict[str, str]:
    with service.services.database.session() as session:
        return {"Authorization": f"Bearer {api_keys.create(session, name, **limits)}"}  # type: ignore[arg-type]


def test_burst_passes_then_the_rate_applies() -> None:
    rates = RateLimiter()
    assert [rates.take("a", 60, 100.0) for _ in range(7)] == [0.0] * 7
    assert rates.take("a", 60, 100.0) == pytest.approx(1.0)
    assert rates.take("a", 60, 100.5) == pytest.approx(0.5)  # a refused request is not counted
    assert rates.take("a", 60, 101.0) == 0.0
    assert rates.take("a", 60, 101.0) > 0
    assert rates.take("b", 60, 100.0) == 0.0


@pytest.mark.parametrize("per_minute", [1, 7, 600])
def test_requests_per_minute_do_not_exceed_rate_plus_burst(per_minute: int) -> None:
    rates = RateLimiter()
    passed = sum(rates.take("a", per_minute, 5.0 + tick / 50) == 0.0 for tick in range(50 * 60))
    assert per_minute <= passed <= per_minute + burst(per_minute)


async def test_rate_limit_gives_429_for_that_caller_only(settings: Settings) -> None:
    async with running(settings.model_copy(update={"auth": "keys"})) as service:
        eager, other = secret(service, "eager", per_minute=30), secret(service, "other")
        answers = [await service.http.get("/v1/models", headers=eager) for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 429, 429]
        assert problem(answers[-1]) == (429, "rate-limited")
        assert re.search(r"30 requests per minute, and 4 at once\. Wait [12] s\b", answers[-1].json()["detail"])
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 2
        assert (await service.http.get("/v1/models", headers=other)).status_code == 200
        assert (await service.http.get("/livez")).status_code == 200


TWO_CALLERS = [
    (("pacs", "north"), ("pacs", "south")),
    (("pacs", "north"), ("viewer", "north")),
    (("c", "a b"), ("b c", "a")),  # tenant and name are alike only if they are joined
]
BEHIND_PROXY = {"X-Forwarded-For": "10.0.0.7"}


@pytest.mark.parametrize("auth", ["keys", "auto"])
@pytest.mark.parametrize("callers", TWO_CALLERS)
async def test_rates_of_two_callers_are_separate(
    settings: Settings, auth: str, callers: tuple[tuple[str, str], tuple[str, str]]
) -> None:
    async with running(settings.model_copy(update={"auth": auth, "rate_per_minute": 10})) as service:
        first, second = (secret(service, name, tenant=tenant) | BEHIND_PROXY for name, tenant in callers)
        statuses = [
            (await service.http.get("/v1/models", headers=each)).status_code for each in (first, first, first, second)
        ]
        assert statuses == [200, 200, 429, 200]


@pytest.mark.parametrize("auth", ["keys", "auto"])
@pytest.mark.parametrize("callers", TWO_CALLERS)
async def test_requests_in_progress_of_two_callers_are_separate(
    settings: Settings, auth: str, callers: tuple[tuple[str, str], tuple[str, str]]
) -> None:
    async with running(settings.model_copy(update={"auth": auth, "max_requests_per_caller": 1})) as service:
        first, second = (secret(service, name, tenant=tenant) | BEHIND_PROXY for name, tenant in callers)
        files = {"cta": volume()}
        sent = await service.http.post("/v1/predictions", headers=first | {"Prefer": "respond-async"}, files=files)
        async with anyio.create_task_group() as tasks:
            waiting = f"/v1/predictions/{sent.json()['id']}?wait=20"
            tasks.start_soon(lambda: service.http.get(waiting, headers=first))
            with anyio.fail_after(60):
                while service.services.requests_in_progress._total == 0:
                    await anyio.sleep(0.01)
            refused = await service.http.get("/v1/models", headers=first)
            assert problem(refused) == (429, "rate-limited")
            assert (await service.http.get("/v1/models", headers=second)).status_code == 200
            local = await service.http.get("/v1/models")  # without a key, by address
            assert local.status_code == (401 if auth == "keys" else 200)
            tasks.cancel_scope.cancel()


async def test_rate_limit_applies_before_the_body_is_read(settings: Settings) -> None:
    async with running(settings.model_copy(update={"auth": "keys", "rate_per_minute": 10})) as service:
        bearer = secret(service, "pacs")
        sent = [await service.http.post("/v1/predictions", headers=bearer, content=b"x") for _ in range(3)]
        assert [answer.status_code for answer in sent] == [415, 415, 429]


async def test_key_can_limit_the_body_size(settings: Settings) -> None:
    async with running(settings.model_copy(update={"auth": "keys"})) as service:
        small = secret(service, "small", max_body=1000)
        files = {"cta": volume((30, 30, 30))}
        answer = await service.http.post("/v1/predictions", headers=small, files=files)
        assert problem(answer) == (413, "payload-too-large")

        async def chunks() -> object:
            yield b"--X\r\n" + b"x" * 3000

        answer = await service.http.post(
            "/v1/predictions",
            headers=small | {"Content-Type": "multipart/form-data; boundary=X"},
            content=chunks(),  # type: ignore[arg-type]
        )
        assert problem(answer) in ((413, "payload-too-large"), (400, "malformed-multipart"))
        large: httpx.Response = await service.http.post(
            "/v1/predictions", headers=secret(service, "large") | {"Prefer": "respond-async"}, files=files
        )
        assert large.status_code == 202


async def test_expired_key_gives_401(settings: Settings) -> None:
    async with running(settings.model_copy(update={"auth": "keys"})) as service:
        expired = secret(service, "expired", expires=now() - timedelta(seconds=1))
        valid = secret(service, "valid", expires=now() + timedelta(minutes=1))
        assert problem(await service.http.get("/v1/models", headers=expired)) == (401, "unauthenticated")
        assert (await service.http.get("/v1/models", headers=valid)).status_code == 200
