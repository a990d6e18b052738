"""The files of a study: a folder or a ZIP archive, read one at a time and never by their names.

Design notes:
- A file is known by its number, so no name or path of an archive is used or shown.
- Sizes are counted while the bytes are read; what an archive claims about them is not trusted.
- An archive inside an archive is one file that is not DICOM.
"""

from __future__ import annotations

import lzma
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from app.dicom.errors import DEFAULT, DicomLimits, Unreadable, no_archive, refused, too_large

__all__ = ["Files", "open_files", "read_file"]

_ENCRYPTED = 0x1
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, NotImplementedError)
_READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


class Files(Protocol):
    """Files of one study, by number."""

    def __len__(self) -> int:
        """Number of files."""

    def read(self, number: int) -> bytes:
        """Bytes of one file.

        Raises:
            Unreadable: the file is damaged.
            DecompressedTooLarge: the file is larger than the limit.
        """


class _Folder:
    def __init__(self, folder: Path, limits: DicomLimits) -> None:
        self._limits = limits
        self._paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        _check_count(len(self._paths), limits)

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, number: int) -> bytes:
        return read_file(self._paths[number], self._limits)


class _Archive:
    def __init__(self, path: Path, limits: DicomLimits) -> None:
        self._limits = limits
        try:
            self._zip = zipfile.ZipFile(path)
            self._members = [member for member in self._zip.infolist() if not member.is_dir()]
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            raise no_archive() from None
        _check_count(len(self._members), limits)
        if any(member.flag_bits & _ENCRYPTED for member in self._members):
            raise refused("The ZIP archive is encrypted: send it without a password.")
        if any(member.compress_type not in _READABLE for member in self._members):
            raise refused("The ZIP archive uses a compression that is not supported: make it with deflate.")

    def __len__(self) -> int:
        return len(self._members)

    def read(self, number: int) -> bytes:
        try:
            with self._zip.open(self._members[number]) as file:
                return _bounded(file.read, self._limits)
        except _DAMAGED as error:
            raise Unreadable("is damaged in the archive") from error


def open_files(path: Path, limits: DicomLimits = DEFAULT) -> Files:
    """Open a folder or a ZIP archive.

    Args:
        path: the folder or the archive.
        limits: largest number and size of the files.

    Returns:
        The files, each of which is read when it is asked for.

    Raises:
        InvalidDicom: the archive cannot be read.
        DecompressedTooLarge: it holds too many files.
    """
    return _Folder(path, limits) if path.is_dir() else _Archive(path, limits)


def read_file(path: Path, limits: DicomLimits = DEFAULT) -> bytes:
    """Bytes of a file. Raises DecompressedTooLarge if it is larger than the limit."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        # A read of the limit would reserve as much memory for each file; a file that grows meanwhile is cut.
        return _bounded(lambda most: file.read(min(most, size + 1)), limits)


def _check_count(count: int, limits: DicomLimits) -> None:
    if count > limits.max_files:
        raise too_large(f"The study has more than {limits.max_files} files, the limit of this service.")


def _bounded(read: Callable[[int], bytes], limits: DicomLimits) -> bytes:
    data = read(limits.max_file_bytes + 1)
    if len(data) > limits.max_file_bytes:
        raise too_large(f"A file of the study inflates to more than {limits.max_file_bytes} bytes, the limit.")
    return data
