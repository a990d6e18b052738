"""The sweeps of a worker go on while one of them meets a fault."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.config import Settings
from app.database.session import Database
from app.sdk.types import Input
from app.storage.erasure_ledger import EntryKind, FolderLedger, LedgerEntry
from app.storage.local import Storage
from app.worker import process
from app.worker.process import Worker
from app.worker.queue import Queue
from tests import study
from tests.database.rows import add_prediction
from tests.deployment import wait


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", model_store=tmp_path / "models")


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database)
    database.upgrade()
    Queue(database).upgrade()
    yield database
    database.close()


@pytest.fixture
def worker(settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """A worker of which the test starts the sweeps only."""
    monkeypatch.setattr(process, "FIRST_SWEEP", 0.05)
    monkeypatch.setattr(process, "SWEEP_EVERY", 0.05)
    worker = Worker(settings)
    yield worker
    worker._stopped.set()
    worker.liveness.close()


def test_files_are_swept_while_the_ledger_of_erasures_cannot_be_read(worker: Worker, settings: Settings) -> None:
    assert settings.ledger_folder
    settings.ledger_folder.write_text("a file in place of the folder")
    storage = Storage(settings.blobs)
    orphan = storage.put(b"unreferenced")
    os.utime(storage.path(orphan), (0, 0))
    worker._start_sweeps()
    wait(lambda: not storage.exists(orphan), 20)


def test_erasures_are_repeated_while_the_storage_cannot_be_read(
    worker: Worker, settings: Settings, database: Database, tmp_path: Path
) -> None:
    assert settings.ledger_folder
    storage = Storage(settings.blobs)
    prediction_id = add_prediction(database, inputs={Input.CTA: study.store_volume(storage, tmp_path)}).id
    FolderLedger(settings.ledger_folder).add(LedgerEntry(EntryKind.PREDICTION, prediction_id))
    settings.blobs.rename(tmp_path / "away")
    settings.blobs.write_text("a file in place of the folder")
    worker._start_sweeps()
    wait(lambda: not worker._eraser.compare().restored, 20)


def test_worker_that_never_runs_for_long_sweeps_too(
    worker: Worker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "SWEEP_EVERY", 600.0)
    storage = Storage(settings.blobs)
    orphan = storage.put(b"unreferenced")
    os.utime(storage.path(orphan), (0, 0))
    worker._start_sweeps()
    wait(lambda: not storage.exists(orphan), 20)
