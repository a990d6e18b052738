"""One prepared study, computed by the service's own ``prepare`` once and then read from a folder.

Notable choices:
- A prepared study is stored under the sha-256 of its files' contents and of the grid and channels. An interrupted
  preparation continues where it stopped; an edited file is prepared again; a renamed one is not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from app.inference import defaults
from app.sdk.types import Input, PerfusionSummary

Volumes = Mapping[Input, Path]

PERFUSION_FIELDS = tuple(PerfusionSummary.model_fields)


@dataclass(frozen=True)
class PreparedStudy:
    """One study: image (C, X, Y, Z) float16, presence (C,), perfusion numbers."""

    image: NDArray[np.float16]
    presence: NDArray[np.bool_]
    perfusion: PerfusionSummary | None


def layout() -> dict[str, object]:
    """What prepared images depend on; kept beside them and compared."""
    return {
        "grid": defaults.GRID.model_dump(mode="json"),
        "channels": [channel.model_dump(mode="json") for channel in defaults.CHANNELS],
    }


def cache_key(volumes: Volumes) -> str:
    """What a prepared study is kept under: a digest of its files' contents, of the grid and of the channels."""
    digest = hashlib.sha256(json.dumps(layout(), sort_keys=True).encode())
    for field in sorted(volumes):
        about = volumes[field].stat()
        digest.update(f"{field}:{_content(volumes[field], about.st_size, about.st_mtime_ns)}".encode())
    return digest.hexdigest()


@lru_cache(maxsize=100_000)
def _content(path: Path, size: int, changed_ns: int) -> str:
    """The file's sha-256, read once as long as it stays the same."""
    del size, changed_ns
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prepare_cached(volumes: Volumes, cache: Path) -> PreparedStudy:
    """One study, from the cache or by the service's ``prepare``, and then kept there.

    :raises RlvoError: where a volume cannot be used
    """
    path = cache / f"{cache_key(volumes)}.safetensors"
    if path.exists():
        kept = load_file(path)
        return PreparedStudy(kept["image"], kept["presence"].astype(bool), _summary(kept["perfusion"]))
    from app.imaging import preprocess
    from app.imaging.io import nifti

    found = preprocess.prepare(
        {field: nifti.read(file, field=field) for field, file in volumes.items()}, defaults.GRID, defaults.CHANNELS
    )
    prepared = PreparedStudy(found.image.astype(np.float16), np.asarray(found.presence, bool), found.perfusion)
    numbers = [getattr(found.perfusion, name, None) for name in PERFUSION_FIELDS]
    cache.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.part")
    save_file(
        {
            "image": np.ascontiguousarray(prepared.image),
            "presence": prepared.presence.astype(np.uint8),
            "perfusion": np.array([np.nan if number is None else number for number in numbers], np.float64),
        },
        draft,
    )
    draft.replace(path)
    return prepared


def _summary(numbers: NDArray[np.float64]) -> PerfusionSummary | None:
    if not np.isfinite(numbers).any():
        return None
    return PerfusionSummary(
        **{n: float(v) if np.isfinite(v) else None for n, v in zip(PERFUSION_FIELDS, numbers, strict=True)}
    )
