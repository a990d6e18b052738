"""Reception of DICOM instances: durable before the sender is told success, and never decoded.

Design notes:
- An instance is first a file of the folder `received`, which is flushed to the disk. A sender is answered then. A file
  gets its name there after its bytes are flushed, so a name that exists has all its bytes.
- `index` moves such files to the blobs, named by their sha-256, and adds their rows, many in one transaction. Whichever
  process indexes, a file stays until its rows are committed, so a killed process loses nothing.
- The name of a file is the sha-256 of its SOP Instance UID, so that two senders of one instance meet.
- The bytes are as they were sent. What identifies a patient is in no name, log line or error.

    received/<tenant, hexadecimal>/<sha-256 of the study UID>/<sha-256 of the SOP Instance UID>
    received/.incoming/…  unfinished files
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TypeVar

from app.core.config import Settings
from app.core.filesystem import locked_soon, private_folder, sync
from app.database import received
from app.database.received import ReceivedInstance
from app.database.session import Database
from app.dicom.errors import Unreadable
from app.dicom.head import Head, read_head
from app.dicom.return_address import accession_digest, key_of
from app.storage.errors import storage_errors
from app.storage.local import Storage

__all__ = ["Outcome", "Received", "Reception"]

log = logging.getLogger("rlvo.dicom")

MAX_INSTANCES = 2000  # of one study
_INCOMING = ".incoming"
_BATCH = 64  # files that are indexed in one transaction
_ABANDONED = 600.0  # seconds after which an unfinished file belongs to no sender
_TRIES = 5
_THREADS = 4  # that read and flush files at the same time
T = TypeVar("T")
R = TypeVar("R")


class Outcome(StrEnum):
    """What became of a received instance."""

    STORED = "stored"
    KNOWN = "known"
    CONFLICT = "conflict"
    TOO_MANY = "too-many"

    @property
    def accepted(self) -> bool:
        """Whether the instance is stored now."""
        return self in (Outcome.STORED, Outcome.KNOWN)


@dataclass(frozen=True)
class Received:
    """A received instance: its UIDs, and what became of it."""

    head: Head
    outcome: Outcome


class Reception:
    """Receives instances into a folder, and moves them to the blobs."""

    def __init__(
        self,
        folder: Path,
        database: Database,
        storage: Storage,
        *,
        quiet: float = 30.0,
        clinical_wait: float = 0.0,
        max_instances: int = MAX_INSTANCES,
        return_key: bytes | None = None,
    ) -> None:
        self._folder = folder
        self.database = database
        self.storage = storage
        self._quiet = quiet
        self._clinical_wait = clinical_wait
        self._max_instances = max_instances
        self._return_key = return_key

    @classmethod
    def of(cls, settings: Settings, database: Database, storage: Storage) -> Reception:
        """Make the reception that the settings describe."""
        quiet, wait = settings.dicom_quiet, settings.dicom_clinical_wait
        key = key_of(settings.dicom_return_key)
        return cls(settings.received, database, storage, quiet=quiet, clinical_wait=wait, return_key=key)

    @property
    def incoming(self) -> Path:
        """Folder of unfinished files."""
        return self._folder / _INCOMING

    def draft(self) -> Path:
        """A new path for the bytes of an instance. Raises StorageFull, StorageUnavailable."""
        with storage_errors():
            private_folder(self.incoming)
        return self.incoming / secrets.token_hex(16)

    def accept(self, caller: str, draft: Path) -> Received:
        """Make a complete file durable, or refuse it; the draft is deleted.

        Args:
            caller: tenant of the sender.
            draft: a DICOM file with file meta information, in the folder ``incoming``.

        Returns:
            The UIDs of the instance, and what became of it.

        Raises:
            Unreadable: the file is no DICOM instance, or lacks a UID.
            Unavailable: the disk or the database cannot be used; nothing was accepted.
        """
        (found,) = self.accept_all(caller, [draft])
        if isinstance(found, Unreadable):
            raise found
        return found

    def accept_all(self, caller: str, drafts: Sequence[Path]) -> list[Received | Unreadable]:
        """Make complete files durable together, or refuse them; the drafts are deleted.

        Several files cost one question to the database, and their flushes to the disk share the work of the disk.

        Args:
            caller: tenant of the sender.
            drafts: DICOM files as for ``accept``.

        Returns:
            For each file the UIDs and what became of it, or why it cannot be read.

        Raises:
            Unavailable: the disk or the database cannot be used. What is stored by then is known when it comes again.
        """
        try:
            with storage_errors():
                read = _in_threads(_read_draft, drafts)
                instances = [each for each in read if isinstance(each, _Draft)]
                outcomes = self._known(caller, instances)
                _in_threads(sync, [each.path for each in instances if outcomes[each.path] is None])
                self._link_all(caller, instances, outcomes)
        finally:
            for draft in drafts:
                with suppress(OSError):
                    draft.unlink(missing_ok=True)
        found: list[Received | Unreadable] = []
        for each in read:
            if isinstance(each, Unreadable):
                found.append(each)
                continue
            outcome = outcomes[each.path]
            assert outcome is not None
            if not outcome.accepted:
                log.warning("an instance of the tenant %s is refused: %s", caller, outcome)
            found.append(Received(each.head, outcome))
        return found

    def _known(self, caller: str, drafts: Sequence[_Draft]) -> dict[Path, Outcome | None]:
        """What becomes of each draft by what is stored already; None: it is new."""
        uids, studies = {each.head.sop_uid for each in drafts}, {each.head.study_uid for each in drafts}
        with self.database.reading() as session:
            known = received.known(session, caller, uids)
            stored = received.counts(session, caller, studies)
        waiting = {uid: self._waiting(self._study_folder(caller, uid)) for uid in studies}
        outcomes: dict[Path, Outcome | None] = {}
        for each in drafts:
            row, study = known.get(each.head.sop_uid), each.head.study_uid
            if row is not None and row.content != each.content:
                outcomes[each.path] = Outcome.CONFLICT
            elif row is not None:
                outcomes[each.path] = Outcome.KNOWN if row.stored else None
            elif (name := _digest(each.head.sop_uid)) in waiting[study]:
                outcomes[each.path] = None
            elif stored.get(study, 0) + len(waiting[study]) >= self._max_instances:
                outcomes[each.path] = Outcome.TOO_MANY
            else:
                outcomes[each.path] = None
                waiting[study].add(name)
        return outcomes

    @staticmethod
    def _waiting(folder: Path) -> set[str]:
        """Names of the files of a study that are not indexed yet."""
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            return {entry.name for entry in entries}
        return set()

    def _link_all(self, caller: str, drafts: Sequence[_Draft], outcomes: dict[Path, Outcome | None]) -> None:
        """Give the new files their names; files and names are on the disk then."""
        folders = set()
        for each in drafts:
            if outcomes[each.path] is None:
                folder = self._study_folder(caller, each.head.study_uid)
                outcomes[each.path] = _link(each, folder)
                folders.add(folder)
        for folder in folders:
            with suppress(FileNotFoundError):  # all its files were indexed meanwhile, and are on the disk as blobs
                sync(folder)

    def _study_folder(self, caller: str, study_uid: str) -> Path:
        return self._folder / caller.encode().hex() / _digest(study_uid)

    def index(self, *, wait: float = 0.0) -> int:
        """Move received files to the blobs and add their rows; another process may do so at the same time.

        Args:
            wait: seconds to wait for another process that does so now.

        Returns:
            The number of files; fewer than all if there are many.

        Raises:
            Unavailable: the storage or the database cannot be used; the files stay.
        """
        if not self._folder.is_dir():
            return 0
        with storage_errors(), locked_soon(self._folder, seconds=wait) as held:
            if not held:
                return 0
            files = list(islice(self._files(), _BATCH))
            if not files:
                return 0
            stored = _in_threads(lambda each: self._stored(*each), files)
            instances = [each for each in stored if each is not None]
            with self.database.session() as session:
                refused = received.add(session, instances, quiet=self._quiet, clinical_wait=self._clinical_wait)
            if refused:
                log.warning("%d instances are refused: conflict", refused)
            for _, path in files:
                path.unlink(missing_ok=True)
            for folder in {path.parent for _, path in files}:
                with suppress(OSError):  # not empty
                    folder.rmdir()
        return len(files)

    def _files(self) -> Iterator[tuple[str, Path]]:
        for tenant in self._folder.iterdir():
            if tenant.name == _INCOMING or not tenant.is_dir():
                continue
            caller = bytes.fromhex(tenant.name).decode()
            for study in tenant.iterdir():
                yield from ((caller, path) for path in study.iterdir())

    def _stored(self, caller: str, path: Path) -> ReceivedInstance | None:
        """Make a blob of a file; None if the disk has damaged it."""
        try:
            head, content = _read(path)
        except Unreadable:
            log.error("a received file is damaged on the disk and is deleted")
            return None
        digest, size = self.storage.adopt(path)
        key = self._return_key
        accession = accession_digest(head.accession, key) if key and head.accession else None
        return ReceivedInstance(
            caller, head.study_uid, head.series_uid, head.sop_class_uid, head.sop_uid, content, digest, size, accession
        )

    def forget(self, caller: str, study_uid: str) -> None:
        """Delete the files of a study that are not indexed yet. Raises StorageUnavailable."""
        with storage_errors():
            shutil.rmtree(self._study_folder(caller, study_uid), ignore_errors=True)

    def clear(self, age: float = _ABANDONED) -> None:
        """Delete unfinished files that are older than ``age`` seconds."""
        before = time.time() - age
        for path in self.incoming.iterdir() if self.incoming.is_dir() else ():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < before:
                    path.unlink()


def _in_threads(work: Callable[[T], R], files: Sequence[T]) -> list[R]:
    """Results of the work on each file, in a few threads; a single file, as of C-STORE, needs no further thread."""
    if len(files) < 2:
        return [work(each) for each in files]
    with ThreadPoolExecutor(min(len(files), _THREADS)) as pool:
        return list(pool.map(work, files))


@dataclass(frozen=True)
class _Draft:
    """A complete file that is not accepted yet; ``content`` is the sha-256 of its data set."""

    path: Path
    head: Head
    content: str


def _read_draft(path: Path) -> _Draft | Unreadable:
    try:
        return _Draft(path, *_read(path))
    except Unreadable as error:
        return error


def _link(draft: _Draft, folder: Path) -> Outcome:
    """Give a file, which is on the disk, its name in the folder of its study, unless another one has it."""
    target = folder / _digest(draft.head.sop_uid)
    for _ in range(_TRIES):
        private_folder(folder)
        try:
            os.link(draft.path, target)
        except FileExistsError:
            with suppress(FileNotFoundError):  # it was indexed meanwhile
                return Outcome.KNOWN if _read(target)[1] == draft.content else Outcome.CONFLICT
        except FileNotFoundError:  # the indexing has deleted the empty folder
            continue
        else:
            return Outcome.STORED
    raise OSError(os.strerror(11))  # EAGAIN: the sender may try again


def _read(path: Path) -> tuple[Head, str]:
    """UIDs of a file, and the sha-256 of its data set."""
    with path.open("rb") as file:
        head = read_head(file)
        file.seek(head.start)
        return head, hashlib.file_digest(file, "sha256").hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
