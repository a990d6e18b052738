"""Raw hostile requests: `attacks` lists them.

They cover framing (smuggling, lengths, chunks), large heads, methods, paths, ids, ranges and expectations.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.hostile.forms import forms
from tests.hostile.http import CANARY, HOST, UNKNOWN, Attack, form, part, request


def attacks(volume: bytes) -> Iterator[Attack]:
    """All attacks; ``volume`` is a valid CTA, so that only the request is wrong."""
    yield from _framing(volume)
    yield from _heads()
    yield from _addresses()
    yield from _conversation(volume)
    yield from forms(volume)


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
