"""Workers on several machines with PostgreSQL and S3: random kills lose and repeat nothing."""

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
from app.sdk.types import FiguresState, Status
from app.worker.pipeline import TRIES
from tests.conftest import CREDENTIALS
from tests.deployment import Deployment, wait
from tests.fork_server import ForkServer

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture
def deployment(
    tmp_path: Path,
    database_url: str,
    database: Database,
    model_store: Path,
    fork_server: ForkServer,
    bucket: str,
    s3: str,
) -> Iterator[Deployment]:
    with Deployment(
        tmp_path, database_url, database, model_store, fork_server, blobs=bucket, endpoint=s3
    ) as deployment:
        yield deployment


def start_machine(deployment: Deployment, name: str) -> None:
    """Starts a worker with a separate data folder, so that others see its end by its heartbeat only."""
    deployment.start_worker(RLVO_DATA_DIR=str(deployment.folder / name), **CREDENTIALS)


def kill_random_worker(deployment: Deployment, rng: random.Random) -> None:
    """Sends SIGKILL to one of the workers; its supervisor starts another one."""
    worker = rng.choice(deployment.processes)
    starts = worker.starts
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(worker.child, signal.SIGKILL)
        wait(lambda: worker.starts > starts)


def has_job_on_last_try(deployment: Deployment) -> bool:
    """Whether one more kill would quarantine a prediction; quarantine has other tests."""
    with deployment.database.reading() as session:
        most = session.scalar(text("SELECT max(attempts) FROM predictions WHERE status IN ('queued', 'running')"))
    return (most or 0) >= TRIES


@pytest.mark.parametrize(
    ("machines", "studies", "kills"), [(2, 8, 2), pytest.param(4, 200, 40, marks=pytest.mark.soak)]
)
def test_random_kills_lose_and_repeat_nothing(deployment: Deployment, machines: int, studies: int, kills: int) -> None:
    for number in range(machines):
        start_machine(deployment, f"machine-{number}")
    rng = random.Random(studies)
    ids = [deployment.submit() for _ in range(studies)]

    def done() -> int:
        with deployment.database.reading() as session:
            return sum(predictions.find(session, one, None).status.finished for one in ids)

    for number in range(kills):
        wait(lambda number=number: done() >= studies * (number + 1) // (kills + 2), 120)  # type: ignore[misc]
        wait(lambda: not has_job_on_last_try(deployment))
        time.sleep(rng.uniform(0, 0.3))
        kill_random_worker(deployment, rng)
    wait(lambda: done() == studies, 300)
    wait(lambda: all(deployment.find(one).figures is FiguresState.READY for one in ids), 120)
    outcomes = [deployment.find(one) for one in ids]
    assert [each.error for each in outcomes if each.status is not Status.SUCCEEDED] == []
    assert len({each.probability for each in outcomes}) == 1
    assert deployment.audit_counts() == dict.fromkeys(ids, 1)
    with deployment.database.reading() as session:
        digests = {
            name: predictions.artifact(session, ids[0], None, name)[0]
            for name in predictions.artifacts(session, ids[0], None)
        }
        for one in ids:
            assert set(predictions.artifacts(session, one, None)) == set(digests)
    assert all(deployment.storage.verify(digest) for digest in digests.values())
