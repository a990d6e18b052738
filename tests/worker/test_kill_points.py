"""kill -9 at instants that chance chose, over the API and the worker, on both databases; and SIGSTOP likewise.

One instant: a study is sent, and after a random moment the API, the worker or both are killed. The client does what an
honest client does, and sends the study again with the same Idempotency-Key until it is told 2xx. Everything that was
told 2xx must end in one answer; nothing may be there twice, and no file that is not whole may carry a blob's name.

``RLVO_INSTANTS`` and ``RLVO_SEED`` give the soak its length and its chance.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import pytest
from sqlalchemy import text

from app.core.config import Settings
from app.operations.fsck import fsck
from app.sdk.types import Status
from tests.api.conftest import volume
from tests.fork_server import Keeper
from tests.site import LEASE, Site, recorded, wait
from tests.worker.test_process import model_store, roll, site, stop

__all__ = ["model_store", "site"]

INSTANTS = int(os.environ.get("RLVO_INSTANTS", "500"))
SEED = int(os.environ.get("RLVO_SEED", "1"))
STUDY = volume()


@dataclass
class Storm:
    """A service whose processes are killed, and a client that does not give up."""

    site: Site
    seed: int
    acknowledged: dict[str, str] = field(default_factory=dict)
    """By idempotency key, the id of each study that was told 2xx."""
    kills: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.keepers = {"worker": self.site.worker(), "api": self.site.api(self.port)}
        self.send("undisturbed-0")
        self.finish("undisturbed-0")
        began = time.monotonic()
        self.send("undisturbed-1")
        self.finish("undisturbed-1")
        self.span = 1.2 * (time.monotonic() - began)

    def instant(self, number: int) -> None:
        """One study, one moment, one kill."""
        key = f"study-{self.seed}-{number}"
        client = threading.Thread(target=self.send, args=(key,))
        client.start()
        time.sleep(self.chance.uniform(0, self.span))
        victims = self.chance.choice([("api",), ("worker",), ("api", "worker")])
        self.kills[" and ".join(victims)] += 1
        for victim in victims:
            kill(self.keepers[victim])
        client.join()
        self.finish(key)

    def send(self, key: str) -> None:
        """Sends the study until it is accepted."""
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60) as client:
            end = time.monotonic() + 120
            while time.monotonic() < end:
                with suppress(httpx.TransportError):
                    answer = client.post(
                        "/v1/predictions",
                        files={"cta": ("cta.nii.gz", STUDY)},
                        data={"explain": "false"},
                        headers={"Idempotency-Key": key, "Prefer": "respond-async"},
                    )
                    if answer.is_success:
                        self.acknowledged[key] = answer.json()["id"]
                        return
                    assert answer.status_code in (409, 503), answer.text
                time.sleep(0.02)
        raise AssertionError("never accepted")

    def finish(self, key: str) -> None:
        prediction_id = self.acknowledged[key]
        wait(lambda: self.site.find(prediction_id).status.finished, 120)

    def check(self) -> None:
        """Nothing lost, nothing twice, nothing half."""
        ids = set(self.acknowledged.values())
        assert len(ids) == len(self.acknowledged)
        answers = [self.site.find(prediction_id) for prediction_id in ids]
        assert {answer.status for answer in answers} == {Status.SUCCEEDED}, [each.error for each in answers]
        assert len({answer.probability for answer in answers}) == 1
        with self.site.database.reading() as session:
            stored = set(session.scalars(text("SELECT id FROM predictions")))
            ends = Counter(session.scalars(text("SELECT target FROM audit WHERE action = 'prediction.succeeded'")))
            starts = Counter(session.scalars(text("SELECT target FROM audit WHERE action = 'prediction.submit'")))
        assert stored == ids
        assert ends == starts == dict.fromkeys(ids, 1)
        assert set(recorded(self.site)) == ids
        for digest in self.site.storage.digests():
            assert hashlib.sha256(self.site.storage.read(digest)).hexdigest() == digest
        settings = Settings(
            data_dir=self.site.folder,
            database_url=self.site.url,
            storage_url=str(self.site.folder / "blobs"),
            model_store=self.site.model_store,
        )
        report = fsck(settings, deep=True)
        assert report.sound, report.lines()


def kill(keeper: Keeper) -> None:
    with suppress(ProcessLookupError):  # it may be between two lives
        os.kill(keeper.worker, signal.SIGKILL)


def weather(site: Site, seed: int, instants: int) -> None:
    storm = Storm(site, seed)
    began = time.monotonic()
    for number in range(instants):
        storm.instant(number)
    storm.check()
    took = time.monotonic() - began
    print(f"seed {seed}: {instants} instants, {dict(storm.kills)}, span {storm.span:.2f} s, {took:.0f} s in all")


@pytest.mark.timeout(600)
def test_killed_at_a_few_instants_it_loses_and_repeats_nothing(site: Site) -> None:
    weather(site, seed=7, instants=25)


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_killed_at_many_instants_it_loses_and_repeats_nothing(site: Site) -> None:
    weather(site, SEED, INSTANTS)


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_stopped_at_many_instants_it_writes_nothing_stale(site: Site) -> None:
    """SIGSTOP for longer than a lease, then SIGCONT: 100 times on each database unless RLVO_INSTANTS says less."""
    chance, longest = random.Random(SEED), 0.0
    workers = [site.worker(), site.worker()]
    wait(lambda: len(roll(site)) == 2)
    for _ in range(min(INSTANTS, 100)):
        prediction_id = site.submit()
        time.sleep(chance.uniform(0, 0.4))
        victim = chance.choice(workers).worker
        stop(site, victim)
        began = time.monotonic()
        site.outcome(prediction_id)
        longest = max(longest, time.monotonic() - began)
        wait(lambda stopped=victim: stopped not in {each.pid for each in roll(site)})
        before = site.rows(prediction_id)
        os.kill(victim, signal.SIGCONT)
        wait(lambda: len(roll(site)) == 2)
        assert site.outcome(prediction_id)[0].status is Status.SUCCEEDED
        assert site.rows(prediction_id) == before
    assert longest < LEASE + 5, longest
    assert set(recorded(site).values()) == {1}
    print(f"seed {SEED}: {min(INSTANTS, 100)} stops, the slowest job resumed and done after {longest:.1f} s")
