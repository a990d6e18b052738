"""An erased prediction of a received study comes back by a call only."""

from __future__ import annotations

import pytest
from sqlalchemy import select, update

from app.api import study_intake
from app.database import destinations, erasures, pulls, studies
from app.database.destinations import Destination, DestinationKind
from app.database.session import now
from app.database.study_tables import InstanceRow, StudyRow
from app.sdk.studies import PullState
from tests.api.conftest import RunningService
from tests.api.test_studies import (
    assemble,
    assembled_by_the_test,
    completed,
    converted_in_this_process,
    cta,
    ncct,
    read,
    receive,
    settings,
)

__all__ = ["assembled_by_the_test", "converted_in_this_process", "settings"]

pytestmark = pytest.mark.anyio


async def predicted(service: RunningService) -> tuple[str, str]:
    """UIDs of a study and of its prediction."""
    uid = await receive(service, *cta())
    (made,) = (await completed(service, uid))["predictions"]
    return uid, made["id"]


async def erase(service: RunningService, prediction: str) -> None:
    assert (await service.http.delete(f"/v1/predictions/{prediction}")).status_code == 204


async def quiet_time_ends(service: RunningService) -> None:
    with service.services.database.session() as session:
        session.execute(update(StudyRow).where(StudyRow.due.is_not(None)).values(due=now()))
    await assemble(service)


async def revisions(service: RunningService, uid: str) -> tuple[str, list[int]]:
    """State of a study, and the revisions that are not erased."""
    study = await read(service, uid)
    return study["state"], [each["revision"] for each in study["predictions"]]


async def test_late_instances_make_no_prediction_after_an_erasure(service: RunningService) -> None:
    uid, prediction = await predicted(service)
    await erase(service, prediction)
    await receive(service, *ncct())
    await quiet_time_ends(service)
    assert await revisions(service, uid) == ("cancelled", [])
    assert (await completed(service, uid))["state"] == "predicted"
    assert await revisions(service, uid) == ("predicted", [2])


async def test_late_instances_make_a_revision_if_a_later_one_is_kept(service: RunningService) -> None:
    uid, prediction = await predicted(service)
    assert (await service.http.put(f"/v1/studies/{uid}/clinical", json={"age": 70})).status_code == 200
    await assemble(service)
    await erase(service, prediction)
    assert await revisions(service, uid) == ("predicted", [2])
    assert (await completed(service, uid))["state"] == "predicted"
    assert await revisions(service, uid) == ("predicted", [2])  # nothing has changed
    await receive(service, *ncct())
    await quiet_time_ends(service)
    assert await revisions(service, uid) == ("predicted", [2, 3])


async def test_roles_and_a_record_make_no_prediction_after_an_erasure(service: RunningService) -> None:
    uid, prediction = await predicted(service)
    series = (await read(service, uid))["series"][0]["uid"]
    await erase(service, prediction)
    assert (await service.http.put(f"/v1/studies/{uid}/clinical", json={"age": 70})).status_code == 200
    assert (await service.http.put(f"/v1/studies/{uid}/roles", json={series: "cta"})).status_code == 200
    await quiet_time_ends(service)
    assert await revisions(service, uid) == ("cancelled", [])


async def test_an_erasure_stops_a_study_that_is_received_or_assembled(service: RunningService) -> None:
    uid, prediction = await predicted(service)
    await receive(service, *ncct())
    with service.services.database.session() as session:
        session.execute(update(StudyRow).values(due=now()))
    with service.services.database.session() as session:
        claimed = studies.claim(session, lease=60)
    assert claimed is not None
    await erase(service, prediction)
    study_intake._assemble(service.services, claimed)
    await quiet_time_ends(service)
    assert await revisions(service, uid) == ("cancelled", [])


async def test_retention_lets_a_study_go_on_that_has_received_more(service: RunningService) -> None:
    uid, prediction = await predicted(service)
    await receive(service, *ncct())
    with service.services.database.session() as session:
        erasures.erase_all(session, [prediction], actor="worker", why=erasures.RETENTION)
    await quiet_time_ends(service)
    assert await revisions(service, uid) == ("predicted", [2])


async def test_late_instances_make_no_prediction_after_retention(service: RunningService) -> None:
    uid, prediction = await predicted(service)
    with service.services.database.session() as session:
        erasures.erase_all(session, [prediction], actor="worker", why=erasures.RETENTION)
    await receive(service, *ncct())
    await quiet_time_ends(service)
    assert await revisions(service, uid) == ("cancelled", [])


async def test_a_study_is_sent_again_after_its_files_are_deleted(service: RunningService) -> None:
    uid, prediction = await predicted(service)
    await erase(service, prediction)
    with service.services.database.session() as session:
        session.execute(update(InstanceRow).values(digest=None))
    await receive(service, *cta())
    assert await revisions(service, uid) == ("cancelled", [])
    await completed(service, uid)
    assert await revisions(service, uid) == ("predicted", [2])


def begin_pull(service: RunningService, uid: str) -> tuple[str, int]:
    with service.services.database.session() as session:
        archive = destinations.create(session, "local", "PACS", DestinationKind.STOW, "http://127.0.0.1:9/studies")
        return pulls.begin(session, archive, uid)


@pytest.mark.parametrize("stop", ["erase", "cancel"])
async def test_a_pull_begins_a_stopped_study_again_if_it_is_asked_for_later(service: RunningService, stop: str) -> None:
    uid, prediction = await predicted(service)
    study_id, run = begin_pull(service, uid)
    if stop == "erase":
        await erase(service, prediction)
    else:
        assert (await service.http.post(f"/v1/studies/{uid}/cancel")).status_code == 200
    await receive(service, *ncct())

    def ended(run: int) -> None:
        with service.services.database.session() as session:
            assert pulls.note(session, study_id, run, PullState.DONE, "", 16)

    ended(run)
    await quiet_time_ends(service)
    assert (await read(service, uid))["state"] == "cancelled"
    with service.services.database.session() as session:
        archive = session.scalars(select(StudyRow.pull)).one()
        assert archive is not None
        found: Destination | None = destinations.find(session, archive["archive"])
        assert found is not None
        _, run = pulls.begin(session, found, uid)
    ended(run)
    await assemble(service)
    assert (await read(service, uid))["state"] == "predicted"
