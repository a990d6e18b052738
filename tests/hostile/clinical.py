"""Malformed, unusual and hostile clinical documents, as bytes for the field ``clinical``.

`documents` gives each one with a name. Text values are the canary, which no response may repeat.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from app.sdk.clinical import ClinicalRecord
from tests.hostile.http import CANARY

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    42,
    43,
    71,
    1e9,
    -1e9,
    1e-320,
    0.1 + 0.2,
    1e308,
    2**31,
    2**63,
    2**64,
    10**60,
    -0.0,
    "",
    " ",
    "71",
    "true",
    "yes",
    "NaN",
    CANARY,
    CANARY * 100,
    "\u202e" + CANARY,
    "\ufeff",
    "é",
    "é",
    "\U0001f4a9",
    "²",
    "٧١",
    "<script>",
    "'; DROP TABLE predictions;--",
    "${jndi:ldap://x}",
    "../../etc/passwd",
    "\\u0000",
    [],
    [71],
    [CANARY],
    {},
    {"value": 71},
    {CANARY: CANARY},
    [[[]]],
    "female ",
    "FEMALE",
    "m1_proximal",
)

_RAW = {
    "empty": b"",
    "space": b" ",
    "null": b"null",
    "true": b"true",
    "number": b"71",
    "text": b'"' + CANARY.encode() + b'"',
    "list": b"[]",
    "list of one": b'[{"age": 71}]',
    "two documents": b'{"age": 71} {"age": 72}',
    "open": b"{",
    "comma": b'{"age": 71,}',
    "single quotes": b"{'age': 71}",
    "comment": b'{"age": 71} // x',
    "unquoted": b"{age: 71}",
    "no colon": b'{"age" 71}',
    "NaN": b'{"age": NaN}',
    "Infinity": b'{"age": Infinity}',
    "-Infinity": b'{"age": -Infinity}',
    "nan": b'{"age": nan}',
    "1e999": b'{"age": 1e999}',
    "-1e999": b'{"age": -1e999}',
    "1e-999": b'{"age": 1e-999}',
    "1e9999999999": b'{"age": 1e9999999999}',
    "hex": b'{"age": 0x47}',
    "octal": b'{"age": 071}',
    "plus": b'{"age": +71}',
    "point": b'{"age": .5}',
    "trailing point": b'{"age": 71.}',
    "underscore": b'{"age": 7_1}',
    "4400 digits": b'{"age": ' + b"9" * 4400 + b"}",
    "5000 digits and a point": b'{"age": ' + b"9" * 5000 + b".5}",
    "many decimals": b'{"age": 71.' + b"0" * 60000 + b"1}",
    "minus zero": b'{"nihss": -0}',
    "float for a count": b'{"nihss": 4.5}',
    "float, whole": b'{"nihss": 4.0}',
    "twice the same": b'{"age": 71, "age": 71}',
    "twice, other": b'{"age": 71, "age": 99}',
    "twice by escape": b'{"age": 71, "\\u0061ge": 99}',
    "twice inside": b'{"perfusion": {"core_ml": 1, "core_ml": 2}}',
    "section twice": b'{"perfusion": {}, "perfusion": {"core_ml": 2}}',
    "lone high surrogate": b'{"sex": "\\ud800"}',
    "lone low surrogate": b'{"sex": "\\udfff"}',
    "swapped pair": b'{"sex": "\\udc00\\ud800"}',
    "surrogate as a key": b'{"\\ud800": 1}',
    "surrogate in utf-8": b'{"sex": "\xed\xa0\x80"}',
    "U+0000": b'{"sex": "\\u0000"}',
    "U+0000 as a key": b'{"\\u0000": 1}',
    "raw nul": b'{"sex": "\0"}',
    "nul around": b"\0{}\0",
    "raw newline": b'{"sex": "a\nb"}',
    "raw tab": b'{"sex": "a\tb"}',
    "bad escape": b'{"sex": "\\x41"}',
    "half an escape": b'{"sex": "\\u00"}',
    "latin-1": b'{"sex": "f\xe9male"}',
    "bad utf-8": b'{"sex": "\xff\xfe"}',
    "overlong": b'{"sex": "\xc0\xaf"}',
    "utf-16": '{"age": 71}'.encode("utf-16"),
    "utf-32": '{"age": 71}'.encode("utf-32"),
    "bom": b'\xef\xbb\xbf{"age": 71}',
    "two boms": b'\xef\xbb\xbf\xef\xbb\xbf{"age": 71}',
    "utf-7": b"+AHsAIg-age",
    "html": b"<html>" + CANARY.encode(),
    "xml": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
    "yaml": b"age: 71\nsex: female\n",
    "pickle": b"\x80\x04\x8c\x05posix\x94.",
    "gzip": b"\x1f\x8b\x08\x00",
    "bytes": bytes(range(256)),
    "prefix": b")]}',\n{}",
    "javascript": b'{"age": new Date()}',
    "undefined": b'{"age": undefined}',
    "only a bracket": b"]",
    "colons": b":" * 60000,
    "quotes": b'"' * 60000,
    "backslashes": b'"' + b"\\" * 60000,
    "open strings": b'"\\' * 30000,
    "braces": b"}{" * 30000,
    "65 KiB": b'{"age": 71' + b" " * 66000 + b"}",
    "just in bounds": b'{"age": 71' + b" " * 60000 + b"}",
}


def documents() -> Iterator[tuple[str, bytes]]:
    """All documents with their names; each may be accepted or refused, but none may cause a 5xx."""
    yield from _RAW.items()
    for depth in (5, 9, 10, 11, 12, 100, 1000, 30000):
        yield f"{depth} lists", b'{"age": ' + b"[" * depth + b"]" * depth + b"}"
        yield f"{depth} open lists", b"[" * depth
        yield f"{depth} objects", b'{"perfusion":' * depth + b"1" + b"}" * depth
    for count in (100, 3000):
        yield f"{count} unknown fields", json.dumps({f"{CANARY}_{number}": number for number in range(count)}).encode()
        yield (
            f"{count} faults",
            json.dumps({"age": "x", "perfusion": dict.fromkeys(map(str, range(count)), 1)}).encode(),
        )
    yield "a key of 60000", json.dumps({"k" * 60000: 1}).encode()
    yield "a text of 60000", json.dumps({"sex": "k" * 60000}).encode()
    for key in (
        "",
        "__proto__",
        "constructor",
        "__class__",
        "model_config",
        "self",
        "age ",
        " age",
        "Age",
        "AGE",
        "a.ge",
        "age\n",
        "perfusion.core_ml",
        "mrs_90d",
        "etici",
        "passes",
        CANARY,
        "${x}",
        "{0.__class__}",
        "%s%s%n",
        "\U0001f4a9",
    ):
        yield f"key {key!r}", json.dumps({key: 1}).encode()
        yield f"key {key!r} in a section", json.dumps({"perfusion": {key: 1}}).encode()
    for name in ClinicalRecord.model_fields:
        for value in VALUES:
            yield f"{name} = {str(value)[:16]!r}", json.dumps({name: value}).encode()
    yield from _flipped(random.Random(11))


def _flipped(rng: random.Random) -> Iterator[tuple[str, bytes]]:
    good = json.dumps(
        {"age": 71, "sex": "female", "nihss": 14, "perfusion": {"core_ml": 21.5, "software": "x 1.0"}}
    ).encode()
    for number in range(60):
        broken = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        yield f"flipped {number}", bytes(broken)
    for number in range(20):
        yield f"cut {number}", good[: rng.randrange(len(good))]
