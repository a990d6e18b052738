"""Model registry through the client: a move carries the entity tag of the alias and is sent once."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from app.sdk import EtagMismatch, ModelNotFound, ModelNotReady, TransportError
from tests.sdk.scripted_server import Response, ScriptedServer

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


def with_etag(body: dict[str, Any]) -> Response:
    return Response(body, headers={"ETag": f'"{body["version"]}"'})


def requests(server: ScriptedServer) -> list[tuple[str, str, str | None]]:
    return [
        (request.method, request.path.removeprefix("/v1/models/m"), request.headers.get("If-Match"))
        for request in server.requests
    ]


def test_promotion_sends_the_etag_of_the_alias(connect: Connect, server: ScriptedServer) -> None:
    server.respond_with(with_etag(ALIAS), with_etag(MOVED))
    moved = connect().registry.promote("m", "1.1.0")
    assert (moved.version, moved.history[-1].previous) == ("1.1.0", "1.0.0")
    assert requests(server) == [("GET", "/aliases/champion", None), ("PUT", "/aliases/champion", '"1.0.0"')]
    assert json.loads(server.requests[1].body) == {"version": "1.1.0"}


def test_new_alias_is_moved_without_an_etag(connect: Connect, server: ScriptedServer) -> None:
    server.respond_with(
        Response.problem(ModelNotFound("There is no such alias")), with_etag(MOVED | {"alias": "shadow"})
    )
    connect().registry.promote("m", "1.1.0", "shadow")
    assert requests(server)[1] == ("PUT", "/aliases/shadow", None)


def test_rollback_is_not_retried_after_a_disconnect(connect: Connect, server: ScriptedServer) -> None:
    server.respond_with(with_etag(MOVED), Response(disconnect=True))
    with pytest.raises(TransportError):
        connect().registry.rollback("m")
    assert requests(server)[1:] == [("POST", "/aliases/champion/rollback", '"1.1.0"')]


@pytest.mark.parametrize("refusal", [ModelNotReady("golden cases differ"), EtagMismatch("moved by another operator")])
def test_refused_promotion_is_not_retried(connect: Connect, server: ScriptedServer, refusal: Any) -> None:
    server.respond_with(with_etag(ALIAS), Response.problem(refusal))
    with pytest.raises(type(refusal)) as raised:
        connect().registry.promote("m", "1.1.0")
    assert raised.value.detail == refusal.detail
    assert len(server.requests) == 2


def test_reads_load_and_unload(connect: Connect, server: ScriptedServer) -> None:
    report = {"version": "1.1.0", "answered": "1.0.0", "scored": 3, "failed": 0, "agreed": 2, "mean_difference": 0.1}
    server.respond_with(
        with_etag(ALIAS), with_etag(ALIAS), Response([report]), Response(VERSION), Response(VERSION, 202)
    )
    registry = connect().registry
    assert registry.alias("m").version == "1.0.0"
    assert [move.by for move in registry.history("m")] == ["ann"]
    assert [row.agreed for row in registry.shadow("m")] == [2]
    assert registry.load("m", "1.1.0").ready
    assert registry.unload("m", "1.1.0").version == "1.1.0"
    assert [path for _, path, _ in requests(server)][3:] == ["/versions/1.1.0/load", "/versions/1.1.0/unload"]
