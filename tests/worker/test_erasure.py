"""Erasures are in the ledger before they are in the database, and a restore of the database undoes none of them."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select, text

from app.core.disk_reserve import DiskReserve
from app.database import api_keys, audit, destinations, erasures, predictions, webhooks
from app.database.session import Database, now
from app.database.tables import AuditRow
from app.sdk.errors import Erased, PredictionNotFound, Unauthenticated, Unavailable
from app.sdk.types import Input
from app.storage.erasure_ledger import EntryKind, FolderLedger, LedgerEntry, entries, find
from app.storage.local import Storage
from app.worker.erasure import Eraser
from tests import study
from tests.database.rows import add_prediction

CANARY = "CANARY-51d0"

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@dataclass
class Site:
    """A database, a storage and a ledger, and a backup of the database."""

    eraser: Eraser
    folder: Path

    @property
    def database(self) -> Database:
        return self.eraser.database

    @property
    def file(self) -> Path:
        return Path(str(self.database.url.database))

    def add(self, **changes: object) -> str:
        """Stores a study of one old volume; returns its id."""
        volume = study.store_volume(self.eraser.storage, self.folder)
        os.utime(self.eraser.storage.path(volume.sha256), (0, 0))
        return add_prediction(self.database, inputs={Input.CTA: volume}, **changes).id

    def back_up(self) -> None:
        self.database.close()
        if self.database.sqlite:
            shutil.copyfile(self.file, self.folder / "backup")
        else:
            name = str(self.database.url.database)
            self._on_server(f"CREATE DATABASE {name}_backup TEMPLATE {name}")

    def restore(self) -> None:
        self.database.close()
        if self.database.sqlite:
            shutil.copyfile(self.folder / "backup", self.file)
        else:
            name = str(self.database.url.database)
            self._on_server(f"DROP DATABASE {name}", f"CREATE DATABASE {name} TEMPLATE {name}_backup")

    def contains(self, text: str) -> bool:
        """Whether the file of SQLite contains a text, also in its free pages."""
        return text in self.file.read_bytes().decode("latin-1")

    def _on_server(self, *statements: str) -> None:
        engine = create_engine(self.database.url.set(database="postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))
        engine.dispose()

    def is_erased(self, prediction_id: str) -> bool:
        with self.database.reading() as session:
            return erasures.states(session, [prediction_id])[prediction_id]

    def audit_of(self, prediction_id: str) -> list[AuditRow]:
        with self.database.reading() as session:
            assert audit.verify(session).intact
            rows = select(AuditRow).where(AuditRow.target == prediction_id, AuditRow.action == erasures.ACTION)
            return list(session.scalars(rows))


@pytest.fixture
def site(database: Database, tmp_path: Path) -> Site:
    ledger = FolderLedger(tmp_path / "ledger")
    return Site(Eraser(database, Storage(tmp_path / "blobs"), ledger, DiskReserve([], 0)), tmp_path)


def ledger_of(site: Site) -> set[str]:
    return entries(site.eraser.ledger)[EntryKind.PREDICTION]


def test_erasure_is_in_the_ledger_and_deletes_rows_and_bytes(site: Site) -> None:
    erased, kept = site.add(), site.add(clinical={"age": 20})
    site.eraser.erase(erased, "pacs", actor="pacs", why="request")
    assert ledger_of(site) == {erased}
    assert (site.is_erased(erased), site.is_erased(kept)) == (True, False)
    entry = find(site.eraser.ledger, EntryKind.PREDICTION, erased)
    assert (entry.actor, entry.why) == ("pacs", "request")
    with pytest.raises(Erased):
        site.eraser.erase(erased, "pacs", actor="pacs", why="request")


class CountedLedger(FolderLedger):
    """Counts how often it is listed, which costs a request for each thousand entries of a bucket."""

    listings = 0

    def names(self) -> set[str]:
        self.listings += 1
        return super().names()


def test_ledger_is_listed_once_for_all_kinds(site: Site, tmp_path: Path) -> None:
    erased = site.add()
    site.eraser.erase(erased, "pacs", actor="pacs", why="request")
    ledger, copy = CountedLedger(tmp_path / "ledger"), CountedLedger(tmp_path / "copy")
    for kind in EntryKind:
        copy.add(LedgerEntry.new(kind, "3f9a1c04", now(), actor="operator", why="request"))
    eraser = replace(site.eraser, ledger=ledger)
    assert eraser.replay(actor="operator").undone == 0
    assert ledger.listings == 1
    assert eraser.merge(copy) == len(EntryKind)
    assert (ledger.listings, copy.listings) == (2, 1)
    assert {kind: len(ids) for kind, ids in entries(ledger).items()} == {
        "prediction": 2,
        "study": 1,
        "key": 1,
        "webhook": 1,
        "destination": 1,
    }


def test_refused_erasure_is_not_in_the_ledger(site: Site) -> None:
    prediction_id = site.add()
    with pytest.raises(PredictionNotFound):
        site.eraser.erase(prediction_id, "another", actor="another", why="request")
    with pytest.raises(PredictionNotFound):
        site.eraser.erase("0192f3a4-7c1e-7b7e-9d0a-3f5a1c2b4d6e", None, actor="operator", why="request")
    assert ledger_of(site) == set()
    assert not site.is_erased(prediction_id)


def test_restored_backup_brings_no_erased_patient_back(site: Site) -> None:
    erased, kept = site.add(subject=CANARY, clinical={"age": 71, "note": CANARY}), site.add(clinical={"age": 20})
    site.back_up()
    site.eraser.erase(erased, "pacs", actor="pacs", why="request")
    site.restore()
    assert not site.is_erased(erased)
    assert not site.database.sqlite or site.contains(CANARY)
    found = site.eraser.compare()
    assert (found.restored, found.unknown, found.unrecorded) == ([erased], 0, [])
    assert f"restored: prediction {erased} is erased in the ledger of erasures" in found.lines()
    site.eraser.replay(actor="operator")
    assert (site.is_erased(erased), site.is_erased(kept)) == (True, False)
    assert not site.database.sqlite or not site.contains(CANARY)
    (entry,) = site.audit_of(erased)
    assert (entry.actor, entry.detail["why"]) == ("operator", "replay")
    assert entry.detail["first"] == find(site.eraser.ledger, EntryKind.PREDICTION, erased).at
    assert site.eraser.compare().lines() == []
    assert site.eraser.replay(actor="operator").undone == 0
    assert len(site.audit_of(erased)) == 1


@on_sqlite
def test_backup_from_before_the_study_is_reported_and_changes_nothing(site: Site) -> None:
    site.back_up()
    erased = site.add()
    site.eraser.erase(erased, "pacs", actor="pacs", why="request")
    site.restore()
    found = site.eraser.replay(actor="operator")
    assert (found.restored, found.unknown) == ([], 1)
    assert found.lines() == ["1 erasures of the ledger are of predictions that the database does not have"]
    with site.database.reading() as session:
        assert audit.verify(session).entries == 0


def test_restored_backup_sends_no_result_to_a_removed_destination(site: Site) -> None:
    with site.database.session() as session:
        made = [
            destinations.create(
                session, "pacs", name, destinations.DestinationKind.STOW, "https://a.example/studies"
            ).id
            for name in ("lost", "kept")
        ]
    site.back_up()
    assert site.eraser.end(EntryKind.DESTINATION, made[0], actor="operator")
    site.restore()
    assert site.eraser.replay(actor="operator").valid_again == [(EntryKind.DESTINATION, made[0])]
    with site.database.reading() as session:
        assert destinations.active(session, made) == {made[1]}


def test_restored_backup_makes_no_revoked_key_and_no_removed_webhook_valid(site: Site) -> None:
    with site.database.session() as session:
        secrets = [api_keys.create(session, name) for name in ("lost", "kept")]
        hooks = [webhooks.create(session, "pacs", f"https://{name}.example/").id for name in ("lost", "kept")]
    with site.database.reading() as session:
        ids = {key.name: key.id for key in api_keys.listed(session)}
    site.back_up()
    assert site.eraser.end(EntryKind.KEY, ids["lost"], actor="operator")
    assert site.eraser.end(EntryKind.WEBHOOK, hooks[0], actor="operator")
    assert not site.eraser.end(EntryKind.KEY, ids["lost"], actor="operator")
    assert not site.eraser.end(EntryKind.KEY, "unknown", actor="operator")
    site.restore()
    with site.database.reading() as session:
        assert api_keys.authenticate(session, secrets[0]).name == "lost"
    found = site.eraser.replay(actor="operator")
    assert found.valid_again == [(EntryKind.KEY, ids["lost"]), (EntryKind.WEBHOOK, hooks[0])]
    with site.database.reading() as session:
        with pytest.raises(Unauthenticated):
            api_keys.authenticate(session, secrets[0])
        assert api_keys.authenticate(session, secrets[1]).name == "kept"
        assert webhooks.active(session, hooks) == {hooks[1]}
        assert audit.verify(session).intact


def test_erasure_that_stopped_after_its_ledger_entry_is_completed(site: Site) -> None:
    prediction_id = site.add()
    site.eraser.ledger.add(LedgerEntry.new(EntryKind.PREDICTION, prediction_id, now(), actor="pacs", why="request"))
    assert site.eraser.compare().restored == [prediction_id]
    site.eraser.replay(actor="worker")
    assert site.is_erased(prediction_id)


def test_erasure_succeeds_during_a_replay_that_erases_the_rows_first(site: Site) -> None:
    class ReplayedLedger(FolderLedger):
        def add(self, entry: LedgerEntry) -> None:
            super().add(entry)
            site.eraser.replay(actor="worker")

    prediction_id = site.add()
    eraser = replace(site.eraser, ledger=ReplayedLedger(site.folder / "ledger"))
    eraser.erase(prediction_id, "pacs", actor="pacs", why="request")
    assert site.is_erased(prediction_id)
    assert len(site.audit_of(prediction_id)) == 1
    with pytest.raises(Erased):
        eraser.erase(prediction_id, "pacs", actor="pacs", why="request")


def test_ledger_that_cannot_be_written_erases_nothing(site: Site) -> None:
    prediction_id = site.add()
    (site.folder / "ledger").write_text("a file in place of the folder")
    with pytest.raises(Unavailable):
        site.eraser.erase(prediction_id, "pacs", actor="pacs", why="request")
    assert not site.is_erased(prediction_id)


def test_revocation_does_not_wait_for_the_ledger(site: Site) -> None:
    with site.database.session() as session:
        secret = api_keys.create(session, "lost")
    with site.database.reading() as session:
        (key,) = api_keys.listed(session)
    (site.folder / "ledger").write_text("a file in place of the folder")
    assert site.eraser.end(EntryKind.KEY, key.id, actor="operator")
    with site.database.reading() as session, pytest.raises(Unauthenticated):
        api_keys.authenticate(session, secret)
    (site.folder / "ledger").unlink()
    site.eraser.replay(actor="worker")
    assert entries(site.eraser.ledger)[EntryKind.KEY] == {key.id}


def test_erasures_of_an_earlier_release_are_added_to_the_ledger(site: Site) -> None:
    prediction_id = site.add()
    with site.database.session() as session:
        erasures.erase(session, prediction_id, None, actor="operator", why="subject")
    assert [each.id for each in site.eraser.compare().unrecorded] == [prediction_id]
    site.eraser.replay(actor="worker")
    entry = find(site.eraser.ledger, EntryKind.PREDICTION, prediction_id)
    assert (entry.actor, entry.why) == ("operator", "subject")
    assert site.eraser.compare().lines() == []


@on_sqlite
def test_copy_of_the_ledger_is_added_to_it(site: Site) -> None:
    erased = site.add()
    site.back_up()
    site.eraser.erase(erased, "pacs", actor="pacs", why="request")
    (site.folder / "ledger").rename(site.folder / "copy")
    site.restore()
    assert site.eraser.compare().restored == []
    assert site.eraser.merge(FolderLedger(site.folder / "copy")) == 1
    assert site.eraser.merge(FolderLedger(site.folder / "copy")) == 0
    assert site.eraser.replay(actor="operator").restored == [erased]
    assert find(site.eraser.ledger, EntryKind.PREDICTION, erased).why == "request"


def test_restored_prediction_that_is_unfinished_is_not_computed(site: Site) -> None:
    prediction_id = site.add()
    site.eraser.ledger.add(LedgerEntry(EntryKind.PREDICTION, prediction_id))
    site.eraser.replay(actor="worker")
    with site.database.reading() as session, pytest.raises(Erased):
        predictions.find(session, prediction_id, None)


def test_files_that_cannot_be_deleted_now_do_not_stop_the_erasure(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(digest: str) -> bool:
        raise Unavailable

    prediction_id = site.add()
    monkeypatch.setattr(site.eraser.storage, "delete", unreachable)
    site.eraser.erase(prediction_id, "pacs", actor="pacs", why="request")
    assert site.is_erased(prediction_id)
