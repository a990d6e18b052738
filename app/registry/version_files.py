"""Files of a model version that is added to the store: regular files of limited size, and no links.

Design notes:
- A link in a folder from elsewhere could name any file of the operator, which the service would then serve.
- A file is opened once, without following a link, and checked and copied through that descriptor.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from app.core.filesystem import sync
from app.sdk.errors import ModelNotReady

MIB = 2**20
LARGEST = {"manifest.json": 64 * MIB, "manifest.sig": MIB, "card.md": 4 * MIB}
"""Bytes of the files that are read as a whole."""


def exists(folder: Path, file: str) -> bool:
    """Return whether the folder has an entry of this name, also a link to nothing."""
    return os.path.lexists(folder / file)


def read(folder: Path, file: str) -> bytes:
    """Return the bytes of a regular file of the folder.

    Raises:
        ModelNotReady: The file is missing, no regular file, or larger than its limit.
    """
    with _opened(folder, file) as source:
        return source.read()


def copy(folder: Path, target: Path, file: str) -> None:
    """Copy a regular file of the folder to ``target``, durably and readable for all. Raises ModelNotReady."""
    with _opened(folder, file) as source, (target / file).open("xb") as copied:
        shutil.copyfileobj(source, copied)
    (target / file).chmod(0o644)
    sync(target / file)


def check_folder(store: Path, *parts: str) -> Path:
    """Return the folder ``store/part/...``; ModelNotReady if one of the parts is a link or missing."""
    folder = store
    for part in parts:
        folder /= part
        if folder.is_symlink() or not folder.is_dir():
            raise ModelNotReady(f"The folder {part} of the model version is missing or a link; copy the folder itself")
    return folder


@contextmanager
def _opened(folder: Path, file: str) -> Iterator[BinaryIO]:
    # O_NONBLOCK: the open of a named pipe must not wait for a writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(folder / file, flags)
    except FileNotFoundError:
        raise ModelNotReady(f"The file {file} of the model version is missing") from None
    except OSError as error:  # ELOOP for a link
        raise ModelNotReady(f"{file} of the model version must be a readable regular file, not a link") from error
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode):
        os.close(descriptor)
        raise ModelNotReady(f"{file} of the model version must be a readable regular file, not a link")
    with os.fdopen(descriptor, "rb") as opened:
        if state.st_size > LARGEST.get(file, state.st_size):
            raise ModelNotReady(f"{file} of the model version is larger than {LARGEST[file] // MIB} MiB")
        yield opened
