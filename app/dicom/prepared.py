"""What is read of a study's files before the study is complete: their facts, then their pixels.

Design notes:
- An entry is found by the sha-256 of the bytes that a conversion reads, so nothing of a file that was replaced is used.
- What is kept is what the conversion itself would read, so its result is the same. Damaged files are left to it.
- Numbers are bounded: a file above a bound is read by the conversion.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from app.dicom.errors import DEFAULT, DicomLimits, Unreadable
from app.dicom.files import read_file
from app.dicom.frames import Instance
from app.dicom.instance import read_instance
from app.dicom.pixels import decode
from app.sdk.errors import DecompressedTooLarge

__all__ = ["PIXEL_BYTES", "Prepared"]

PIXEL_BYTES = 256 << 20
_FRAMES = 20_000  # of all files, with their facts


class Prepared:
    """Facts and pixels of the files of one study; ``work`` reads one more."""

    def __init__(self, limits: DicomLimits = DEFAULT, *, pixel_bytes: int = PIXEL_BYTES) -> None:
        self.limits = limits
        self._headers: deque[Path] = deque()
        self._images: deque[tuple[Path, Instance]] = deque()
        self._facts: dict[str, Instance] = {}
        self._pixels: dict[str, list[NDArray[Any]]] = {}
        self._frames_left = _FRAMES
        self._bytes_left = pixel_bytes

    @property
    def has_work(self) -> bool:
        """Whether a file waits."""
        return bool(self._headers or self._images)

    def add(self, paths: Iterable[Path]) -> None:
        """Let files wait for ``work``."""
        self._headers.extend(paths)

    def stop(self) -> None:
        """Forget the files that wait."""
        self._headers.clear()
        self._images.clear()

    def work(self) -> None:
        """Read the facts of one file, or the pixels of one if the facts of all are read."""
        try:
            if self._headers:
                self._read_facts(self._headers.popleft())
            else:
                self._read_pixels(*self._images.popleft())
        except (Unreadable, DecompressedTooLarge, MemoryError, OSError):
            return  # the conversion reads the file itself and says what is wrong with it

    def instance(self, data: bytes, number: int) -> Instance:
        """The facts of a file; arguments and errors as of ``read_instance``."""
        found = self._facts.get(hashlib.sha256(data).hexdigest()) if self._facts else None
        if found is None:
            return read_instance(data, number, self.limits)
        return replace(found, file=number, frames=tuple(replace(frame, file=number) for frame in found.frames))

    def take_pixels(self, digest: str) -> Sequence[NDArray[Any]] | None:
        """The frames of the file with this sha-256, once; None if they are not kept."""
        return self._pixels.pop(digest, None)

    def _read_facts(self, path: Path) -> None:
        instance = read_instance(read_file(path, self.limits), 0, self.limits)
        count = max(len(instance.frames), 1)
        if count > self._frames_left or instance.digest in self._facts:
            return
        self._frames_left -= count
        self._facts[instance.digest] = instance
        if instance.frames and not instance.series.colour:
            self._images.append((path, instance))

    def _read_pixels(self, path: Path, instance: Instance) -> None:
        size = sum(frame.rows * frame.columns for frame in instance.frames) * 8  # at most; no decoder gives more
        if size > self._bytes_left:
            return
        data = read_file(path, self.limits)
        if hashlib.sha256(data).hexdigest() != instance.digest:
            return
        frames = [frame.copy() for frame in decode(data, self.limits)]
        self._bytes_left -= sum(frame.nbytes for frame in frames)
        self._pixels[instance.digest] = frames
