"""Raw requests that no honest client sends, byte for byte, and a client that sends them.

``attacks`` lists them: framing (smuggling, lengths, chunks), floods, methods, paths and ids, ranges, expectations, and
forms whose parts are broken in each way that multipart/form-data can be broken. ``CANARY`` stands wherever a value of a
patient could stand; no answer and no log may repeat it.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

CANARY = "CANARY-DOE-JANE-19700101"
UNKNOWN = "01900000-0000-7000-8000-000000000000"
HOST = b"Host: rlvo\r\n"
DISPOSITION = b'Content-Disposition: form-data; name="%s"; filename="CANARY-DOE-JANE-19700101.nii.gz"\r\n'


@dataclass(frozen=True)
class Attack:
    """What is sent, piece by piece, ``pause`` seconds apart. ``waits``: it is cut off in time, not at once."""

    name: str
    pieces: tuple[bytes, ...] = field(repr=False)
    pause: float = 0.0
    waits: bool = False


@dataclass
class Answer:
    """What came back before the connection ended or fell silent."""

    raw: bytes
    seconds: float
    closed: bool

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3})", self.raw)]


async def send(port: int, attack: Attack, *, patience: float = 4.0) -> Answer:
    """Sends an attack and reads until the service hangs up or has said nothing for a while after answering."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    started = time.perf_counter()
    raw, closed, first = b"", False, patience
    try:
        for number, piece in enumerate(attack.pieces):
            if number and attack.pause:
                await asyncio.sleep(attack.pause)
            writer.write(piece)
            await asyncio.wait_for(writer.drain(), patience)
        while True:
            more = await asyncio.wait_for(reader.read(65536), 0.3 if raw else patience)
            if not more:
                closed = True
                break
            if not raw:
                first = time.perf_counter() - started
            raw += more
    except TimeoutError:
        pass
    except OSError:
        closed = True
    finally:
        writer.close()
    return Answer(raw, first, closed)


def request(head: bytes, body: bytes = b"", *more: bytes) -> bytes:
    """A request with a Host, the given header lines and a length that is right."""
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    return head + b" HTTP/1.1\r\n" + HOST + length + b"".join(line + b"\r\n" for line in more) + b"\r\n" + body


def form(body: bytes, content_type: bytes = b"multipart/form-data; boundary=X") -> bytes:
    return request(b"POST /v1/predictions", body, b"Content-Type: " + content_type, b"Prefer: respond-async")


def part(name: bytes, content: bytes, *headers: bytes) -> bytes:
    head = b"\r\n".join((b'Content-Disposition: form-data; name="%s"' % name, *headers))
    return b"--X\r\n" + head + b"\r\n\r\n" + content + b"\r\n"


def attacks(volume: bytes) -> Iterator[Attack]:
    """Every attack; ``volume`` is a good CTA, so that what is wrong is the request and not the file."""
    yield from _framing(volume)
    yield from _heads()
    yield from _addresses()
    yield from _conversation(volume)
    yield from _forms(volume)


