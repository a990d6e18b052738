"""Predictions are erased after the retention period, and a clock jump erases nothing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from app.core.disk_reserve import DiskReserve
from app.database import audit, erasures, predictions
from app.database.session import Database, now
from app.database.study_tables import StudyPredictionRow, StudyRow
from app.database.tables import Utc
from app.sdk.errors import Erased
from app.sdk.types import Input
from app.storage.erasure_ledger import EntryKind, FolderLedger, entries
from app.storage.local import Storage
from app.worker.erasure import Eraser
from app.worker.retention import Retention
from tests import study


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "blobs")


def retention(database: Database, storage: Storage, days: float) -> Retention:
    eraser = Eraser(database, storage, FolderLedger(storage.folder.parent / "ledger"), DiskReserve([], 0))
    return Retention(database, eraser, days)


def add_old_prediction(
    database: Database, storage: Storage, folder: Path, *, days_ago: float, seed: int, ended: bool = True
) -> str:
    """Adds a prediction of one volume that was accepted, and ended, some days ago, and returns its id."""
    summary = study.store_volume(storage, folder, seed)
    os.utime(storage.path(summary.sha256), (time.time() - 86400 * days_ago,) * 2)
    new = study.new_prediction(inputs={Input.CTA: summary})
    with database.session() as session:
        predictions.add(session, new)
        created = Utc().process_bind_param(now() - timedelta(days=days_ago), session.get_bind().dialect)
        assert created
        value = created.strftime("%Y-%m-%d %H:%M:%S.%f") if database.sqlite else created
        change = "created = :at, finished = :at" if ended else "created = :at"
        session.execute(text(f"UPDATE predictions SET {change} WHERE id = :id"), {"at": value, "id": new.id})
    return new.id


def small_batches(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Makes the batches of a sweep as small as this, with both kinds of database."""
    for name in ("BATCH_SIZE", "BATCH_SIZE_POSTGRESQL"):
        monkeypatch.setattr(f"app.worker.retention.{name}", size)


def exist(database: Database, *ids: str) -> list[bool]:
    """Whether each prediction still exists."""

    def exists(prediction_id: str) -> bool:
        with database.reading() as session:
            try:
                predictions.find(session, prediction_id, None)
            except Erased:
                return False
        return True

    return [exists(each) for each in ids]


def test_only_older_predictions_are_erased_with_their_bytes(
    database: Database, storage: Storage, tmp_path: Path
) -> None:
    old, young = (
        add_old_prediction(database, storage, tmp_path, days_ago=age, seed=index) for index, age in enumerate((31, 29))
    )
    assert len(list(storage.digests())) == 2
    assert retention(database, storage, 30).apply() == 1
    assert exist(database, old, young) == [False, True]
    assert len(list(storage.digests())) == 1
    with database.reading() as session:
        certificate = erasures.certificate(session, old, None, storage.exists)
        assert audit.verify(session).intact
    assert certificate.complete
    assert (certificate.entry.actor, certificate.entry.detail["why"]) == ("worker", "retention")
    assert retention(database, storage, 30).apply() == 0


def test_study_without_an_answer_is_kept_and_told(
    database: Database, storage: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = add_old_prediction(database, storage, tmp_path, days_ago=400, seed=0, ended=False)
    answered = add_old_prediction(database, storage, tmp_path, days_ago=31, seed=1)
    with caplog.at_level("WARNING", logger="rlvo.retention"):
        assert retention(database, storage, 30).apply() == 1
    assert exist(database, waiting, answered) == [True, False]
    assert "1 studies are older than the retention period and have no answer" in caplog.text


def test_without_a_period_all_predictions_stay(database: Database, storage: Storage, tmp_path: Path) -> None:
    old = add_old_prediction(database, storage, tmp_path, days_ago=10_000, seed=0)
    assert retention(database, storage, 0).apply() == 0
    assert exist(database, old) == [True]


def test_many_predictions_are_erased_in_batches(
    database: Database, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_batches(monkeypatch, 2)
    for seed in range(5):
        add_old_prediction(database, storage, tmp_path, days_ago=31, seed=seed)
    assert retention(database, storage, 30).apply() == 5
    assert list(storage.digests()) == []


def test_batches_that_share_blobs_and_studies_are_erased_at_the_same_time(
    database: Database, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_batches(monkeypatch, 3)
    ids = [add_old_prediction(database, storage, tmp_path, days_ago=31, seed=number % 4) for number in range(40)]
    kept = add_old_prediction(database, storage, tmp_path, days_ago=1, seed=0)
    with database.session() as session:
        for number in range(3):
            session.add(
                StudyRow(id=f"study-{number}", caller="local", uid=f"1.2.{number}", state="sent", created=now())
            )
        session.flush()
        for number, each in enumerate(ids):
            of = {"study_id": f"study-{number * 7 % 3}", "revision": number, "why": "first", "created": now()}
            session.add(StudyPredictionRow(**of, prediction_id=each))
    assert retention(database, storage, 30).apply() == 40
    assert exist(database, *ids, kept) == [False] * 40 + [True]
    assert len(list(storage.digests())) == 1
    with database.reading() as session:
        assert audit.verify(session).intact
        assert sorted(each.target for each in erasures.recorded(session)) == sorted(ids)
    ledger = FolderLedger(storage.folder.parent / "ledger")
    assert entries(ledger)[EntryKind.PREDICTION] == set(ids)


def test_two_batches_are_erased_at_the_same_time_on_postgresql(
    database: Database, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_batches(monkeypatch, 1)
    for seed in range(2):
        add_old_prediction(database, storage, tmp_path, days_ago=31, seed=seed)
    both, erase_all = threading.Barrier(1 if database.sqlite else 2, timeout=30), Eraser.erase_all

    def together(eraser: Eraser, ids: Sequence[str], *, actor: str, why: str) -> int:
        both.wait()
        return erase_all(eraser, ids, actor=actor, why=why)

    monkeypatch.setattr(Eraser, "erase_all", together)
    assert retention(database, storage, 30).apply() == 2


def test_clock_jump_erases_nothing(
    database: Database, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    young = add_old_prediction(database, storage, tmp_path, days_ago=1, seed=0)
    keeper, real = retention(database, storage, 30), time.time
    monkeypatch.setattr(time, "time", lambda: real() + 400 * 86400)
    monkeypatch.setattr("app.worker.retention.now", lambda: now() + timedelta(days=400))
    assert keeper.apply() == 0
    assert exist(database, young) == [True]
    assert retention(database, storage, 30).apply() == 1  # a worker that starts after the jump trusts its clock
