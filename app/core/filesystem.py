"""Folder locks, atomic creation of folders and files, folders that only their owner can open, and fsync.

The locks are those of flock(2). The kernel releases them when a process ends, so no lock remains after a crash.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[int]:
    """Wait for the lock of a folder and hold it during the block; yield the open descriptor, for `os.fsync`.

    With ``shared``, several processes hold the lock at the same time, and a stopped holder delays no other one.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def locked_soon(folder: Path, seconds: float = 1.0) -> Iterator[bool]:
    """Try for some seconds to get the exclusive lock of a folder; yield whether the block holds it."""
    descriptor, deadline = os.open(folder, os.O_RDONLY | os.O_DIRECTORY), time.monotonic() + seconds
    try:
        while not (held := _try_lock(descriptor)) and time.monotonic() < deadline:
            time.sleep(0.01)
        yield held
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; rename it to the new folder ``target``, or delete it after an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield draft
        draft.chmod(0o755)
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync(target.parent)


@contextmanager
def private_file(target: Path) -> Iterator[BinaryIO]:
    """Yield a new file that only its owner can read; rename it to ``target``, or delete it after an error."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync(target.parent)


def sync_file_system(folder: Path) -> None:
    """Write everything of the file system of a folder to the disk (syncfs(2)): for many new files at once.

    A file system that has met an error since the last call raises OSError.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            raise OSError(ctypes.get_errno(), "the file system could not be written")
    finally:
        os.close(descriptor)


def private_folder(folder: Path) -> None:
    """Create a folder that only its owner can open; take the permissions of others from an existing one.

    A folder of another owner, or on a read-only disk, keeps its permissions; `rlvo fsck` reports it.
    """
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync(folder.parent)
    make_private(folder)


def make_private(path: Path) -> None:
    """Take the permissions of other users from a file or folder, if this process may change them."""
    with suppress(OSError):
        mode = path.stat().st_mode & 0o7777
        if mode & 0o077:
            path.chmod(mode & ~0o077)


def is_exposed(path: Path) -> bool:
    """Return whether other users of the machine can use a file or folder: its permissions and those of its parents."""
    try:
        path = path.resolve(strict=True)
        closed = any(not parent.stat().st_mode & 0o011 for parent in path.parents)
        return bool(path.stat().st_mode & 0o077) and not closed
    except OSError:
        return False


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk (fsync), so that they survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
