"""The CDS service of CDS Hooks 2.0: discovery, `patient-view`, feedback, and requests of pages of other origins."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from app.api import cds_hooks
from app.api.cds_hooks import CdsRequest
from app.core.config import Settings
from app.database import api_keys
from app.database.api_keys import Scope
from app.database.tables import AuditRow
from app.sdk.errors import InvalidRequest
from tests.api.conftest import RunningService, running, settings_in
from tests.api.responses import problem
from tests.api.test_cds import assert_conforms

pytestmark = pytest.mark.anyio

ADDRESS = "/cds-services/rlvo-patient-view"
ORIGIN = "https://records.clinic.example"
SYSTEM = "urn:rlvo:subject"


def request(patient_id: str = "S-001", patient: object = None, **changes: Any) -> dict[str, Any]:
    """A request as the specification shows it, with what the service does not read."""
    document: dict[str, Any] = {
        "hookInstance": "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea",
        "hook": "patient-view",
        "fhirServer": "https://fhir.clinic.example",
        "fhirAuthorization": {"access_token": "opaque", "token_type": "Bearer", "expires_in": 300},
        "context": {"userId": "Practitioner/example", "patientId": patient_id, "encounterId": "89284"},
    }
    if patient is not None:
        document["prefetch"] = {"patient": patient}
    return document | changes


def patient(patient_id: str, *values: str, system: str = SYSTEM) -> dict[str, Any]:
    identifiers = [{"system": system, "value": value, "use": "secondary"} for value in values]
    nested: dict[str, Any] = {"url": "a", "extension": [{"url": "b", "extension": [{"url": "c", "valueCode": "x"}]}]}
    return {"resourceType": "Patient", "id": patient_id, "identifier": identifiers, "extension": [nested]}


async def stored(service: RunningService, subject: str, **parts: Any) -> str:
    sent = await service.submit(subject=(None, subject.encode()), **parts)
    assert sent.status_code == 202, sent.text
    return str(sent.json()["id"])


async def cards(service: RunningService, **document: Any) -> list[dict[str, Any]]:
    answer = await service.http.post(ADDRESS, json=request(**document))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    found: list[dict[str, Any]] = answer.json()["cards"]
    return found


async def test_discovery_describes_the_service(shared_service: RunningService) -> None:
    answer = await shared_service.http.get("/cds-services")
    (each,) = answer.json()["services"]
    assert (each["hook"], each["id"]) == ("patient-view", "rlvo-patient-view")
    assert each["description"]
    assert each["prefetch"] == {"patient": "Patient/{{context.patientId}}"}
    assert (await shared_service.http.post("/cds-services/other", json=request())).status_code == 404


async def test_patient_view_answers_the_newest_prediction_of_the_patient(service: RunningService) -> None:
    assert await cards(service) == []
    for _ in range(2):
        newest = await stored(service, "S-001", accession_number=(None, b"RAD 4711"))
        service.worker.succeed(newest)
    service.worker.succeed(await stored(service, "S-002"))
    (card,) = await cards(service)
    assert_conforms({name: value for name, value in card.items() if name != "overrideReasons"})
    assert card["uuid"] == newest
    assert "Study RAD 4711, sent on " in card["detail"]
    assert all(set(each) == {"code", "system", "display"} for each in card["overrideReasons"])


async def test_unfinished_and_failed_predictions_are_not_replaced_by_an_older_answer(service: RunningService) -> None:
    service.worker.succeed(await stored(service, "S-001"))
    newer = await stored(service, "S-001")
    (card,) = await cards(service)
    assert_conforms(card)
    assert (card["uuid"], card["summary"], card["indicator"]) == (newer, "rlvo: Queued. Research use only.", "info")
    service.worker.fail(newer)
    (card,) = await cards(service)
    assert_conforms(card)
    assert card["summary"] == "rlvo: Failed: The volume does not match its field. Research use only."


async def test_cancelled_and_erased_predictions_have_no_card(service: RunningService) -> None:
    older = await stored(service, "S-001")
    service.worker.succeed(older)
    cancelled = await stored(service, "S-001")
    await service.http.post(f"/v1/predictions/{cancelled}/cancel")
    assert [card["uuid"] for card in await cards(service)] == [older]
    await service.http.delete(f"/v1/predictions/{older}")
    assert await cards(service) == []


@pytest.mark.parametrize(
    ("patient_id", "resource", "expected"),
    [
        ("S-001", None, ["S-001"]),
        ("77", patient("77", "S-001"), ["S-001"]),
        ("77", patient("77", "S-001", "S-002"), ["S-001", "S-002"]),
        ("77", patient("77", "S-001", system="urn:oid:2.999.1"), ["77"]),  # a number of another system is not used
        ("77", patient("77"), ["77"]),
        ("77", {"resourceType": "OperationOutcome"}, ["77"]),
        ("77", {"resourceType": "Patient", "identifier": [{"value": "S-001"}]}, ["77"]),
        ("not a pseudonym", None, []),
        ("77", patient("77", "not a pseudonym"), []),
    ],
)
def test_patient_is_named_by_the_pseudonym(patient_id: str, resource: object, expected: list[str]) -> None:
    assert cds_hooks.subjects(CdsRequest.model_validate(request(patient_id, resource)), SYSTEM) == expected


def test_patient_of_another_context_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"context\.patientId"):
        cds_hooks.subjects(CdsRequest.model_validate(request("77", patient("78", "S-001"))), SYSTEM)


@pytest.mark.parametrize(
    "changes",
    [
        {"hook": "order-select"},
        {"hook": None},
        {"hookInstance": "S-SECRET"},
        {"hookInstance": ""},
        {"context": None},
        {"context": {"userId": "Practitioner/1"}},
        {"context": {"userId": "Practitioner/1", "patientId": ""}},
        {"context": {"userId": "Practitioner/1", "patientId": 77}},
        {"prefetch": {"patient": {"resourceType": "Patient", "identifier": "S-SECRET"}}},
        {"prefetch": []},
    ],
)
async def test_invalid_request_is_refused_without_its_values(
    shared_service: RunningService, changes: dict[str, Any]
) -> None:
    refused = await shared_service.http.post(ADDRESS, json=request(**changes))
    assert problem(refused) == (422, "invalid-request")
    assert "S-SECRET" not in refused.text


async def test_null_prefetch_is_accepted(shared_service: RunningService) -> None:
    ignored = {"resourceType": "Patient", "name": [{"family": "\x00"}]}
    for prefetch in (
        None,
        {},
        {"patient": None},
        {"patient": ignored},
        {"patient": None, "other": {"resourceType": "Bundle"}},
    ):
        assert (await shared_service.http.post(ADDRESS, json=request(prefetch=prefetch))).json() == {"cards": []}


def outcome(card: str, **changes: Any) -> dict[str, Any]:
    return {"card": card, "outcome": "overridden", "outcomeTimestamp": "2026-11-29T12:00:00Z"} | changes


async def test_feedback_is_recorded_without_its_comment(service: RunningService) -> None:
    card = await stored(service, "S-001")
    chosen = {"reason": {"code": "disagree", "system": "urn:rlvo:override-reason"}, "userComment": "SECRET of Jane"}
    other = {"reason": {"code": "SECRET", "system": "x"}}
    sent = [
        outcome(card, overrideReason=chosen),
        outcome(card.upper(), overrideReason=other),
        outcome(card, outcome="accepted", acceptedSuggestions=[{"id": "e56e1945"}]),
    ]
    answer = await service.http.post(f"{ADDRESS}/feedback", json={"feedback": sent})
    assert (answer.status_code, answer.json()) == (200, {"recorded": 3})
    with service.services.database.reading() as session:
        rows = session.scalars(select(AuditRow).where(AuditRow.action == "prediction.cds-feedback")).all()
    at = "2026-11-29T12:00:00+00:00"
    assert [row.target for row in rows] == [card] * 3
    assert [row.detail for row in rows] == [
        {"outcome": "overridden", "at": at, "reason": "disagree"},
        {"outcome": "overridden", "at": at},
        {"outcome": "accepted", "at": at},
    ]


async def test_feedback_on_an_unknown_card_records_nothing(service: RunningService) -> None:
    known, unknown = await stored(service, "S-001"), "0192f0c4-0000-7000-8000-000000000009"
    sent = {"feedback": [outcome(known), outcome(unknown)]}
    assert problem(await service.http.post(f"{ADDRESS}/feedback", json=sent)) == (404, "prediction-not-found")
    with service.services.database.reading() as session:
        assert "prediction.cds-feedback" not in session.scalars(select(AuditRow.action)).all()
    for wrong in ([], [outcome("x")], [outcome(known, outcome="ignored")], [outcome(known, outcomeTimestamp="today")]):
        refused = await service.http.post(f"{ADDRESS}/feedback", json={"feedback": wrong})
        assert problem(refused) == (422, "invalid-request")


@pytest.fixture(scope="module")
async def with_keys(tmp_path_factory: pytest.TempPathFactory, model_store: Path) -> AsyncIterator[RunningService]:
    """A service that requires keys, and whose CDS service pages of one origin may call."""
    settings = settings_in(tmp_path_factory.mktemp("cds"), model_store)
    changes: dict[str, Any] = {"auth": "keys", "cds_origins": f" {ORIGIN}/ , https://other.example"}
    async with running(Settings(**settings.model_dump() | changes)) as service:
        yield service


def key_of(service: RunningService, tenant: str, *scopes: Scope) -> dict[str, str]:
    with service.services.database.session() as session:
        return {"Authorization": f"Bearer {api_keys.create(session, tenant, scopes)}"}


async def test_key_with_the_scope_read_sees_its_tenant_only(with_keys: RunningService) -> None:
    sender = key_of(with_keys, "pacs", Scope.PREDICT, Scope.READ)
    files = {"subject": (None, b"S-7"), "cta": ("x.nii.gz", b"no volume", "application/octet-stream")}
    assert (await with_keys.http.post("/v1/predictions", files=files, headers=sender)).status_code == 422
    with_keys.http.headers.update(sender)
    prediction_id = await stored(with_keys, "S-7")
    del with_keys.http.headers["Authorization"]
    for tenant, expected in (("pacs", [prediction_id]), ("other", [])):
        reader = key_of(with_keys, tenant, Scope.READ)
        answer = await with_keys.http.post(ADDRESS, json=request("S-7"), headers=reader)
        assert [card["uuid"] for card in answer.json()["cards"]] == expected
    writer = key_of(with_keys, "pacs", Scope.ERASE)
    refused = await with_keys.http.post(ADDRESS, json=request("S-7"), headers=writer)
    assert problem(refused) == (403, "insufficient-scope")
    assert problem(await with_keys.http.post(ADDRESS, json=request("S-7"))) == (401, "unauthenticated")
    assert (await with_keys.http.get("/cds-services")).status_code == 200


async def test_pages_of_listed_origins_may_call_the_cds_service(with_keys: RunningService) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    preflight = await with_keys.http.request("OPTIONS", ADDRESS, headers={"Origin": ORIGIN, **asked})
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "Authorization" in preflight.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in preflight.headers
    reader = key_of(with_keys, "pacs", Scope.READ)
    for headers, status in ((reader, 200), ({}, 401)):  # the page can read the refusal too
        answer = await with_keys.http.post(ADDRESS, json=request(), headers={"Origin": ORIGIN, **headers})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "origin" in answer.headers["vary"].lower()


@pytest.mark.parametrize(
    ("address", "origin"),
    [(ADDRESS, "https://evil.example"), (ADDRESS, "null"), (ADDRESS, f"{ORIGIN}.evil.example"), ("/v1/models", ORIGIN)],
)
async def test_other_origins_and_addresses_stay_closed(with_keys: RunningService, address: str, origin: str) -> None:
    asked = {"Origin": origin, "Access-Control-Request-Method": "GET"}
    preflight = await with_keys.http.request("OPTIONS", address, headers=asked)
    assert preflight.status_code == 401
    reader = key_of(with_keys, "pacs", Scope.READ)
    answer = await with_keys.http.get("/v1/models", headers={"Origin": origin, **reader})
    for each in (preflight, answer):
        assert not [name for name in each.headers if name.startswith("access-control-")]


async def test_without_keys_a_page_of_an_unlisted_origin_is_refused(
    service: RunningService, tmp_path: Path, model_store: Path
) -> None:
    refused = await service.http.post(ADDRESS, json=request(), headers={"Origin": ORIGIN})
    assert problem(refused) == (403, "cross-origin")
    settings = settings_in(tmp_path / "listed", model_store).model_copy(update={"cds_origins": ORIGIN})
    async with running(settings) as listed:
        assert (await listed.http.post(ADDRESS, json=request(), headers={"Origin": ORIGIN})).status_code == 200
        elsewhere = await listed.http.get("/v1/models", headers={"Origin": ORIGIN})
        assert problem(elsewhere) == (403, "cross-origin")
