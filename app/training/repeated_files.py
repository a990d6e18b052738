"""Finds image files that several patients share, by path and by content, without reading every file."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from app.inference.preprocess_cache import file_digest
from app.sdk.types import Input

PART = 65_536  # bytes
NOT_IDENTIFYING = (Input.VESSELS,)  # masks of two patients can be equal

Files = Sequence[tuple[int, str, Mapping[Input, Path]]]
"""Row number, patient, and files of each row."""


def repeated_files(files: Files) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Yield the columns and rows of the files that several patients share.

    Files are read only if their sizes are equal, and completely only if their first, middle and last parts are.
    """
    places: dict[Path, list[tuple[int, str, str]]] = defaultdict(list)
    for row, patient, volumes in files:
        for field, path in volumes.items():
            if field not in NOT_IDENTIFYING:
                places[path.resolve()].append((row, patient, field.value))
    shared: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for group in _equal(list(places)):
        owners = [place for path in group for place in places[path]]
        if len({patient for _, patient, _ in owners}) > 1:
            columns = tuple(sorted({field for _, _, field in owners}))
            shared[columns] |= {row for row, _, _ in owners}
    for columns, rows in sorted(shared.items()):
        yield columns, tuple(sorted(rows))


def _equal(paths: Sequence[Path]) -> list[list[Path]]:
    """Groups of paths with the same content; a path alone is a group too."""
    groups = [list(paths)]
    for key in (lambda path: path.stat().st_size, _parts, file_digest):
        split: list[list[Path]] = []
        for group in groups:
            by_key: dict[object, list[Path]] = defaultdict(list)
            for path in group:
                by_key[key(path) if len(group) > 1 else None].append(path)
            split += by_key.values()
        groups = split
    return groups


def _parts(path: Path) -> bytes:
    """Digest of the first, middle and last part of a file."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for start in (0, size // 2, max(size - PART, 0)):
            file.seek(start)
            digest.update(file.read(PART))
    return digest.digest()
