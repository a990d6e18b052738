"""Limits of one caller: so many requests a minute, so many bytes a request, and only as long as its key is good."""

from __future__ import annotations

from datetime import timedelta

import httpx
import pytest

from app.api.rate_limit import RateLimiter
from app.core.config import Settings
from app.database import api_keys
from app.database.session import now
from tests.api.conftest import House, running, volume
from tests.api.test_middleware import problem

pytestmark = pytest.mark.anyio


def secret(house: House, name: str, **limits: object) -> dict[str, str]:
    with house.services.database.session() as session:
        return {"Authorization": f"Bearer {api_keys.create(session, name, **limits)}"}  # type: ignore[arg-type]


def test_a_burst_passes_and_then_the_rate() -> None:
    rates = RateLimiter()
    assert [rates.take("a", 60, 100.0) for _ in range(6)] == [0.0] * 6
    assert rates.take("a", 60, 100.0) == pytest.approx(1.0)
    assert rates.take("a", 60, 100.5) == pytest.approx(0.5)  # a refusal costs nothing
    assert rates.take("a", 60, 101.0) == 0.0
    assert rates.take("a", 60, 101.0) > 0
    assert rates.take("b", 60, 100.0) == 0.0


@pytest.mark.parametrize("per_minute", [1, 7, 600])
def test_no_minute_lets_more_through_than_rate_and_burst(per_minute: int) -> None:
    rates = RateLimiter()
    passed = sum(rates.take("a", per_minute, 5.0 + tick / 50) == 0.0 for tick in range(50 * 60))
    assert per_minute <= passed <= per_minute + max(1, per_minute // 10)


async def test_too_many_requests_are_429_and_harm_nobody_else(settings: Settings) -> None:
    async with running(settings.model_copy(update={"auth": "keys"})) as house:
        eager, other = secret(house, "eager", per_minute=30), secret(house, "other")
        answers = [await house.http.get("/v1/models", headers=eager) for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429, 429]
        assert problem(answers[-1]) == (429, "rate-limited")
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 2
        assert (await house.http.get("/v1/models", headers=other)).status_code == 200
        assert (await house.http.get("/livez")).status_code == 200


async def test_a_refusal_comes_before_the_body(settings: Settings) -> None:
    async with running(settings.model_copy(update={"auth": "keys", "rate_per_minute": 10})) as house:
        bearer = secret(house, "pacs")
        sent = [await house.http.post("/v1/predictions", headers=bearer, content=b"x") for _ in range(2)]
        assert [answer.status_code for answer in sent] == [415, 429]


async def test_a_keys_own_bound_on_a_body(settings: Settings) -> None:
    async with running(settings.model_copy(update={"auth": "keys"})) as house:
        small = secret(house, "small", max_body=1000)
        files = {"cta": volume((30, 30, 30))}
        answer = await house.http.post("/v1/predictions", headers=small, files=files)
        assert problem(answer) == (413, "payload-too-large")

        async def chunks() -> object:
            yield b"--X\r\n" + b"x" * 3000

        answer = await house.http.post(
            "/v1/predictions",
            headers=small | {"Content-Type": "multipart/form-data; boundary=X"},
            content=chunks(),  # type: ignore[arg-type]
        )
        assert problem(answer) in ((413, "payload-too-large"), (400, "malformed-multipart"))
        large: httpx.Response = await house.http.post(
            "/v1/predictions", headers=secret(house, "large") | {"Prefer": "respond-async"}, files=files
        )
        assert large.status_code == 202


async def test_an_expired_key_is_401(settings: Settings) -> None:
    async with running(settings.model_copy(update={"auth": "keys"})) as house:
        over = secret(house, "over", expires=now() - timedelta(seconds=1))
        soon = secret(house, "soon", expires=now() + timedelta(minutes=1))
        assert problem(await house.http.get("/v1/models", headers=over)) == (401, "unauthenticated")
        assert (await house.http.get("/v1/models", headers=soon)).status_code == 200
