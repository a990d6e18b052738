"""Prepared studies of a training cohort, cached in a folder.

Design notes:
- The key is the sha-256 of the files' contents, the grid, the channels and ``CACHE_VERSION``. So an interrupted
  preparation continues, an edited file is prepared again, and a renamed file is not.
- The flags of the preparation are in the metadata of the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save

from app.imaging.model_grid import ChannelSpec
from app.inference import defaults
from app.sdk.types import Flag, Input, PerfusionSummary

Volumes = Mapping[Input, Path]

CACHE_VERSION = 7  # increase it when content, flags or preprocessing change; older files are not read
PERFUSION_FIELDS = tuple(PerfusionSummary.model_fields)


@dataclass(frozen=True)
class PreparedStudy:
    """One prepared study.

    Attributes:
        image: (C, X, Y, Z) float16 on the model's grid, normalised.
        presence: (C,), whether the channel is present.
    """

    image: NDArray[np.float16]
    presence: NDArray[np.bool_]
    perfusion: PerfusionSummary | None
    flags: tuple[Flag, ...] = ()


def layout(channels: Sequence[ChannelSpec] = defaults.CHANNELS) -> dict[str, object]:
    """Grid and channels on which prepared images depend, as JSON."""
    return {
        "grid": defaults.GRID.model_dump(mode="json"),
        "channels": [channel.model_dump(mode="json") for channel in channels],
    }


def cache_key(volumes: Volumes, channels: Sequence[ChannelSpec] = defaults.CHANNELS) -> str:
    """SHA-256 of the study's files, the grid, the channels and the version of the cache."""
    digest = hashlib.sha256(json.dumps(layout(channels) | {"cache": CACHE_VERSION}, sort_keys=True).encode())
    for field in sorted(volumes):
        digest.update(f"{field}:{file_digest(volumes[field])}".encode())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    status = path.stat()
    return _content(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _content(path: Path, size: int, changed_ns: int) -> str:
    """SHA-256 of a file; it is read again only if its size or time of change differs."""
    del size, changed_ns
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prepare_cached(volumes: Volumes, cache: Path, channels: Sequence[ChannelSpec] = defaults.CHANNELS) -> PreparedStudy:
    """Load a study from the cache; if it is not there, prepare it for ``channels`` and store it.

    Raises:
        RlvoError: If a volume cannot be used.
    """
    path = cache / f"{cache_key(volumes, channels)}.safetensors"
    if path.exists():
        stored = load_file(path)
        with safe_open(path, "np") as file:
            flags = tuple(Flag(**flag) for flag in json.loads(file.metadata()["flags"]))
        return PreparedStudy(stored["image"], stored["presence"].astype(bool), _summary(stored["perfusion"]), flags)
    from app.imaging import preprocess
    from app.imaging.io import nifti

    images = preprocess.prepare(
        {field: nifti.read(file, field=field) for field, file in volumes.items()}, defaults.GRID, channels
    )
    image, presence = images.image.astype(np.float16), np.asarray(images.presence, bool)
    prepared = PreparedStudy(image, presence, images.perfusion, images.flags)
    numbers = [getattr(images.perfusion, name, None) for name in PERFUSION_FIELDS]
    cache.mkdir(parents=True, exist_ok=True)
    content = save(
        {
            "image": np.ascontiguousarray(prepared.image),
            "presence": prepared.presence.astype(np.uint8),
            "perfusion": np.array([np.nan if number is None else number for number in numbers], np.float64),
        },
        {"flags": json.dumps([flag.model_dump(mode="json") for flag in prepared.flags])},
    )
    draft = path.with_suffix(f".{os.getpid()}.part")
    try:
        draft.write_bytes(content)  # not by safetensors, whose error hides that of the disk
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return prepared


def _summary(numbers: NDArray[np.float64]) -> PerfusionSummary | None:
    if not np.isfinite(numbers).any():
        return None
    return PerfusionSummary(
        **{n: float(v) if np.isfinite(v) else None for n, v in zip(PERFUSION_FIELDS, numbers, strict=True)}
    )