def _framing(volume: bytes) -> Iterator[Attack]:
    smuggled = b"GET /v1/predictions?" + CANARY.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    post = b"POST /v1/predictions HTTP/1.1\r\n" + HOST + b"Content-Type: multipart/form-data; boundary=X\r\n"
    both = post + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    yield Attack("length and chunked", (both + smuggled,))
    yield Attack("chunked and length", (post + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",))
    for length in (
        b"-1",
        b"+5",
        b"5, 5",
        b"5, 6",
        b"0x10",
        b"1e3",
        b"5 5",
        b"",
        b"\xd9\xa3",
        b"9" * 30,
        b"9" * 5000,
        b"5;",
        b"5.0",
        b"00000000000000000005",
        b"18446744073709551616",
        b"NaN",
        b"\t5",
    ):
        yield Attack(f"length {length[:20]!r}", (post + b"Content-Length: " + length + b"\r\n\r\n--X--" + smuggled,))
    yield Attack("two lengths", (post + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n--X--" + smuggled,))
    yield Attack("twice the same length", (post + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n--X--",))
    for coding in (
        b"gzip",
        b"identity",
        b"chunked, chunked",
        b"gzip, chunked",
        b"xchunked",
        b"chunked\x0b",
        b" chunked",
        b"CHUNKED",
        b"chunked;q=1",
        b"\x00chunked",
        b"cow",
    ):
        yield Attack(f"coding {coding!r}", (post + b"Transfer-Encoding: " + coding + b"\r\n\r\n0\r\n\r\n" + smuggled,))
    yield Attack("two codings", (post + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",))
    yield Attack("coding before the colon", (post + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + smuggled,))
    yield Attack("coding folded", (post + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + smuggled,))
    chunked = post + b"Transfer-Encoding: chunked\r\n\r\n"
    for name, chunks in (
        ("negative", b"-1\r\nx\r\n0\r\n\r\n"),
        ("not hex", b"zz\r\nxx\r\n0\r\n\r\n"),
        ("huge", b"f" * 16 + b"\r\nx"),
        ("endless size", b"0" * 30000),
        ("plus", b"+5\r\n--X--\r\n0\r\n\r\n"),
        ("0x", b"0x5\r\n--X--\r\n0\r\n\r\n"),
        ("bare newline", b"5\n--X--\n0\n\n"),
        ("no newline", b"5\r\n--X--0\r\n\r\n"),
        ("short", b"50\r\n--X--\r\n0"),
        ("extension", b"5;a=" + b"b" * 30000 + b"\r\n--X--\r\n0\r\n\r\n"),
        ("empty size", b"\r\n--X--\r\n0\r\n\r\n"),
        ("extension with a newline", b"5;a=\n\r\n--X--\r\n0\r\n\r\n"),
        ("space", b" 5\r\n--X--\r\n0\r\n\r\n"),
        ("trailers", b"0\r\n" + b"a: b\r\n" * 4000 + b"\r\n"),
        ("trailer length", b"0\r\nContent-Length: 9\r\n\r\n"),
        ("bytes one by one", b"".join(b"1\r\n%c\r\n" % byte for byte in b"--X--") + b"0\r\n\r\n"),
        ("longer than 64 bit", b"1" * 20 + b"\r\nx\r\n0\r\n\r\n"),
    ):
        yield Attack(f"chunk {name}", (chunked + chunks,), waits=name in ("bare newline", "short"))
    yield Attack("body to a GET", (request(b"GET /v1/models", b"x" * 3000) + smuggled,))
    yield Attack("body to the probes", (request(b"POST /livez", CANARY.encode()),))
    yield Attack("less than claimed, then gone", (post + b"Content-Length: 100\r\n\r\n--X\r\n",), waits=True)
    yield Attack("pipelined", (request(b"GET /livez") * 40,))
    yield Attack("pipelined after a refusal", (request(b"GET /%00") + request(b"BREW /pot") + smuggled,))


def _heads() -> Iterator[Attack]:
    canary = CANARY.encode()
    for name, line in (
        ("nothing", b"\r\n\r\n"),
        ("newlines", b"\r\n" * 5000),
        ("garbage", bytes(range(256)) * 4),
        ("zeros", bytes(2000)),
        ("tls", bytes.fromhex("16030100c8010000c40303") + bytes(200)),
        ("http2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("http 0.9", b"GET /livez\r\n"),
        ("no version", b"GET /\r\n\r\n"),
        ("version 2", b"GET / HTTP/2.0\r\nHost: x\r\n\r\n"),
        ("version 9.9", b"GET / HTTP/9.9\r\nHost: x\r\n\r\n"),
        ("version words", b"GET / HTTP/one\r\n\r\n"),
        ("lower case", b"get /livez http/1.1\r\nhost: x\r\n\r\n"),
        ("two spaces", b"GET  /livez  HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("tab", b"GET\t/livez\tHTTP/1.1\r\n\r\n"),
        ("bare newlines", b"GET /livez HTTP/1.1\nHost: x\n\n"),
        ("bare return", b"GET /livez HTTP/1.1\rHost: x\r\r"),
        ("no host", b"GET /livez HTTP/1.1\r\n\r\n"),
        ("two hosts", b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        ("empty host", b"GET /livez HTTP/1.1\r\nHost:\r\n\r\n"),
        ("host with a path", request(b"GET /livez")[:-2] + b"\r\n"),
        ("odd host", b"GET / HTTP/1.1\r\nHost: " + canary + b"@evil:99999/..\r\n\r\n"),
        ("http 1.0", b"GET /v1/models HTTP/1.0\r\n\r\n"),
        ("absolute", b"GET http://evil/livez HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("authority", b"CONNECT evil:443 HTTP/1.1\r\nHost: evil:443\r\n\r\n"),
        ("asterisk", request(b"OPTIONS *")),
        ("asterisk get", request(b"GET *")),
        ("no slash", request(b"GET livez")),
        ("empty target", b"GET  HTTP/1.1\r\n\r\n"),
        ("long target", request(b"GET /" + b"a" * 60000)),
        ("long target, in bounds", request(b"GET /" + b"a" * 9000)),
        ("long query", request(b"GET /v1/predictions?" + b"a=1&" * 2000)),
        ("endless line", b"GET /" + b"a" * 300000),
        ("raw utf-8", request("GET /v1/models/ünï".encode())),
        ("nul", request(b"GET /\0livez")),
        ("fragment", request(b"GET /livez#" + canary)),
        ("long method", request(b"A" * 9000 + b" /livez")),
        ("odd method", request(b"G\xffT /livez")),
        ("method with a bracket", request(b"G[T /livez")),
        ("headers by the thousand", request(b"GET /livez", b"", *(b"x-%d: y" % n for n in range(5000)))),
        ("one large header", request(b"GET /livez", b"", b"x: " + canary * 5000)),
        ("header without a name", request(b"GET /livez", b"", b": " + canary)),
        ("header without a colon", request(b"GET /livez", b"", canary)),
        ("header with nul", request(b"GET /livez", b"", b"x: a\0" + canary)),
        ("header with a return", request(b"GET /livez", b"", b"x: a\r" + canary)),
        ("header folded", request(b"GET /livez", b"", b"x: a", b" " + canary)),
        ("space in a name", request(b"GET /livez", b"", b"x y: z")),
        ("non-ascii name", request(b"GET /livez", b"", b"\xff: z")),
        (
            "websocket",
            request(
                b"GET /livez",
                b"",
                b"Upgrade: websocket",
                b"Connection: Upgrade",
                b"Sec-WebSocket-Version: 13",
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            ),
        ),
        (
            "h2c",
            request(
                b"GET /livez", b"", b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAM"
            ),
        ),
        ("half a head", b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: "),
    ):
        yield Attack(f"head {name}", (line,), waits=name in ("http 0.9", "bare return", "half a head"))
    for header in (
        b"Authorization",
        b"X-API-Key",
        b"Idempotency-Key",
        b"Prefer",
        b"If-None-Match",
        b"If-Match",
        b"Accept",
        b"Content-Type",
        b"Content-Digest",
        b"traceparent",
        b"Cookie",
        b"X-Forwarded-For",
        b"X-HTTP-Method-Override",
        b"Accept-Encoding",
        b"If-Modified-Since",
        b"Origin",
        b"Referer",
        b"X-Original-URL",
        b"Forwarded",
    ):
        for value in (
            b"",
            canary,
            b"\xff\xfe",
            b"a" * 8000,
            b'"' * 999,
            b"*",
            b"%00",
            b"9" * 400,
            b"'; DROP TABLE x;--",
        ):
            heads = header + b": " + value
            yield Attack(f"{header.decode()} {value[:12]!r}", (request(b"GET /v1/predictions", b"", heads),))
            yield Attack(
                f"post, {header.decode()} {value[:12]!r}", (request(b"POST /v1/predictions", b"--X--", heads),)
            )


def _addresses() -> Iterator[Attack]:
    canary = CANARY.encode()
    ids = (
        b"..",
        b"%2e%2e",
        b"..%2f..%2fetc%2fpasswd",
        b"%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        b"..%5c..%5cboot.ini",
        b"%00",
        b"%ff%fe",
        b"%c0%ae%c0%ae",
        b"%252e%252e",
        b"%0d%0aSet-Cookie:%20a=b",
        b"%0a",
        b"%",
        b"%zz",
        b"%u002e",
        b"~",
        b"-",
        b"0",
        b"-1",
        b"1e9",
        b"null",
        b"undefined",
        b"true",
        b"{id}",
        b"$%7bjndi:ldap://x%7d",
        b"{{7*7}}",
        b"%20",
        b"*",
        b"'%20OR%201=1--",
        b"%3Cscript%3E",
        b"%F0%9F%92%A9",
        b"%ed%a0%80",
        canary,
        UNKNOWN.upper().encode(),
        b"urn:uuid:" + UNKNOWN.encode(),
        b"{" + UNKNOWN.encode() + b"}",
        UNKNOWN.encode() + b"%00",
        b"%e2%80%ae",
        UNKNOWN.replace("-", "").encode(),
        UNKNOWN.encode() + b"%0a",
        b"\xef\xbc\x90" * 8,
        b"a" * 8000,
        UNKNOWN.encode(),
    )
    shapes = (
        (b"GET", b"/v1/predictions/%s"),
        (b"DELETE", b"/v1/predictions/%s"),
        (b"POST", b"/v1/predictions/%s/cancel"),
        (b"GET", b"/v1/predictions/%s/events"),
        (b"GET", b"/v1/predictions/%s/fhir"),
        (b"GET", b"/v1/predictions/%s/report.html"),
        (b"GET", b"/v1/predictions/%s/maps/attribution-cta.nii.gz"),
        (b"GET", b"/v1/predictions/" + UNKNOWN.encode() + b"/maps/%s.nii.gz"),
        (b"GET", b"/v1/predictions/" + UNKNOWN.encode() + b"/figures/%s.png"),
        (b"GET", b"/v1/models/%s"),
        (b"GET", b"/v1/models/%s/versions/1.0.0/card"),
        (b"GET", b"/v1/models/tiny/versions/%s"),
        (b"GET", b"/static/%s"),
        (b"GET", b"/problems/%s"),
        (b"GET", b"/predictions/%s"),
        (b"GET", b"/%s"),
        (b"GET", b"/v1/predictions?cursor=%s"),
        (b"GET", b"/v1/predictions?subject=%s"),
        (b"GET", b"/v1/predictions?created_after=%s"),
        (b"GET", b"/v1/predictions?limit=%s"),
        (b"GET", b"/v1/predictions?%s=1"),
    )
    for method, shape in shapes:
        for one in ids:
            yield Attack(f"{method.decode()} {shape.decode()} {one[:24]!r}", (request(method + b" " + shape % one),))
    for path in (
        b"//livez",
        b"/./livez",
        b"/livez/..;/v1/predictions",
        b"/livez;a=b",
        b"/livez%00",
        b"/LIVEZ",
        b"/livez/",
        b"/v1//predictions",
        b"/v1/predictions/../../livez",
        b"\\livez",
        b"/%2flivez",
        b"//evil.example/",
        b"/static//etc/passwd",
        b"/static/..%2f..%2fmain.py",
        b"/static/%2e%2e/main.py",
        b"/static/",
        b"/static",
        b"/.git/config",
        b"/.env",
        b"/admin",
        b"/v1",
        b"/v2/predictions",
        b"/openapi.json?x=" + canary,
    ):
        yield Attack(f"path {path!r}", (request(b"GET " + path),))
    for method in (
        b"PUT",
        b"PATCH",
        b"DELETE",
        b"TRACE",
        b"TRACK",
        b"CONNECT",
        b"OPTIONS",
        b"PROPFIND",
        b"BREW",
        b"HEAD",
        b"QUERY",
        b"X" * 300,
        b"get",
        b"POST",
    ):
        for path in (
            b"/livez",
            b"/v1/predictions",
            b"/v1/predictions/" + UNKNOWN.encode(),
            b"/static/style.css",
            b"/nowhere",
        ):
            yield Attack(f"{method[:9].decode()} {path.decode()}", (request(method + b" " + path),))


def _conversation(volume: bytes) -> Iterator[Attack]:
    for wanted in (
        b"bytes=0-",
        b"bytes=0-0",
        b"bytes=-1",
        b"bytes=9-1",
        b"bytes=" + b"0-0," * 2000,
        b"bytes=a-b",
        b"bytes=0-99999999999999999999",
        b"lines=1-2",
        b"bytes",
        b"bytes=" + b"1-" * 500,
    ):
        for path in (b"/static/style.css", b"/docs", b"/v1/predictions", b"/openapi.json"):
            yield Attack(
                f"range {wanted[:16]!r} of {path.decode()}", (request(b"GET " + path, b"", b"Range: " + wanted),)
            )
    whole = part(b"cta", volume, b"Content-Type: application/octet-stream") + b"--X--\r\n"
    for expect in (b"100-continue", b"100-Continue", b"101-switch", b"", b"200-ok, 100-continue", CANARY.encode()):
        head, _, body = form(whole).partition(b"\r\n\r\n")
        yield Attack(f"expect {expect!r}", (head + b"\r\nExpect: " + expect + b"\r\n\r\n", body), 0.05)
        yield Attack(
            f"expect {expect!r}, no body", (head + b"\r\nExpect: " + expect + b"\r\n\r\n",), waits=expect == b""
        )
    head, _, body = form(whole).partition(b"\r\n\r\n")
    yield Attack("body after a pause", (head + b"\r\n\r\n", body[:50], body[50:]), 0.2)
    yield Attack("head letter by letter", tuple(bytes([byte]) for byte in request(b"GET /livez")), 0.005)
    yield Attack("claims two gigabytes", (request(b"POST /v1/predictions", b"", b"Content-Length: 2147483649"),))
    yield Attack(
        "claims much json", (request(b"POST /v1/predictions/" + UNKNOWN.encode() + b"/reviews", b"x" * 70000),)
    )
    for kind in (
        b"application/json",
        b"text/plain",
        b"multipart/form-data",
        b"multipart/mixed; boundary=X",
        b"",
        b";;;",
        b"multipart/form-data; boundary=",
        b'multipart/form-data; boundary=""',
        b"multipart/form-data; boundary=X; boundary=Y",
        b"multipart/form-data; boundary=" + b"y" * 300,
        b'multipart/form-data; boundary="X',
        b"application/x-www-form-urlencoded",
        b"multipart/form-data; boundary=\xff",
        b"multipart/form-data; charset=utf-7; boundary=X",
        b"multipart/form-data; boundary*0=X",
        b"MULTIPART/FORM-DATA; BOUNDARY=X",
        b"multipart/form-data, text/html",
    ):
        yield Attack(f"content type {kind[:40]!r}", (form(whole, kind),))
    for kind in (b"gzip", b"deflate", b"br", b"identity", CANARY.encode()):
        yield Attack(
            f"content coding {kind!r}",
            (form(whole)[: -0 or None].replace(b"Prefer:", b"Content-Encoding: " + kind + b"\r\nPrefer:", 1),),
        )


def _forms(volume: bytes) -> Iterator[Attack]:
    canary, good = CANARY.encode(), part(b"cta", volume, b"Content-Type: application/octet-stream")
    file = b'Content-Disposition: form-data; name="cta"; filename="'
    end = b"--X--\r\n"
    nested = b'--Y\r\nContent-Disposition: form-data; name="cta"\r\n\r\n' + volume[:200] + b"\r\n--Y--\r\n"
    bodies = {
        "nothing": b"",
        "end alone": end,
        "no end": good,
        "half an end": good + b"--X-",
        "half a boundary": good + b"--",
        "no first boundary": good[5:] + end,
        "wrong boundary": good.replace(b"--X", b"--Z") + b"--Z--\r\n",
        "two ends": good + end + end,
        "part after the end": good + end + part(b"subject", canary),
        "preamble": b"preamble\r\n" + good + end,
        "long preamble": b"p" * 100000 + b"\r\n" + good + end,
        "epilogue": good + end + b"epilogue " + canary,
        "long epilogue": good + end + b"e" * 100000,
        "newlines only": (good + end).replace(b"\r\n", b"\n"),
        "returns only": (good[:100] + end).replace(b"\r\n", b"\r"),
        "spaces after the boundary": good.replace(b"--X\r", b"--X  \r", 1) + end,
        "no disposition": b"--X\r\nContent-Type: text/plain\r\n\r\n" + canary + b"\r\n" + end,
        "no headers": b"--X\r\n\r\n" + canary + b"\r\n" + end,
        "no blank line": b"--X\r\nContent-Disposition: form-data; name=cta\r\n" + end,
        "attachment": good.replace(b"form-data", b"attachment") + end,
        "no name": good.replace(b' name="cta"', b"") + end,
        "empty name": good.replace(b'"cta"', b'""') + end,
        "name unquoted": good.replace(b'"cta"', b"cta") + end,
        "name half quoted": good.replace(b'"cta"', b'"cta') + end,
        "name twice": good.replace(b'"cta"', b'"cta"; name="ncct"') + end,
        "name*": good.replace(b'name="cta"', b"name*=utf-8''cta") + end,
        "name long": good.replace(b'"cta"', b'"' + b"c" * 1900 + b'"') + end,
        "name unknown": good.replace(b'"cta"', b'"' + canary + b'"') + end,
        "name CTA": good.replace(b'"cta"', b'"CTA"') + end,
        "name not utf-8": good.replace(b'"cta"', b'"\xff\xfe"') + end,
        "name with nul": good.replace(b'"cta"', b'"cta\0"') + end,
        "name with brackets": good.replace(b'"cta"', b'"cta[]"') + end,
        "name __proto__": good.replace(b'"cta"', b'"__proto__"') + end,
        "part twice": good + good + end,
        "fields twice": good + part(b"subject", b"a") + part(b"subject", b"b") + end,
        "empty file": part(b"cta", b"") + end,
        "empty file, chosen": b"--X\r\n" + file + canary + b'"\r\n\r\n\r\n' + end,
        "empty file name": b"--X\r\n" + file + b'"\r\n\r\n' + volume + b"\r\n" + end,
        "file name with a path": b"--X\r\n" + file + b'../../../etc/passwd"\r\n\r\n' + volume + b"\r\n" + end,
        "file name long": b"--X\r\n" + file + b"f" * 1900 + b'"\r\n\r\n' + volume + b"\r\n" + end,
        "file name endless": b"--X\r\n" + file + b"f" * 100000 + b'"\r\n\r\n' + volume + b"\r\n" + end,
        "file name with newlines": b"--X\r\n" + file + b'a\r\nX: y"\r\n\r\n' + volume + b"\r\n" + end,
        "file name with nul": b"--X\r\n" + file + b'a\0b"\r\n\r\n' + volume + b"\r\n" + end,
        "file name*": b"--X\r\n" + file[:-10] + b"filename*=utf-8''%ff%00\r\n\r\n" + volume + b"\r\n" + end,
        "text as a file": part(b"cta", canary * 20) + end,
        "json as a file": part(b"cta", b'{"a": "' + canary + b'"}') + end,
        "file as clinical": part(b"clinical", volume) + good + end,
        "file as subject": part(b"subject", volume) + good + end,
        "clinical as a file": good
        + b'--X\r\nContent-Disposition: form-data; name="clinical"; filename="c.json"\r\n\r\n{}\r\n'
        + end,
        "subject long": good + part(b"subject", canary * 50) + end,
        "subject odd": good + part(b"subject", canary + b"\0\xff") + end,
        "model odd": good + part(b"model", b"../../" + canary) + end,
        "model unknown": good + part(b"model", b"nobody@9.9.9") + end,
        "explain odd": good + part(b"explain", canary) + end,
        "clinical too large": good + part(b"clinical", b'"' + b"a" * 70000 + b'"') + end,
        "nested": b'--X\r\nContent-Disposition: form-data; name="cta"\r\n'
        b"Content-Type: multipart/mixed; boundary=Y\r\n\r\n" + nested + b"\r\n" + end,
        "base64": good.replace(b"Content-Type", b"Content-Transfer-Encoding: base64\r\nContent-Type") + end,
        "part length": good.replace(b"Content-Type", b"Content-Length: 3\r\nContent-Type") + end,
        "part header twice": good.replace(b"Content-Type", b"Content-Type: a/b\r\nContent-Type") + end,
        "part header large": good.replace(b"Content-Type", b"X-Big: " + b"b" * 100000 + b"\r\nContent-Type") + end,
        "part headers many": good.replace(
            b"Content-Type", b"".join(b"X-%d: b\r\n" % n for n in range(3000)) + b"Content-Type"
        )
        + end,
        "part header folded": good.replace(b"; name", b";\r\n name") + end,
        "part header nul": good.replace(b"Content-Type", b"X: \0\r\nContent-Type") + end,
        "part header nameless": good.replace(b"Content-Type", b": x\r\nContent-Type") + end,
        "part header colonless": good.replace(b"Content-Type", b"nothing\r\nContent-Type") + end,
        "ten thousand parts": b"".join(part(b"f%d" % n, b"x") for n in range(10000)) + end,
        "ten thousand empty pickers": b"--X\r\n"
        + file
        + b'"\r\n\r\n\r\n'
        + (b"--X\r\n" + file + b'"\r\n\r\n\r\n') * 10000
        + end,
        "boundary everywhere": b"--X\r\n" * 20000 + end,
        "boundary inside": part(b"cta", b"\r\n--Xx\r\n--" + volume) + end,
        "boundary cut": part(b"cta", volume[:100] + b"\r\n--") + end,
        "zeros": bytes(100000),
        "urlencoded": b"cta=" + canary,
    }
    for name, body in bodies.items():
        yield Attack(f"form {name}", (form(body),))
    rng = random.Random(7)
    whole = good + part(b"clinical", b'{"age": 71}') + part(b"subject", b"S-1") + end
    edges = whole[:200], whole[-250:]
    for number in range(40):
        broken = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            place = (
                rng.randrange(len(edges[0])) if rng.random() < 0.5 else len(whole) - 1 - rng.randrange(len(edges[1]))
            )
            broken[place] = rng.randrange(256)
        yield Attack(f"form flipped {number}", (form(bytes(broken)),))
    for number in range(20):
        yield Attack(f"form cut {number}", (form(whole[: rng.randrange(len(whole))]),))
