"""The parser of requests: the bytes of a body do not depend on its chunks, and each request has limits."""

from __future__ import annotations

import random
from collections.abc import Iterable

import h11
import pytest

from app.api.request_parser import (
    CHUNKS_PER_TURN,
    MAX_CHUNK_LINE,
    MAX_HEAD_BYTES,
    MAX_HEAD_LINES,
    MAX_TRAILER_LINES,
    SMALL_CHUNKS,
    RequestParser,
    RequestRefusedError,
)

CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(content: bytes, extension: bytes = b"") -> bytes:
    return b"%x%s\r\n%s\r\n" % (len(content), extension, content)


def parse(pieces: Iterable[bytes]) -> tuple[bytes, int, bool]:
    """The body of one request, the number of interruptions, and whether the request is complete."""
    parser, body, interruptions = RequestParser(), bytearray(), 0
    for piece in pieces:
        parser.receive_data(piece)
        parser.begin_turn()
        while (event := parser.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return bytes(body), interruptions, True
            elif event is h11.PAUSED:
                assert parser.interrupted
                interruptions += 1
                parser.begin_turn()
    return bytes(body), interruptions, False


@pytest.mark.parametrize("seed", range(60))
def test_body_does_not_depend_on_chunks_and_segments(seed: int) -> None:
    rng = random.Random(seed)
    contents = [rng.randbytes(rng.choice([1, 2, 30, 300, 70_000])) for _ in range(rng.randrange(1, 60))]
    if seed % 3 == 0:
        contents = [bytes(rng.choices(b"0\r\n;5a", k=rng.choice([1, 5, 400]))) for _ in contents]  # looks like framing
    raw = CHUNKED + b"".join(chunk(each, rng.choice([b"", b";a=b"])) for each in contents)
    raw += b"0\r\n" + rng.choice([b"", b"Checksum: x\r\n"]) + b"\r\n"
    pieces = []
    while raw:
        size = rng.choice([1, 1, 2, 3, 7, 1000, 100_000]) if len(raw) < 20_000 else rng.choice([5, 9000, 300_000])
        pieces.append(raw[:size])
        raw = raw[size:]
    assert parse(pieces) == (b"".join(contents), pytest.approx(0, abs=len(contents)), True)


def test_parser_pauses_after_some_chunks() -> None:
    body, interruptions, complete = parse([CHUNKED + chunk(b"x") * 10 * CHUNKS_PER_TURN + b"0\r\n\r\n"])
    assert (len(body), complete) == (10 * CHUNKS_PER_TURN, True)
    assert interruptions == 10


def test_length_of_the_present_body_is_known() -> None:
    parser, lengths = RequestParser(), []
    for header, body in [
        (b"Content-Length: 3, 3", b"abc"),
        (b"Transfer-Encoding: chunked", b"0\r\n\r\n"),
        (b"Content-Length: 0", b""),
        (b"Accept: */*", b""),
    ]:
        parser.receive_data(b"POST / HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n\r\n" + body)
        while not isinstance(parser.next_event(), h11.EndOfMessage):
            pass
        lengths.append(parser.body_length)
        parser.send(h11.Response(status_code=204, headers=[]))
        parser.send(h11.EndOfMessage())
        parser.start_next_cycle()
    assert lengths == [3, None, 0, 0]


def test_content_length_is_not_interrupted() -> None:
    body = bytes(1_000_000)
    assert parse([b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + body]) == (body, 0, True)


@pytest.mark.parametrize(
    "raw",
    [
        CHUNKED + chunk(b"x") * (SMALL_CHUNKS + 100),
        CHUNKED + chunk(b"x" * 100) * (2 * SMALL_CHUNKS),
        CHUNKED + chunk(b"x", b";" + b"e" * MAX_CHUNK_LINE),
        CHUNKED + b"1;" + b"e" * 2 * MAX_CHUNK_LINE,
        CHUNKED + b"0\r\n" + b"a: b\r\n" * (MAX_TRAILER_LINES + 1) + b"\r\n",
        CHUNKED + b"0\r\n" + b"a:b\n" * 50_000,
        CHUNKED + chunk(b"x") + b"0\r\n" + b"a:b\n" * 50_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:b\r\n" * MAX_HEAD_LINES + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\n" + b"a:b\n" * MAX_HEAD_LINES,
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
        b"GET / HTTP/0.9\r\nHost: x\r\n\r\n",
        CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n",
    ],
    ids=lambda raw: repr(raw[-24:]),
)
@pytest.mark.parametrize("size", [10**9, 4000])
def test_request_beyond_a_limit_is_refused(raw: bytes, size: int) -> None:
    with pytest.raises(RequestRefusedError) as refused:
        parse(raw[start : start + size] for start in range(0, len(raw), size))
    assert refused.value.error.status in (400, 431)


@pytest.mark.parametrize(
    "raw",
    [
        CHUNKED + chunk(b"x") * SMALL_CHUNKS + b"0\r\n\r\n",
        CHUNKED + chunk(bytes(2048)) * (SMALL_CHUNKS + 3000) + b"0\r\n\r\n",
        CHUNKED + chunk(b"x", b";" + b"e" * (MAX_CHUNK_LINE - 10)) + b"0\r\n\r\n",
        CHUNKED + b"0\r\n" + b"a: b\r\n" * (MAX_TRAILER_LINES - 2) + b"\r\n",
        CHUNKED + b"0\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n" + b"a:b\r\n" * 100 + b"\r\n",
        CHUNKED + chunk(b"\r\n" * 4000) + b"000\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:b\r\n" * (MAX_HEAD_LINES - 4) + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * (MAX_HEAD_BYTES - 100) + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n" + b"\n" * 9000,
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.2\r\nHost: x\r\n\r\n",
    ],
    ids=lambda raw: repr(raw[-24:]),
)
@pytest.mark.parametrize("size", [10**9, 4000])
def test_request_within_the_limits_is_read(raw: bytes, size: int) -> None:
    assert parse(raw[start : start + size] for start in range(0, len(raw), size))[2]


@pytest.mark.parametrize(("status", "body"), [(422, b"{}"), (304, b"")], ids=["a body", "no body, but its end"])
def test_head_of_a_response_is_written_with_the_first_bytes_of_its_body(status: int, body: bytes) -> None:
    """A body that is written apart can be lost behind a proxy whose client stops its upload at the head."""
    parser = RequestParser()
    parser.receive_data(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
    parser.begin_turn()
    parser.next_event()
    length = [("Content-Length", str(len(body)))] if body else []
    assert parser.send(h11.Response(status_code=status, headers=length)) == b""
    written = parser.send(h11.Data(data=body))
    assert written is not None
    assert written.startswith(b"HTTP/1.1 %d " % status)
    assert written.endswith(b"\r\n\r\n" + body)
    assert parser.send(h11.EndOfMessage()) == b""


def test_interim_response_is_written_at_once() -> None:
    parser = RequestParser()
    parser.receive_data(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    parser.begin_turn()
    parser.next_event()
    assert parser.send(h11.InformationalResponse(status_code=100, headers=[])) == b"HTTP/1.1 100 \r\n\r\n"
