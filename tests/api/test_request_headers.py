"""Headers that do not depend on the route: repeated ones, content codings, protocol versions."""

from __future__ import annotations

import gzip
import re
from typing import Any

import httpx
import pytest

from tests.api.conftest import RunningService, volume
from tests.api.raw_client import ask, head
from tests.api.responses import problem
from tests.api.server import Server

FORM = ("Content-Type", "multipart/form-data; boundary=X")
BODY = b'--X\r\nContent-Disposition: form-data; name="cta"; filename="a.nii.gz"\r\n\r\n' + volume() + b"\r\n--X--\r\n"


async def submit(service: RunningService, *headers: tuple[str, str], content: bytes = BODY) -> httpx.Response:
    sent = httpx.Headers([FORM, ("Prefer", "respond-async"), *headers])
    return await service.http.post("/v1/predictions", content=content, headers=sent)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "header",
    [
        ("Idempotency-Key", "two"),
        ("Content-Type", "multipart/form-data; boundary=Y"),
        ("Content-Type", "multipart/form-data; boundary=X"),
        ("Authorization", "Bearer x"),
        ("X-API-Key", "x"),
        ("Inference-Header-Content-Length", "1"),
        ("Content-Length", str(len(BODY))),
    ],
)
async def test_repeated_header_with_one_value_is_refused(service: RunningService, header: tuple[str, str]) -> None:
    first = (header[0], "one") if header[0] != "Content-Type" else None
    answer = await submit(service, *([first] if first else []), header)
    assert problem(answer) == (400, "bad-request")
    assert service.blobs() == []


@pytest.mark.anyio
async def test_repeated_lists_are_joined(service: RunningService) -> None:
    sent = httpx.Headers([FORM, ("Prefer", "handling=lenient"), ("Prefer", "respond-async")])
    answer = await service.http.post("/v1/predictions", content=BODY, headers=sent)
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "respond-async")
    found = await service.http.get(answer.headers["location"])
    tags = httpx.Headers([("If-None-Match", '"other"'), ("If-None-Match", found.headers["etag"])])
    assert (await service.http.get(answer.headers["location"], headers=tags)).status_code == 304
    assert (await submit(service, ("Cookie", "a=b"), ("Cookie", "c=d"), ("X-Other", "1"))).status_code == 202


@pytest.mark.anyio
@pytest.mark.parametrize("coding", ["gzip", "GZIP", "deflate", "br", "zstd", "x-unknown", "identity, gzip"])
async def test_body_with_a_content_coding_is_refused(service: RunningService, coding: str) -> None:
    answer = await submit(service, ("Content-Encoding", coding), content=gzip.compress(BODY))
    assert problem(answer) == (415, "unsupported-media")
    assert answer.headers["accept-encoding"] == "identity"
    assert "Content-Encoding" in answer.json()["detail"]
    accepted = (await submit(service)).json()["id"]
    review = await service.http.post(
        f"/v1/predictions/{accepted}/reviews",
        content=gzip.compress(b'{"verdict": "agree"}'),
        headers={"Content-Encoding": coding},
    )
    assert review.status_code == 415
    tensors = await service.http.post(
        "/v2/models/tiny/infer", content=gzip.compress(b"{}"), headers={"Content-Encoding": coding}
    )
    assert tensors.status_code == 415


@pytest.mark.anyio
async def test_body_without_a_coding_is_accepted(service: RunningService) -> None:
    assert (await submit(service, ("Content-Encoding", "identity"))).status_code == 202
    assert (await submit(service, ("Content-Encoding", ""))).status_code == 202
    assert (await submit(service, ("Accept-Encoding", "gzip"))).status_code == 202
    no_body: dict[str, Any] = {"headers": {"Content-Encoding": "gzip"}}
    assert (await service.http.get("/v1/models", **no_body)).status_code == 200


@pytest.mark.parametrize("version", ["9.9", "2.0", "3.0", "0.9", "0.0"])
def test_other_protocol_version_is_refused_and_the_connection_closed(server: Server, version: str) -> None:
    request = head("GET /livez").replace(b"HTTP/1.1", b"HTTP/" + version.encode())
    answer = ask(server, request + head("GET /v1/models"))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert len(re.findall(rb"HTTP/1\.1 \d{3} ", answer)) == 1
    assert b"bad-request" in answer


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2", "1.9"])
def test_version_1_is_answered(server: Server, version: str) -> None:
    request = head("GET /livez", "Connection: close").replace(b"HTTP/1.1", b"HTTP/" + version.encode())
    assert ask(server, request).startswith(b"HTTP/1.1 200 ")
