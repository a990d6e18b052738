"""The form parser: chunk boundaries do not change the parts, and a malformed body gives MalformedMultipart."""

from __future__ import annotations

import random
from collections.abc import Iterable
from contextlib import suppress

import pytest

from app.api.multipart import FormParser, PartHeader
from app.sdk.errors import MalformedMultipart, RlvoError, UnsupportedMedia

TYPE = "multipart/form-data; boundary=X"


class PartCollector:
    """A sink that keeps all parts."""

    def __init__(self) -> None:
        self.parts: list[tuple[PartHeader, bytes]] = []

    def open(self, head: PartHeader) -> PartCollector:
        self.parts.append((head, b""))
        return self

    def write(self, chunk: memoryview) -> None:
        head, content = self.parts[-1]
        self.parts[-1] = (head, content + bytes(chunk))

    def close(self) -> None:
        pass


def parse(chunks: Iterable[bytes], content_type: str = TYPE) -> list[tuple[PartHeader, bytes]]:
    collector = PartCollector()
    parser = FormParser(content_type, collector.open)
    for chunk in chunks:
        parser.write(chunk)
    parser.close()
    return collector.parts


def part(head: str, content: bytes) -> bytes:
    return b"--X\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--X--\r\n"


FIELD = 'Content-Disposition: form-data; name="model"'
FILE = 'Content-Disposition: form-data; name="cta"; filename="a.nii"\r\nContent-Type: application/octet-stream'


@pytest.mark.parametrize("seed", range(20))
def test_the_parts_do_not_depend_on_the_chunks(seed: int) -> None:
    rng = random.Random(seed)
    content = bytes(rng.choices(b"\r\n-X\0a", k=3000))
    content = content.replace(b"\r\n--X", b"")
    body, chunks = form(part(FIELD, b"tiny"), part(FILE, content)), []
    while body:
        size = rng.randint(1, 40)
        chunks.append(body[:size])
        body = body[size:]
    assert parse(chunks) == [(PartHeader("model", None), b"tiny"), (PartHeader("cta", "a.nii"), content)]


BROKEN = {
    "empty": b"",
    "no boundary": b"hello",
    "only an opening": b"--X\r\n",
    "another boundary": form(part(FIELD, b"x")).replace(b"--X", b"--Y"),
    "no end": part(FIELD, b"x"),
    "no disposition": form(part("Content-Type: text/plain", b"x")),
    "no name": form(part("Content-Disposition: form-data", b"x")),
    "an attachment": form(part('Content-Disposition: attachment; name="model"', b"x")),
    "base64": form(part(FIELD + "\r\nContent-Transfer-Encoding: base64", b"eA==")),
    "header twice": form(part(FIELD + "\r\n" + FIELD, b"x")),
    "many headers": form(part(FIELD + "".join(f"\r\nX-{n}: y" for n in range(50)), b"x")),
    "long header": form(part(FIELD + "; x=" + "y" * 9000, b"x")),
    "header name of control bytes": form(part("\x01\x02: x", b"x")),
    "bare newlines": form(part(FIELD, b"x")).replace(b"\r\n", b"\n"),
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
def test_malformed_body_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedMultipart):
        parse([body])


@pytest.mark.parametrize(
    ("content_type", "error"),
    [
        ("", UnsupportedMedia),
        ("application/json", UnsupportedMedia),
        ("multipart/mixed; boundary=X", UnsupportedMedia),
        ("multipart/form-data", MalformedMultipart),
        ("multipart/form-data; boundary=", MalformedMultipart),
        ("multipart/form-data; boundary=" + "X" * 300, MalformedMultipart),
    ],
)
def test_content_type_must_be_form_data_with_a_boundary(content_type: str, error: type[RlvoError]) -> None:
    with pytest.raises(error):
        parse([form(part(FIELD, b"x"))], content_type)


@pytest.mark.parametrize("seed", range(200))
def test_mutated_body_is_parsed_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    body = bytearray(form(part(FIELD, b"tiny"), part(FILE, b"\0\1\2" * 50)))
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(body))
        match rng.randrange(3):
            case 0:
                body[at] = rng.randrange(256)
            case 1:
                del body[at : at + rng.randint(1, 20)]
            case 2:
                body[at:at] = rng.choice([b"\r\n", b"--X", b"--X--", b"\0", b'"', b":"])
    with suppress(MalformedMultipart):
        parse([bytes(body)])
