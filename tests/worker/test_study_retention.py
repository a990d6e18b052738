"""Files of received studies are kept for some hours, and their rows as long as their predictions."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from app.core.disk_reserve import DiskReserve
from app.database import predictions, received
from app.database.received import ReceivedInstance
from app.database.session import Database, now
from app.database.study_tables import InstanceRow, StudyPredictionRow, StudyRow
from app.database.tables import PredictionRow
from app.sdk.studies import StudyState
from app.storage.erasure_ledger import FolderLedger
from app.storage.local import Storage
from app.worker.erasure import Eraser
from app.worker.retention import Retention, sweep
from tests import study


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "blobs")


def retention(database: Database, storage: Storage, days: float = 30) -> Retention:
    eraser = Eraser(database, storage, FolderLedger(storage.folder.parent / "ledger"), DiskReserve([], 0))
    return Retention(database, eraser, days)


def add_study(database: Database, storage: Storage, uid: str, *, days_ago: float, state: StudyState) -> str:
    """Adds a study of one instance that arrived some days ago; returns the digest of its file."""
    digest = storage.put(uid.encode())
    os.utime(storage.path(digest), (time.time() - 86400 * days_ago - 7200,) * 2)
    instance = ReceivedInstance("ct", uid, f"{uid}.1", "1.2.1", f"{uid}.1.1", "0" * 64, digest, 9)
    with database.session() as session:
        received.add(session, [instance], quiet=30)
        old = now() - timedelta(days=days_ago)
        session.execute(update(StudyRow).where(StudyRow.uid == uid).values(received=old, created=old, state=state))
    return digest


def uids(database: Database) -> set[str]:
    with database.reading() as session:
        return set(session.scalars(select(StudyRow.uid)))


def test_files_are_deleted_after_the_hours_and_rows_stay(database: Database, storage: Storage) -> None:
    old = add_study(database, storage, "1.1", days_ago=4, state=StudyState.PREDICTED)
    fresh = add_study(database, storage, "1.2", days_ago=1, state=StudyState.PREDICTED)
    unfinished = add_study(database, storage, "1.3", days_ago=4, state=StudyState.RECEIVING)
    assert sweep(database, storage) == 0
    assert retention(database, storage).forget_instances(72) == 1
    assert sweep(database, storage) == 1
    assert [storage.exists(each) for each in (old, fresh, unfinished)] == [False, True, True]
    assert uids(database) == {"1.1", "1.2", "1.3"}
    with database.reading() as session:
        assert received.known(session, "ct", ["1.1.1.1"]) == {"1.1.1.1": received.Known("0" * 64, stored=False)}


def test_a_deleted_file_that_arrives_again_counts_as_new(database: Database, storage: Storage) -> None:
    add_study(database, storage, "1.1", days_ago=4, state=StudyState.PREDICTED)
    retention(database, storage).forget_instances(72)
    add_study(database, storage, "1.1", days_ago=0, state=StudyState.RECEIVING)
    with database.reading() as session:
        (row,) = session.scalars(select(StudyRow))
        assert (row.instances, session.scalars(select(InstanceRow.digest)).one() is not None) == (1, True)


def test_a_study_is_erased_with_the_last_of_its_predictions(database: Database, storage: Storage) -> None:
    for uid, days_ago in (("1.1", 40.0), ("1.2", 40.0), ("1.3", 1.0)):
        add_study(database, storage, uid, days_ago=days_ago, state=StudyState.PREDICTED)
    kept = study.new_prediction(inputs={})
    with database.session() as session:
        predictions.add(session, kept)
        session.execute(update(PredictionRow).values(finished=now() - timedelta(days=2), status="succeeded"))
        row = session.scalars(select(StudyRow).where(StudyRow.uid == "1.2")).one()
        link = {"study_id": row.id, "prediction_id": kept.id, "revision": 1, "why": "quiet"}
        session.add(StudyPredictionRow(**link, created=now()))
    retention(database, storage).apply()
    assert uids(database) == {"1.2", "1.3"}
