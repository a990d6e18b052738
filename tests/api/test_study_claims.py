"""A claim of a study lasts as long as its assembly, and a conversion is prepared while a study arrives."""

from __future__ import annotations

import time
from typing import Any

import pytest

from app.api import study_intake
from app.database import studies
from app.dicom.conversion import Conversion
from tests.api.conftest import RunningService
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


async def test_a_process_is_started_for_a_study_that_arrives(service: RunningService) -> None:
    spare = service.services.spare_conversion
    study_intake._prepare(service.services)
    assert spare.take() is None
    uid = await receive(service, *cta())
    study_intake._prepare(service.services)
    assert spare._process is not None
    spare.close()
    await completed(service, uid)
    study_intake._prepare(service.services)
    assert spare.take() is None


async def test_a_claim_is_kept_while_its_assembly_runs(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = 0.9
    service.services.settings = service.services.settings.model_copy(update={"lease": lease})
    in_process, free = study_intake.convert_isolated, []

    def slow(*given: Any, **options: Any) -> Conversion:
        end = time.monotonic() + 3 * lease
        while time.monotonic() < end:
            with service.services.database.reading() as session:
                free.append(studies.is_due(session))
            time.sleep(lease / 10)
        return in_process(*given, **options)

    monkeypatch.setattr(study_intake, "convert_isolated", slow)
    uid = await receive(service, *cta())
    study = await completed(service, uid)
    assert (study["state"], len(study["predictions"])) == ("predicted", 1)
    assert free
    assert not any(free)


async def test_a_claim_whose_assembly_does_not_end_is_given_up(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"lease": 0.3, "dicom_timeout": 1.0, "receive_timeout": 1.0}
    monkeypatch.setattr(study_intake, "SPARE_SECONDS", -2.0)
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
