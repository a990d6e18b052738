"""Errors of the storage: each error of a disk becomes StorageFull or StorageUnavailable."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from app.core.environment import disk_is_full
from app.sdk.errors import StorageFull, StorageUnavailable

RETRY_AFTER = 5.0  # seconds
_NOT_OF_A_DISK = (None, errno.ENOMEM)  # None: not from the system


@contextmanager
def storage_errors(*, missing: bool = False) -> Iterator[None]:
    """Convert an OSError of the block: of a full disk to StorageFull, any other to StorageUnavailable.

    With ``missing``, a FileNotFoundError stays as it is, because the block asks for a file that may be missing. A lack
    of memory stays too: it is no fault of a disk, and may return with each try (`app.core.environment`).
    """
    try:
        yield
    except OSError as error:
        if (missing and isinstance(error, FileNotFoundError)) or error.errno in _NOT_OF_A_DISK:
            raise
        if disk_is_full(error):
            raise StorageFull("The storage is full; free disk space and send the study again") from error
        raise StorageUnavailable("The storage cannot be used at the moment", retry_after=RETRY_AFTER) from error
