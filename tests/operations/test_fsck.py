"""`rlvo fsck`: it finds each kind of damage, mends what can be mended, and leaves a sound service alone."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text

from app.core.config import Settings
from app.database import job_state, predictions
from app.database.predictions import Artifact
from app.database.session import Database
from app.operations.fsck import fsck
from app.sdk.errors import InternalError
from app.sdk.types import Input, InputSummary, Status
from app.storage.local import Storage
from app.worker.queue import Queue
from tests import study
from tests.database.results import result


@dataclass
class Kept:
    """A service's data: one queued prediction of one volume."""

    settings: Settings
    database: Database
    storage: Storage
    prediction_id: str
    volume: InputSummary


@pytest.fixture
def kept(tmp_path: Path, database: Database, database_url: str) -> Kept:
    storage = Storage(tmp_path / "blobs")
    volume = study.store_volume(storage, tmp_path)
    new = study.new_prediction(inputs={Input.CTA: volume})
    with database.session() as session:
        study.add_and_queue(session, Queue(database), new)
    settings = Settings(data_dir=tmp_path, database_url=database_url, storage_url=str(tmp_path / "blobs"))
    return Kept(settings, database, storage, new.id, volume)


def test_a_sound_service_is_left_as_it_is(kept: Kept) -> None:
    os.utime(kept.storage.path(kept.volume.sha256), (0, 0))
    report = fsck(kept.settings, deep=True, mend=True)
    assert report.sound
    assert report.lines() == ["1 blobs named by predictions"]
    assert kept.storage.verify(kept.volume.sha256)


def test_a_missing_blob_is_told_with_its_prediction(kept: Kept) -> None:
    kept.storage.path(kept.volume.sha256).unlink()
    report = fsck(kept.settings)
    assert report.missing == {kept.volume.sha256: [kept.prediction_id]}
    assert not report.sound


def test_damage_is_found_when_looked_for_and_put_aside(kept: Kept) -> None:
    kept.storage.path(kept.volume.sha256).write_bytes(b"other bytes")
    assert fsck(kept.settings).sound
    looked = fsck(kept.settings, deep=True)
    assert looked.damaged == {kept.volume.sha256: [kept.prediction_id]}
    assert kept.storage.exists(kept.volume.sha256)
    assert not fsck(kept.settings, deep=True, mend=True).sound
    assert not kept.storage.exists(kept.volume.sha256)
    assert any("missing" in line for line in fsck(kept.settings).lines())


def test_old_orphans_are_deleted_and_young_ones_left(kept: Kept) -> None:
    old, young = kept.storage.put(b"old"), kept.storage.put(b"young")
    os.utime(kept.storage.path(old), (0, 0))
    assert fsck(kept.settings).orphans == [old]
    assert kept.storage.exists(old)
    report = fsck(kept.settings, mend=True)
    assert report.sound
    assert report.orphans == [old]
    assert not kept.storage.exists(old)
    assert kept.storage.exists(young)


def test_a_prediction_that_nothing_works_on_is_ended(kept: Kept) -> None:
    table = "workflow_status" if kept.database.sqlite else "dbos.workflow_status"
    with kept.database.session() as session:
        session.execute(text(f"UPDATE {table} SET status = 'ERROR'"))
    assert fsck(kept.settings).stuck == [kept.prediction_id]
    fsck(kept.settings, mend=True)
    with kept.database.reading() as session:
        assert predictions.find(session, kept.prediction_id, None).status is Status.FAILED
    assert fsck(kept.settings).sound


def test_a_broken_audit_is_told(kept: Kept) -> None:
    with kept.database.session() as session:
        session.execute(text("UPDATE audit_head SET seq = 3"))
    report = fsck(kept.settings)
    assert report.audit_broken_at == 1
    assert not report.sound


# Backups: rows and blobs are copied at different moments, and put back.


@dataclass
class Backup:
    """A service on SQLite with two answered predictions; rows and blobs were copied after the first one."""

    settings: Settings
    first: str
    second: str
    rows: Path
    blobs: Path

    @property
    def storage(self) -> Storage:
        return Storage(self.settings.blobs)

    def restore(self, copy: Path) -> None:
        place = self.settings.data_dir / copy.name
        if copy.is_dir():
            shutil.rmtree(place)
            shutil.copytree(copy, place)
        else:
            shutil.copyfile(copy, place)

    def files(self, prediction_id: str) -> dict[str, bool]:
        """Each digest that the prediction names, and whether its bytes are there and whole."""
        database = Database(self.settings.database)
        with database.reading() as session:
            named = session.execute(
                text("SELECT digest FROM artifacts WHERE prediction_id = :id"), {"id": prediction_id}
            )
            found = {digest: self.storage.verify(digest) for (digest,) in named}
        database.close()
        return found


@pytest.fixture
def backup(tmp_path: Path) -> Backup:
    settings = Settings(data_dir=tmp_path / "data")
    settings.data_dir.mkdir()
    database = Database(settings.database)
    database.upgrade()
    Queue(database).upgrade()
    storage, copies = Storage(settings.blobs), tmp_path / "copies"
    copies.mkdir()
    first = answered(database, storage, tmp_path, seed=1)
    database.close()
    shutil.copyfile(settings.data_dir / "rlvo.sqlite", copies / "rlvo.sqlite")
    shutil.copytree(settings.blobs, copies / "blobs")
    second = answered(database, storage, tmp_path, seed=2)
    database.close()
    for digest in storage.digests():
        os.utime(storage.path(digest), (0, 0))  # long ago
    return Backup(settings, first, second, copies / "rlvo.sqlite", copies / "blobs")


def answered(database: Database, storage: Storage, folder: Path, seed: int) -> str:
    """A prediction that succeeded and made one map of its own; its id."""
    new = study.new_prediction(inputs={Input.CTA: study.store_volume(storage, folder, seed)})
    made = f"the map of {seed}".encode()
    with database.session() as session:
        study.add_and_queue(session, Queue(database), new)
        begun = job_state.start(session, new.id)
        assert begun
        artifact = Artifact("maps/attribution-cta.nii.gz", storage.put(made), len(made), "application/gzip")
        assert job_state.succeed(session, begun, result([artifact]))
    return new.id


def test_a_database_that_is_older_than_its_blobs_is_told_and_mended(backup: Backup) -> None:
    newer = set(backup.files(backup.second))
    backup.restore(backup.rows)
    told = fsck(backup.settings, deep=True)
    assert told.sound  # nothing that the rows know of is lost
    assert set(told.orphans) == newer
    assert f"{len(newer)} blobs that no prediction names" in told.lines()
    assert fsck(backup.settings, mend=True).sound
    assert fsck(backup.settings, deep=True).orphans == []
    assert set(backup.storage.digests()) == set(backup.files(backup.first))
    assert all(backup.files(backup.first).values())


def test_a_database_that_is_newer_than_its_blobs_is_told(backup: Backup) -> None:
    backup.restore(backup.blobs)
    report = fsck(backup.settings, deep=True, mend=True)
    assert not report.sound
    assert report.missing == {digest: [backup.second] for digest in backup.files(backup.second)}
    assert all(backup.files(backup.first).values())
    for digest in backup.files(backup.second):
        with pytest.raises(InternalError, match="missing"):  # told, never other bytes
            backup.storage.read(digest)
