"""Predictions that an earlier release stored are read, listed and exported with the names of this release."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import text

from tests.api.conftest import RunningService
from tests.database.results import result

pytestmark = pytest.mark.anyio

STUDENT = {"level": 0.9, "low": 0.05, "high": 0.77}
"""An interval as earlier releases stored it: Student's, with a level that it did not have."""


async def stored_by_an_earlier_release(service: RunningService) -> str:
    """Submits a study and replaces its interval by one in the form of the earlier release."""
    prediction_id = str((await service.submit()).json()["id"])
    service.worker.succeed(prediction_id)
    with service.services.database.session() as session:
        session.execute(
            text("UPDATE predictions SET interval = :interval WHERE id = :id"),
            {"interval": json.dumps(STUDENT), "id": prediction_id},
        )
    return prediction_id


async def test_stored_interval_with_a_level_is_read_as_the_spread_of_the_folds(service: RunningService) -> None:
    prediction_id = await stored_by_an_earlier_release(service)
    folds = result().folds
    spread = {"kind": "fold-spread", "low": min(folds), "high": max(folds)}
    assert (await service.http.get(f"/v1/predictions/{prediction_id}")).json()["interval"] == spread
    (listed,) = (await service.http.get("/v1/predictions")).json()["items"]
    assert listed["interval"] == spread


async def test_stored_interval_with_a_level_is_exported_without_it(service: RunningService) -> None:
    prediction_id = await stored_by_an_earlier_release(service)
    bundle = (await service.http.get(f"/v1/predictions/{prediction_id}/fhir")).json()
    rationale = bundle["entry"][0]["resource"]["prediction"][0]["rationale"]
    assert "Spread of the three networks 31.0 to 35.0 percent." in rationale
    card = (await service.http.get(f"/v1/predictions/{prediction_id}/cds-hooks")).json()["cards"][0]
    assert "spread of the three networks 31 % to 35 %" in card["summary"]
    assert "interval" not in rationale + card["summary"]
