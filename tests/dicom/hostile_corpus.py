"""Hostile DICOM files and associations, drawn from a seed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from app.dicom.writing import Syntax
from app.phantoms.dicom_series import files
from tests.dicom.studies import plan, voxels

Rng = np.random.Generator
LENGTHS = (0xFFFFFFFF, 0xFFFFFFFE, 0x7FFFFFFF, 0xFFFFFFF0)
SYNTAXES = (b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.5", b"1.2.3.4.5", b"x" * 64)


def _base(rng: Rng) -> bytes:
    syntax = list(Syntax)[int(rng.integers(len(Syntax)))]
    return next(files(plan(data=voxels(int(rng.integers(1000)))), int(rng.integers(10**9)), syntax=syntax))


def _plain(rng: Rng) -> bytes:
    return next(files(plan(data=voxels(1)), int(rng.integers(10**9))))


def _element_at(content: bytes, rng: Rng) -> int:
    """Offset of any element of an explicit little endian file behind its file meta information."""
    starts = [content.index(struct.pack("<HH", *tag)) for tag in ((0x8, 0x16), (0x10, 0x10), (0x20, 0xD), (0x28, 0x10))]
    return starts[int(rng.integers(len(starts)))]


def _inserted(content: bytes, piece: bytes, tag: tuple[int, int] = (0x10, 0x10)) -> bytes:
    at = content.index(struct.pack("<HH", *tag))
    return content[:at] + piece + content[at:]


def truncated(rng: Rng) -> bytes:
    content = _base(rng)
    return content[: int(rng.integers(len(content)))]


def flipped(rng: Rng) -> bytes:
    content = bytearray(_base(rng))
    for place in rng.integers(0, min(len(content), 1500), int(rng.integers(1, 60))):
        content[place] = rng.integers(256)
    return bytes(content)


def flipped_pixels(rng: Rng) -> bytes:
    content = bytearray(_base(rng))
    for place in rng.integers(len(content) // 2, len(content), 40):
        content[place] = rng.integers(256)
    return bytes(content)


def huge_length(rng: Rng) -> bytes:
    content = _plain(rng)
    kind = [b"OB", b"UT", b"SQ", b"UN"][int(rng.integers(4))]
    length = LENGTHS[int(rng.integers(len(LENGTHS)))]
    return _inserted(content, struct.pack("<HH2sHI", 0x0009, 0x1010, kind, 0, length))


def deep_sequence(rng: Rng) -> bytes:
    levels, ended = int(rng.choice([300, 5000, 30_000])), bool(rng.integers(2))
    start = struct.pack("<HH2sHI", 0x0009, 0x1010, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, LENGTHS[0]
    )
    end = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return _inserted(_plain(rng), start * levels + (end * levels if ended else b""))


def endless_items(rng: Rng) -> bytes:
    start = struct.pack("<HH2sHI", 0x0009, 0x1010, b"SQ", 0, 0xFFFFFFFF)
    return _inserted(_plain(rng), start + struct.pack("<HHI", 0xFFFE, 0xE000, 0) * int(rng.integers(1, 20_000)))


def wrong_vr(rng: Rng) -> bytes:
    content = bytearray(_plain(rng))
    at = _element_at(bytes(content), rng)
    content[at + 4 : at + 6] = [b"SQ", b"OB", b"\0\0", b"zz", b"FD", b"AT"][int(rng.integers(6))]
    return bytes(content)


def other_syntax(rng: Rng) -> bytes:
    """The transfer syntax of the file meta information is not that of the data set."""
    content = _base(rng)
    at = content.index(struct.pack("<HH2s", 2, 0x10, b"UI"))
    length = int.from_bytes(content[at + 6 : at + 8], "little")
    syntax = SYNTAXES[int(rng.integers(len(SYNTAXES)))]
    syntax += b"\0" * (len(syntax) % 2)
    return content[: at + 6] + struct.pack("<H", len(syntax)) + syntax + content[at + 8 + length :]


def deflate_bomb(rng: Rng) -> bytes:
    content = next(files(plan(), int(rng.integers(10**9)), syntax=Syntax.DEFLATED))
    at = content.index(Syntax.DEFLATED.uid.encode()) + len(Syntax.DEFLATED.uid) + 1
    while content[at : at + 2] == b"\x02\x00":
        at += 8 + int.from_bytes(content[at + 6 : at + 8], "little")
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    return content[:at] + pack.compress(bytes(50_000_000)) + pack.flush()


def wrong_size(rng: Rng) -> bytes:
    """Rows, columns, bits or samples that the pixels do not have."""
    content = bytearray(_plain(rng))
    number = [0x10, 0x11, 0x100, 0x101, 0x102, 0x2][int(rng.integers(6))]
    at = content.index(struct.pack("<HH", 0x28, number))
    content[at + 8 : at + 10] = struct.pack("<H", int(rng.choice([0, 1, 64, 4096, 65535])))
    return bytes(content)


def frame_lie(rng: Rng) -> bytes:
    count = b"%-10d" % int(rng.choice([0, 2, 10**6, 10**9]))
    return _inserted(_plain(rng), struct.pack("<HH2sH", 0x28, 8, b"IS", len(count)) + count, (0x28, 0x10))


def wrong_uid(rng: Rng) -> bytes:
    content = bytearray(_plain(rng))
    at = content.index(struct.pack("<HH", *[(8, 0x18), (0x20, 0xD), (0x20, 0xE)][int(rng.integers(3))]))
    content[at + 8 : at + 12] = [b"\0\0\0\0", b"abcd", b"....", b"../x", b"\xff\xfe\xfd\xfc"][int(rng.integers(5))]
    return bytes(content)


def many_private(rng: Rng) -> bytes:
    numbers = range(0x1000, 0x1000 + int(rng.integers(1000, 61_000)))
    return _inserted(_plain(rng), b"".join(struct.pack("<HH2sH4s", 9, number, b"LO", 4, b"abcd") for number in numbers))


def noise(rng: Rng) -> bytes:
    start = [b"", bytes(128) + b"DICM", b"PK\x03\x04", b"\x02\0\0\0UL\x04\0\xff\xff\xff\x7f"][int(rng.integers(4))]
    return start + rng.bytes(int(rng.integers(0, 5000)))


def no_pixels(rng: Rng) -> bytes:
    content = _plain(rng)
    return content[: content.index(struct.pack("<HH", 0x7FE0, 0x10))]


def rle_offsets(rng: Rng) -> bytes:
    content = bytearray(next(files(plan(), int(rng.integers(10**9)), syntax=Syntax.RLE)))
    at = content.rindex(struct.pack("<HH", 0xFFFE, 0xE000)) + 8
    content[at : at + 12] = struct.pack("<III", int(rng.choice([0, 2, 15, 10**6])), *rng.integers(0, 2**32, 2).tolist())
    return bytes(content)


KINDS: tuple[Callable[[Rng], bytes], ...] = (
    *(truncated, flipped, flipped_pixels, huge_length, deep_sequence, endless_items, wrong_vr, other_syntax),
    *(deflate_bomb, wrong_size, frame_lie, wrong_uid, many_private, noise, no_pixels, rle_offsets),
)


def hostile_files(count: int) -> Iterator[tuple[str, bytes]]:
    """Name of the kind and content of ``count`` files, each kind equally often."""
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        yield kind.__name__, kind(np.random.default_rng([21, number]))


# associations


def item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body)) + body


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBI", kind, 0, len(body)) + body


def pdv(control: int, data: bytes, context: int = 1) -> bytes:
    return pdu(4, struct.pack(">IBB", len(data) + 2, context, control) + data)


def request(
    *,
    called: bytes = b"RLVO",
    calling: bytes = b"HOSTILE",
    syntaxes: tuple[bytes, ...] = (b"1.2.840.10008.1.2.1",),
    contexts: int = 1,
    pdu_bytes: int = 16384,
    application: bytes = b"1.2.840.10008.3.1.1.1",
) -> bytes:
    """An association request for CT images."""
    body = struct.pack(">HH16s16s32x", 1, 0, called.ljust(16)[:16], calling.ljust(16)[:16])
    body += item(0x10, application)
    for number in range(contexts):
        offered = b"".join(item(0x40, syntax) for syntax in syntaxes)
        body += item(
            0x20, bytes([(2 * number + 1) % 256, 0, 0, 0]) + item(0x30, b"1.2.840.10008.5.1.4.1.1.2") + offered
        )
    return pdu(1, body + item(0x50, item(0x51, struct.pack(">I", pdu_bytes)) + item(0x52, b"1.2.3")))


def store_command(uid: bytes = b"1.2.3.4") -> bytes:
    """The PDV of a C-STORE request."""

    def element(number: int, value: bytes) -> bytes:
        value += b"\0" * (len(value) % 2)
        return struct.pack("<HHI", 0, number, len(value)) + value

    body = element(0x2, b"1.2.840.10008.5.1.4.1.1.2") + element(0x100, b"\1\0") + element(0x110, b"\1\0")
    body += element(0x700, b"\0\0") + element(0x800, b"\1\0") + element(0x1000, uid)
    return pdv(3, element(0, struct.pack("<I", len(body))) + body)


@dataclass(frozen=True)
class Hostile:
    """What a hostile sender sends: pieces, the pause between them, and whether it resets the connection then."""

    name: str
    pieces: tuple[bytes, ...]
    pause_s: float = 0.0
    reset: bool = False


def hostile_associations(count: int) -> Iterator[Hostile]:
    """``count`` senders, each kind equally often."""
    for number in range(count):
        rng = np.random.default_rng([22, number])
        kinds = _associations(rng)
        yield kinds[number % len(kinds)]


def _associations(rng: Rng) -> list[Hostile]:
    ask, command = request(), store_command()
    data = _plain(rng)
    cut = int(rng.integers(1, len(ask)))
    slow = tuple(ask[k : k + 1] for k in range(12))
    return [
        Hostile("wrong called title", (request(called=b"OTHER"),)),
        Hostile("empty titles", (request(called=b"", calling=b""),)),
        Hostile("half a request", (ask[:cut],)),
        Hostile("half a request, reset", (ask[:cut],), reset=True),
        Hostile("slow request", slow, pause_s=0.3),
        Hostile("slow data", (ask, command, *(pdv(0, b"\0" * 10) for _ in range(8))), pause_s=0.3, reset=True),
        Hostile("reset after the request", (ask,), reset=True),
        Hostile("reset within the data", (ask, command, pdv(0, data[: int(rng.integers(1, 3000))])), reset=True),
        Hostile("reset within a PDU", (ask, command + pdv(0, data)[: int(rng.integers(7, 3000))]), reset=True),
        Hostile("abort within the data", (ask, command + pdv(0, data[:500]) + pdu(7, bytes(4)))),
        Hostile("data before a request", (pdv(0, data[:1000]),)),
        Hostile("two requests", (ask, ask)),
        Hostile("128 contexts", (request(contexts=128),), reset=True),
        Hostile("wrong transfer syntaxes", (request(syntaxes=(b"9.9.9", b"", b"x" * 300)),), reset=True),
        Hostile("wrong application", (request(application=b"1.2.3"),)),
        Hostile("tiny PDU", (request(pdu_bytes=1), command, pdv(2, data)), reset=True),
        Hostile("huge PDU", (ask, struct.pack(">BBIIBB", 4, 0, 1 << 30, (1 << 30) - 4, 1, 0) + bytes(1000))),
        Hostile("huge request", (struct.pack(">BBI", 1, 0, 0xFFFFFFFF) + bytes(100_000),)),
        Hostile("endless instance", (ask, command, *(pdv(0, bytes(16_000)) for _ in range(150)))),
        Hostile("damaged command", (ask, pdv(3, rng.bytes(500)))),
        Hostile("wrong PDV length", (ask, struct.pack(">BBIIBB", 4, 0, 6, 1 << 20, 1, 0) + bytes(100))),
        Hostile("unknown context", (ask, pdv(3, command[12:], context=99))),
        Hostile("command fragments", (ask, *(pdv(1, command[12 + k : 13 + k]) for k in range(60))), reset=True),
        Hostile("noise", (rng.bytes(int(rng.integers(1, 5000))),)),
        Hostile("HTTP", (b"GET /dicomweb/studies HTTP/1.1\r\nHost: x\r\n\r\n",)),
    ]
