"""Blobs in a local folder: immutable files, each named by the sha-256 of its bytes (docs/decisions/0041).

Design notes:
- A blob is complete or absent. Its modification time is that of the last upload of the same bytes.
- `delete` keeps a young blob: the transaction that names it may not be committed yet.
- An error of the disk is StorageFull or StorageUnavailable, so the worker can tell it from a fault of a study.
- `commit` and `delete` lock the same folder, so no blob is deleted between its rename and the check of its age.

    ab/ab12…            a blob
    .incoming/…         unfinished uploads
    .work/<id>/<sha256> intermediate results of an unfinished prediction
    .quarantine/…       damaged blobs, moved here by `rlvo fsck`
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from app.core.filesystem import locked, locked_soon, sync
from app.sdk.errors import InternalError, StorageFull
from app.storage.errors import storage_errors

GRACE = 900.0  # seconds for which a blob that no row names is kept: its upload may not have committed its rows yet
SMALLEST_FREE = 16 * 1024 * 1024  # bytes
_PIECE_BYTES = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Storage:
    """Blobs under ``folder``; safe to use from several threads and processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._incoming = folder / ".incoming"
        self._work = folder / ".work"
        self._quarantine = folder / ".quarantine"
        for part in (self._incoming, self._work):
            part.mkdir(parents=True, exist_ok=True)

    def writer(self) -> Writer:
        """Return a writer of one new blob; without a commit it leaves no data."""
        return Writer(self.incoming(), self._target)

    def incoming(self) -> Path:
        """Return a new temporary path for an upload."""
        return self._incoming / secrets.token_hex(16)

    def probe(self) -> None:
        """Write one byte and delete it, to raise the errors that an upload would raise.

        A disk with fewer than `SMALLEST_FREE` free bytes is full, because no study fits.
        """
        self.require(SMALLEST_FREE)
        with self.writer() as writer:
            writer.write(b"\0")

    def put(self, data: bytes) -> str:
        """Store ``data`` and return its digest; a full disk raises StorageFull."""
        with self.writer() as writer:
            writer.write(data)
            return writer.commit()[0]

    def adopt(self, path: Path) -> tuple[str, int]:
        """Store a file whose bytes are on the disk already; return its digest and its size in bytes.

        The file stays. On the same file system the blob is a second name of it, so the file must not change any more.
        """
        temporary = self.incoming()
        with storage_errors(), path.open("rb") as file:
            digest, size = hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size
            try:
                os.link(path, temporary)
            except OSError:  # another file system, or one without such names
                return self._copy(path)
            try:
                _publish(temporary, self._target(digest))
            finally:
                temporary.unlink(missing_ok=True)  # it stays if the blob is a name of the same file
        return digest, size

    def _copy(self, path: Path) -> tuple[str, int]:
        with path.open("rb") as file, self.writer() as writer:
            while piece := file.read(_PIECE_BYTES):
                writer.write(piece)
            return writer.commit()

    def path(self, digest: str) -> Path:
        """Return the path of a blob, whether or not it exists."""
        return self._local(digest)

    def _local(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise ValueError("The text is not a sha-256 digest")
        return self.folder / digest[:2] / digest

    @storage_errors(missing=True)
    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading; a missing blob raises FileNotFoundError."""
        return self.path(digest).open("rb")

    def read(self, digest: str) -> bytes:
        """Return the verified bytes of a blob; a missing or damaged blob raises InternalError."""
        try:
            with self.open(digest) as file, storage_errors():
                data = file.read()
        except FileNotFoundError:
            raise InternalError("A stored file is missing; the operator can run `rlvo fsck`") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise InternalError("A stored file is damaged; the operator can run `rlvo fsck --deep`")
        return data

    @storage_errors()
    def exists(self, digest: str) -> bool:
        """Whether the blob is stored; its bytes are not verified."""
        return self.path(digest).is_file()

    def verify(self, digest: str) -> bool:
        """Whether the blob is stored and its bytes match its digest."""
        try:
            with storage_errors(missing=True), self._local(digest).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == digest
        except FileNotFoundError:
            return False

    def require(self, size: int) -> None:
        """Raise StorageFull if the disk has fewer than ``size`` free bytes, before any of them is written."""
        with storage_errors():
            free = shutil.disk_usage(self.folder).free
        if free < size:
            raise StorageFull("The storage is full; free disk space and send the study again")

    def digests(self) -> Iterator[str]:
        """Yield the digests of all blobs, in no particular order."""
        for shard in self.folder.glob("[0-9a-f][0-9a-f]"):
            with storage_errors():
                names = [blob.name for blob in shard.iterdir()]
            yield from filter(_DIGEST.fullmatch, names)

    @storage_errors()
    def delete(self, digest: str, *, grace: float = GRACE) -> bool:
        """Delete a blob that no row names; return whether it is absent now.

        A blob younger than ``grace`` seconds, or in a folder that stays locked, is kept for a later sweep.
        """
        path = self.path(digest)
        try:
            with locked_soon(path.parent) as exclusive:
                if not exclusive:
                    return not path.exists()
                if time.time() - path.stat().st_mtime < grace:
                    return False
                path.unlink()
        except FileNotFoundError:  # the file, or its folder
            pass
        return True

    @storage_errors()
    def quarantine(self, digest: str) -> None:
        """Move a damaged blob to the quarantine folder: it is not served any more, but can be inspected."""
        self._quarantine.mkdir(exist_ok=True)
        path = self.path(digest)
        with locked(path.parent), suppress(FileNotFoundError):
            path.replace(self._quarantine / f"{digest}.{secrets.token_hex(4)}")

    def older_than(self, age: float) -> Iterator[str]:
        """Yield the digests of the blobs that were not stored within the last ``age`` seconds."""
        before = time.time() - age
        for digest in self.digests():
            with suppress(FileNotFoundError), storage_errors(missing=True):
                if self._local(digest).stat().st_mtime < before:
                    yield digest

    @storage_errors()
    def sweep_incoming(self, *, older_than: float) -> int:
        """Delete temporary files of interrupted uploads that are older than this (seconds); return their number."""
        before, deleted = time.time() - older_than, 0
        for path in self._incoming.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < before:
                    path.unlink()
                    deleted += 1
        return deleted

    def scratch(self, prediction_id: str) -> ScratchFolder:
        """Return the store of the intermediate results of one prediction."""
        if not re.fullmatch(r"[0-9a-zA-Z-]{1,64}", prediction_id):
            raise ValueError("The text is not a prediction id")
        return ScratchFolder(self._work / prediction_id)

    @storage_errors()
    def scratch_ids(self) -> list[str]:
        """Return the ids of the predictions that have a scratch folder."""
        return [path.name for path in self._work.iterdir()]

    def _target(self, digest: str) -> Path:
        path = self._local(digest)
        if not path.parent.exists():
            path.parent.mkdir(exist_ok=True)
            sync(self.folder)
        return path


def _publish(temporary: Path, path: Path) -> None:
    """Give a file, whose bytes are on the disk, its name as a blob; the name is on the disk then."""
    # A shared lock excludes `delete`; a process that is suspended here does not block other uploads.
    with locked(path.parent, shared=True) as folder:
        os.utime(temporary)
        temporary.replace(path)
        os.fsync(folder)


class Writer:
    """Writer of one blob; without `commit`, the end of the `with` block deletes the written bytes."""

    def __init__(self, temporary: Path, target: Callable[[str], Path]) -> None:
        self._temporary = temporary
        self._target = target
        self._hash = hashlib.sha256()
        self._size = 0
        with storage_errors():
            self._file: BinaryIO = temporary.open("xb", buffering=0)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def write(self, chunk: bytes | memoryview) -> None:
        """Append a chunk; a full disk raises StorageFull."""
        self._hash.update(chunk)
        self._size += len(chunk)
        rest = memoryview(chunk)
        with storage_errors():
            while rest:
                rest = rest[self._file.write(rest) :]

    def commit(self) -> tuple[str, int]:
        """Make the blob durable and visible; return its sha-256 (hexadecimal) and its size in bytes."""
        digest = self._hash.hexdigest()
        with storage_errors():
            os.fsync(self._file.fileno())
            self._file.close()
            _publish(self._temporary, self._target(digest))
        return digest, self._size

    def abort(self) -> None:
        """Delete the written bytes, unless they were committed; may be called repeatedly.

        What a disk that is away does not delete, a later sweep deletes.
        """
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)


class ScratchFolder:
    """Intermediate results of one prediction, each file named by its digest.

    Files are not synced. After a power failure `get` returns None for a damaged file, and the step computes it again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, data: bytes) -> str:
        """Store ``data`` until `clear` and return its digest; a full disk raises StorageFull."""
        digest, part = hashlib.sha256(data).hexdigest(), self._folder / f"{secrets.token_hex(8)}.part"
        try:
            with storage_errors():
                self._folder.mkdir(exist_ok=True)
                part.write_bytes(data)
                part.replace(self._folder / digest)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
        return digest

    def get(self, digest: str) -> bytes | None:
        """Return the bytes, or None if they are missing, damaged or cannot be read."""
        try:
            data = (self._folder / digest).read_bytes()
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest() == digest else None

    def size(self, digests: Iterable[str]) -> int | None:
        """Return the size of these files in bytes, or None if one of them is missing or cannot be read."""
        try:
            return sum((self._folder / digest).stat().st_size for digest in digests)
        except OSError:
            return None

    def clear(self) -> None:
        """Delete all intermediate results of the prediction."""
        shutil.rmtree(self._folder, ignore_errors=True)
