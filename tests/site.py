"""A database, a storage and real workers on them, for the tests of many processes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import text

from app.core.config import Settings
from app.database import audit, predictions
from app.database.session import Database
from app.registry.model_store import ModelStore, StoredVersion
from app.sdk.types import InputSummary, Prediction
from app.storage.factory import storage_of
from app.storage.local import Storage
from app.worker.queue import Queue
from tests import study
from tests.fork_server import Keeper, Nursery

LEASE = 2.0


@dataclass
class Site:
    """A database, a storage, a model store, and the workers on them.

    ``blobs``: the storage's URL, ``endpoint``: of its S3, where it is one.
    """

    folder: Path
    url: str
    database: Database
    model_store: Path
    nursery: Nursery
    blobs: str = ""
    endpoint: str = ""
    keepers: list[Keeper] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.queue = Queue(self.database)
        self.blobs = self.blobs or str(self.folder / "blobs")
        here = Settings(data_dir=self.folder, storage_url=self.blobs, s3_endpoint=self.endpoint)
        self.storage: Storage = storage_of(here)
        self.entry: StoredVersion = ModelStore(self.model_store).resolve("tiny")
        self.volume: InputSummary = study.store_volume(self.storage, self.folder)
        self.faults = self.folder / "faults"
        self.faults.mkdir()

    def worker(self, **more: str) -> Keeper:
        return self._start("worker", more)

    def api(self, port: int, **more: str) -> Keeper:
        return self._start("api", {"RLVO_PORT": str(port), **more})

    def _start(self, kind: str, more: dict[str, str]) -> Keeper:
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
            **more,
        }
        self.keepers.append(self.nursery.start(self.faults, settings, kind))
        return self.keepers[-1]

    def submit(self, fault: str = "", **changes: object) -> str:
        changes.setdefault("id", predictions.new_id())
        if fault:
            (self.faults / str(changes["id"])).write_text(fault)
        return study.submit(self.database, self.queue, self.entry, self.volume, **changes)

    def find(self, prediction_id: str) -> Prediction:
        with self.database.reading() as session:
            return predictions.find(session, prediction_id, None)

    def outcome(self, *ids: str) -> list[Prediction]:
        """The predictions, once they have finished."""
        wait(lambda: all(self.find(one).status.finished for one in ids))
        return [self.find(one) for one in ids]

    def steps(self, prediction_id: str) -> list[str]:
        """The steps that ran, repetitions included."""
        lines = (self.faults / "log").read_text().splitlines() if (self.faults / "log").exists() else []
        return [line.split()[1] for line in lines if line.startswith(prediction_id)]

    def rows(self, prediction_id: str) -> str:
        """All that is recorded of a prediction, to be compared."""
        places = {"predictions": "id", "attributions": "prediction_id", "artifacts": "prediction_id", "audit": "target"}
        with self.database.reading() as session:
            return str(
                [
                    session.execute(text(f"SELECT * FROM {table} WHERE {column} = :id"), {"id": prediction_id}).all()
                    for table, column in places.items()
                ]
            )


def wait(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def recorded(site: Site) -> Counter[str]:
    """How often the audit tells of each prediction's end."""
    with site.database.reading() as session:
        assert audit.verify(session).intact
        rows = session.execute(text("SELECT target FROM audit WHERE action LIKE 'prediction.%'"))
        return Counter(row[0] for row in rows)
