"""A claim of a study lasts as long as its assembly, and a conversion is prepared while a study arrives."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from sqlalchemy import select

from app.api import stow, study_intake
from app.core.config import Settings
from app.database import studies
from app.database.study_tables import StudyRow
from app.dicom.conversion import Conversion
from tests.api.conftest import RunningService
from tests.api.test_stow import RELATED, body
from tests.api.test_studies import (
    assembled_by_the_test,
    completed,
    converted_in_this_process,
    cta,
    read,
    receive,
    settings,
)

__all__ = ["assembled_by_the_test", "converted_in_this_process", "settings"]

pytestmark = pytest.mark.anyio

RUN = study_intake.run  # before a fixture replaces it


async def test_a_process_reads_a_study_that_arrives_until_it_is_claimed_or_cancelled(service: RunningService) -> None:
    spare = service.services.spare_conversions
    study_intake._prepare(service.services)
    assert (spare._waiting, spare._server) == ({}, None)
    sent = cta()
    uid = await receive(service, *sent)
    study_intake._prepare(service.services)
    (waiting,) = spare._waiting.values()
    assert len(waiting.sent) == len(sent)
    assert all(path.is_file() for path in waiting.sent)
    study_intake._prepare(service.services)
    assert list(spare._waiting.values()) == [waiting]
    await service.http.delete(f"/v1/studies/{uid}")
    study_intake._prepare(service.services)
    assert not spare._waiting
    assert waiting.process.poll() is not None
    spare.close()


async def test_a_claim_is_kept_while_its_assembly_runs(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = 3.0  # a third of it passes between two renewals, and a busy machine can delay each
    service.services.settings = service.services.settings.model_copy(update={"lease": lease})
    in_process = study_intake.convert_isolated
    free: list[bool] = []
    ends: list[float] = []

    def slow(*given: Any, **options: Any) -> Conversion:
        limit = time.monotonic() + 60
        while not any(free) and time.monotonic() < limit and (not ends or ends[-1] - ends[0] < lease):
            with service.services.database.reading() as session:
                free.append(studies.is_due(session))
                due = session.scalars(select(StudyRow.due)).one()
            assert due
            ends.append(due.timestamp())
            time.sleep(lease / 30)
        return in_process(*given, **options)

    monkeypatch.setattr(study_intake, "convert_isolated", slow)
    uid = await receive(service, *cta())
    study = await completed(service, uid)
    assert (study["state"], len(study["predictions"])) == ("predicted", 1)
    assert free
    assert not any(free)
    assert ends[-1] - ends[0] >= lease


async def test_a_claim_whose_assembly_does_not_end_is_given_up(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"lease": 0.3, "dicom_timeout": 1.0, "receive_timeout": 1.0}
    monkeypatch.setattr(Settings, "longest_intake", 0.0)
    service.services.settings = service.services.settings.model_copy(update=limits)
    in_process, free = study_intake.convert_isolated, []

    def slow(*given: Any, **options: Any) -> Conversion:
        time.sleep(0.6)
        with service.services.database.reading() as session:
            free.append(studies.is_due(session))
        return in_process(*given, **options)

    monkeypatch.setattr(study_intake, "convert_isolated", slow)
    uid = await receive(service, *cta())
    await service.http.post(f"/v1/studies/{uid}/complete")
    assert await study_intake.assemble_next(service.services)
    assert free == [True]


async def test_a_claim_of_a_killed_process_is_taken_over_and_predicts_once(service: RunningService) -> None:
    uid = await receive(service, *cta())
    await service.http.post(f"/v1/studies/{uid}/complete")
    with service.services.database.session() as session:
        first = studies.claim(session, lease=-1)
        second = studies.claim(session, lease=60)
    assert first is not None
    assert second is not None
    study_intake._assemble(service.services, second)
    study_intake._assemble(service.services, first)
    assert len((await read(service, uid))["predictions"]) == 1


async def test_a_study_that_is_said_to_be_complete_is_assembled_at_once(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_intake, "IDLE_PAUSE", 3600.0)
    looked = anyio.Event()

    def noted(_: object) -> bool:
        anyio.from_thread.run_sync(looked.set)
        return False

    monkeypatch.setattr(study_intake, "_prepare", noted)
    uid = await receive(service, *cta())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(RUN, service.services)
        await looked.wait()
        assert (await service.http.post(f"/v1/studies/{uid}/complete")).status_code == 202
        with anyio.fail_after(60):
            while (await read(service, uid))["state"] != "predicted":
                await anyio.sleep(0.05)
        tasks.cancel_scope.cancel()


async def test_a_study_is_indexed_while_its_request_arrives(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    services, sent = service.services, body(*cta())
    monkeypatch.setattr(stow, "_TOGETHER", 2)
    pause = services.instance_received.pause
    monkeypatch.setattr(services.instance_received, "pause", lambda most: pause(3600 * most))
    services.instance_received.note()  # ends the pause that lasts, of one second
    arrived: list[int] = []

    async def chunks() -> AsyncIterator[bytes]:
        yield sent[: len(sent) // 2]
        with anyio.fail_after(60):
            while not arrived:
                await services.study_due.pause(3600)
                with services.database.reading() as session:
                    arrived.extend(count for _, count in studies.arriving(session, most=1))
        yield sent[len(sent) // 2 :]

    answer = await service.http.post("/dicomweb/studies", content=chunks(), headers={"Content-Type": RELATED})
    assert answer.status_code == 200, answer.text
    assert 0 < arrived[0] < len(cta())
