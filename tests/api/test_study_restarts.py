"""A study that was cancelled, or whose prediction ended without an answer, is predicted again after a call."""

from __future__ import annotations

import pytest
from sqlalchemy import select, update

from app.database.session import now
from app.database.study_tables import StudyRow
from app.sdk.types import Status
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

WAITS = 3600.0  # quiet time of the fixture ``settings``


def due_in(service: RunningService) -> float:
    """Seconds until the study is assembled."""
    with service.services.database.reading() as session:
        due = session.scalars(select(StudyRow.due)).one()
    assert due is not None
    return (due - now()).total_seconds()


async def statuses(service: RunningService, uid: str) -> list[str]:
    made = (await read(service, uid))["predictions"]
    return [(await service.http.get(f"/v1/predictions/{each['id']}")).json()["status"] for each in made]


async def test_a_cancelled_study_with_the_same_inputs_is_predicted_after_a_call(service: RunningService) -> None:
    uid = await receive(service, *cta())
    await completed(service, uid)
    await service.http.post(f"/v1/studies/{uid}/cancel")
    study = await completed(service, uid)
    assert [(each["revision"], each["why"]) for each in study["predictions"]] == [(1, "call"), (2, "call")]
    assert await statuses(service, uid) == [Status.CANCELLED, Status.QUEUED]
    assert (await completed(service, uid))["predictions"] == study["predictions"]  # the second one has not ended


async def test_a_failed_prediction_is_repeated_by_a_call_and_by_nothing_else(service: RunningService) -> None:
    uid = await receive(service, *cta())
    prediction = (await completed(service, uid))["predictions"][0]["id"]
    service.worker.fail(prediction)
    with service.services.database.session() as session:
        session.execute(update(StudyRow).values(state="receiving", completed="quiet", due=now()))
    await assemble(service)
    assert await statuses(service, uid) == [Status.FAILED]
    await completed(service, uid)
    assert await statuses(service, uid) == [Status.FAILED, Status.QUEUED]


async def test_an_answer_is_not_repeated_by_a_call_after_a_cancellation(service: RunningService) -> None:
    uid = await receive(service, *cta())
    prediction = (await completed(service, uid))["predictions"][0]["id"]
    service.worker.succeed(prediction)
    await service.http.post(f"/v1/studies/{uid}/cancel")
    assert len((await completed(service, uid))["predictions"]) == 1
    assert await statuses(service, uid) == [Status.SUCCEEDED]


@pytest.mark.parametrize("expected", [32, 40])
async def test_a_cancelled_study_receives_again_after_a_stated_number(service: RunningService, expected: int) -> None:
    uid = await receive(service, *cta())
    await service.http.post(f"/v1/studies/{uid}/cancel")
    answer = await service.http.post(f"/v1/studies/{uid}/complete", params={"instances": expected})
    assert (answer.status_code, answer.json()["state"]) == (202, "receiving")
    await service.http.put(f"/v1/studies/{uid}/clinical", json={"age": 70})
    assert due_in(service) > WAITS / 2  # it is complete after the quiet time, if no more arrives
    await receive(service, *ncct())
    await assemble(service)
    study = await read(service, uid)
    if expected == study["instances"]:
        assert (study["state"], study["completed"], len(study["predictions"])) == ("predicted", "count", 1)
    else:
        assert (study["state"], study["completed"]) == ("receiving", None)


async def test_a_cancelled_study_without_images_waits_for_them_again(service: RunningService) -> None:
    uid = "1.2.3"
    await service.http.put(f"/v1/studies/{uid}/clinical", json={"age": 70})
    await service.http.post(f"/v1/studies/{uid}/cancel")
    answer = await service.http.post(f"/v1/studies/{uid}/complete", params={"instances": 16})
    assert answer.json()["state"] == "waiting"


async def test_a_record_ends_the_wait_of_a_study_whose_instances_have_all_arrived(service: RunningService) -> None:
    """As a record that is there before the last instance does."""
    uid = await receive(service, *cta())
    await service.http.post(f"/v1/studies/{uid}/complete", params={"instances": 16})
    assert (await read(service, uid))["completed"] == "count"
    assert due_in(service) > WAITS / 2
    await service.http.put(f"/v1/studies/{uid}/clinical", json={"age": 70})
    assert due_in(service) <= 0
    await assemble(service)
    assert (await read(service, uid))["state"] == "predicted"


@pytest.mark.parametrize(("call", "path"), [("GET", ""), ("PUT", "/roles"), ("POST", "/cancel"), ("POST", "/complete")])
async def test_a_study_is_known_as_soon_as_its_sender_was_answered(
    service: RunningService, call: str, path: str
) -> None:
    reception, sent = service.services.reception, cta()[0]
    draft = reception.draft()
    draft.write_bytes(sent)
    uid = reception.accept("local", draft).head.study_uid  # as the listener does, in a process of its own
    answer = await service.http.request(call, f"/v1/studies/{uid}{path}", json={} if path == "/roles" else None)
    assert (answer.is_success, answer.json()["instances"]) == (True, 1), answer.text


async def test_a_larger_number_is_awaited_also_after_the_first_was_reached(service: RunningService) -> None:
    uid = await receive(service, *cta())
    await service.http.put(f"/v1/studies/{uid}/clinical", json={"age": 70})
    await service.http.post(f"/v1/studies/{uid}/complete", params={"instances": 16})
    assert due_in(service) <= 0
    await service.http.post(f"/v1/studies/{uid}/complete", params={"instances": 32})
    assert due_in(service) > WAITS / 2
    await receive(service, *ncct())
    assert due_in(service) <= 0
