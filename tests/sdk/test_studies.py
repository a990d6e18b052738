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
    server.respond_with(*[Response(STUDY) for _ in range(7)], Response({}, status=204))
    studies = connect().studies
    assert studies.get("1.2").series[0].role == "ncct"
    studies.complete("1.2")
    studies.set_roles("1.2", {"1.2.3": "other"})
    studies.set_clinical("1.2", ClinicalRecord(age=70))
    studies.cancel("1.2")
    studies.pull("1.2", source="PACS")
    studies.complete("1.2", instances=16)
    studies.erase("1.2")
    sent = [(each.method, each.path.removeprefix("/v1/studies/1.2")) for each in server.requests]
    assert sent == [
        ("GET", ""),
        ("POST", "/complete"),
        ("PUT", "/roles"),
        ("PUT", "/clinical"),
        ("POST", "/cancel"),
        ("POST", "/pull?source=PACS"),
        ("POST", "/complete?instances=16"),
        ("DELETE", ""),
    ]
    assert [json.loads(server.requests[n].body) for n in (2, 3)] == [{"1.2.3": "other"}, {"age": 70}]


def test_all_pages_are_listed(connect: Connect, server: ScriptedServer) -> None:
    server.respond_with(Response({"items": [STUDY], "next": "c"}), Response({"items": [STUDY | {"uid": "1.3"}]}))
    assert [each.uid for each in connect().studies.list()] == ["1.2", "1.3"]
    assert server.requests[1].path == "/v1/studies?cursor=c"


def test_studies_are_listed_and_fetched_by_accession_number(connect: Connect, server: ScriptedServer) -> None:
    server.respond_with(Response({"items": [STUDY]}), Response({"items": [STUDY]}, status=202))
    assert [each.uid for each in connect().studies.list(accession_number="A 1")] == ["1.2"]
    assert connect().studies.pull_by_accession("A 1").items[0].uid == "1.2"
    assert [each.path for each in server.requests] == [
        "/v1/studies?accession_number=A+1",
        "/v1/study-pulls?accession_number=A+1",
    ]


def test_a_record_is_sent_and_withdrawn_by_accession_number(connect: Connect, server: ScriptedServer) -> None:
    kept = {"study": None, "kept_until": "2026-11-30T12:00:00Z"}
    server.respond_with(Response(kept, status=202), Response({"study": STUDY}), Response({}, status=204))
    studies = connect().studies
    waiting = studies.set_clinical_by_accession("A 1", ClinicalRecord(age=70))
    assert waiting.study is None
    assert waiting.kept_until is not None
    joined = studies.set_clinical_by_accession("A 1", {"age": 70})
    assert joined.study is not None
    assert joined.study.uid == "1.2"
    studies.withdraw_clinical("A 1")
    path = "/v1/study-records?accession_number=A+1"
    assert [(each.method, each.path) for each in server.requests] == [("PUT", path), ("PUT", path), ("DELETE", path)]
    assert json.loads(server.requests[0].body) == {"age": 70}
