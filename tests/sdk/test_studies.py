"""Received studies through the client: each call has its address, and every page is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from app.sdk import ClinicalRecord
from tests.sdk.scripted_server import Response, ScriptedServer

Connect = Callable[..., Any]
STUDY = {
    "uid": "1.2",
    "state": "predicted",
    "created": "2026-01-01T00:00:00Z",
    "instances": 16,
    "conflicts": 0,
    "clinical": True,
    "series": [{"uid": "1.2.3", "received": 16, "role": "ncct", "used": True}],
    "predictions": [{"revision": 1, "id": "p", "why": "quiet", "created": "2026-01-01T00:00:00Z"}],
}


def test_each_call_has_its_method_address_and_document(connect: Connect, server: ScriptedServer) -> None:
    server.respond_with(*[Response(STUDY) for _ in range(5)], Response({}, status=204))
    studies = connect().studies
    assert studies.get("1.2").series[0].role == "ncct"
    studies.complete("1.2")
    studies.set_roles("1.2", {"1.2.3": "other"})
    studies.set_clinical("1.2", ClinicalRecord(age=70))
    studies.cancel("1.2")
    studies.erase("1.2")
    sent = [(each.method, each.path.removeprefix("/v1/studies/1.2")) for each in server.requests]
    assert sent == [
        ("GET", ""),
        ("POST", "/complete"),
        ("PUT", "/roles"),
        ("PUT", "/clinical"),
        ("POST", "/cancel"),
        ("DELETE", ""),
    ]
    assert [json.loads(server.requests[n].body) for n in (2, 3)] == [{"1.2.3": "other"}, {"age": 70}]


def test_all_pages_are_listed(connect: Connect, server: ScriptedServer) -> None:
    server.respond_with(Response({"items": [STUDY], "next": "c"}), Response({"items": [STUDY | {"uid": "1.3"}]}))
    assert [each.uid for each in connect().studies.list()] == ["1.2", "1.3"]
    assert server.requests[1].path == "/v1/studies?cursor=c"
