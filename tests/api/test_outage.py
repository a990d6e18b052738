"""A database that is lost during a request: the caller can send the study again with the same key."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from app.database import idempotency
from app.storage.local import Storage, Writer
from tests.api.conftest import RunningService, volume

pytestmark = pytest.mark.anyio


async def submit(service: RunningService) -> httpx.Response:
    return await service.http.post(
        "/v1/predictions",
        files={"cta": ("x.nii.gz", volume())},
        headers={"Prefer": "respond-async", "Idempotency-Key": "study-1"},
    )


def move_database(service: RunningService, source: Path, target: Path) -> None:
    """Moves the SQLite file; the service then finds an empty one, which has no tables."""
    service.services.database.close()
    source.rename(target)
    service.services.database.close()


async def test_key_of_a_refused_study_is_free_after_an_outage_of_the_database(
    service: RunningService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, away = tmp_path / "rlvo.sqlite", tmp_path / "away.sqlite"
    writer = Storage.writer

    def lose_the_database(storage: Storage) -> Writer:
        if not away.exists():
            move_database(service, database, away)
        return writer(storage)

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "writer", lose_the_database)
        refused = await submit(service)
        assert (refused.status_code, refused.json()["code"]) == (503, "database-unavailable"), refused.text
    move_database(service, away, database)
    accepted = await submit(service)
    assert accepted.status_code == 202, accepted.text
    assert (await submit(service)).json()["id"] == accepted.json()["id"]


async def test_key_of_a_study_in_progress_is_not_released(service: RunningService) -> None:
    held = await service.services.write(idempotency.reserve, "local", "study-2", lease=60)
    assert held.token
    answer = await service.http.post(
        "/v1/predictions", files={"cta": ("x.nii.gz", volume())}, headers={"Idempotency-Key": "study-2"}
    )
    assert answer.status_code == 409
