"""What is read of a study's files before the study is complete: their facts and their pixels.

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

from app.dicom import pixels
from app.dicom.errors import DEFAULT, DicomLimits, Unreadable
from app.dicom.files import read_file
from app.dicom.frames import Instance
from app.dicom.instance import read_instance, read_parsed
from app.sdk.errors import DecompressedTooLarge

__all__ = ["PIXEL_BYTES", "Prepared"]

PIXEL_BYTES = 256 << 20
_FRAMES = 20_000  # of all files, with their facts


class Prepared:
    """Facts and pixels of the files of one study; ``work`` reads one more."""

    def __init__(self, limits: DicomLimits = DEFAULT, *, pixel_bytes: int = PIXEL_BYTES) -> None:
        self.limits = limits
        self._files: deque[Path] = deque()
        self._facts: dict[str, Instance] = {}
        self._pixels: dict[str, list[NDArray[Any]]] = {}
        self._frames_left = _FRAMES
        self._bytes_left = pixel_bytes

    @property
    def has_work(self) -> bool:
        """Whether a file waits."""
        return bool(self._files)

    def add(self, paths: Iterable[Path]) -> None:
        """Let files wait for ``work``."""
        self._files.extend(paths)

    def stop(self) -> None:
        """Forget the files that wait."""
        self._files.clear()

    def work(self) -> None:
        """Read the facts and the pixels of one file, which is parsed once for both."""
        try:
            self._read(self._files.popleft())
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

    def _read(self, path: Path) -> None:
        instance, dataset = read_parsed(read_file(path, self.limits), 0, self.limits, tags=pixels.TAGS)
        count = max(len(instance.frames), 1)
        if count > self._frames_left or instance.digest in self._facts:
            return
        self._frames_left -= count
        self._facts[instance.digest] = instance
        size = sum(frame.rows * frame.columns for frame in instance.frames) * 8  # at most; no decoder gives more
        if not instance.frames or instance.series.colour or size > self._bytes_left:
            return
        frames = [frame.copy() for frame in pixels.decode_parsed(dataset)]
        self._bytes_left -= sum(frame.nbytes for frame in frames)
        self._pixels[instance.digest] = frames
