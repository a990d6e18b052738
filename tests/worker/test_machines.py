"""Workers on several machines, over PostgreSQL and S3: whichever is killed, and whenever, loses and doubles nothing."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import text

from app.database import predictions
from app.database.session import Database
from app.sdk.types import Status
from app.worker.pipeline import TRIES
from tests.conftest import CREDENTIALS
from tests.factory import tiny_version
from tests.fork_server import Nursery
from tests.site import Site, recorded, wait

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture
def site(
    tmp_path: Path, database_url: str, database: Database, nursery: Nursery, bucket: str, s3: str
) -> Iterator[Site]:
    store = tmp_path / "models"
    tiny_version(store)
    site = Site(tmp_path, database_url, database, store, nursery, blobs=bucket, endpoint=s3)
    yield site
    for keeper in site.keepers:
        keeper.kill()


def machine(site: Site, name: str) -> None:
    """A worker that shares database and bucket with the others, and no folder: its death shows by its silence alone."""
    site.worker(RLVO_DATA_DIR=str(site.folder / name), **CREDENTIALS)


def shoot(site: Site, chance: random.Random) -> None:
    """SIGKILL to one of the workers, whatever it is doing; its keeper starts another one, as a supervisor does."""
    keeper = chance.choice(site.keepers)
    lives = keeper.lives
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(keeper.worker, signal.SIGKILL)
        wait(lambda: keeper.lives > lives)


def on_its_last_try(site: Site) -> bool:
    """Whether one more death would put a prediction into quarantine: so many shots at one job are what a poison job
    looks like, and quarantine has tests of its own.
    """
    with site.database.reading() as session:
        most = session.scalar(text("SELECT max(attempts) FROM predictions WHERE status IN ('queued', 'running')"))
    return (most or 0) >= TRIES


@pytest.mark.parametrize(
    ("machines", "studies", "kills"), [(2, 8, 2), pytest.param(4, 200, 40, marks=pytest.mark.soak)]
)
def test_whichever_is_killed_nothing_is_lost_or_doubled(site: Site, machines: int, studies: int, kills: int) -> None:
    for number in range(machines):
        machine(site, f"machine-{number}")
    chance = random.Random(studies)
    ids = [site.submit() for _ in range(studies)]

    def done() -> int:
        with site.database.reading() as session:
            found = [predictions.find(session, one, None).status for one in ids]
        return sum(status.finished for status in found)

    for shot in range(kills):
        wait(lambda shot=shot: done() >= studies * (shot + 1) // (kills + 2), 120)  # type: ignore[misc]
        wait(lambda: not on_its_last_try(site))
        time.sleep(chance.uniform(0, 0.3))
        shoot(site, chance)
    wait(lambda: done() == studies, 300)
    outcomes = [site.find(one) for one in ids]
    assert [each.error for each in outcomes if each.status is not Status.SUCCEEDED] == []
    assert len({each.probability for each in outcomes}) == 1
    assert recorded(site) == dict.fromkeys(ids, 1)
    with site.database.reading() as session:
        named = {
            name: predictions.artifact(session, ids[0], None, name)[0]
            for name in predictions.artifacts(session, ids[0], None)
        }
        for one in ids:
            assert set(predictions.artifacts(session, one, None)) == set(named)
    assert all(site.storage.verify(digest) for digest in named.values())
