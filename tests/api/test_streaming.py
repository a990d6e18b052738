"""Streaming behaviour of `rlvo serve` over real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import requests

from app.api.middleware import DISCARD_PAUSE_OF_CALLER, DISCARD_SECONDS
from tests.api.conftest import volume
from tests.api.raw_client import connect, head, key
from tests.api.server import Server, started

BOUNDARY = "X"
HEAD = b'--X\r\nContent-Disposition: form-data; name="cta"; filename="a.nii"\r\n\r\n'
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
MIB = 1024 * 1024


def request(length: int, **headers: str) -> bytes:
    """The head of a POST with a body of ``length`` bytes."""
    lines = {"Content-Length": str(length), **FORM, **headers}
    return head("POST /v1/predictions", *(f"{name}: {value}" for name, value in lines.items()))


def answer(connection: socket.socket) -> bytes:
    """Status line and body of the response."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536) or pytest.fail("the connection was closed without a response")
    lines, body = received.split(b"\r\n\r\n", 1)
    length = next(int(line.split(b":")[1]) for line in lines.splitlines() if line.lower().startswith(b"content-length"))
    while len(body) < length:
        body += connection.recv(65536) or pytest.fail("the response is incomplete")
    return received.split(b"\r\n")[0] + b" " + body


def big_volume(mebibytes: int) -> bytes:
    """The header of a NIfTI volume with ``mebibytes`` MiB of int16 voxels."""
    header = bytearray(volume((4, 4, 4), compressed=False)[:352])
    for axis, size in enumerate((512, 512, 2 * mebibytes)):
        header[42 + 2 * axis : 44 + 2 * axis] = size.to_bytes(2, "little")
    return bytes(header)


def test_memory_does_not_grow_with_the_upload(server: Server) -> None:
    def body() -> Iterator[bytes]:
        yield HEAD + big_volume(300)
        yield os.urandom(MIB)
        for _ in range(299):
            yield bytes(MIB)
        yield b"\r\n--X--\r\n"

    with httpx.Client(base_url=server.url, timeout=120) as http:
        http.post("/v1/predictions", files={"cta": volume()}, headers={"Prefer": "respond-async"})
        before = server.memory()
        sent = http.post("/v1/predictions", content=body(), headers=FORM | {"Prefer": "respond-async"})
        assert sent.status_code == 202
        assert sent.json()["inputs"]["cta"]["bytes"] == 300 * MIB + 352
    assert server.memory() - before < 32 * MIB
    assert server.incoming() == []


def test_invalid_header_is_refused_before_the_rest_arrives(server: Server) -> None:
    with closing(connect(server)) as connection:
        began = time.monotonic()
        connection.sendall(request(500 * MIB) + HEAD + b"this is not a volume" * 100)
        refusal = answer(connection)
        assert time.monotonic() - began < 2
        assert refusal.startswith(b"HTTP/1.1 422 ")
        assert b"nifti-invalid" in refusal


def test_client_that_keeps_sending_reads_the_refusal(server: Server) -> None:
    content = HEAD + b"this is not a volume" + os.urandom(30 * MIB) + b"\r\n--X--\r\n"
    with httpx.Client(base_url=server.url, timeout=60) as http:
        for _ in range(3):
            assert http.post("/v1/predictions", content=content, headers=FORM).json()["code"] == "nifti-invalid"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("with_key", [True, False], ids=["not a volume", "no key"])
def test_curl_reads_the_reason_of_each_of_twenty_refusals(
    server_with_keys: Server, tmp_path: Path, with_key: bool
) -> None:
    """curl sends `Expect: 100-continue`, waits a second for it, and sends on; it stops when it reads a refusal."""
    (tmp_path / "cta.nii").write_bytes(bytes(30 * MIB))
    authorization = key(server_with_keys)["Authorization"] if with_key else "Bearer rlvo_wrong"
    command = ["curl", "--silent", "--show-error", "--fail-with-body", "--header", f"Authorization: {authorization}"]
    command += ["--form", f"cta=@{tmp_path / 'cta.nii'}", f"{server_with_keys.url}/v1/predictions"]
    for _ in range(20):
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert run.returncode == 22, run.stderr  # 22: the status is 400 or more; 56: the connection was reset
        assert json.loads(run.stdout)["code"] == ("nifti-invalid" if with_key else "unauthenticated")


