"""A decision that warnings withhold: form field, answer, list, FHIR, CDS Hooks, review and audit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from app.api import cds, fhir
from app.database import job_state
from app.database.tables import AuditRow
from app.sdk.flags import FLAGS as CATALOGUE
from app.sdk.flags import Severity
from app.sdk.types import Flag
from tests.api.conftest import RunningService, volume
from tests.api.responses import prediction
from tests.database.results import result

pytestmark = pytest.mark.anyio

WITHHELD = ["alignment-poor", "tmax-doubtful"]
FLAGS = [
    Flag(code="imputed", detail="age: not given, imputed"),
    Flag(code="alignment-poor", detail="cta: the alignment to MNI space is poor"),
    Flag(code="tmax-doubtful", detail="tmax: no delay reaches 3 s"),
]
CHANGES: dict[str, Any] = {"decision": None, "withheld": WITHHELD, "flags": FLAGS}


def accepted(value: str) -> dict[str, tuple[None, str]]:
    return {"accept_warnings": (None, value)}


async def test_withheld_decision_is_null_and_names_its_warnings(service: RunningService) -> None:
    prediction_id = (await service.submit()).json()["id"]
    study = service.worker.begin(prediction_id)
    assert not study.accept_warnings
    with service.services.database.session() as session:
        stored = replace(result(), decision=None, withheld=WITHHELD, flags=FLAGS)
        assert job_state.succeed(session, study, stored)
    answer = (await service.http.get(f"/v1/predictions/{prediction_id}")).json()
    assert (answer["decision"], answer["withheld"]) == (None, WITHHELD)
    assert answer["summary"] == "Decision withheld: alignment poor, Tmax doubtful."
    assert answer["probability"] == result().probability
    assert answer["attribution"]["clinical"]
    assert [flag["severity"] for flag in answer["flags"]] == ["info", "warning", "warning"]
    assert all(flag["action"] for flag in answer["flags"])
    (listed,) = (await service.http.get("/v1/predictions")).json()["items"]
    assert (listed["decision"], listed["withheld"]) == (None, WITHHELD)
    draft = {"reviewer": "R-1", "verdict": "agree", "comment": ""}
    review = await service.http.post(f"/v1/predictions/{prediction_id}/reviews", json=draft)
    assert (review.status_code, review.json()["code"]) == (409, "conflict")
    assert "withheld" in review.json()["detail"]


async def test_answer_without_warnings_withholds_nothing(service: RunningService) -> None:
    prediction_id = (await service.submit()).json()["id"]
    service.worker.succeed(prediction_id)
    answer = (await service.http.get(f"/v1/predictions/{prediction_id}")).json()
    assert answer["decision"]["refractory"] is True
    assert (answer["withheld"], answer["accept_warnings"]) == ([], False)


async def test_accepted_warnings_are_stored_and_audited(service: RunningService) -> None:
    sent = (await service.submit(**accepted("true"))).json()
    assert sent["accept_warnings"] is True
    assert service.worker.begin(sent["id"]).accept_warnings
    with service.services.database.reading() as session:
        entry = session.scalars(select(AuditRow).where(AuditRow.target == sent["id"])).one()
    assert entry.detail["accept_warnings"] is True
    assert (await service.submit(**accepted("false"))).json()["accept_warnings"] is False
    assert (await service.submit(**accepted(""))).json()["accept_warnings"] is False  # as a browser sends it


async def test_other_values_of_the_field_are_refused(service: RunningService) -> None:
    refused = await service.submit(**accepted("yes"))
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "accept_warnings")


async def test_accepted_warnings_are_part_of_the_fingerprint(service: RunningService) -> None:
    def send(**parts: tuple[None, str]) -> Any:
        files = {"cta": ("x.nii.gz", volume(), "application/octet-stream"), **parts}
        headers = {"Idempotency-Key": "k-1", "Prefer": "respond-async"}
        return service.http.post("/v1/predictions", files=files, headers=headers)

    assert (await send()).status_code == 202
    again = await send(**accepted("true"))
    assert (again.status_code, again.json()["code"]) == (422, "idempotency-key-reused")


def test_fhir_notes_start_with_the_withheld_decision() -> None:
    assessment = fhir.bundle(prediction(**CHANGES))["entry"][0]["resource"]
    assert assessment["prediction"][0]["rationale"].startswith("Decision withheld: alignment poor, Tmax doubtful.")
    notes = [note["text"] for note in assessment["note"]]
    assert notes[0] == "Decision withheld: alignment poor, Tmax doubtful."
    assert [note.partition(":")[0] for note in notes[1:4]] == ["Warning", "Warning", "Info"]
    assert "What to do: Look at the aligned volumes." in notes[1]


def test_card_starts_with_the_withheld_decision_and_says_what_to_do() -> None:
    (card,) = cds.cards(prediction(**CHANGES), "")["cards"]
    assert card["summary"] == ("Decision withheld: alignment poor, Tmax doubtful. Probability 38 %. Research use only.")
    assert card["indicator"] == "warning"
    lines = [line for line in card["detail"].splitlines() if line]
    assert lines[0] == "**Decision withheld: alignment poor, Tmax doubtful.**"
    assert lines[1].startswith("- **Warning:** cta: the alignment to MNI space is poor. What to do: Look at")
    assert "threshold" not in card["summary"] + card["detail"]


def test_card_with_many_warnings_is_short_enough() -> None:
    codes = [code for code, kind in CATALOGUE.items() if kind.severity is Severity.WARNING]
    flags = [Flag(code=code, detail="detail") for code in codes]
    (card,) = cds.cards(prediction(decision=None, withheld=codes, flags=flags), "")["cards"]
    assert len(card["summary"]) < 140
    assert card["summary"].endswith("Probability 38 %. Research use only.")


def test_accepted_warnings_come_first_in_the_card() -> None:
    (card,) = cds.cards(prediction(flags=FLAGS, accept_warnings=True), "")["cards"]
    assert card["summary"].startswith("Refractory: the probability of 38 % is above the threshold of 22 %. There are")
    assert card["indicator"] == "warning"
