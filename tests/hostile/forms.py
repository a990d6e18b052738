"""Malformed multipart/form-data bodies."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.hostile.http import CANARY, Attack, form, part


def forms(volume: bytes) -> Iterator[Attack]:
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
        "empty file with a name": b"--X\r\n" + file + canary + b'"\r\n\r\n\r\n' + end,
        "empty file name": b"--X\r\n" + file + b'"\r\n\r\n' + volume + b"\r\n" + end,
        "file name with a path": b"--X\r\n" + file + b'../../../etc/passwd"\r\n\r\n' + volume + b"\r\n" + end,
        "file name long": b"--X\r\n" + file + b"f" * 1900 + b'"\r\n\r\n' + volume + b"\r\n" + end,
        "file name of 100000 bytes": b"--X\r\n" + file + b"f" * 100000 + b'"\r\n\r\n' + volume + b"\r\n" + end,
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
        "model unknown": good + part(b"model", b"unknown@9.9.9") + end,
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
        "ten thousand empty file inputs": b"--X\r\n"
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
