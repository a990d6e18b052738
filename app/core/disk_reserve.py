"""Disk space that is kept free for erasures, because an erasure on a full disk must be able to free space.

Design notes:
- A database needs space to delete: its journal holds the old pages until the transaction ends.
- The reserve is one file per disk. An erasure that meets a full disk shortens the file and tries again.
- The file is filled again when there is space: at the start of a process, after an erasure, and with each sweep.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from app.core.filesystem import locked_soon
from app.sdk.errors import StorageFull

T = TypeVar("T")

log = logging.getLogger("rlvo.storage")

FILE = ".rlvo-reserve"
PARTS = 4  # steps in which the reserve is released: other writers on the disk may take what one step frees


class DiskReserve:
    """A reserve of ``size`` bytes on the disk of each folder; folders on one disk share one reserve."""

    def __init__(self, folders: Iterable[Path], size: int) -> None:
        self._folders = tuple(folders)
        self._size = size

    def fill(self) -> None:
        """Fill the reserve of each disk that has twice its size free; a disk without space keeps what it has."""
        for path in self._files():
            with suppress(OSError), locked_soon(path.parent) as held:
                held_bytes = path.stat().st_size if path.exists() else 0
                if held and held_bytes < self._size and shutil.disk_usage(path.parent).free >= 2 * self._size:
                    _allocate(path, self._size)

    def run(self, action: Callable[[], T]) -> T:
        """Return the result of ``action``; while it meets a full disk, release a part of the reserve and repeat it.

        Raises:
            StorageFull: The disk is full and nothing is left of the reserve.
        """
        while True:
            try:
                return action()
            except StorageFull:
                if not self._release():
                    raise
                log.warning("the disk is full; a part of the reserve is released for an erasure")

    def _release(self) -> bool:
        """Shorten each reserve by one part; return whether there was anything to release."""
        released = False
        for path in self._files():
            with suppress(OSError):
                if held := path.stat().st_size:
                    os.truncate(path, max(0, held - max(1, self._size // PARTS)))
                    released = True
        return released

    def _files(self) -> list[Path]:
        """Return the file of each disk, in the first folder on it."""
        disks: dict[int, Path] = {}
        for folder in self._folders:
            with suppress(OSError):
                disks.setdefault(folder.stat().st_dev, folder / FILE)
        return list(disks.values())


def _allocate(path: Path, size: int) -> None:
    """Make the file ``size`` bytes long, with allocated blocks; a full disk leaves it as long as it was."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    before = os.fstat(descriptor).st_size
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        os.ftruncate(descriptor, before)
        raise
    finally:
        os.close(descriptor)
