"""Operating a registry through the client: a move names what it has seen, and is made once."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from app.sdk import EtagMismatch, ModelNotReady, TransportError
from tests.sdk.conftest import Answer, Script

Connect = Callable[..., Any]

MOVE = {"version": "1.0.0", "previous": None, "at": "2026-01-01T00:00:00Z", "by": "ann"}
ALIAS = {"model": "m", "alias": "champion", "version": "1.0.0", "history": [MOVE]}
MOVED = ALIAS | {"version": "1.1.0", "history": [MOVE, MOVE | {"version": "1.1.0", "previous": "1.0.0"}]}
VERSION = {
    "name": "m",
    "version": "1.1.0",
    "digest": "sha256:0",
    "aliases": [],
    "ready": True,
    "synthetic": True,
    "required_inputs": [],
    "optional_inputs": [],
    "required_clinical": [],
    "intended_use": "-",
}


def tagged(body: dict[str, Any]) -> Answer:
    return Answer(body, headers={"ETag": f'"{body["version"]}"'})


def asked(server: Script) -> list[tuple[str, str, str | None]]:
    return [
        (each.method, each.path.removeprefix("/v1/models/m"), each.headers.get("If-Match")) for each in server.asked
    ]


def test_a_promotion_names_what_it_has_seen(connect: Connect, server: Script) -> None:
    server.says(tagged(ALIAS), tagged(MOVED))
    moved = connect().registry.promote("m", "1.1.0")
    assert (moved.version, moved.history[-1].previous) == ("1.1.0", "1.0.0")
    assert asked(server) == [("GET", "/aliases/champion", None), ("PUT", "/aliases/champion", '"1.0.0"')]
    assert json.loads(server.asked[1].body) == {"version": "1.1.0"}


def test_a_new_alias_names_nothing(connect: Connect, server: Script) -> None:
    server.says(Answer.problem(_not_found()), tagged(MOVED | {"alias": "shadow"}))
    connect().registry.promote("m", "1.1.0", "shadow")
    assert asked(server)[1] == ("PUT", "/aliases/shadow", None)


def _not_found() -> Any:
    from app.sdk import ModelNotFound

    return ModelNotFound("There is no such alias")


def test_a_rollback_is_sent_once_whatever_becomes_of_its_answer(connect: Connect, server: Script) -> None:
    server.says(tagged(MOVED), Answer(hang_up=True))
    with pytest.raises(TransportError):
        connect().registry.rollback("m")
    assert asked(server)[1:] == [("POST", "/aliases/champion/rollback", '"1.1.0"')]


@pytest.mark.parametrize("refusal", [ModelNotReady("golden cases come out otherwise"), EtagMismatch("moved meanwhile")])
def test_a_refusal_is_not_asked_for_again(connect: Connect, server: Script, refusal: Any) -> None:
    server.says(tagged(ALIAS), Answer.problem(refusal))
    with pytest.raises(type(refusal)) as raised:
        connect().registry.promote("m", "1.1.0")
    assert raised.value.detail == refusal.detail
    assert len(server.asked) == 2


def test_reads_and_residency(connect: Connect, server: Script) -> None:
    report = {"version": "1.1.0", "answered": "1.0.0", "scored": 3, "failed": 0, "agreed": 2, "mean_difference": 0.1}
    server.says(tagged(ALIAS), tagged(ALIAS), Answer([report]), Answer(VERSION), Answer(VERSION, 202))
    registry = connect().registry
    assert registry.alias("m").version == "1.0.0"
    assert [move.by for move in registry.history("m")] == ["ann"]
    assert [each.agreed for each in registry.shadow("m")] == [2]
    assert registry.load("m", "1.1.0").ready
    assert registry.unload("m", "1.1.0").version == "1.1.0"
    assert [path for _, path, _ in asked(server)][3:] == ["/versions/1.1.0/load", "/versions/1.1.0/unload"]
