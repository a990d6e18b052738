"""A database, a storage and real worker and API processes, for the tests of several processes."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import text

from app.core.config import Settings
from app.database import audit, predictions, workers
from app.database.session import Database
from app.registry.model_store import ModelStore, StoredVersion
from app.sdk.types import FiguresState, InputSummary, Prediction
from app.storage.factory import storage_of
from app.storage.local import Storage
from app.worker.queue import Queue
from tests import study
from tests.fork_server import ForkServer, SupervisedProcess

LEASE = 2.0


@dataclass
class Deployment:
    """A database, a storage, a model store, and processes that use them; the end of the block kills the processes.

    Attributes:
        blobs: URL of the storage.
        endpoint: URL of the S3 server, if the storage is one.
    """

    folder: Path
    url: str
    database: Database
    model_store: Path
    fork_server: ForkServer
    blobs: str = ""
    endpoint: str = ""
    processes: list[SupervisedProcess] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.queue = Queue(self.database)
        self.blobs = self.blobs or str(self.folder / "blobs")
        settings = Settings(data_dir=self.folder, storage_url=self.blobs, s3_endpoint=self.endpoint)
        self.storage: Storage = storage_of(settings)
        self.entry: StoredVersion = ModelStore(self.model_store).resolve("tiny")
        self.volume: InputSummary = study.store_volume(self.storage, self.folder)
        self.faults = self.folder / "faults"
        self.faults.mkdir()

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()

    def start_worker(self, **settings: str) -> SupervisedProcess:
        return self._start("worker", settings)

    def start_api(self, port: int, **settings: str) -> SupervisedProcess:
        return self._start("api", {"RLVO_PORT": str(port), **settings})

    def _start(self, kind: str, changes: dict[str, str]) -> SupervisedProcess:
        settings = {
            "RLVO_DATA_DIR": str(self.folder),
            "RLVO_DATABASE_URL": self.url,
            "RLVO_STORAGE_URL": self.blobs,
            "RLVO_S3_ENDPOINT": self.endpoint,
            "RLVO_MODEL_STORE": str(self.model_store),
            "RLVO_DEFAULT_MODEL": "tiny",
            "RLVO_HEARTBEAT": "0.1",
            "RLVO_LEASE": str(LEASE),
            "RLVO_THREADS": "1",
            **changes,
        }
        self.processes.append(self.fork_server.start(self.faults, settings, kind))
        return self.processes[-1]

    def kill_all(self) -> None:
        for process in self.processes:
            process.kill()

    def submit(self, fault: str = "", **changes: object) -> str:
        changes.setdefault("id", predictions.new_id())
        if fault:
            (self.faults / str(changes["id"])).write_text(fault)
        return study.submit(self.database, self.queue, self.entry, self.volume, **changes)

    def submit_paused(self, stage: str) -> str:
        """Submits a study and waits until its worker pauses before the stage; see `resume`."""
        prediction_id = self.submit(f"{stage} before pause")
        wait((self.faults / f"{prediction_id}.paused").exists)
        return prediction_id

    def resume(self, prediction_id: str) -> None:
        (self.faults / prediction_id).unlink()

    def find(self, prediction_id: str) -> Prediction:
        with self.database.reading() as session:
            return predictions.find(session, prediction_id, None)

    def wait_for(self, *ids: str, seconds: float = 60) -> list[Prediction]:
        """Waits until the predictions have finished and their figures are drawn, and returns them."""

        def settled(one: Prediction) -> bool:
            return one.status.finished and one.figures is not FiguresState.PENDING

        wait(lambda: all(settled(self.find(one)) for one in ids), seconds)
        return [self.find(one) for one in ids]

    def steps(self, prediction_id: str) -> list[str]:
        """Steps that have run, with repetitions."""
        lines = (self.faults / "log").read_text().splitlines() if (self.faults / "log").exists() else []
        return [line.split()[1] for line in lines if line.startswith(prediction_id)]

    def drawings(self, prediction_id: str) -> int:
        """Number of times that the figures of a prediction were begun."""
        return (self.faults / "drawings").read_text().count(prediction_id)

    def rows(self, prediction_id: str) -> str:
        """All rows of a prediction, for a comparison."""
        tables = {"predictions": "id", "attributions": "prediction_id", "artifacts": "prediction_id", "audit": "target"}
        with self.database.reading() as session:
            return str(
                [
                    session.execute(text(f"SELECT * FROM {table} WHERE {column} = :id"), {"id": prediction_id}).all()
                    for table, column in tables.items()
                ]
            )

    def registered_workers(self) -> list[workers.WorkerRecord]:
        with self.database.reading() as session:
            return workers.registered(session)

    def audit_counts(self, pattern: str = "prediction.%") -> Counter[str]:
        """Number of audit entries of each prediction whose action matches the pattern; checks the chain."""
        with self.database.reading() as session:
            assert audit.verify(session).intact
            rows = session.execute(text("SELECT target FROM audit WHERE action LIKE :pattern"), {"pattern": pattern})
            return Counter(row[0] for row in rows)

    def suspend(self, pid: int) -> None:
        """Sends SIGSTOP at a time when the process holds no lock of the SQLite file, which would block all others."""
        while True:
            os.kill(pid, signal.SIGSTOP)
            wait(lambda: _is_suspended(pid))
            if not self.database.sqlite:
                return
            with closing(sqlite3.connect(self.url.removeprefix("sqlite:///"), timeout=0.5)) as connection:
                try:
                    connection.execute("BEGIN EXCLUSIVE")
                except sqlite3.OperationalError:
                    os.kill(pid, signal.SIGCONT)
                else:
                    return


@contextmanager
def deployment_with(url: str, folder: Path, model_store: Path, fork_server: ForkServer) -> Iterator[Deployment]:
    """A deployment in this folder with the tables of a new database."""
    database = Database(url)
    try:
        database.upgrade()
        Queue(database).upgrade()
        with Deployment(folder, url, database, model_store, fork_server) as deployment:
            yield deployment
    finally:
        database.close()


def _is_suspended(pid: int) -> bool:
    """Whether all threads of the process have stopped; the kernel stops them shortly after the signal."""
    states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) == {"T"}


def free_port() -> int:
    """A free port of 127.0.0.1, below those that the kernel gives to connections and to servers on port 0.

    So no other test has it when its server is started, now or again.
    """
    end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = end // 2 + secrets.randbelow(end // 2)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def wait(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.02)
