"""Blobs on a local folder: immutable bytes, each named by its own sha-256.

Notable choices:
- A blob is written beside its final place, synced, renamed, and its folder synced: it is there whole or not at all.
- Committing bytes that are already kept renames the fresh copy over the old one. So a blob's modification time is the
  last time that anybody stored it, and `delete` can tell an orphan from an upload whose rows are not committed yet.
- `commit` and `delete` lock the same folder (flock: the kernel lets go of it when a process dies), so a blob is never
  deleted between an upload's rename and the check of its age.
- Work in progress lies apart, one folder per prediction: it is shared by nobody and goes when the prediction is done.

    ab/ab12…            a blob
    .incoming/…         uploads under way
    .work/<id>/<sha256> what the steps of an unfinished prediction hand to each other
    .quarantine/…       damaged blobs, put aside by `rlvo fsck`
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from app.core.filesystem import locked, locked_soon, sync
from app.sdk.errors import InternalError, StorageFull

GRACE = 900.0
"""Seconds for which a blob that no row names is left alone: its upload may be about to commit its rows."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Storage:
    """The blobs under ``folder``. Cheap to make; safe to use from many threads and processes at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._incoming = folder / ".incoming"
        self._work = folder / ".work"
        self._quarantine = folder / ".quarantine"
        for part in (self._incoming, self._work):
            part.mkdir(parents=True, exist_ok=True)

    def writer(self) -> Writer:
        """A blob to be written piece by piece; nothing is kept of it unless it is committed."""
        return Writer(self.incoming(), self._place)

    def incoming(self) -> Path:
        """A fresh place for what is on its way in."""
        return self._incoming / secrets.token_hex(16)

    def probe(self) -> None:
        """Writes a byte and takes it back, as an upload would. Raises what an upload would meet."""
        with self.writer() as writer:
            writer.write(b"\0")

    def put(self, data: bytes) -> str:
        """Keeps ``data`` and returns its digest. Raises StorageFull."""
        with self.writer() as writer:
            writer.write(data)
            return writer.commit()[0]

    def path(self, digest: str) -> Path:
        """Where the blob lies, or would lie."""
        return self._local(digest)

    def _local(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise ValueError("not a sha-256 digest")
        return self.folder / digest[:2] / digest

    def open(self, digest: str) -> BinaryIO:
        """The blob for reading. Raises FileNotFoundError where there is none."""
        return self.path(digest).open("rb")

    def read(self, digest: str) -> bytes:
        """The blob's bytes, checked against its name. Raises InternalError where they are missing or damaged."""
        try:
            data = self.path(digest).read_bytes()
        except FileNotFoundError:
            raise InternalError("A stored file is missing; the operator can mend it with `rlvo fsck`") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise InternalError("A stored file is damaged; the operator can mend it with `rlvo fsck`")
        return data

    def exists(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def verify(self, digest: str) -> bool:
        """Whether the blob is there and its bytes are the ones that its name stands for."""
        try:
            with self._local(digest).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == digest
        except FileNotFoundError:
            return False

    def digests(self) -> Iterator[str]:
        """The names of all blobs, in no particular order."""
        for shard in self.folder.glob("[0-9a-f][0-9a-f]"):
            for blob in shard.iterdir():
                if _DIGEST.fullmatch(blob.name):
                    yield blob.name

    def delete(self, digest: str, *, grace: float = GRACE) -> bool:
        """Deletes a blob that no row names any more, unless somebody stored it within the last ``grace`` seconds.

        Returns whether it is gone. One that had to be left is an orphan, which `sweep` takes later: so is one whose
        neighbours somebody is writing and does not come to an end with it.
        """
        path = self.path(digest)
        if not path.parent.exists():
            return True
        with locked_soon(path.parent) as alone:
            if not alone:
                return not path.exists()
            try:
                if time.time() - path.stat().st_mtime < grace:
                    return False
                path.unlink()
            except FileNotFoundError:
                return True
        return True

    def quarantine(self, digest: str) -> None:
        """Puts a damaged blob aside, so that its bytes are never served but can be looked at."""
        self._quarantine.mkdir(exist_ok=True)
        path = self.path(digest)
        with locked(path.parent), suppress(FileNotFoundError):
            path.replace(self._quarantine / f"{digest}.{secrets.token_hex(4)}")

    def older_than(self, age: float) -> Iterator[str]:
        """The blobs that nobody has stored within the last ``age`` seconds."""
        before = time.time() - age
        for digest in self.digests():
            with suppress(FileNotFoundError):
                if self.path(digest).stat().st_mtime < before:
                    yield digest

    def sweep_incoming(self, *, older_than: float) -> int:
        """Deletes what uploads left behind when their process died; returns how many files."""
        before, swept = time.time() - older_than, 0
        for path in self._incoming.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < before:
                    path.unlink()
                    swept += 1
        return swept

    def workbench(self, prediction_id: str) -> Workbench:
        """The place for the steps of one prediction to hand bytes to each other."""
        if not re.fullmatch(r"[0-9a-zA-Z-]{1,64}", prediction_id):
            raise ValueError("not a prediction id")
        return Workbench(self._work / prediction_id)

    def workbenches(self) -> list[str]:
        """The ids of the predictions that have a workbench."""
        return [path.name for path in self._work.iterdir()]

    def _place(self, digest: str) -> Path:
        path = self._local(digest)
        if not path.parent.exists():
            path.parent.mkdir(exist_ok=True)
            sync(self.folder)
        return path


class Writer:
    """One blob on its way in: write, then commit; leaving the block without a commit deletes what was written."""

    def __init__(self, temporary: Path, place: Callable[[str], Path]) -> None:
        self._temporary = temporary
        self._place = place
        self._hash = hashlib.sha256()
        self._size = 0
        with _full_disk():
            self._file: BinaryIO = temporary.open("xb", buffering=0)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def write(self, chunk: bytes | memoryview) -> None:
        """Raises StorageFull."""
        self._hash.update(chunk)
        self._size += len(chunk)
        rest = memoryview(chunk)
        with _full_disk():
            while rest:
                rest = rest[self._file.write(rest) :]

    def commit(self) -> tuple[str, int]:
        """Makes the blob durable and visible; returns its sha-256 (hex) and its size in bytes."""
        digest = self._hash.hexdigest()
        with _full_disk():
            os.fsync(self._file.fileno())
            self._file.close()
            path = self._place(digest)
            # Shared: only who deletes must not come between. Who is stopped in here holds up nobody else.
            with locked(path.parent, shared=True) as folder:
                os.utime(self._temporary)
                self._temporary.replace(path)
                os.fsync(folder)
        return digest, self._size

    def abort(self) -> None:
        """Deletes what was written, unless it was committed. Harmless when repeated."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


class Workbench:
    """What the steps of one prediction hand to each other. Every file is named by its digest, as a blob is.

    Nothing is synced: what a power cut takes or tears is missing to `get`, and is made again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, data: bytes) -> str:
        """Keeps ``data`` until `clear` and returns its digest. Raises StorageFull."""
        self._folder.mkdir(exist_ok=True)
        digest, part = hashlib.sha256(data).hexdigest(), self._folder / f"{secrets.token_hex(8)}.part"
        try:
            with _full_disk():
                part.write_bytes(data)
                part.replace(self._folder / digest)
        finally:
            part.unlink(missing_ok=True)
        return digest

    def get(self, digest: str) -> bytes | None:
        """The bytes, or None where they are missing or damaged: the step that made them can make them again."""
        try:
            data = (self._folder / digest).read_bytes()
        except FileNotFoundError:
            return None
        return data if hashlib.sha256(data).hexdigest() == digest else None

    def clear(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def _full_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("The storage has no room left; free some and send the study again") from error
        raise
