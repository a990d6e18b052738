"""Who the caller is: as the service says it, and as the author of a review."""

from __future__ import annotations

import httpx
import pytest

from app.core.config import Settings
from app.database import api_keys
from tests.api.conftest import RunningService, running
from tests.api.responses import problem
from tests.api.test_oidc import Issuer, issuer, with_issuer

__all__ = ["issuer"]

pytestmark = pytest.mark.anyio

AGREE = {"verdict": "agree"}


async def ask(service: RunningService, credential: str, method: str, path: str, **options: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {credential}"}
    return await service.http.request(method, path, headers=headers, **options)  # type: ignore[arg-type]


async def test_review_has_the_name_of_its_key_as_author(settings: Settings) -> None:
    """The key of a person is also the reviewer; a typed pseudonym is no proof of who wrote the review."""
    async with running(settings.model_copy(update={"auth": "keys"})) as service:
        keys = [await service.services.write(api_keys.create, name, tenant="ward") for name in ("dr-ana", "pacs")]
        service.http.headers["Authorization"] = f"Bearer {keys[0]}"
        prediction_id = (await service.submit()).json()["id"]
        del service.http.headers["Authorization"]
        service.worker.succeed(prediction_id, [])
        path = f"/v1/predictions/{prediction_id}/reviews"
        bodies = [(keys[0], AGREE), (keys[1], {**AGREE, "reviewer": "dr-ana"}), (keys[1], {**AGREE, "reviewer": "R-2"})]
        for key, body in bodies:
            assert (await ask(service, key, "POST", path, json=body)).status_code == 201
        assert (await ask(service, keys[1], "POST", path, json=bodies[2][1])).status_code == 200  # a repetition
        reviews = (await ask(service, keys[0], "GET", path)).json()
        assert [(each["reviewer"], each["author"]) for each in reviews] == [
            ("dr-ana", "dr-ana"),
            ("dr-ana", "pacs"),
            ("R-2", "pacs"),
        ]
        shown = (await ask(service, keys[0], "GET", f"/v1/predictions/{prediction_id}")).json()
        assert [each["reviewer"] for each in shown["verdicts"]] == ["dr-ana", "R-2"]
        listed = (await ask(service, keys[0], "GET", "/v1/predictions?reviewed=true&sort=-probability")).json()
        assert listed["items"][0]["verdicts"] == shown["verdicts"]


async def test_service_says_who_the_caller_is(settings: Settings, issuer: Issuer) -> None:
    async with running(settings) as service:
        local = await service.http.get("/v1/caller")
        assert local.json() | {"scopes": []} == {"name": "local", "tenant": "local", "scopes": [], "identified": False}
        assert (await service.http.get("/login.json")).json() == {}
        assert (await service.http.get("/")).headers["content-security-policy"].count("http") == 0
    login = {"oidc_client_id": "rlvo-page", "oidc_name_claim": "preferred_username"}
    async with running(with_issuer(settings, issuer).model_copy(update=login)) as service:
        assert problem(await service.http.get("/v1/caller")) == (401, "unauthenticated")
        token = issuer.token(preferred_username="dr-ana")
        assert (await ask(service, token, "GET", "/v1/caller")).json() == {
            "name": "dr-ana",
            "tenant": "clinic",
            "scopes": ["predict", "read"],
            "identified": True,
        }
        unnamed = await ask(service, issuer.token(), "GET", "/v1/caller")
        assert unnamed.json()["name"] == "dr-1"  # the subject
        offered = (await service.http.get("/login.json")).json()
        assert offered == {"issuer": issuer.url, "client_id": "rlvo-page", "scope": "openid predict read"}
        policies = {page: (await service.http.get(page)).headers["content-security-policy"] for page in ("/", "/livez")}
        assert f"connect-src 'self' blob: data: {issuer.url};" in policies["/"]
        assert issuer.url not in policies["/livez"]  # only the pages may connect to the provider
