"""A service without keys answers only requests from this machine and from its own pages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.api.middleware import INSECURE_WARNING
from app.core.config import Settings
from app.database import api_keys
from tests.api.conftest import RunningService, running, settings_in, volume
from tests.api.raw_client import ask
from tests.api.responses import problem
from tests.api.server import Server

pytestmark = pytest.mark.anyio

UNKNOWN = "01900000-0000-7000-8000-000000000000"
CANCEL = f"/v1/predictions/{UNKNOWN}/cancel"
REACHED = (404, "prediction-not-found")
REFUSED = (403, "cross-origin")
NEEDS_KEY = (401, "unauthenticated")

WRITES = [
    ("POST", "/v1/predictions"),
    ("POST", CANCEL),
    ("DELETE", f"/v1/predictions/{UNKNOWN}"),
    ("POST", f"/v1/predictions/{UNKNOWN}/reviews"),
    ("PUT", f"/v1/predictions/{UNKNOWN}/outcome"),
    ("PUT", "/v1/models/tiny/aliases/champion"),
    ("POST", "/v1/models/tiny/aliases/champion/rollback"),
    ("POST", "/v1/models/tiny/versions/1.0.0/load"),
    ("POST", "/v1/models/tiny/versions/1.0.0/unload"),
    ("POST", "/v2/models/tiny/infer"),
]


@pytest.fixture(params=["auto", "off"])
async def keyless(request: pytest.FixtureRequest, tmp_path: Path, model_store: Path) -> AsyncIterator[RunningService]:
    """A service on loopback without keys, by each setting that allows it."""
    async with running(settings_in(tmp_path, model_store).model_copy(update={"auth": request.param})) as service:
        yield service


# other machines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "LOCALHOST.", "127.0.0.1:8000", "127.1.2.3", "[::1]", "[::1]:8000"]
)
async def test_request_to_a_name_of_loopback_needs_no_key(shared_service: RunningService, host: str) -> None:
    answer = await shared_service.http.get("/v1/predictions", headers={"Host": host})
    assert answer.status_code == 200
    assert answer.headers["warning"] == INSECURE_WARNING


@pytest.mark.parametrize(
    "host",
    [
        "rebound.example",
        "rebound.example:8000",
        "localhost.rebound.example",
        "127.0.0.1.rebound.example",
        "rebound.example@localhost",
        "localhost@rebound.example",
        "localhost:8000:8000",
        "localhost/",
        "localhost, rebound.example",
        "my.localhost",
        "0.0.0.0:8000",
        "192.168.1.5:8000",
        "[::]:8000",
        "[fe80::1]",
        "::1",
        "2130706433",
        "rlvo",
        "",
    ],
)
async def test_request_to_another_name_needs_a_key(keyless: RunningService, host: str) -> None:
    for method, path in [("GET", "/v1/predictions"), *WRITES]:
        answer = await keyless.http.request(method, path, headers={"Host": host})
        assert problem(answer) == NEEDS_KEY
        assert "127.0.0.1" in answer.json()["detail"]
        assert "warning" not in answer.headers


@pytest.mark.parametrize(
    "header",
    [
        "Forwarded",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Forwarded-Server",
        "X-Real-IP",
        "Via",
        "X-Original-URI",
        "X-Envoy-External-Address",
        "CF-Connecting-IP",
        "True-Client-IP",
    ],
)
async def test_request_through_a_proxy_needs_a_key(keyless: RunningService, header: str) -> None:
    for method, path in [("GET", "/v1/predictions"), *WRITES]:
        assert problem(await keyless.http.request(method, path, headers={header: "127.0.0.1"})) == NEEDS_KEY


async def test_key_of_a_request_through_a_proxy_has_its_scopes_and_tenant(keyless: RunningService) -> None:
    local = (await keyless.submit()).json()["id"]
    secret = await keyless.services.write(api_keys.create, "pacs", ["read"])
    proxied = {"Authorization": f"Bearer {secret}", "X-Forwarded-For": "10.0.0.7", "Host": "rlvo.clinic.example"}
    assert (await keyless.http.get("/v1/predictions", headers=proxied)).json()["items"] == []
    assert problem(await keyless.http.get(f"/v1/predictions/{local}", headers=proxied)) == REACHED
    assert problem(await keyless.http.post(CANCEL, headers=proxied)) == (403, "insufficient-scope")
    wrong = proxied | {"Authorization": "Bearer rlvo_wrong"}
    assert problem(await keyless.http.get("/v1/predictions", headers=wrong)) == NEEDS_KEY


async def test_probes_and_pages_stay_open_for_each_host(keyless: RunningService) -> None:
    for path in ("/livez", "/metrics", "/", "/docs", "/static/style.css"):
        answer = await keyless.http.get(path, headers={"Host": "10.1.2.3:8000", "Via": "1.1 probe"})
        assert answer.status_code == 200


def test_request_by_http_1_0_needs_a_key(server: Server) -> None:
    """So does nginx before 1.29.7 by default: Host of the target, and no header that names the client."""

    def status(*lines: str) -> str:
        request = "\r\n".join([*lines, "Connection: close", "", ""])
        return ask(server, request.encode(), timeout=30).split()[1].decode()

    target = f"Host: {server.url.removeprefix('http://')}"
    assert status("GET /v1/predictions HTTP/1.0", target) == "401"
    assert status("GET /v1/predictions HTTP/1.0") == "401"
    assert status("GET /livez HTTP/1.0") == "200"
    assert status("GET /v1/predictions HTTP/1.1", target) == "200"


async def test_insecure_service_accepts_each_host_and_proxy(settings: Settings) -> None:
    """The setting is for a proxy that authenticates the callers itself."""
    opened = settings.model_copy(
        update={"auth": "off", "insecure": True, "public_url": "https://rlvo.clinic.example/stroke"}
    )
    async with running(opened) as service:
        proxied = {"Host": "rlvo.internal:8000", "X-Forwarded-For": "10.0.0.7"}
        assert (await service.http.get("/v1/predictions", headers=proxied)).status_code == 200
        own = proxied | {"Origin": "https://rlvo.clinic.example", "Sec-Fetch-Site": "same-origin"}
        assert problem(await service.http.post(CANCEL, headers=own)) == REACHED
        other = proxied | {"Origin": "https://clinic.example", "Sec-Fetch-Site": "same-site"}
        assert problem(await service.http.post(CANCEL, headers=other)) == REFUSED


# other web sites ------------------------------------------------------------------------------------------------------

OTHER_PAGES = {
    "form": {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    "form in a frame without an origin": {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
    "page without an origin": {"Origin": "null"},
    "old browser": {"Origin": "http://evil.example"},
    "oldest browser": {"Referer": "http://evil.example/page"},
    "another port": {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"},
    "another name of this machine": {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "cross-site"},
    "Sec-Fetch-Site alone": {"Sec-Fetch-Site": "cross-site"},
    "unknown Sec-Fetch-Site": {"Sec-Fetch-Site": "any"},
    "name that begins alike": {"Origin": "http://localhost.evil.example"},
    "contradiction": {"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"},
    "not a URL": {"Origin": "http://[", "Sec-Fetch-Site": "same-origin"},
}
OWN_PAGES = {
    "client that is no browser": {},
    "fetch": {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"},
    "form": {"Origin": "null", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "navigate"},
    "reload": {"Origin": "http://localhost", "Sec-Fetch-Site": "none"},
    "old browser": {"Origin": "http://LOCALHOST"},
    "oldest browser": {"Referer": "http://localhost/predictions/1"},
}


@pytest.mark.parametrize("page", OTHER_PAGES)
async def test_write_from_a_page_of_another_site_is_refused(keyless: RunningService, page: str) -> None:
    for method, path in WRITES:
        assert problem(await keyless.http.request(method, path, headers=OTHER_PAGES[page])) == REFUSED, path
    files = {"cta": volume()}
    assert problem(await keyless.http.post("/v1/predictions", headers=OTHER_PAGES[page], files=files)) == REFUSED
    assert (await keyless.http.get("/v1/predictions")).json()["items"] == []


@pytest.mark.parametrize("page", OWN_PAGES)
async def test_write_from_a_page_of_the_service_is_accepted(keyless: RunningService, page: str) -> None:
    assert problem(await keyless.http.post(CANCEL, headers=OWN_PAGES[page])) == REACHED
    headers = OWN_PAGES[page] | {"Prefer": "respond-async"}
    sent = await keyless.http.post("/v1/predictions", headers=headers, files={"cta": volume()})
    assert sent.status_code == 202


@pytest.mark.parametrize(
    ("fetch", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 200),
        ({"Referer": "https://pacs.clinic.example/"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Origin": "http://localhost:3000"}, 403),
    ],
)
async def test_other_site_may_link_to_a_record_but_not_embed_it(
    shared_service: RunningService, fetch: dict[str, str], status: int
) -> None:
    for method in ("GET", "HEAD"):
        answer = await shared_service.http.request(method, "/v1/predictions", headers=fetch)
        assert answer.status_code == status


async def test_page_of_another_site_with_a_key_is_accepted(settings: Settings) -> None:
    """A key is no cookie: a browser sends it only for a page that has it."""
    async with running(settings.model_copy(update={"auth": "keys"})) as service:
        secret = await service.services.write(api_keys.create, "pacs", ["predict", "read"])
        headers = {"Authorization": f"Bearer {secret}"} | OTHER_PAGES["form"]
        assert problem(await service.http.post(CANCEL, headers=headers)) == REACHED
