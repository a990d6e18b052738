"""The clinical record of a study by its accession number, before and after the images."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from sqlalchemy import select

from app.database import records, studies
from app.database.session import now
from app.database.study_tables import StudyRow, WaitingRecordRow
from tests.api.conftest import RunningService
from tests.api.responses import problem
from tests.api.test_stow import body as related
from tests.api.test_stow import store
from tests.api.test_study_pulls import keyed, port
from tests.dicom.studies import contents, plan
from tests.worker.test_dicom_pull import ACCESSION, SENT, UID, numbered

__all__ = ["keyed", "port"]

pytestmark = pytest.mark.anyio

URL = "/v1/study-records"
NUMBER = {"accession_number": ACCESSION}
OTHER_STUDY = numbered(contents(plan())[0].replace(UID.encode(), (UID[:-1] + str((int(UID[-1]) + 1) % 10)).encode()))


def waiting(service: RunningService) -> list[WaitingRecordRow]:
    with service.services.database.reading() as session:
        return list(session.scalars(select(WaitingRecordRow)))


def joined(service: RunningService, uid: str = UID) -> object:
    with service.services.database.reading() as session:
        return session.scalars(select(StudyRow.clinical).where(StudyRow.uid == uid)).one()


async def test_a_record_waits_for_its_study_and_is_joined_when_it_arrives(keyed: RunningService) -> None:
    for age in (70, 71):  # the later one replaces the earlier one
        answer = await keyed.http.put(URL, params=NUMBER, json={"age": age})
        assert answer.status_code == 202
        assert answer.json()["study"] is None
        assert answer.json()["kept_until"] is not None
    (row,) = waiting(keyed)
    assert ACCESSION not in repr(vars(row))
    assert (await store(keyed, related(*SENT[:2]))).status_code == 200
    keyed.services.index_all()
    study = (await keyed.http.get(f"/v1/studies/{UID}")).json()
    assert study["clinical"]
    assert joined(keyed) == {"age": 71.0}
    assert waiting(keyed) == []


async def test_a_record_is_joined_to_the_study_that_is_here(keyed: RunningService) -> None:
    assert (await store(keyed, related(SENT[0]))).status_code == 200
    answer = await keyed.http.put(URL, params=NUMBER, json={"age": 70})  # without a pause for the indexing
    assert answer.status_code == 200
    assert (answer.json()["study"]["uid"], answer.json()["study"]["clinical"]) == (UID, True)
    assert answer.json()["kept_until"] is None
    assert joined(keyed) == {"age": 70.0}
    assert waiting(keyed) == []


async def test_own_variables_are_checked_before_the_record_waits(keyed: RunningService) -> None:
    answer = await keyed.http.put(URL, params=NUMBER, json={"age": 70, "own": {"ddimer": 5}})
    assert problem(answer) == (422, "clinical-invalid")
    assert answer.json()["errors"] == [{"field": "own.ddimer", "detail": "is no own variable of this model"}]
    assert waiting(keyed) == []


async def test_several_studies_with_one_number_are_a_conflict(keyed: RunningService) -> None:
    assert (await store(keyed, related(SENT[0], OTHER_STUDY))).status_code == 200
    answer = await keyed.http.put(URL, params=NUMBER, json={"age": 70})
    assert problem(answer) == (409, "conflict")
    assert ACCESSION not in answer.text
    assert joined(keyed) is None


async def test_a_record_by_uid_is_kept_and_a_study_of_another_tenant_gets_nothing(keyed: RunningService) -> None:
    assert (await keyed.http.put(f"/v1/studies/{UID}/clinical", json={"age": 50})).status_code == 200
    assert (
        await keyed.http.put(URL, params=NUMBER, json={"age": 70})
    ).status_code == 202  # its number is not known yet
    with keyed.services.database.session() as session:
        (row,) = session.scalars(select(WaitingRecordRow))
        records.keep(session, "another", row.accession, {"age": 30.0})
    await store(keyed, related(SENT[0]))
    keyed.services.index_all()
    assert joined(keyed) == {"age": 50.0}
    assert {row.caller for row in waiting(keyed)} == {"local", "another"}
    assert (await keyed.http.delete(f"/v1/studies/{UID}")).status_code == 204  # with the record that waits for it
    assert {row.caller for row in waiting(keyed)} == {"another"}


async def test_a_record_that_is_committed_beside_the_arrival_is_joined_by_the_assembly(keyed: RunningService) -> None:
    await store(keyed, related(SENT[0]))
    keyed.services.index_all()
    with keyed.services.database.session() as session:
        row = session.scalars(select(StudyRow)).one()
        assert row.accession is not None
        records.keep(session, "local", row.accession, {"age": 70.0})
        row.due = now()
    with keyed.services.database.session() as session:
        claimed = studies.claim(session, lease=60.0)
        assert claimed is not None
        assert claimed.clinical == {"age": 70.0}
    assert waiting(keyed) == []


async def test_a_waiting_record_is_withdrawn_or_forgotten(keyed: RunningService) -> None:
    await keyed.http.put(URL, params=NUMBER, json={"age": 70})
    assert (await keyed.http.delete(URL, params=NUMBER)).status_code == 204
    assert problem(await keyed.http.delete(URL, params=NUMBER)) == (404, "not-found")
    await keyed.http.put(URL, params=NUMBER, json={"age": 70})
    with keyed.services.database.session() as session:
        records.forget(session, now() - timedelta(hours=1))
        assert len(list(session.scalars(select(WaitingRecordRow)))) == 1
        records.forget(session, now() + timedelta(hours=1))
        assert list(session.scalars(select(WaitingRecordRow))) == []


async def test_bad_records_are_named(keyed: RunningService, service: RunningService) -> None:
    for content, expected in (
        (b"{", (400, "malformed-json")),
        (json.dumps({"age": 900}).encode(), (422, "clinical-invalid")),
    ):
        answer = await keyed.http.put(URL, params=NUMBER, content=content)
        assert problem(answer) == expected
    assert problem(await keyed.http.put(URL, json={"age": 70})) == (422, "invalid-request")
    assert problem(await keyed.http.put(f"{URL}?accession_number=%20", json={"age": 70})) == (422, "invalid-request")
    answer = await service.http.put(URL, params=NUMBER, json={"age": 70})
    assert problem(answer) == (422, "invalid-request")
    assert "RLVO_DICOM_RETURN_KEY" in answer.json()["detail"]
