"""A call whose answer was lost is repeated; what its first attempt has done is no error of the second one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from app.sdk import RlvoError
from app.sdk.errors import Erased, EtagMismatch, NotFound, PreconditionRequired
from app.sdk.followup import Etici, OutcomeDraft
from tests.sdk.scripted_server import Response, ScriptedServer

Connect = Callable[..., Any]
LOST = Response(disconnect=True)
OF_A_PROXY = Response({}, status=502)
BUSY = Response({}, status=503)
DRAFT = OutcomeDraft(etici=Etici.COMPLETE, rescue_treatment=False, final_stenosis_percent=70)
STORED = {**json.loads(DRAFT.model_dump_json()), "refractory": True, "recorded": "2026-01-01T00:00:00Z"}
ERASURES: dict[str, tuple[Callable[[Any], Any], RlvoError]] = {
    "a prediction": (lambda client: client.erase("01"), Erased()),
    "a study": (lambda client: client.studies.erase("1.2"), NotFound()),
    "a waiting record": (lambda client: client.studies.withdraw_clinical("A1"), NotFound()),
}


@pytest.mark.parametrize("lost", [LOST, OF_A_PROXY])
@pytest.mark.parametrize("what", ERASURES)
def test_repeated_erasure_succeeds(connect: Connect, server: ScriptedServer, what: str, lost: Response) -> None:
    erase, gone = ERASURES[what]
    server.respond_with(lost, Response.problem(gone))
    assert erase(connect()) is None
    assert len(server.requests) == 2


@pytest.mark.parametrize("what", ERASURES)
def test_erasure_of_what_is_not_there_is_an_error(connect: Connect, server: ScriptedServer, what: str) -> None:
    erase, gone = ERASURES[what]
    server.respond_with(BUSY, Response.problem(gone))  # nothing was lost: the service has refused the first attempt
    with pytest.raises(type(gone)):
        erase(connect())


def test_repeated_outcome_is_the_recorded_one(connect: Connect, server: ScriptedServer) -> None:
    server.respond_with(LOST, Response.problem(PreconditionRequired()), Response(STORED))
    assert connect().set_outcome("01", DRAFT).final_stenosis_percent == 70
    assert [request.method for request in server.requests] == ["PUT", "PUT", "GET"]


def test_repeated_correction_is_the_recorded_one(connect: Connect, server: ScriptedServer) -> None:
    before = Response(STORED | {"etici": "0"}, headers={"ETag": '"t"'})
    server.respond_with(before, LOST, Response.problem(EtagMismatch()), Response(STORED))
    assert connect().set_outcome("01", DRAFT, correct=True).etici is Etici.COMPLETE


@pytest.mark.parametrize("recorded", [Response(STORED | {"rescue_treatment": True}), Response.problem(NotFound())])
def test_an_outcome_of_someone_else_is_still_a_conflict(
    connect: Connect, server: ScriptedServer, recorded: Response
) -> None:
    server.respond_with(LOST, Response.problem(PreconditionRequired()), recorded)
    with pytest.raises(PreconditionRequired):
        connect().set_outcome("01", DRAFT)
