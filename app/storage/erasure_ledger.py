"""Ledger of erasures and revocations: it stays as it is when the database is restored from a backup.

Design notes:
- One file (or one object of a bucket) per entry. Its name says what was erased, so a damaged file still counts.
- Entries are only added. A copy of an older ledger that is unpacked over a newer one removes none.
- An entry is written before the rows are deleted. If the process stops between both, the next start erases the rows.
- Entries hold ids, times, the actor and the reason, but no patient data.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from app.core.environment import disk_is_full
from app.core.filesystem import private_folder, sync, sync_file_system
from app.sdk.errors import StorageFull, StorageUnavailable

_NAME = re.compile(r"(?P<kind>prediction|study|key|webhook|destination)-(?P<id>[0-9A-Za-z-]{1,64})\.json")


class EntryKind(StrEnum):
    """What an entry is about: something erased, a revoked API key, a removed webhook or DICOM destination."""

    PREDICTION = "prediction"
    STUDY = "study"
    KEY = "key"
    WEBHOOK = "webhook"
    DESTINATION = "destination"


@dataclass(frozen=True)
class LedgerEntry:
    """One erasure or revocation; ``at`` is ISO 8601 in UTC, and empty if the file of the entry is damaged."""

    kind: EntryKind
    id: str
    at: str = ""
    actor: str = ""
    why: str = ""

    @classmethod
    def new(cls, kind: EntryKind, target: str, at: datetime, *, actor: str, why: str) -> LedgerEntry:
        """Return the entry of an erasure or revocation at the time ``at``."""
        return cls(kind, target, at.isoformat(timespec="milliseconds"), actor, why)

    @property
    def name(self) -> str:
        """Name of the file or object of the entry."""
        return f"{self.kind}-{self.id}.json"

    def content(self) -> bytes:
        """Return the entry as JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"


class ErasureLedger(Protocol):
    """A ledger in a folder or in a bucket."""

    def add(self, entry: LedgerEntry) -> None:
        """Store an entry durably; an entry that the ledger has already stays as it is.

        Raises:
            StorageFull: The disk of the ledger is full.
            Unavailable: The ledger cannot be reached.
        """

    def add_all(self, entries: Sequence[LedgerEntry]) -> None:
        """Store many entries durably, faster than one after the other. Raises the errors of `add`."""

    def names(self) -> set[str]:
        """Return the names of all entries. Raises Unavailable."""

    def read(self, name: str) -> bytes:
        """Return the content of an entry; empty if there is none. Raises Unavailable."""


class FolderLedger:
    """Ledger in a local or shared folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, entry: LedgerEntry) -> None:
        path = self.folder / entry.name
        with _ledger_errors():
            private_folder(self.folder)
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                return
            try:
                with os.fdopen(descriptor, "wb", buffering=0) as file:
                    file.write(entry.content())
                    os.fsync(file.fileno())
                sync(self.folder)
            except OSError:
                with suppress(OSError):
                    path.unlink()
                raise

    def add_all(self, entries: Sequence[LedgerEntry]) -> None:
        made: list[Path] = []
        with _ledger_errors():
            private_folder(self.folder)
            try:
                for entry in entries:
                    path = self.folder / entry.name
                    with suppress(FileExistsError):
                        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                        made.append(path)
                        with os.fdopen(descriptor, "wb", buffering=0) as file:
                            file.write(entry.content())
                sync_file_system(self.folder)  # one flush, where a flush of each file takes milliseconds
            except OSError:
                for path in made:
                    with suppress(OSError):
                        path.unlink()
                raise

    def names(self) -> set[str]:
        with _ledger_errors():
            try:
                return {path.name for path in self.folder.iterdir() if _NAME.fullmatch(path.name)}
            except FileNotFoundError:
                return set()

    def read(self, name: str) -> bytes:
        with _ledger_errors():
            try:
                return (self.folder / name).read_bytes()
            except FileNotFoundError:
                return b""


def entries(ledger: ErasureLedger) -> dict[EntryKind, set[str]]:
    """Return the ids of all entries by kind, from one listing of the ledger. Raises Unavailable."""
    ids: dict[EntryKind, set[str]] = {kind: set() for kind in EntryKind}
    for name in ledger.names():
        if match := _NAME.fullmatch(name):
            ids[EntryKind(match["kind"])].add(match["id"])
    return ids


def find(ledger: ErasureLedger, kind: EntryKind, target: str) -> LedgerEntry:
    """Return the entry of a target; without time, actor and reason if its file is damaged."""
    bare = LedgerEntry(kind, target)
    try:
        stored = json.loads(ledger.read(bare.name))
        return LedgerEntry(kind, target, *(str(stored[name]) for name in ("at", "actor", "why")))
    except (ValueError, TypeError, KeyError):
        return bare


@contextmanager
def _ledger_errors() -> Iterator[None]:
    """Convert an OSError of the ledger to StorageFull or StorageUnavailable."""
    try:
        yield
    except OSError as error:
        if disk_is_full(error):
            raise StorageFull("The disk of the ledger of erasures is full; free disk space") from error
        raise StorageUnavailable(
            "The ledger of erasures cannot be read or written; check RLVO_ERASURE_LEDGER", retry_after=5
        ) from error
