"""Study Instance UID and accession number: validated, returned, searched, and erased with the prediction."""

from __future__ import annotations

import logging

import pytest
from sqlalchemy import select

from app.database.tables import AuditRow, PredictionRow
from tests.api.conftest import RunningService
from tests.api.responses import problem

pytestmark = pytest.mark.anyio

UID = "1.2.840.113619.2.55.3.4242424242.0"
ACCESSION = "RAD 2026/004711"


def text(value: str) -> tuple[None, bytes]:
    return None, value.encode()


@pytest.mark.parametrize("uid", [UID, "2.25." + "9" * 38, "0.0", "1." + "2." * 30 + "34"])
@pytest.mark.parametrize("accession", [ACCESSION, "A", "a#1:2+3", "0" * 16])
async def test_valid_identifiers_are_stored_and_returned(
    shared_service: RunningService, uid: str, accession: str
) -> None:
    sent = await shared_service.submit(study_instance_uid=text(uid), accession_number=text(accession))
    assert sent.status_code == 202
    assert (sent.json()["study_instance_uid"], sent.json()["accession_number"]) == (uid, accession)
    study = shared_service.worker.begin(sent.json()["id"])
    assert (study.study_instance_uid, study.accession_number) == (uid, accession)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("study_instance_uid", "1.2.840.01"),  # a number with a leading 0
        ("study_instance_uid", "3.1"),
        ("study_instance_uid", "1.2..3"),
        ("study_instance_uid", "1.2.3."),
        ("study_instance_uid", "1"),
        ("study_instance_uid", "1.2.x"),
        ("study_instance_uid", "1.2." + "3" * 61),  # 65 characters
        ("study_instance_uid", "urn:oid:1.2.3"),
        ("accession_number", "0" * 17),
        ("accession_number", "A\\B"),
        ("accession_number", " A"),
        ("accession_number", "A "),
        ("accession_number", "A\nB"),
        ("accession_number", "Ä1"),
    ],
)
async def test_invalid_identifier_is_refused_without_its_value(
    shared_service: RunningService, name: str, value: str
) -> None:
    refused = await shared_service.submit(**{name: text(value)})
    assert problem(refused) == (422, "invalid-request")
    assert refused.json()["errors"][0]["field"] == name
    assert value.strip() not in refused.json()["detail"] or len(value) < 3


async def test_empty_identifiers_of_a_browser_count_as_not_sent(shared_service: RunningService) -> None:
    sent = await shared_service.submit(study_instance_uid=text(""), accession_number=text(""))
    assert sent.status_code == 202
    assert not {"study_instance_uid", "accession_number"} & set(sent.json())


async def test_list_finds_a_study_by_its_identifiers(service: RunningService) -> None:
    wanted = (await service.submit(study_instance_uid=text(UID), accession_number=text(ACCESSION))).json()["id"]
    await service.submit(study_instance_uid=text(UID + ".1"), accession_number=text("other"))
    for filters in ({"study_instance_uid": UID}, {"accession_number": ACCESSION}):
        page = (await service.http.get("/v1/predictions", params=filters)).json()
        assert [each["id"] for each in page["items"]] == [wanted]
    assert problem(await service.http.get("/v1/predictions", params={"study_instance_uid": "1.02"})) == (
        422,
        "invalid-request",
    )


async def test_identifiers_are_erased_with_the_prediction(service: RunningService) -> None:
    sent = await service.submit(study_instance_uid=text(UID), accession_number=text(ACCESSION))
    assert (await service.http.delete(f"/v1/predictions/{sent.json()['id']}")).status_code == 204
    with service.services.database.reading() as session:
        row = session.get_one(PredictionRow, sent.json()["id"])
        assert (row.study_instance_uid, row.accession_number) == (None, None)


async def test_identifiers_are_in_no_log_metric_or_audit_entry(
    service: RunningService, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        sent = await service.submit(study_instance_uid=text(UID), accession_number=text(ACCESSION))
        await service.submit(study_instance_uid=text(UID), accession_number=text(ACCESSION + "-refused"))
        await service.http.get("/v1/predictions", params={"accession_number": ACCESSION})
        metrics = (await service.http.get("/metrics")).text
    with service.services.database.reading() as session:
        audit = str([(row.target, row.detail) for row in session.scalars(select(AuditRow))])
    assert sent.json()["id"] in audit
    for output in (
        metrics,
        audit,
        "\n".join(record.getMessage() for record in caplog.records if "rlvo" in record.name),
    ):
        assert UID not in output
        assert ACCESSION not in output
