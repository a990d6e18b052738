"""Accepted studies outlive any fault of their storage: an unreachable or refusing bucket, a full disk, a lost folder.

The faults are real: a proxy in front of an S3 server, a small disk with ballast, a folder that is moved away.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.core import disk_reserve
from app.core.config import Settings
from app.database.session import Database
from app.operations.fsck import fsck
from app.sdk.types import WAITING_FOR_STORAGE, Prediction, Status
from tests.api_client import ApiClient
from tests.conftest import CREDENTIALS
from tests.deployment import Deployment, wait
from tests.disks import fill, mounted
from tests.fork_server import ForkServer
from tests.tcp_proxy import Fault, TcpProxy, http

sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
SLOW_DOWN = http("503 Slow Down", "<Error><Code>SlowDown</Code></Error>")
EXPIRED = http("403 Forbidden", "<Error><Code>ExpiredToken</Code></Error>")
NO_BUCKET = http("404 Not Found", "<Error><Code>NoSuchBucket</Code></Error>")
STUDIES = 5


@pytest.fixture
def on_s3(
    tmp_path: Path,
    database_url: str,
    database: Database,
    model_store: Path,
    fork_server: ForkServer,
    bucket: str,
    proxy: TcpProxy,
) -> Iterator[Deployment]:
    """A deployment whose bucket is behind the proxy; the cache of each process is a folder of its own."""
    endpoint = f"http://127.0.0.1:{proxy.port}"
    with Deployment(tmp_path, database_url, database, model_store, fork_server, bucket, endpoint) as deployment:
        yield deployment


def waits(prediction: Prediction) -> bool:
    """Whether a prediction says that it waits for the storage; fails if it has ended."""
    assert not prediction.status.finished, prediction.error
    return prediction.waiting is not None and prediction.waiting.reason == WAITING_FOR_STORAGE


def tries(prediction: Prediction) -> int:
    """Number of tries of a prediction that met the fault; fails if it has ended."""
    assert not prediction.status.finished, prediction.error
    return prediction.waiting.tries if prediction.waiting else 0


def check_done(deployment: Deployment, ids: list[str], *, seconds: float = 120) -> None:
    """Each study has exactly one answer, and nothing is lost, doubled or left behind."""
    done = deployment.wait_for(*ids, seconds=seconds)
    assert [each.error for each in done if each.status is not Status.SUCCEEDED] == []
    assert {each.waiting for each in done} == {None}
    assert deployment.audit_counts() == dict.fromkeys(ids, 1)
    wait(lambda: deployment.storage.scratch_ids() == [])
    settings = Settings(
        data_dir=deployment.folder,
        database_url=deployment.url,
        storage_url=deployment.blobs,
        s3_endpoint=deployment.endpoint,
        model_store=deployment.model_store,
    )
    report = fsck(settings, deep=True)
    assert report.sound, list(report.lines())


@pytest.mark.parametrize(
    "answer", [b"", SLOW_DOWN, EXPIRED, NO_BUCKET], ids=["refused", "throttled", "expired", "gone"]
)
@sqlite
def test_studies_wait_while_the_bucket_is_away_and_are_answered_after_it(
    on_s3: Deployment, proxy: TcpProxy, answer: bytes
) -> None:
    on_s3.start_worker(RLVO_DATA_DIR=str(on_s3.folder / "machine"), **CREDENTIALS)
    first = on_s3.submit()
    on_s3.wait_for(first)
    ids = [on_s3.submit(caller=f"site-{number}") for number in range(STUDIES)]
    with proxy.outage(Fault.ANSWERED if answer else Fault.REFUSED, answer):
        wait(lambda: all(waits(on_s3.find(one)) for one in ids[:2]))
        before = [tries(on_s3.find(one)) for one in ids[:2]]
        (on_s3.faults / "clock").write_text("-86400")  # a jump of the clock prolongs no wait
        wait(lambda: all(tries(on_s3.find(one)) > number for one, number in zip(ids, before, strict=False)))
    check_done(on_s3, [first, *ids])
    assert [process.starts for process in on_s3.processes] == [1]


@sqlite
@pytest.mark.soak
@pytest.mark.timeout(900)
def test_studies_wait_for_forty_seconds(on_s3: Deployment, proxy: TcpProxy) -> None:
    on_s3.start_worker(RLVO_DATA_DIR=str(on_s3.folder / "machine"), **CREDENTIALS)
    ids = [on_s3.submit() for _ in range(STUDIES)]
    with proxy.outage():
        time.sleep(40)
    check_done(on_s3, ids, seconds=300)


def start_with_its_own_ledger(deployment: Deployment) -> None:
    """Start a worker during an outage: it takes studies, because its ledger of erasures is in a folder."""
    machine = deployment.folder / "machine"
    deployment.start_worker(RLVO_DATA_DIR=str(machine), RLVO_ERASURE_LEDGER=str(machine / "ledger"), **CREDENTIALS)


@sqlite
def test_worker_that_cannot_read_the_ledger_of_erasures_takes_its_studies_later(
    on_s3: Deployment, proxy: TcpProxy
) -> None:
    with proxy.outage():
        on_s3.start_worker(RLVO_DATA_DIR=str(on_s3.folder / "machine"), **CREDENTIALS)
        ids = [on_s3.submit() for _ in range(2)]
        time.sleep(3)
        assert {on_s3.find(one).status for one in ids} == {Status.QUEUED}
    check_done(on_s3, ids)


@sqlite
def test_wait_is_visible_to_the_caller_and_binds_no_key_to_a_failure(on_s3: Deployment, proxy: TcpProxy) -> None:
    with ApiClient(on_s3, **CREDENTIALS) as client:
        sent = client.submit(key="study-1")
        assert sent.status_code == 202, sent.text
        with proxy.outage():
            start_with_its_own_ledger(on_s3)
            prediction_id = sent.json()["id"]
            wait(lambda: waits(client.read(prediction_id)))
            again = client.submit(key="study-1")
            assert (again.status_code, again.json()["id"]) == (202, prediction_id), again.text
            refused = client.submit(key="study-2")
            assert (refused.status_code, refused.json()["code"]) == (503, "unavailable"), refused.text
            metrics = client.http.get("/metrics").text
            assert f'rlvo_predictions_waiting{{reason="{WAITING_FOR_STORAGE}"}} 1.0' in metrics
            assert f'"waiting": "{WAITING_FOR_STORAGE}"' in first_event(client.http, prediction_id)
            ready = client.http.get("/readyz")
            assert ready.status_code == 503
            assert ready.json()["checks"]["storage"] != "ok"
            assert ready.elapsed.total_seconds() < 2
        client.expect_success(sent)
        client.expect_success(client.submit(key="study-2"))
        assert client.submit(key="study-1").json()["status"] == "succeeded"


def first_event(http_client: httpx.Client, prediction_id: str) -> str:
    with http_client.stream("GET", f"/v1/predictions/{prediction_id}/events") as stream:
        return next(line for line in stream.iter_lines() if line.startswith("data: "))


@sqlite
def test_waiting_study_can_be_cancelled(on_s3: Deployment, proxy: TcpProxy) -> None:
    with ApiClient(on_s3, **CREDENTIALS) as client, proxy.outage():
        start_with_its_own_ledger(on_s3)
        prediction_id = on_s3.submit(caller="local")
        wait(lambda: waits(on_s3.find(prediction_id)))
        cancelled = client.http.post(f"/v1/predictions/{prediction_id}/cancel")
        assert (cancelled.json()["status"], "waiting" in cancelled.json()) == ("cancelled", False)


# a disk ---------------------------------------------------------------------------------------------------------------


@contextmanager
def on_small_disk(
    tmp_path: Path, database_url: str, database: Database, model_store: Path, fork_server: ForkServer
) -> Iterator[Deployment]:
    """A deployment whose data folder is a disk of 24 MiB."""
    with (
        mounted(tmp_path / "disk", 24) as disk,
        Deployment(disk, database_url, database, model_store, fork_server) as deployment,
    ):
        deployment.faults = tmp_path / "faults"
        deployment.faults.mkdir()
        yield deployment


def test_data_folder_that_is_full_beside_a_database_elsewhere(
    tmp_path: Path, database_url: str, database: Database, model_store: Path, fork_server: ForkServer
) -> None:
    with on_small_disk(tmp_path, database_url, database, model_store, fork_server) as deployment:
        worker = deployment.start_worker()
        ids = [deployment.submit()]
        deployment.wait_for(*ids)
        filler = fill(deployment.folder)
        ids += [deployment.submit() for _ in range(STUDIES)]
        wait(lambda: waits(deployment.find(ids[1])))
        os.kill(worker.child, 9)  # a worker that starts on a full disk waits too
        wait(lambda: worker.starts == 2)
        wait(lambda: waits(deployment.find(ids[3])))
        filler.unlink()
        check_done(deployment, ids)


@sqlite
def test_nearly_full_disk_delays_studies_and_ends_none(
    tmp_path: Path, database_url: str, database: Database, model_store: Path, fork_server: ForkServer
) -> None:
    with on_small_disk(tmp_path, database_url, database, model_store, fork_server) as deployment:
        deployment.start_worker()
        first = deployment.submit()
        deployment.wait_for(first)
        wait(lambda: deployment.storage.scratch_ids() == [])  # a scratch folder is cleared a little after the record
        files = [path for path in deployment.storage.folder.rglob("*") if path.is_file()]
        used = sum(path.stat().st_size for path in files if path.name != disk_reserve.FILE)
        filler = fill(deployment.folder, free=used // 2)  # a part of the steps has enough space
        ids = [deployment.submit(caller=f"site-{number}") for number in range(STUDIES)]
        wait(lambda: all(tries(deployment.find(one)) >= 2 for one in ids[:2]))
        assert not any(deployment.find(one).status.finished for one in ids)
        filler.unlink()
        check_done(deployment, [first, *ids])


@sqlite
def test_folder_that_is_not_mounted_delays_studies(deployment: Deployment, tmp_path: Path) -> None:
    ids = [deployment.submit() for _ in range(3)]
    blobs, away = deployment.storage.folder, tmp_path / "away"
    blobs.rename(away)
    blobs.mkdir()  # the empty mount point
    deployment.start_worker()
    wait(lambda: all(waits(deployment.find(one)) for one in ids))
    blobs.rename(tmp_path / "mount-point")
    away.rename(blobs)
    check_done(deployment, ids)
