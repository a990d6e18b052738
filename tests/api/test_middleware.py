"""The middleware: authentication, body limits, and the form of every response."""

from __future__ import annotations

import re
from typing import Any

import anyio
import pytest

from app.api.middleware import INSECURE_WARNING
from app.core.config import Settings
from app.database import api_keys
from app.main import create_app
from tests.api.conftest import RunningService, running, volume
from tests.api.responses import problem

pytestmark = pytest.mark.anyio

UNKNOWN = "01900000-0000-7000-8000-000000000000"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


async def key(service: RunningService, *scopes: str, name: str = "pacs") -> dict[str, str]:
    secret = await service.services.write(api_keys.create, name, scopes)
    return {"Authorization": f"Bearer {secret}"}


# authentication -------------------------------------------------------------------------------------------------------


async def test_every_response_warns_if_no_key_is_required(shared_service: RunningService) -> None:
    assert INSECURE_WARNING == '199 rlvo "No API key is required for this request"'  # a request of a proxy needs one
    for path in ("/livez", "/v1/models", "/nowhere", "/v1/predictions?limit=0"):
        assert (await shared_service.http.get(path)).headers["warning"] == INSECURE_WARNING
    for sent in ({"Authorization": "Bearer wrong"}, {"X-API-Key": "wrong"}):
        assert "is not checked" in (await shared_service.http.get("/v1/models", headers=sent)).headers["warning"]


async def test_only_probes_and_pages_are_open_if_keys_are_required(settings: Settings) -> None:
    async with running(settings.model_copy(update={"auth": "keys"})) as service:
        for path in ("/livez", "/metrics", "/docs", "/openapi.json", "/", "/static/style.css", "/problems/erased"):
            answer = await service.http.get(path)
            assert answer.status_code == 200
            assert "warning" not in answer.headers
        assert (await service.http.get("/readyz")).status_code == 503  # not ready, but no key is needed
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
            answer = await service.http.request(method, path)
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
async def test_wrong_key_gives_401_and_is_not_repeated(settings: Settings, headers: Any) -> None:
    async with running(settings.model_copy(update={"auth": "keys"})) as service:
        answer = await service.http.get("/v1/predictions", headers=headers)
        assert problem(answer) == (401, "unauthenticated")
        assert "wrong" not in answer.text


async def test_key_allows_only_the_calls_of_its_scopes(settings: Settings) -> None:
    async with running(settings.model_copy(update={"auth": "keys"})) as service:
        reader, sender = await key(service, "read"), await key(service, "predict")
        files = {"cta": volume()}
        assert (await service.http.get("/v1/predictions", headers=reader)).status_code == 200
        assert problem(await service.http.post("/v1/predictions", headers=reader, files=files)) == (
            403,
            "insufficient-scope",
        )
        sent = await service.http.post("/v1/predictions", headers=sender | {"Prefer": "respond-async"}, files=files)
        assert sent.status_code == 202
        assert problem(await service.http.get("/v1/predictions", headers=sender)) == (403, "insufficient-scope")
        by_header = {"X-API-Key": reader["Authorization"].removeprefix("Bearer ")}
        assert (await service.http.get(sent.headers["location"], headers=by_header)).status_code == 200
        for other in (reader, sender):
            assert problem(await service.http.delete(sent.headers["location"], headers=other)) == (
                403,
                "insufficient-scope",
            )
        eraser = await key(service, "erase")
        assert (await service.http.delete(sent.headers["location"], headers=eraser)).status_code == 204


async def test_record_of_another_tenant_looks_like_a_missing_one(settings: Settings) -> None:
    async with running(settings.model_copy(update={"auth": "keys"})) as service:
        headers_a, headers_b = (
            await key(service, "predict", "read", "erase", name="a"),
            await key(service, "predict", "read", "erase", name="b"),
        )
        sent = await service.http.post(
            "/v1/predictions", headers=headers_a | {"Prefer": "respond-async"}, files={"cta": volume()}
        )
        service.worker.succeed(sent.json()["id"])
        for method, suffix in (
            ("GET", ""),
            ("GET", "/events"),
            ("GET", "/inputs/cta.nii"),
            ("GET", "/maps/attribution-cta.nii.gz"),
            ("GET", "/fhir"),
            ("POST", "/cancel"),
            ("DELETE", ""),
        ):
            foreign = await service.http.request(method, sent.headers["location"] + suffix, headers=headers_b)
            missing = await service.http.request(method, f"/v1/predictions/{UNKNOWN}{suffix}", headers=headers_b)
            assert problem(foreign) == problem(missing) == (404, "prediction-not-found")
            assert foreign.json()["detail"] == missing.json()["detail"]
        assert (await service.http.get("/v1/predictions", headers=headers_b)).json()["items"] == []
        assert (await service.http.get(sent.headers["location"], headers=headers_a)).status_code == 200


def test_service_without_keys_on_another_address_needs_an_explicit_setting(settings: Settings) -> None:
    elsewhere = settings.model_copy(update={"host": "0.0.0.0", "auth": "off"})
    with pytest.raises(ValueError, match="RLVO_INSECURE"):
        create_app(elsewhere)
    create_app(elsewhere.model_copy(update={"insecure": True}))
    create_app(elsewhere.model_copy(update={"auth": "auto"}))


# body limits ----------------------------------------------------------------------------------------------------------


