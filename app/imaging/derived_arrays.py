"""Arrays that are made from files of installed packages, kept beside the machine code of the kernels.

To make them takes seconds of processor time at the start of each process. A kept file is used only by the same code
with the same versions of numpy and scipy and the same source files; a damaged one is made again. It may be deleted at
any time.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from app.core.filesystem import private_file

__all__ = ["kept"]

Arrays = Mapping[str, npt.NDArray[Any]]


def kept(name: str, sources: Sequence[Path], make: Callable[[], Arrays]) -> Arrays:
    """The arrays that ``make`` returns, from the disk if an earlier call with the same sources kept them.

    Args:
        name: of the file, without suffix; unique among the callers.
        sources: all code and data that the arrays depend on; the folder may outlive a release.
        make: computes the arrays, by name; always the same ones.

    Returns:
        The arrays.
    """
    path = _folder() / f"rlvo-{name}-{_digest(tuple(sources))}.npz"
    damaged = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile)
    with suppress(*damaged), path.open("rb") as file, np.load(file) as stored:
        return {key: stored[key] for key in stored.files}
    arrays = make()
    with suppress(OSError):  # where no folder is writable, each process makes them
        _write(path, arrays)
    return arrays


def _folder() -> Path:
    """Where numba keeps machine code."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    return Path(chosen) if chosen else Path(__file__).with_name("__pycache__")


@cache
def _digest(sources: tuple[Path, ...]) -> str:
    digest = hashlib.sha256(f"{np.__version__} {scipy.__version__}".encode())
    for source in sources:
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _write(path: Path, arrays: Arrays) -> None:
    named: dict[str, Any] = dict(arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    with private_file(path) as file:
        np.savez(file, **named)
    path.chmod(0o644)  # as the code itself: the service may run as another user than the one who installed it
