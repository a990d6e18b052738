"""Digests that a check has found, in a temporary file, so that a million of them takes no memory."""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence

__all__ = ["Findings"]


class Findings:
    """Digests, each with the ids of what names it, in the order in which they were added."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile("w+", encoding="ascii")  # noqa: SIM115 - it lasts as long as the object
        self._count = 0
        weakref.finalize(self, self._file.close)

    def add(self, digest: str, ids: Sequence[str] = ()) -> None:
        """Append a digest."""
        self._file.write(json.dumps([digest, *ids]) + "\n")
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        """Each digest with its ids; only one iteration at a time, and none is added meanwhile."""
        self._file.seek(0)
        try:
            for line in self._file:
                digest, *ids = json.loads(line)
                yield digest, ids
        finally:
            self._file.seek(0, os.SEEK_END)
