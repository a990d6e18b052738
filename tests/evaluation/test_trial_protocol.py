"""Protocols are checked as a whole, and their hash changes with every part."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.core import two_key_sealing
from app.core.two_key_sealing import PrivateKey
from app.evaluation import trial_protocol
from app.sdk.errors import InvalidRequest

EXAMPLE = Path(__file__).parents[2] / "examples" / "silent_trial.toml"
DIGEST = "sha256:" + "a" * 64
KEYS = [two_key_sealing.public_text(PrivateKey.generate()) for _ in range(3)]


def document() -> dict[str, Any]:
    """The example with two keys."""
    read = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    for holder, key in zip(read["holders"], KEYS, strict=False):
        holder["public_key"] = key
    return read


def test_example_needs_its_keys_only() -> None:
    protocol = trial_protocol.read(document())
    assert protocol.analysis.plan.looks == (100, 200, 300)
    with pytest.raises(InvalidRequest) as caught:
        trial_protocol.parse(EXAMPLE.read_bytes())
    assert [fault.field for fault in caught.value.errors] == ["holders.0.public_key", "holders.1.public_key"]


FAULTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "an unknown field": lambda d: d.update(size=300),
    "an unknown field of a part": lambda d: d["analysis"].update(power=0.8),
    "no tenant": lambda d: d["population"].update(tenants=[]),
    "one holder": lambda d: d["holders"].pop(),
    "the same key twice": lambda d: d["holders"][1].update(public_key=KEYS[0]),
    "the same name twice": lambda d: d["holders"][1].update(name="statistician"),
    "a key of another length": lambda d: d["holders"][1].update(public_key="AAAA"),
    "looks that do not ascend": lambda d: d["analysis"].update(looks=[100, 100]),
    "looks that are close together": lambda d: d["analysis"].update(looks=[100, 101, 300]),
    "no look": lambda d: d["analysis"].update(looks=[]),
    "a margin of an AUC that is none": lambda d: d["analysis"].update(margin=1.0),
    "a margin that is no number": lambda d: d["analysis"].update(margin=float("nan")),
    "no error": lambda d: d["analysis"].update(alpha=0.0),
    "an unknown measure": lambda d: d["analysis"].update(measure="f1"),
    "a name that is none": lambda d: d.update(name="Silent 2027"),
    "no model": lambda d: d.pop("model"),
    "a version without a number": lambda d: d["model"].update(version=""),
    "an unknown mode": lambda d: d["model"].update(other_versions="maybe"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_protocol_is_refused(fault: str) -> None:
    changed = document()
    FAULTS[fault](changed)
    with pytest.raises(InvalidRequest) as caught:
        trial_protocol.read(changed)
    assert caught.value.errors


@pytest.mark.parametrize("content", [b"\xff\xfe", b"name = ", b'name = "a"'])
def test_file_that_is_no_protocol_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidRequest):
        trial_protocol.parse(content)


def test_hash_changes_with_every_value() -> None:
    protocol = trial_protocol.read(document()).with_digest(DIGEST)
    assert trial_protocol.read(protocol.document).hash == protocol.hash  # as stored and read again
    seen = {protocol.hash}

    def visit(path: tuple[str | int, ...], value: object) -> None:
        if isinstance(value, dict | list | tuple):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            for name, inner in pairs:
                visit((*path, name), inner)
            return
        changed = copy.deepcopy(protocol.document)
        place: Any = changed
        for name in path[:-1]:
            place = place[name]
        other = {
            "auc": "brier-gain",
            "refuse": "open",
            DIGEST: "sha256:" + "b" * 64,
            KEYS[0]: KEYS[2],
            KEYS[1]: KEYS[2],
        }
        if isinstance(value, str):
            place[path[-1]] = other.get(value) or value + "x"
        elif isinstance(value, int):
            place[path[-1]] = value + 1
        else:
            place[path[-1]] = float(str(value)) / 1.01
        hashed = trial_protocol.read(changed).hash
        assert hashed not in seen, path
        seen.add(hashed)

    visit((), protocol.document)
    assert len(seen) > 20


def test_version_must_be_that_of_the_digest() -> None:
    protocol = trial_protocol.read(document()).with_digest(DIGEST)
    assert protocol.with_digest(DIGEST) == protocol
    with pytest.raises(InvalidRequest, match="differ"):
        protocol.with_digest("sha256:" + "b" * 64)
