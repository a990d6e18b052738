"""Floods, half-closed clients and limits of connections, with real sockets against `rlvo serve`."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from app.api.request_parser import SMALL_CHUNKS
from app.core.config import Settings
from tests.api.conftest import volume
from tests.api.raw_client import ask, connect, flood, head, key, latencies, read_all
from tests.api.server import Server, started
from tests.deployment import wait

FORM = "Content-Type: multipart/form-data; boundary=X"
CHUNKED = "Transfer-Encoding: chunked"
PART = b'--X\r\nContent-Disposition: form-data; name="cta"; filename="a.nii.gz"\r\n\r\n'
BODY = PART + volume() + b"\r\n--X--\r\n"
ONE_BYTE_CHUNKS = b"1\r\nx\r\n" * 200_000


@pytest.fixture
def small_server(tmp_path: Path, model_store: Path) -> Iterator[Server]:
    """A server with 20 connections, of which one caller may use five, and two are reserved."""
    limits = {"auth": "keys", "max_connections": "20", "header_timeout": "60", "stall_timeout": "60"}
    with started(tmp_path, model_store, **limits) as server:
        yield server


def post(*headers: str) -> bytes:
    return head("POST /v1/predictions", FORM, "Prefer: respond-async", *headers)


def submission(*headers: str) -> bytes:
    return post(f"Content-Length: {len(BODY)}", *headers) + BODY


def chunked(content: bytes, size: int) -> bytes:
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


# floods ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(CHUNKED) + ONE_BYTE_CHUNKS,
        post(CHUNKED, "Authorization: Bearer rlvo_wrong") + ONE_BYTE_CHUNKS,
        head("GET /livez", CHUNKED) + ONE_BYTE_CHUNKS,
        head("POST /livez", CHUNKED) + ONE_BYTE_CHUNKS,
        post(CHUNKED) + b"0\r\n" + b"a:b\r\n" * 40_000 + b"\r\n",
        head("GET /livez") + b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:b\r\n" * 40_000 + b"\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"a:b\r\n" * 12_000 + b"\r\n",
    ],
    ids=["chunks", "chunks, wrong key", "chunks, open", "chunks, open, refused", "trailers", "second head", "head"],
)
def test_flood_without_key_does_not_delay_the_probe(server_with_keys: Server, request_bytes: bytes) -> None:
    check_probe_under(server_with_keys, request_bytes)


def test_small_chunks_with_a_key_do_not_delay_the_probe(server_with_keys: Server) -> None:
    authorization = "Authorization: {Authorization}".format(**key(server_with_keys))
    check_probe_under(server_with_keys, post(CHUNKED, authorization) + chunked(PART, 1)[:-5] + ONE_BYTE_CHUNKS)


def check_probe_under(server: Server, request_bytes: bytes) -> None:
    with flood(server, request_bytes, 20):
        time.sleep(0.3)
        times = latencies(server, 2)
    p95 = times[math.ceil(0.95 * len(times)) - 1]
    print(f"livez p50 {times[len(times) // 2]:.3f} s, p95 {p95:.3f} s, {len(times)} requests")
    assert p95 < 3.0  # measured on a busy machine: 0.2 to 1.2 s; without the limits: 17 s and more


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/9.9"], ids=["refused by the service", "refused by the parser"])
def test_refused_flood_is_read_only_within_a_limit(server_with_keys: Server, version: str) -> None:
    with connect(server_with_keys) as connection:
        connection.sendall(post(CHUNKED).replace(b"HTTP/1.1", version.encode()))
        began, sent = time.monotonic(), 0
        with suppress(OSError):  # the service closes the connection
            while time.monotonic() - began < 10:
                sent += connection.send(ONE_BYTE_CHUNKS)
    assert time.monotonic() - began < 4
    assert sent < 80 * 1024 * 1024


def test_body_of_many_small_chunks_is_refused_with_the_reason(server: Server) -> None:
    large = volume((40, 40, 40))
    assert len(large) > SMALL_CHUNKS * 1.1
    answer = ask(server, post(CHUNKED) + chunked(PART + large, 1))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"too many small chunks" in answer
    wait(lambda: server.incoming() == [])  # the route ends after the answer of the parser


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_study_in_small_chunks_is_accepted(server: Server, size: int) -> None:
    assert len(BODY) < SMALL_CHUNKS
    assert ask(server, post(CHUNKED, "Connection: close") + chunked(BODY, size)).startswith(b"HTTP/1.1 202 ")


def test_client_in_small_chunks_reads_the_refusal_and_the_next_request_works(server_with_keys: Server) -> None:
    with connect(server_with_keys) as connection:
        began = time.monotonic()
        connection.sendall(post(CHUNKED) + chunked(bytes(3000), 1))
        assert read_all(connection).startswith(b"HTTP/1.1 401 ")
        assert time.monotonic() - began < 1.5  # the end of the body ends the wait
    assert httpx.get(f"{server_with_keys.url}/livez", timeout=30).status_code == 200


@pytest.mark.parametrize("earlier", [b"", submission()], ids=["first request", "after a study"])
@pytest.mark.parametrize(
    "refused",
    [head("GET /"), post("Content-Length: 3000") + bytes(3000), post(CHUNKED) + chunked(bytes(3000), 100)],
    ids=["no body", "length", "chunks"],
)
def test_request_that_the_parser_refuses_is_read_to_its_end(server: Server, earlier: bytes, refused: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(earlier)
        answer = b""
        while earlier and not answer.endswith(b"}"):
            answer += connection.recv(65536)
        began = time.monotonic()
        connection.sendall(refused.replace(b"HTTP/1.1", b"HTTP/9.9"))
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")
        assert time.monotonic() - began < 1.5  # the end of the request ends the wait
    assert "Fatal error" not in server.log()


def test_client_that_the_parser_refuses_reads_why_while_it_sends(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(post("Content-Length: 30000000").replace(b"HTTP/1.1", b"HTTP/9.9"))
        for _ in range(30):
            connection.sendall(bytes(1_000_000))
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")


# half-closed clients --------------------------------------------------------------------------------------------------


def test_half_closed_client_reads_the_answer_of_its_study(server: Server) -> None:
    answer = ask(server, submission(), half_close=True)
    assert answer.startswith(b"HTTP/1.1 202 ")
    waiting = ask(server, submission().replace(b"respond-async", b"wait=1"), half_close=True)
    assert waiting.startswith(b"HTTP/1.1 202 ")
    in_chunks = ask(server, post(CHUNKED) + chunked(BODY, 1), half_close=True)
    assert in_chunks.startswith(b"HTTP/1.1 202 ")


def test_half_closed_client_reads_all_pipelined_answers(server: Server) -> None:
    answer = ask(server, head("GET /livez") * 3 + head("GET /v1/models"), half_close=True)
    assert answer.count(b"HTTP/1.1 200 ") == 4


@pytest.mark.parametrize(
    ("request_bytes", "detail"),
    [
        (submission()[:-10], b"body is incomplete"),
        (post(CHUNKED) + chunked(BODY, 50)[:-5], b"body is incomplete"),
        (head("GET /livez")[:-2], b"head of the request is incomplete"),
    ],
)
def test_half_closed_client_with_half_a_request_gets_400(server: Server, request_bytes: bytes, detail: bytes) -> None:
    answer = ask(server, request_bytes, half_close=True)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert detail in answer


def test_half_closed_idle_connection_is_closed_at_once(server: Server) -> None:
    for request_bytes in (b"", head("GET /livez")):
        began = time.monotonic()
        ask(server, request_bytes, half_close=True)
        assert time.monotonic() - began < 2


# idle connections -----------------------------------------------------------------------------------------------------


def test_idle_connection_stays_open_longer_than_a_client_or_a_proxy_keeps_it(tmp_path: Path, model_store: Path) -> None:
    """A request must not meet the closing. httpx keeps a connection 5 s, nginx 60 s and Caddy 120 s, which is most."""
    assert Settings.model_fields["keep_alive_timeout"].default > 120
    with started(tmp_path, model_store) as server, connect(server) as connection:
        for pause in (0, 5.5):
            time.sleep(pause)
            connection.sendall(head("GET /livez"))
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_idle_connection_is_closed_after_the_time_of_the_settings(tmp_path: Path, model_store: Path) -> None:
    with started(tmp_path, model_store, keep_alive_timeout="1") as server, connect(server) as connection:
        connection.sendall(head("GET /livez"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert connection.recv(65536) == b""  # after 20 s, a timeout is raised


# places of connections ------------------------------------------------------------------------------------------------


def test_partial_heads_do_not_take_the_places_of_others(small_server: Server) -> None:
    caller = key(small_server)
    with ExitStack() as stack:
        for number in range(60):
            connection = stack.enter_context(connect(small_server, f"127.0.0.{2 + number % 3}"))
            connection.sendall(head("GET /livez")[:-2])
        for _ in range(5):
            assert httpx.get(f"{small_server.url}/livez", timeout=30).status_code == 200
            assert httpx.get(f"{small_server.url}/v1/models", headers=caller, timeout=30).status_code == 200
            assert httpx.get(f"{small_server.url}/readyz", timeout=30).status_code == 503  # no worker, but an answer


@pytest.mark.parametrize(
    "request_bytes",
    [post("Content-Length: 1000000"), head("GET /static/vendor/swagger-ui/swagger-ui-bundle.js"), b"", b"\r\n"],
    ids=["refused upload", "unread page", "nothing", "empty line"],
)
def test_connections_without_key_do_not_take_the_places_of_others(small_server: Server, request_bytes: bytes) -> None:
    with ExitStack() as stack:
        for _ in range(40):
            connection = stack.enter_context(connect(small_server))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(request_bytes)
        for _ in range(5):
            assert httpx.get(f"{small_server.url}/livez", timeout=30).status_code == 200


def events(server: Server, caller: dict[str, str], prediction: str) -> socket.socket:
    connection = connect(server)
    connection.sendall(head(f"GET /v1/predictions/{prediction}/events", f"Authorization: {caller['Authorization']}"))
    return connection


def test_event_streams_of_one_key_do_not_take_the_places_of_others(small_server: Server) -> None:
    greedy, other = key(small_server, "greedy"), key(small_server, "other")
    url = f"{small_server.url}/v1/predictions"
    with ExitStack() as stack:
        sent = httpx.post(url, files={"cta": volume()}, headers=greedy | {"Prefer": "respond-async"}, timeout=30)
        prediction = sent.json()["id"]
        streams = [stack.enter_context(events(small_server, greedy, prediction)) for _ in range(5)]
        for stream in streams:
            assert stream.recv(12) == b"HTTP/1.1 200"
        refused = httpx.get(url, headers=greedy, timeout=30)
        assert (refused.status_code, refused.json()["code"]) == (429, "rate-limited")
        assert int(refused.headers["retry-after"]) >= 1
        assert httpx.get(url, headers=other, timeout=30).status_code == 200
        assert httpx.get(f"{small_server.url}/livez", timeout=30).status_code == 200
        for _ in range(40):
            stack.enter_context(connect(small_server))  # these do not replace the streams
        streams[1].close()
        # The place of a closed stream is released; a stream that notices nothing writes after 15 s.
        wait(lambda: httpx.get(url, headers=greedy, timeout=30).status_code != 429, 5)
        assert httpx.post(f"{url}/{prediction}/cancel", headers=greedy, timeout=30).status_code == 200
        assert b"cancelled" in read_all(streams[4])


def test_streams_of_all_keys_leave_places_for_the_probes(small_server: Server) -> None:
    headers = {"Prefer": "respond-async"}
    with httpx.Client(base_url=small_server.url, headers=headers, timeout=30) as http, ExitStack() as stack:
        opened = 0
        for number in range(5):
            caller = key(small_server, f"caller-{number}")
            prediction = http.post("/v1/predictions", files={"cta": volume()}, headers=caller).json().get("id", "none")
            for _ in range(4):
                stream = stack.enter_context(events(small_server, caller, prediction))
                opened += stream.recv(12) == b"HTTP/1.1 200"
        assert opened == 18
        assert httpx.get(f"{small_server.url}/livez", timeout=30).status_code == 200
        busy = httpx.get(f"{small_server.url}/v1/models", headers=key(small_server, "late"), timeout=30)
        assert (busy.status_code, busy.json()["code"]) == (429, "busy")


def test_without_keys_the_requests_of_one_address_are_limited(tmp_path: Path, model_store: Path) -> None:
    with started(tmp_path, model_store, max_connections="20") as server, ExitStack() as stack:
        sent = httpx.post(
            f"{server.url}/v1/predictions", files={"cta": volume()}, headers={"Prefer": "respond-async"}, timeout=30
        ).json()["id"]
        for _ in range(5):
            stream = stack.enter_context(connect(server))
            stream.sendall(head(f"GET /v1/predictions/{sent}/events"))
            assert stream.recv(12) == b"HTTP/1.1 200"
        assert httpx.get(f"{server.url}/v1/models", timeout=30).status_code == 429
        with connect(server, "127.0.0.9") as elsewhere:
            elsewhere.sendall(head("GET /v1/models", "Connection: close"))
            assert read_all(elsewhere).startswith(b"HTTP/1.1 200 ")
