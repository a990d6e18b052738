"""SIGKILL and SIGSTOP at random times to the API and the worker, on both databases.

In each round the client sends a study, and the API, the worker or both are killed after a random time. The client sends
the study again with the same Idempotency-Key until it gets 2xx. Each accepted study must have one answer; nothing may
exist twice, and no incomplete file may have the name of a blob.

``RLVO_INSTANTS`` and ``RLVO_SEED`` set the number of rounds of the soak tests and their random seed.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
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
from tests.deployment import LEASE, Deployment, free_port, wait
from tests.fork_server import SupervisedProcess
from tests.study import volume_bytes

ROUNDS = int(os.environ.get("RLVO_INSTANTS", "500"))
SEED = int(os.environ.get("RLVO_SEED", "1"))
STUDY = volume_bytes()


@dataclass
class RandomKills:
    """A service whose processes are killed at random times, and a client that repeats its requests."""

    deployment: Deployment
    seed: int
    acknowledged: dict[str, str] = field(default_factory=dict)
    """Ids of the accepted studies by idempotency key."""
    kills: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.port = free_port()
        self.processes = {"worker": self.deployment.start_worker(), "api": self.deployment.start_api(self.port)}
        self.send("undisturbed-0")
        self.finish("undisturbed-0")
        started = time.monotonic()
        self.send("undisturbed-1")
        self.finish("undisturbed-1")
        self.span = 1.2 * (time.monotonic() - started)

    def kill_once(self, number: int) -> None:
        """Sends one study and kills once at a random time."""
        key = f"study-{self.seed}-{number}"
        client = threading.Thread(target=self.send, args=(key,))
        client.start()
        time.sleep(self.rng.uniform(0, self.span))
        victims = self.rng.choice([("api",), ("worker",), ("api", "worker")])
        self.kills[" and ".join(victims)] += 1
        for victim in victims:
            kill(self.processes[victim])
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
        raise AssertionError("the study was not accepted")

    def finish(self, key: str) -> None:
        prediction_id = self.acknowledged[key]
        wait(lambda: self.deployment.find(prediction_id).status.finished, 120)

    def check(self) -> None:
        """Checks that nothing is lost, repeated or incomplete."""
        ids = set(self.acknowledged.values())
        assert len(ids) == len(self.acknowledged)
        answers = [self.deployment.find(prediction_id) for prediction_id in ids]
        assert {answer.status for answer in answers} == {Status.SUCCEEDED}, [each.error for each in answers]
        assert len({answer.probability for answer in answers}) == 1
        with self.deployment.database.reading() as session:
            stored = set(session.scalars(text("SELECT id FROM predictions")))
        assert stored == ids
        for action in ("prediction.submit", "prediction.succeeded"):
            assert self.deployment.audit_counts(action) == dict.fromkeys(ids, 1)
        assert set(self.deployment.audit_counts()) == ids
        for digest in self.deployment.storage.digests():
            assert hashlib.sha256(self.deployment.storage.read(digest)).hexdigest() == digest
        settings = Settings(
            data_dir=self.deployment.folder,
            database_url=self.deployment.url,
            storage_url=str(self.deployment.folder / "blobs"),
            model_store=self.deployment.model_store,
        )
        report = fsck(settings, deep=True)
        assert report.sound, list(report.lines())


def kill(process: SupervisedProcess) -> None:
    with suppress(ProcessLookupError):  # the supervisor may be starting the next one
        os.kill(process.child, signal.SIGKILL)


def kill_at_random_times(deployment: Deployment, seed: int, rounds: int) -> None:
    scenario = RandomKills(deployment, seed)
    started = time.monotonic()
    for number in range(rounds):
        scenario.kill_once(number)
    scenario.check()
    seconds = time.monotonic() - started
    print(f"seed {seed}: {rounds} rounds, {dict(scenario.kills)}, span {scenario.span:.2f} s, {seconds:.0f} s in all")


@pytest.mark.timeout(600)
def test_few_random_kills_lose_and_repeat_nothing(deployment: Deployment) -> None:
    kill_at_random_times(deployment, seed=7, rounds=12)


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_many_random_kills_lose_and_repeat_nothing(deployment: Deployment) -> None:
    kill_at_random_times(deployment, SEED, ROUNDS)


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_workers_stopped_at_random_times_write_nothing_stale(deployment: Deployment) -> None:
    """SIGSTOP for longer than a lease, then SIGCONT: at most 100 times, or ``RLVO_INSTANTS`` times if fewer."""
    rng, longest = random.Random(SEED), 0.0
    workers = [deployment.start_worker(), deployment.start_worker()]
    wait(lambda: len(deployment.registered_workers()) == 2)
    for _ in range(min(ROUNDS, 100)):
        prediction_id = deployment.submit()
        time.sleep(rng.uniform(0, 0.4))
        victim = rng.choice(workers).child
        deployment.suspend(victim)
        started = time.monotonic()
        deployment.wait_for(prediction_id)
        longest = max(longest, time.monotonic() - started)
        wait(lambda stopped=victim: stopped not in {each.pid for each in deployment.registered_workers()})
        before = deployment.rows(prediction_id)
        os.kill(victim, signal.SIGCONT)
        wait(lambda: len(deployment.registered_workers()) == 2)
        assert deployment.wait_for(prediction_id)[0].status is Status.SUCCEEDED
        assert deployment.rows(prediction_id) == before
    assert longest < LEASE + 5, longest
    assert set(deployment.audit_counts().values()) == {1}
    print(f"seed {SEED}: {min(ROUNDS, 100)} stops, the slowest job was done after {longest:.1f} s")
