"""What several rooms do with a folder: hold its lock, let it appear whole, and make a new entry survive a power cut.

The lock is flock's: the kernel lets go of it when a process dies, so nothing is ever left locked.
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
    """Holds the folder's lock, for which it waits; gives its open descriptor, which `os.fsync` takes.

    :param shared: beside others that share it; whom the kernel stops while he shares it keeps none of them waiting
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def locked_soon(folder: Path, seconds: float = 1.0) -> Iterator[bool]:
    """Tries for some seconds to hold the folder's lock alone; whether it does."""
    descriptor, deadline = os.open(folder, os.O_RDONLY | os.O_DIRECTORY), time.monotonic() + seconds
    try:
        while not (held := _taken(descriptor)) and time.monotonic() < deadline:
            time.sleep(0.01)
        yield held
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def atomic_directory(place: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``place`` if nothing goes wrong, and else nothing. ``place`` is not there yet."""
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        yield draft
        draft.chmod(0o755)
        draft.rename(place)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync(place.parent)


def sync(path: Path) -> None:
    """Makes a file's bytes, or a folder's new entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