@pytest.mark.parametrize("with_key", [True, False], ids=["not a volume", "no key"])
def test_requests_reads_the_reason_of_each_refusal(server_with_keys: Server, tmp_path: Path, with_key: bool) -> None:
    """`requests` sends the whole body before it reads, over a connection that it keeps alive."""
    (tmp_path / "cta.nii").write_bytes(bytes(30 * MIB))
    authorization = key(server_with_keys)["Authorization"] if with_key else "Bearer rlvo_wrong"
    expected = (422, "nifti-invalid") if with_key else (401, "unauthenticated")
    with requests.Session() as session:
        for _ in range(5):
            with (tmp_path / "cta.nii").open("rb") as cta:
                refused = session.post(
                    f"{server_with_keys.url}/v1/predictions",
                    files={"cta": cta},
                    headers={"Authorization": authorization},
                    timeout=60,
                )
            assert (refused.status_code, refused.json()["code"]) == expected


@pytest.mark.skipif(shutil.which("javac") is None, reason="needs a JDK")
@pytest.mark.parametrize("with_key", [True, False], ids=["not a volume", "no key"])
def test_java_reads_the_reason_of_each_refusal(server_with_keys: Server, tmp_path: Path, with_key: bool) -> None:
    """The client of the JDK, over connections that it keeps alive."""
    (tmp_path / "body").write_bytes(HEAD + bytes(30 * MIB) + b"\r\n--X--\r\n")
    authorization = key(server_with_keys)["Authorization"] if with_key else "Bearer rlvo_wrong"
    command = ["java", str(Path(__file__).with_name("Upload.java")), f"{server_with_keys.url}/v1/predictions"]
    command += [FORM["Content-Type"], authorization, str(tmp_path / "body")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    for line in run.stdout.splitlines():
        status, _, body = line.partition(" ")
        expected = ("422", "nifti-invalid") if with_key else ("401", "unauthenticated")
        assert (status, json.loads(body)["code"]) == expected
    assert len(run.stdout.splitlines()) == 5


def test_caller_that_sends_all_before_it_reads_gets_the_reason(server_with_keys: Server) -> None:
    """As `requests` and many other libraries do; the body is larger than what is read from a sender without a key."""
    with closing(connect(server_with_keys)) as connection:
        connection.sendall(request(len(HEAD) + 100 * MIB, **key(server_with_keys)) + HEAD)
        for _ in range(100):
            connection.sendall(bytes(MIB))
        refusal = answer(connection)
        assert refusal.startswith(b"HTTP/1.1 422 ")
        assert b"nifti-invalid" in refusal
        assert connection.recv(1) == b""


def test_refused_caller_that_sends_no_more_is_disconnected(server_with_keys: Server) -> None:
    with closing(connect(server_with_keys)) as connection:
        connection.sendall(request(100 * MIB, **key(server_with_keys)) + HEAD + bytes(1000))
        assert answer(connection).startswith(b"HTTP/1.1 422 ")
        for _ in range(2):
            time.sleep(DISCARD_PAUSE_OF_CALLER + 0.5)
            try:
                connection.send(b"x")
            except OSError:
                return
    pytest.fail("the connection is still open")


def test_caller_that_pauses_in_its_request_reads_the_refusal(server: Server) -> None:
    """As a client does that is busy for some seconds; its next writes would fail on a connection that is reset."""
    pieces = [HEAD + b"this is not a volume" * 100, bytes(1000), b"\r\n--X--\r\n"]

    async def body() -> AsyncIterator[bytes]:
        for piece, pause in zip(pieces, (2 * DISCARD_SECONDS, 0.1, 0), strict=True):
            yield piece
            await asyncio.sleep(pause)

    async def send() -> httpx.Response:
        headers = FORM | {"Content-Length": str(sum(map(len, pieces)))}
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            return await http.post("/v1/predictions", content=body(), headers=headers)

    refused = asyncio.run(send())
    assert (refused.status_code, refused.json()["code"]) == (422, "nifti-invalid")


def test_refused_expect_100_continue_request_is_closed_at_once(server_with_keys: Server) -> None:
    with closing(connect(server_with_keys)) as connection:
        connection.sendall(request(500 * MIB, Expect="100-continue"))
        assert answer(connection).startswith(b"HTTP/1.1 401 ")
        began = time.monotonic()
        assert connection.recv(1) == b""  # closed at once
        assert time.monotonic() - began < 1


def test_request_without_key_is_refused_before_the_body(server_with_keys: Server) -> None:
    with closing(connect(server_with_keys)) as connection:
        connection.sendall(request(500 * MIB))
        assert answer(connection).startswith(b"HTTP/1.1 401 ")
    with closing(connect(server_with_keys)) as connection:
        connection.sendall(request(3 << 30))
        assert answer(connection).startswith(b"HTTP/1.1 413 ")
    assert server_with_keys.incoming() == []


def test_request_with_key_is_accepted_without_warning(server_with_keys: Server) -> None:
    headers = {"Prefer": "respond-async", **key(server_with_keys)}
    with httpx.Client(base_url=server_with_keys.url, headers=headers, timeout=30) as http:
        sent = http.post("/v1/predictions", files={"cta": volume()})
        assert sent.status_code == 202
        assert "warning" not in sent.headers


def test_aborted_upload_leaves_no_files_and_releases_its_key(server: Server) -> None:
    headers = {"Idempotency-Key": "hung-up", "Prefer": "respond-async"}
    with closing(connect(server)) as connection:
        connection.sendall(request(200 * MIB, **headers) + HEAD + big_volume(100) + os.urandom(3 * MIB))
        wait_for(lambda: bool(server.incoming()))
    wait_for(lambda: not server.incoming())
    with httpx.Client(base_url=server.url, timeout=30) as http:

        def accepted() -> bool:
            return http.post("/v1/predictions", files={"cta": volume()}, headers=headers).status_code == 202

        wait_for(accepted)  # the key was released


def test_slow_upload_gives_408(tmp_path: Path, model_store: Path) -> None:
    with started(tmp_path, model_store, auth="keys", receive_timeout="4") as server:
        with closing(connect(server)) as connection:
            connection.sendall(request(200 * MIB, **key(server)) + HEAD + big_volume(100))
            began = time.monotonic()
            assert answer(connection).startswith(b"HTTP/1.1 408 ")
            assert 3 < time.monotonic() - began < 12
        wait_for(lambda: not server.incoming())


def test_long_upload_does_not_delay_other_requests(server: Server) -> None:
    slowest = 0.0
    with closing(connect(server)) as connection, httpx.Client(base_url=server.url, timeout=30) as http:
        connection.sendall(request(400 * MIB) + HEAD + big_volume(100))
        for _ in range(20):
            connection.sendall(os.urandom(2 * MIB))
            began = time.monotonic()
            assert http.get("/v1/predictions?limit=1").status_code == 200
            slowest = max(slowest, time.monotonic() - began)
    assert slowest < 2


def test_events_arrive_one_at_a_time(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=30) as http:
        sent = http.post("/v1/predictions", files={"cta": volume()}, headers={"Prefer": "respond-async"}).json()["id"]
        with http.stream("GET", f"/v1/predictions/{sent}/events") as stream:
            lines = stream.iter_lines()
            assert [next(lines), next(lines)][0] == "event: state"
            http.post(f"/v1/predictions/{sent}/cancel")
            rest = "".join(lines)
        assert '"status": "cancelled"' in rest


def wait_for(condition: object, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.05)
