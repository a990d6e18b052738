"""Volumes as parts of a form: files that are streamed from the disk, bytes, and folders of DICOM files."""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

from .errors import InvalidRequest

Volume = str | os.PathLike[str] | bytes
"""A ``.nii`` or ``.nii.gz`` file: path (streamed from disk) or bytes."""


class VolumeUpload:
    """File that httpx reads and that calls ``on_read`` after each chunk."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, io.SEEK_END)
        file.seek(0)
        self.on_read: Callable[[], None] = lambda: None

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(size)
        self.on_read()
        return chunk

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def form_part(name: str, part: str | VolumeUpload) -> tuple[str | None, IO[bytes] | str, str | None]:
    """Form part for httpx: file name, content, media type."""
    if isinstance(part, str):
        return None, part, None
    return name, cast("IO[bytes]", part), "application/octet-stream"


def opened(volume: Volume) -> AbstractContextManager[BinaryIO]:
    """Open a volume; a folder becomes a ZIP archive."""
    if isinstance(volume, bytes):
        return io.BytesIO(volume)
    return _archive(Path(volume)) if Path(volume).is_dir() else Path(volume).open("rb")


@contextmanager
def _archive(folder: Path) -> Iterator[BinaryIO]:
    """ZIP archive of a folder, in a temporary file; its members have numbers, because names may contain a patient's."""
    with tempfile.TemporaryFile() as packed:
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for number, path in enumerate(_files(folder)):
                archive.writestr(f"{number:06d}", path.read_bytes())
        yield cast("BinaryIO", packed)


def _files(folder: Path) -> list[Path]:
    """Files of a folder in the order of their names, each once, also those that a link of the folder leads to.

    Raises:
        InvalidRequest: a link leads to a folder, which may hold other patients, or nowhere.
    """
    found: dict[Path, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.setdefault(path.resolve(), path)
        elif path.is_symlink():
            where = "to a folder" if path.is_dir() else "to no file"
            raise InvalidRequest(
                f"{path.relative_to(folder)} is a link that leads {where}, so its files are not in the study. "
                "Replace it by the files, or remove it."
            )
    return list(found.values())
