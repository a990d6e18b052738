"""A hospital day in little time: callers, kills, outages, promotions, clock jumps and a bad client, all at once.

Each actor is a thread that runs until the end of the day. Every answer is recorded as soon as it exists, because the
retention of the day erases it soon after.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import create_engine

from app.sdk import Client, Erased, Prediction, RlvoError, Status
from app.sdk.types import Priority

from .service_process import RunningService

TENANTS = ("north", "south", "east", "west")
READY_S = 2.0
ENOUGH = 20  # samples of memory in each half of the day
FAULTS_OF_A_CALL = (RlvoError, httpx.HTTPError, OSError)
"""What a caller meets while the service is killed or refuses; the same study is then sent again."""


class DayService(RunningService):
    """The service of the day, on any database, with keys."""

    def __init__(self, folder: Path, model_store: Path, database_url: str, **settings: str) -> None:
        super().__init__(folder, model_store, "tiny")
        self.environment |= {"RLVO_AUTH": "keys", "RLVO_DATABASE_URL": database_url, **settings}
        self._engine = create_engine(database_url)

    def stop(self) -> int:
        self._engine.dispose()
        return super().stop()

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process is None or self._process.poll() is not None

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with self._engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(sql, values)]

    def processes(self) -> dict[str, int]:
        """Process ids of the service and of its latest worker."""
        assert self._process is not None
        found = {"service": self._process.pid}
        with suppress(Exception):  # the database may be away
            found |= {"worker": self.workers()[0]}
        return found


@dataclass(frozen=True)
class Accepted:
    """A study that the service has acknowledged: its tenant and its number."""

    tenant: str
    study: int


@dataclass(frozen=True)
class Usage:
    """Memory in bytes and open files of one process, and the seconds since its start."""

    process: str
    age: float
    memory: int
    files: int


@dataclass
class Day:
    """The running day.

    Attributes:
        keys: API keys of the tenants.
        studies: arguments of `Client.submit`.
        outages: faults of storage and database; each is entered for some seconds.
        clock: file with the offset of the service's clock, seconds.
        accepted: acknowledged studies by id of the prediction.
        answers: final predictions by id.
        counts: what the actors did.
        slow: kinds and seconds of probes that took too long, with the faults at that time.
        present: faults at this moment.
    """

    service: DayService
    keys: dict[str, str]
    admin: str
    studies: list[dict[str, Any]]
    outages: dict[str, Callable[[], AbstractContextManager[object]]]
    clock: Path
    seed: int = 0
    accepted: dict[str, Accepted] = field(default_factory=dict)
    answers: dict[str, Prediction] = field(default_factory=dict)
    erased_unseen: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    slow: list[str] = field(default_factory=list)
    usage: list[Usage] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    present: set[str] = field(default_factory=set)
    over: threading.Event = field(default_factory=threading.Event)
    api_is_down: bool = False

    def run(self, minutes: float) -> None:
        """Run all actors for some minutes, then end every fault."""
        actors: list[Callable[[random.Random], None]] = [self.kill, self.fail, self.promote]
        actors += [self.misbehave, self.jump]
        actors += [partial(self.send, tenant=tenant) for tenant in TENANTS]
        watchers = [self.probe, self.record, self.measure]
        threads = [threading.Thread(target=self._guarded, args=(actor, n)) for n, actor in enumerate(actors)]
        threads += [threading.Thread(target=self._guarded, args=(each, n)) for n, each in enumerate(watchers, 100)]
        for thread in threads:
            thread.start()
        self.over.wait(minutes * 60)
        self.over.set()
        for thread in threads:
            thread.join()

    def _guarded(self, actor: Callable[[random.Random], None], number: int) -> None:
        try:
            actor(random.Random(f"{self.seed}-{number}"))
        except BaseException as error:
            self.errors.append(f"{actor}: {error!r}")
            self.over.set()
            raise

    def _pause(self, seconds: float) -> None:
        self.over.wait(seconds)

    # Callers ---------------------------------------------------------------------------------------------------------

    def send(self, rng: random.Random, tenant: str) -> None:
        """Acute studies one by one, and now and then a batch."""
        with Client(self.service.url, api_key=self.keys[tenant], retries=0, timeout=30) as client:
            while not self.over.is_set():
                batch = rng.random() < 0.15
                for _ in range(rng.randint(3, 8) if batch else 1):
                    self._submit(client, rng, tenant, Priority.BATCH if batch else Priority.ACUTE)
                self._pause(rng.uniform(4, 20))

    def _submit(self, client: Client, rng: random.Random, tenant: str, priority: Priority) -> None:
        number, key = rng.randrange(len(self.studies)), uuid.UUID(int=rng.getrandbits(128), version=4).hex
        while True:
            try:
                sent = client.submit(**self.studies[number], priority=priority, idempotency_key=key)
            except FAULTS_OF_A_CALL as error:
                self.counts[f"sent again: {getattr(error, 'code', type(error).__name__)}"] += 1
                time.sleep(rng.uniform(0.5, 2))
            else:
                self.accepted[sent.id] = Accepted(tenant, number)
                self.counts[f"accepted, {priority}"] += 1
                return

    def misbehave(self, rng: random.Random) -> None:
        """Broken, slow and hostile requests of one client."""
        forms = [
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST /v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\nxyz",
        ]
        forms += [b"\x16\x03\x01\x02\x00" + rng.randbytes(200), b"GET /livez HTTP/1.1\r\nX: " + b"a" * 100_000]
        bad = [{"ncct": b"no volume"}, {"cta": rng.randbytes(5000)}, {"clinical": {"age": "old"}}]
        while not self.over.is_set():
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.service.port), 2) as connection:
                connection.settimeout(2)
                text = rng.choice(forms)
                for at in range(0, len(text), step := rng.choice([1, 50, 100_000])):
                    connection.sendall(text[at : at + step])
                    if step == 1 and at > 200:
                        break
                connection.recv(1000)
            study: dict[str, Any] = rng.choice(bad)
            with Client(self.service.url, api_key=self.keys["west"], retries=0, timeout=10) as client:
                try:
                    client.submit(**study)
                except FAULTS_OF_A_CALL:
                    self.counts["bad requests refused"] += 1
                else:
                    self.errors.append(f"accepted: {list(study)}")
            self._pause(rng.uniform(0.5, 3))

    # Faults ----------------------------------------------------------------------------------------------------------

    def kill(self, rng: random.Random) -> None:
        """Kill the worker or the service."""
        while not self.over.is_set():
            self._pause(rng.uniform(20, 80))
            if rng.random() < 0.6:
                with suppress(Exception):  # no worker is registered while another fault lasts
                    self.service.kill_worker()
                    self.counts["kills of the worker"] += 1
                continue
            self.api_is_down = True
            self.service.kill_api()
            self.counts["kills of the service"] += 1
            self.service.spawn()
            self._until_alive()

    def _until_alive(self) -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.service.url}/livez", timeout=2).status_code == 200:
                    self.api_is_down = False
                    return
            if self.service.ended:  # it needs its database to start
                self.service.spawn()
            time.sleep(0.3)
        raise AssertionError("the service did not start within 120 s")

    def fail(self, rng: random.Random) -> None:
        """Outages of storage and database."""
        while not self.over.is_set():
            self._pause(rng.uniform(30, 90))
            name = rng.choice(list(self.outages))
            with self.outages[name]():
                self.present.add(name)
                self.counts[f"outages: {name}"] += 1
                self._pause(rng.uniform(10, 40))
            self.present.discard(name)

    def promote(self, rng: random.Random) -> None:
        """Moves of the champion between two versions."""
        url, headers = f"{self.service.url}/v1/models/tiny/aliases/champion", {"Authorization": f"Bearer {self.admin}"}
        while not self.over.is_set():
            self._pause(rng.uniform(20, 60))
            with suppress(httpx.HTTPError, KeyError, ValueError):
                present = httpx.get(url, headers=headers, timeout=10)
                tag = {"If-Match": present.headers["ETag"]}
                other = {"version": "1.1.0" if present.json()["version"] == "1.0.0" else "1.0.0"}
                moved = httpx.put(url, headers=headers | tag, json=other, timeout=150)
                self.counts[f"promotions answered {moved.status_code}"] += 1

    def jump(self, rng: random.Random) -> None:
        """Jumps of the clock by hours, forwards and back."""
        while not self.over.is_set():
            self._pause(rng.uniform(60, 150))
            self.clock.write_text(f"{rng.choice([-7200, -600, 600, 7200])}")
            self.present.add("clock")
            self.counts["jumps of the clock"] += 1
            self._pause(rng.uniform(10, 30))
            self.clock.write_text("0")
            self.present.discard("clock")

    # Watchers --------------------------------------------------------------------------------------------------------

    def probe(self, _rng: random.Random) -> None:
        """Time the probes, whatever fails."""
        with httpx.Client(base_url=self.service.url, timeout=20) as client:
            while not self.over.is_set():
                for path in ("/livez", "/readyz"):
                    down, start = self.api_is_down, time.monotonic()
                    try:
                        status = str(client.get(path).status_code)
                    except httpx.HTTPError as error:
                        status = type(error).__name__
                    took = time.monotonic() - start
                    self.counts[f"{path} {status}"] += 1
                    answered = status in ("200", "503")
                    if not (down or self.api_is_down) and (took > READY_S or not answered):
                        self.slow.append(f"{path} {status} {took:.1f} s {sorted(self.present)}")
                self._pause(0.5)

    def record(self, _rng: random.Random) -> None:
        """Fetch every answer as soon as it is final."""
        with self._clients() as clients:
            while not self.over.is_set():
                self.fetch(clients)
                self._pause(0.5)

    @contextmanager
    def _clients(self) -> Iterator[dict[str, Client]]:
        """A client of each tenant."""
        with ExitStack() as stack:
            yield {
                name: stack.enter_context(Client(self.service.url, api_key=key, retries=0, timeout=20))
                for name, key in self.keys.items()
            }

    def fetch(self, clients: dict[str, Client]) -> None:
        """Record the answers that have become final."""
        for one, study in list(self.accepted.items()):
            if one in self.answers or one in self.erased_unseen:
                continue
            try:
                found = clients[study.tenant].get(one)
            except Erased:
                self.erased_unseen.add(one)
            except FAULTS_OF_A_CALL:
                continue
            else:
                if found.status.finished:
                    self.answers[one] = found

    def finish(self, seconds: float) -> None:
        """Wait until every accepted study has its answer."""
        end = time.monotonic() + seconds
        with self._clients() as clients:
            while len(self.answers) + len(self.erased_unseen) < len(self.accepted) and time.monotonic() < end:
                self.fetch(clients)
                time.sleep(0.3)

    def measure(self, _rng: random.Random) -> None:
        """Sample memory and open files of service and worker."""
        while not self.over.is_set():
            for name, pid in self.service.processes().items():
                with suppress(OSError):
                    self.usage.append(usage_of(name, pid))
            self._pause(10)

    @property
    def wrong(self) -> list[str]:
        """Answers that are no success."""
        return [
            f"{one}: {answer.error}" for one, answer in self.answers.items() if answer.status is not Status.SUCCEEDED
        ]


def usage_of(name: str, pid: int) -> Usage:
    """Memory, open files and age of a process. Raises OSError if it has ended."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    started = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    age = float(Path("/proc/uptime").read_text().split()[0]) - started
    return Usage(name, age, pages * os.sysconf("SC_PAGESIZE"), len(list(Path(f"/proc/{pid}/fd").iterdir())))


def growth(usage: list[Usage], name: str, value: str, *, settled: float = 60.0) -> tuple[float, float] | None:
    """Highest value of a process in the first and in the second half of the day, after its first minute.

    None if the day was too short to compare its halves.
    """
    values = [getattr(each, value) for each in usage if each.process == name and each.age > settled]
    half = len(values) // 2
    return (max(values[:half]), max(values[half:])) if half >= ENOUGH else None
