"""A part of a multipart body that is one DICOM instance: a file that is received when the part is complete."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from app.dicom.reception import Reception
from app.sdk.errors import TooLarge
from app.storage.errors import storage_errors

__all__ = ["PartFile"]


class PartFile:
    """Writes one part to a file.

    Args:
        reception: names the file.
        max_bytes: largest size.
        accept: takes the complete file.
    """

    def __init__(self, reception: Reception, max_bytes: int, accept: Callable[[Path], None]) -> None:
        self._accept = accept
        self._max_bytes = max_bytes
        self._path = reception.draft()
        self._size = 0
        with storage_errors():
            self._file: BinaryIO = self._path.open("xb")

    def write(self, chunk: memoryview) -> None:
        """Append the next bytes. Raises TooLarge, StorageFull."""
        self._size += len(chunk)
        if self._size > self._max_bytes:
            limit = f"{self._max_bytes} bytes, the limit (RLVO_DICOM_MAX_INSTANCE_BYTES)"
            raise TooLarge(f"An instance has more than {limit}.")
        with storage_errors():
            self._file.write(chunk)

    def close(self) -> None:
        """Pass the complete file on."""
        with storage_errors():
            self._file.close()
        self._accept(self._path)

    def discard(self) -> None:
        """Delete the file, if it was not received."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
