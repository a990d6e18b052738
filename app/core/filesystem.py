"""Folder locks, atomic creation of a folder, and fsync.

The locks are those of flock(2). The kernel releases them when a process ends, so no lock remains after a crash.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk (fsync), so that they survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
