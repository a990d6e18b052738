"""The layer before every route: who gets in, how much, and how every answer looks."""

from __future__ import annotations

import re
from typing import Any

import anyio
import httpx
import pytest

from app.api.middleware import INSECURE_WARNING
from app.core.config import Settings
from app.database import api_keys
from app.main import create_app
from tests.api.conftest import House, running, volume

pytestmark = pytest.mark.anyio

UNKNOWN = "01900000-0000-7000-8000-000000000000"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def problem(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of a problem, whose shape is checked on the way."""
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.content) < 4096
    body = answer.json()
    assert body["type"] == f"/problems/{body['code']}"
    assert body["status"] == answer.status_code
    assert body["trace_id"] == answer.headers["x-trace-id"]
    assert body["title"]
    assert body["detail"]
    return answer.status_code, body["code"]


async def key(house: House, *scopes: str, name: str = "pacs") -> dict[str, str]:
    secret = await house.services.write(api_keys.create, name, scopes)
    return {"Authorization": f"Bearer {secret}"}


# who ------------------------------------------------------------------------------------------------------------------


async def test_without_keys_every_answer_warns(empty_house: House) -> None:
    for path in ("/livez", "/v1/models", "/nowhere", "/v1/predictions?limit=0"):
        assert (await empty_house.http.get(path)).headers["warning"] == INSECURE_WARNING


async def test_with_keys_nothing_is_open_but_probes_and_pages(settings: Settings) -> None:
    async with running(settings.model_copy(update={"auth": "keys"})) as house:
        for path in ("/livez", "/metrics", "/docs", "/openapi.json", "/", "/static/style.css", "/problems/erased"):
            answer = await house.http.get(path)
            assert answer.status_code == 200
            assert "warning" not in answer.headers
        assert (await house.http.get("/readyz")).status_code == 503  # not ready, but open
        for method, path in (
            ("GET", "/v1/predictions"),
            ("POST", "/v1/predictions"),
            ("GET", f"/v1/predictions/{UNKNOWN}"),
            ("GET", "/v1/models"),
            ("GET", "/v1/schema/clinical"),
            ("GET", "/nowhere"),
            ("GET", "/v1/predictions/%2e%2e/%2e%2e/livez"),
            ("GET", "/livez/"),
            ("GET", "/%2flivez"),
            ("OPTIONS", "/v1/predictions"),
            ("TRACE", "/v1/predictions"),
        ):
            answer = await house.http.request(method, path)
            assert problem(answer) == (401, "unauthenticated"), path
            assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer rlvo_wrong"},
        {"Authorization": "Basic cGFjczpwYWNz"},
        {"Authorization": "Bearer " + "x" * 5000},
        {"Authorization": b"Bearer \xff\xfe"},
        {"X-API-Key": "rlvo_wrong"},
    ],
)
async def test_a_wrong_key_is_401_and_not_repeated(settings: Settings, headers: Any) -> None:
    async with running(settings.model_copy(update={"auth": "keys"})) as house:
        answer = await house.http.get("/v1/predictions", headers=headers)
        assert problem(answer) == (401, "unauthenticated")
        assert "wrong" not in answer.text


async def test_a_key_opens_what_its_scopes_say(settings: Settings) -> None:
    async with running(settings.model_copy(update={"auth": "keys"})) as house:
        reader, sender = await key(house, "read"), await key(house, "predict")
        files = {"cta": volume()}
        assert (await house.http.get("/v1/predictions", headers=reader)).status_code == 200
        assert problem(await house.http.post("/v1/predictions", headers=reader, files=files)) == (
            403,
            "insufficient-scope",
        )
        sent = await house.http.post("/v1/predictions", headers=sender | {"Prefer": "respond-async"}, files=files)
        assert sent.status_code == 202
        assert problem(await house.http.get("/v1/predictions", headers=sender)) == (403, "insufficient-scope")
        by_header = {"X-API-Key": reader["Authorization"].removeprefix("Bearer ")}
        assert (await house.http.get(sent.headers["location"], headers=by_header)).status_code == 200


async def test_another_tenants_record_is_as_absent_as_none(settings: Settings) -> None:
    async with running(settings.model_copy(update={"auth": "keys"})) as house:
        ours, theirs = await key(house, "predict", "read", name="a"), await key(house, "predict", "read", name="b")
        sent = await house.http.post(
            "/v1/predictions", headers=ours | {"Prefer": "respond-async"}, files={"cta": volume()}
        )
        house.worker.succeed(sent.json()["id"])
        for method, suffix in (
            ("GET", ""),
            ("GET", "/events"),
            ("GET", "/maps/attribution-cta.nii.gz"),
            ("GET", "/fhir"),
            ("POST", "/cancel"),
            ("DELETE", ""),
        ):
            theirs_answer = await house.http.request(method, sent.headers["location"] + suffix, headers=theirs)
            nobodys = await house.http.request(method, f"/v1/predictions/{UNKNOWN}{suffix}", headers=theirs)
            assert problem(theirs_answer) == problem(nobodys) == (404, "prediction-not-found")
            assert theirs_answer.json()["detail"] == nobodys.json()["detail"]
        assert (await house.http.get("/v1/predictions", headers=theirs)).json()["items"] == []
        assert (await house.http.get(sent.headers["location"], headers=ours)).status_code == 200


def test_an_open_door_on_another_address_must_be_meant(settings: Settings) -> None:
    elsewhere = settings.model_copy(update={"host": "0.0.0.0", "auth": "off"})
    with pytest.raises(ValueError, match="RLVO_INSECURE"):
        create_app(elsewhere)
    create_app(elsewhere.model_copy(update={"insecure": True}))
    create_app(elsewhere.model_copy(update={"auth": "auto"}))


# how much -------------------------------------------------------------------------------------------------------------


async def test_a_body_too_large_is_refused_by_its_claim_and_by_its_bytes(house: House) -> None:
    form = {"Content-Type": "multipart/form-data; boundary=X"}
    claimed = await house.http.post("/v1/predictions", content=bytes(4_000_001), headers=form)
    assert problem(claimed) == (413, "payload-too-large")

    async def chunks() -> Any:
        head = b'--X\r\nContent-Disposition: form-data; name="cta"; filename="a"\r\n\r\n'
        yield head + volume((100, 100, 100), compressed=False)[:1000]
        for _ in range(100):
            yield bytes(50_000)

    sent = await house.http.post("/v1/predictions", content=chunks(), headers=form)
    assert problem(sent) in ((413, "payload-too-large"), (422, "nifti-invalid"))
    assert house.leftovers() == []


async def test_other_addresses_take_small_bodies_only(empty_house: House) -> None:
    answer = await empty_house.http.post(f"/v1/predictions/{UNKNOWN}/cancel", content=bytes(5000))
    assert problem(answer) == (413, "payload-too-large")


@pytest.mark.parametrize("claim", ["-1", "x", "1e3", "", "9" * 40])
async def test_an_absurd_content_length_is_refused(empty_house: House, claim: str) -> None:
    answer = await empty_house.http.request("GET", "/livez", headers={"Content-Length": claim})
    assert answer.status_code in (400, 413)


async def test_a_body_that_does_not_arrive_in_time_is_408(settings: Settings) -> None:
    async with running(settings.model_copy(update={"receive_timeout": 0.3})) as house:

        async def chunks() -> Any:
            yield b"--X\r\n"
            await anyio.sleep(30)

        headers = {"Content-Type": "multipart/form-data; boundary=X", "Expect": "100-continue"}
        answer = await house.http.post("/v1/predictions", content=chunks(), headers=headers)
        assert problem(answer) == (408, "upload-timeout")
        assert house.leftovers() == []


# how it looks ---------------------------------------------------------------------------------------------------------


async def test_every_answer_has_the_security_headers(empty_house: House) -> None:
    for path in ("/livez", "/", "/docs", "/static/style.css", "/nowhere", "/v1/models"):
        headers = (await empty_house.http.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "script-src" not in headers["content-security-policy"]  # default-src: no inline script anywhere
        assert headers["referrer-policy"] == "no-referrer"


async def test_a_trace_is_taken_up_or_begun(empty_house: House) -> None:
    given = await empty_house.http.get("/nowhere", headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
    assert given.json()["trace_id"] == TRACE
    for bad in ("", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", "ff-" + TRACE + "-00f067aa0ba902b7-01", "canary"):
        begun = (await empty_house.http.get("/nowhere", headers={"traceparent": bad})).json()["trace_id"]
        assert re.fullmatch("[0-9a-f]{32}", begun)
        assert begun != TRACE


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/nowhere", (404, "not-found")),
        ("GET", "/v1", (404, "not-found")),
        ("GET", "/v1/predictions/", (404, "not-found")),
        ("GET", "/static/../main.py", (404, "not-found")),
        ("GET", "/static/%2e%2e/main.py", (404, "not-found")),
        ("GET", "/problems/nothing", (404, "not-found")),
        ("PUT", "/v1/predictions", (405, "method-not-allowed")),
        ("TRACE", f"/v1/predictions/{UNKNOWN}", (405, "method-not-allowed")),
        ("BREW", "/livez", (405, "method-not-allowed")),
        ("POST", "/static/style.css", (405, "method-not-allowed")),
        ("GET", f"/v1/predictions/{UNKNOWN}", (404, "prediction-not-found")),
        ("GET", "/v1/predictions/canary", (404, "prediction-not-found")),
        ("GET", "/v1/predictions/%00", (404, "prediction-not-found")),
        ("GET", "/v1/predictions/" + "9" * 3000, (404, "prediction-not-found")),
        ("DELETE", f"/v1/predictions/{UNKNOWN}%0A", (404, "prediction-not-found")),
        ("GET", f"/v1/predictions/{UNKNOWN}/maps/..%2f..%2fsecret.nii.gz", (404, "not-found")),
        ("GET", f"/v1/predictions/{UNKNOWN}/maps/%2e%2e.nii.gz", (422, "invalid-request")),
        ("GET", "/v1/models/canary", (404, "model-not-found")),
        ("GET", "/v1/models/..%2f..", (404, "not-found")),
        ("GET", "/v1/models/tiny/versions/9.9.9", (404, "model-not-found")),
        ("GET", "/v1/predictions?limit=0", (422, "invalid-request")),
        ("GET", "/v1/predictions?limit=201", (422, "invalid-request")),
        ("GET", "/v1/predictions?limit=" + "9" * 5000, (422, "invalid-request")),
        ("GET", "/v1/predictions?limit=1&limit=2", (422, "invalid-request")),
        ("GET", "/v1/predictions?cursor=canary", (422, "invalid-request")),
        ("GET", "/v1/predictions?cursor=" + "A" * 5000, (422, "invalid-request")),
        ("GET", "/v1/predictions?cursor=%F0%9F%92%A9", (422, "invalid-request")),
        ("GET", "/v1/predictions?cursor=W10", (422, "invalid-request")),
        ("GET", "/v1/predictions?status=canary", (422, "invalid-request")),
        ("GET", "/v1/predictions?subject=%00canary", (422, "invalid-request")),
        ("GET", "/v1/predictions?created_after=yesterday", (422, "invalid-request")),
        ("GET", "/v1/predictions?created_after=2026-01-01", (422, "invalid-request")),
        ("GET", "/v1/predictions?created_after=0001-01-01T00:00:00%2B14:00", (422, "invalid-request")),
        ("GET", "/v1/predictions?canary=1", (422, "invalid-request")),
        ("GET", "/v1/predictions?" + "&".join(f"c{n}=1" for n in range(100)), (422, "invalid-request")),
        ("GET", f"/v1/predictions/{UNKNOWN}?wait=nan", (422, "invalid-request")),
        ("GET", f"/v1/predictions/{UNKNOWN}?wait=-1", (422, "invalid-request")),
        ("GET", f"/v1/predictions/{UNKNOWN}?wait=1e400", (422, "invalid-request")),
    ],
)
async def test_an_odd_request_is_a_problem_that_repeats_nothing(
    empty_house: House, method: str, path: str, expected: tuple[int, str]
) -> None:
    answer = await empty_house.http.request(method, path)
    assert problem(answer) == expected
    assert "canary" not in answer.text


async def test_405_and_options_name_every_method_of_the_address(empty_house: House) -> None:
    refused = await empty_house.http.put(f"/v1/predictions/{UNKNOWN}")
    assert refused.headers["allow"] == "DELETE, GET, HEAD, OPTIONS"
    asked = await empty_house.http.options("/v1/predictions")
    assert (asked.status_code, asked.headers["allow"], asked.content) == (204, "GET, HEAD, OPTIONS, POST", b"")


async def test_head_is_get_without_its_body(house: House) -> None:
    sent = (await house.submit()).json()["id"]
    house.worker.succeed(sent)
    for path in ("/", "/livez", "/v1/models", f"/v1/predictions/{sent}", f"/v1/predictions/{sent}/events", "/nowhere"):
        head, get = await house.http.head(path), await house.http.get(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-type"] == get.headers["content-type"]


async def test_what_nobody_foresaw_is_a_500_that_says_nothing(
    house: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[str]:
        secret = "canary of a patient"
        raise LookupError(secret)

    monkeypatch.setattr(house.services.registry, "names", broken)
    answer = await house.http.get("/v1/models")
    assert problem(answer) == (500, "internal-error")
    assert "canary" not in answer.text
    assert answer.json()["trace_id"] in caplog.text
    assert "LookupError" in caplog.text
    assert "in broken" in caplog.text
    assert "canary of a patient" not in caplog.text.replace('secret = "canary of a patient"', "")