async def test_large_body_is_refused_by_content_length_and_by_size(service: RunningService) -> None:
    form = {"Content-Type": "multipart/form-data; boundary=X"}
    announced = await service.http.post("/v1/predictions", content=bytes(4_000_001), headers=form)
    assert problem(announced) == (413, "payload-too-large")

    async def chunks() -> Any:
        head = b'--X\r\nContent-Disposition: form-data; name="cta"; filename="a"\r\n\r\n'
        yield head + volume((100, 100, 100), compressed=False)[:1000]
        for _ in range(100):
            yield bytes(50_000)

    sent = await service.http.post("/v1/predictions", content=chunks(), headers=form)
    assert problem(sent) in ((413, "payload-too-large"), (422, "nifti-invalid"))
    assert service.leftovers() == []


async def test_other_addresses_accept_only_small_bodies(shared_service: RunningService) -> None:
    answer = await shared_service.http.post(f"/v1/predictions/{UNKNOWN}/cancel", content=bytes(5000))
    assert problem(answer) == (413, "payload-too-large")


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "", "9" * 40])
async def test_invalid_content_length_is_refused(shared_service: RunningService, length: str) -> None:
    answer = await shared_service.http.request("GET", "/livez", headers={"Content-Length": length})
    assert answer.status_code in (400, 413)


async def test_late_body_gives_408(settings: Settings) -> None:
    async with running(settings.model_copy(update={"receive_timeout": 0.3})) as service:

        async def chunks() -> Any:
            yield b"--X\r\n"
            await anyio.sleep(30)

        headers = {"Content-Type": "multipart/form-data; boundary=X", "Expect": "100-continue"}
        answer = await service.http.post("/v1/predictions", content=chunks(), headers=headers)
        assert problem(answer) == (408, "upload-timeout")
        assert service.leftovers() == []


# responses ------------------------------------------------------------------------------------------------------------


async def test_every_response_has_the_security_headers(shared_service: RunningService) -> None:
    for path in ("/livez", "/", "/docs", "/static/style.css", "/nowhere", "/v1/models"):
        headers = (await shared_service.http.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "script-src" not in headers["content-security-policy"]  # default-src: no inline script anywhere
        assert headers["referrer-policy"] == "no-referrer"


async def test_trace_id_is_taken_from_traceparent_or_new(shared_service: RunningService) -> None:
    traced = await shared_service.http.get("/nowhere", headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
    assert traced.json()["trace_id"] == TRACE
    for bad in ("", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", "ff-" + TRACE + "-00f067aa0ba902b7-01", "canary"):
        trace_id = (await shared_service.http.get("/nowhere", headers={"traceparent": bad})).json()["trace_id"]
        assert re.fullmatch("[0-9a-f]{32}", trace_id)
        assert trace_id != TRACE


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
        ("GET", "/v1/predictions?model=tiny@champion", (422, "invalid-request")),  # an alias: no row would match
        ("GET", "/v1/predictions?model=tiny@1.0", (422, "invalid-request")),
        ("GET", "/v1/predictions?model=@1.0.0", (422, "invalid-request")),
        ("GET", "/v1/predictions?created_after=2026-01-01", (422, "invalid-request")),
        ("GET", "/v1/predictions?created_after=0001-01-01T00:00:00%2B14:00", (422, "invalid-request")),
        ("GET", "/v1/predictions?canary=1", (422, "invalid-request")),
        ("GET", "/v1/predictions?" + "&".join(f"c{n}=1" for n in range(100)), (422, "invalid-request")),
        ("GET", f"/v1/predictions/{UNKNOWN}?wait=nan", (422, "invalid-request")),
        ("GET", f"/v1/predictions/{UNKNOWN}?wait=-1", (422, "invalid-request")),
        ("GET", f"/v1/predictions/{UNKNOWN}?wait=1e400", (422, "invalid-request")),
    ],
)
async def test_invalid_request_gives_a_problem_that_repeats_no_value(
    shared_service: RunningService, method: str, path: str, expected: tuple[int, str]
) -> None:
    answer = await shared_service.http.request(method, path)
    assert problem(answer) == expected
    assert "canary" not in answer.text


async def test_405_and_options_list_all_methods_of_the_address(shared_service: RunningService) -> None:
    refused = await shared_service.http.put(f"/v1/predictions/{UNKNOWN}")
    assert refused.headers["allow"] == "DELETE, GET, HEAD, OPTIONS"
    asked = await shared_service.http.options("/v1/predictions")
    assert (asked.status_code, asked.headers["allow"], asked.content) == (204, "GET, HEAD, OPTIONS, POST", b"")


async def test_head_is_get_without_a_body(service: RunningService) -> None:
    sent = (await service.submit()).json()["id"]
    service.worker.succeed(sent)
    for path in ("/", "/livez", "/v1/models", f"/v1/predictions/{sent}", f"/v1/predictions/{sent}/events", "/nowhere"):
        head, get = await service.http.head(path), await service.http.get(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-type"] == get.headers["content-type"]


async def test_unexpected_error_gives_500_without_details(
    service: RunningService, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[str]:
        secret = "canary of a patient"
        raise LookupError(secret)

    monkeypatch.setattr(service.services.registry, "names", broken)
    answer = await service.http.get("/v1/models")
    assert problem(answer) == (500, "internal-error")
    assert "canary" not in answer.text
    assert answer.json()["trace_id"] in caplog.text
    assert "LookupError" in caplog.text
    assert "in broken" in caplog.text
    assert "canary of a patient" not in caplog.text.replace('secret = "canary of a patient"', "")
