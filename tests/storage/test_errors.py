"""Each error of a disk is a fault of the storage; other errors stay as they are."""

from __future__ import annotations

import errno

import pytest

from app.sdk.errors import StorageFull, StorageUnavailable
from app.storage.errors import storage_errors


def converted(error: OSError, *, missing: bool = False) -> Exception:
    with pytest.raises((OSError, StorageFull, StorageUnavailable)) as caught, storage_errors(missing=missing):
        raise error
    return caught.value


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EIO, StorageUnavailable),
        (errno.EACCES, StorageUnavailable),
        (errno.ENOENT, StorageUnavailable),
        (errno.EMFILE, StorageUnavailable),
    ],
)
def test_fault_of_a_disk_is_a_fault_of_the_storage(number: int, expected: type[Exception]) -> None:
    assert type(converted(OSError(number, "x"))) is expected


@pytest.mark.parametrize("error", [OSError(errno.ENOMEM, "x"), OSError("raised by a library")])
def test_lack_of_memory_and_errors_of_libraries_are_no_fault_of_the_storage(error: OSError) -> None:
    assert converted(error) is error


def test_missing_file_stays_where_it_may_be_missing() -> None:
    error = FileNotFoundError(errno.ENOENT, "x")
    assert converted(error, missing=True) is error
    assert isinstance(converted(error), StorageUnavailable)
