"""The ledger of erasures keeps every entry, in a folder and in a bucket."""

from __future__ import annotations

import json
import os
import shutil
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.core.config import Settings
from app.sdk.errors import BucketMissing, StorageUnavailable
from app.storage.erasure_ledger import EntryKind, ErasureLedger, FolderLedger, LedgerEntry, entries, find
from app.storage.factory import ledger_of
from app.storage.s3 import BucketLedger

AT = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
FIRST, SECOND = "0192f3a4-7c1e-7b7e-9d0a-3f5a1c2b4d6e", "0192f3a4-7c1e-7b7e-9d0a-3f5a1c2b4d6f"


def entry(target: str = FIRST, kind: EntryKind = EntryKind.PREDICTION, actor: str = "pacs") -> LedgerEntry:
    return LedgerEntry.new(kind, target, AT, actor=actor, why="request")


@pytest.fixture(params=["folder", "bucket"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> ErasureLedger:
    if request.param == "folder":
        return FolderLedger(tmp_path / "ledger")
    return BucketLedger(f"{request.getfixturevalue('bucket')}/.erasures", endpoint=request.getfixturevalue("s3"))


def test_entries_are_found_by_their_kind(ledger: ErasureLedger) -> None:
    assert entries(ledger)[EntryKind.PREDICTION] == set()
    for each in (entry(), entry(SECOND), entry("3f9a1c04", EntryKind.KEY)):
        ledger.add(each)
    assert entries(ledger)[EntryKind.PREDICTION] == {FIRST, SECOND}
    assert entries(ledger)[EntryKind.KEY] == {"3f9a1c04"}
    assert entries(ledger)[EntryKind.WEBHOOK] == set()
    assert find(ledger, EntryKind.PREDICTION, FIRST) == entry()
    assert find(ledger, EntryKind.PREDICTION, "unknown") == LedgerEntry(EntryKind.PREDICTION, "unknown")


def test_second_entry_of_a_target_is_no_error(ledger: ErasureLedger) -> None:
    ledger.add(entry())
    ledger.add(entry())
    assert entries(ledger)[EntryKind.PREDICTION] == {FIRST}


def test_first_entry_stays(ledger: ErasureLedger) -> None:
    ledger.add(entry())
    ledger.add(entry(actor="another"))
    assert find(ledger, EntryKind.PREDICTION, FIRST).actor == "pacs"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"at": 1}', b"\xff\xfe"])
def test_damaged_entry_still_counts(tmp_path: Path, content: bytes) -> None:
    ledger = FolderLedger(tmp_path / "ledger")
    ledger.add(entry())
    (ledger.folder / entry().name).write_bytes(content)
    assert entries(ledger)[EntryKind.PREDICTION] == {FIRST}
    assert find(ledger, EntryKind.PREDICTION, FIRST) == LedgerEntry(EntryKind.PREDICTION, FIRST)


def test_entry_contains_no_patient_data(tmp_path: Path) -> None:
    ledger = FolderLedger(tmp_path / "ledger")
    ledger.add(entry())
    stored = json.loads((ledger.folder / entry().name).read_bytes())
    assert stored == {
        "kind": "prediction",
        "id": FIRST,
        "at": AT.isoformat(timespec="milliseconds"),
        "actor": "pacs",
        "why": "request",
    }


def test_older_copy_that_is_unpacked_over_the_ledger_removes_nothing(tmp_path: Path) -> None:
    ledger = FolderLedger(tmp_path / "ledger")
    ledger.add(entry())
    shutil.copytree(ledger.folder, tmp_path / "backup")
    ledger.add(entry(SECOND))
    shutil.copytree(tmp_path / "backup", ledger.folder, dirs_exist_ok=True)
    assert entries(ledger)[EntryKind.PREDICTION] == {FIRST, SECOND}


def test_other_files_in_the_folder_are_ignored(tmp_path: Path) -> None:
    ledger = FolderLedger(tmp_path / "ledger")
    ledger.add(entry())
    for name in ("README", ".rlvo-reserve", "prediction-.json", "prediction-a b.json", "model-1.json"):
        (ledger.folder / name).write_text("x")
    assert entries(ledger)[EntryKind.PREDICTION] == {FIRST}


def test_other_users_cannot_read_the_ledger(tmp_path: Path) -> None:
    ledger = FolderLedger(tmp_path / "ledger")
    before = os.umask(0)
    try:
        ledger.add(entry())
    finally:
        os.umask(before)
    assert stat.S_IMODE(ledger.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((ledger.folder / entry().name).stat().st_mode) == 0o600


def test_ledger_that_cannot_be_reached_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    ledger = FolderLedger(tmp_path / "file" / "ledger")
    with pytest.raises(StorageUnavailable, match="RLVO_ERASURE_LEDGER"):
        ledger.add(entry())
    with pytest.raises(StorageUnavailable, match="RLVO_ERASURE_LEDGER"):
        ledger.names()


def test_missing_bucket_is_named(bucket: str, s3: str) -> None:
    ledger = BucketLedger("s3://rlvo-no-such-bucket/.erasures", endpoint=s3)
    with pytest.raises(BucketMissing, match="does not exist"):
        ledger.add(entry())
    with pytest.raises(BucketMissing, match="does not exist"):
        ledger.names()
    with pytest.raises(BucketMissing, match="does not exist"):
        ledger.read(entry().name)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({}, "data/erasures"),
        ({"storage_url": "/mnt/blobs"}, "/mnt/blobs/.erasures"),
        ({"storage_url": "s3://stroke/rlvo/"}, "s3://stroke/rlvo/.erasures"),
        ({"storage_url": "s3://stroke/rlvo", "erasure_ledger": "/mnt/ledger"}, "/mnt/ledger"),
        ({"database_url": "postgresql://db/rlvo", "erasure_ledger": "s3://audit/rlvo"}, "s3://audit/rlvo"),
    ],
)
def test_ledger_is_where_all_machines_reach_it(given: dict[str, str], place: str) -> None:
    assert Settings(**given).ledger == place  # type: ignore[arg-type]


def test_setting_selects_the_ledger(bucket: str, s3: str, tmp_path: Path) -> None:
    assert isinstance(ledger_of(Settings(data_dir=tmp_path)), FolderLedger)
    shared = ledger_of(Settings(data_dir=tmp_path, storage_url=bucket, s3_endpoint=s3))
    assert isinstance(shared, BucketLedger)
    shared.add(entry())
    assert entries(shared)[EntryKind.PREDICTION] == {FIRST}
