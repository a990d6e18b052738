"""Stage 2 of a training run: turn the cohort's studies into arrays with the service's own preprocessing.

Design notes:
- A prepared study is cached in the cohort's folder (``inference/preprocess_cache.py``), so each study is prepared once
  and a killed run resumes.
- A synthetic cohort can come prepared, with ``images.npy``, ``images.json``, ``truth.csv`` and perhaps ``presence.npy``
  in its folder.
- All studies are tried before the faults of those that cannot be prepared are raised together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from app.imaging.model_grid import ChannelSpec
from app.inference import defaults, preprocess_cache
from app.sdk.errors import RlvoError
from app.sdk.types import Flag, PerfusionSummary
from app.training import distributed
from app.training.cohort import Cohort, CohortRow
from app.training.dataset import LATENTS, Dataset, known_latents
from app.training.errors import CohortFault, FaultList
from app.training.process_pool import side_by_side
from app.training.progress import ProgressReporter
from app.training.provenance import image_digests

Filler = Callable[[Sequence[CohortRow], Path, Callable[[], None]], None]
"""Prepares studies into the cache folder and calls the third argument after each. It raises nothing for a study that
cannot be prepared: ``preprocess`` tries that study again and raises its fault with its row."""


UNKNOWN = -1
"""Label of a study of unknown outcome, in a cohort that is predicted only."""


def preprocess(
    cohort: Cohort,
    progress: ProgressReporter,
    *,
    jobs: int = 1,
    fill: Filler | None = None,
    needs_outcomes: bool = True,
    channels: Sequence[ChannelSpec] = defaults.CHANNELS,
) -> Dataset:
    """Prepare every study of the cohort that is not in its cache, and load all studies.

    ``channels`` have the names and the order of ``defaults.CHANNELS``; a ``fill`` prepares those. ``fill`` prepares the
    studies; by default ``jobs`` processes do. Under torchrun the first rank prepares, and the
    other ranks read the cache. Without ``needs_outcomes``, the label of an unknown outcome is ``UNKNOWN``.

    Raises:
        CohortFault: With every row that cannot be prepared, or whose outcome is unknown and needed.
    """
    if needs_outcomes and any(study.outcome is None for study in cohort.studies):
        raise CohortFault(["rows of unknown outcome cannot be trained or scored on"])
    cache = cohort.folder / ".prepared"
    arrays = _ready(cohort, channels)
    if arrays is None and distributed.is_first_rank():
        arrays = _prepare(cohort, cache, fill or _by_processes(jobs, channels), progress, channels)
    distributed.barrier()
    images, presence, perfusion, flags = arrays or _load(cohort, cache, channels)
    rows = cohort.studies
    patients = {name: number for number, name in enumerate(dict.fromkeys(study.patient for study in rows))}
    latents, oracle = _truth(cohort, perfusion)
    files = [study.volumes if study.prepared is None else {} for study in rows]
    return Dataset(
        images=images,
        presence=presence,
        records=[study.record for study in rows],
        perfusion=perfusion,
        labels=np.array([UNKNOWN if study.outcome is None else study.outcome for study in rows], np.int64),
        groups=np.array([patients[study.patient] for study in rows], np.int64),
        sites=np.array([study.site for study in rows]),
        latents=latents,
        oracle=oracle,
        scanners=np.array([study.scanner for study in rows]),
        digests=[image_digests(*parts) for parts in zip(images, presence, files, strict=True)],
        flags=[_all_flags(study, found) for study, found in zip(rows, flags, strict=True)],
        own=cohort.own,
    )


Arrays = tuple[NDArray[np.float16], NDArray[np.bool_], list[PerfusionSummary | None], Sequence[Sequence[Flag] | None]]


def _all_flags(study: CohortRow, found: Sequence[Flag] | None) -> Sequence[Flag] | None:
    """Flags of the conversion and the preparation of a study; None if it came prepared."""
    return found if not study.conversion_flags else (*study.conversion_flags, *(found or ()))


def _ready(cohort: Cohort, channels: Sequence[ChannelSpec]) -> Arrays | None:
    """The arrays of a cohort that comes prepared; None for any other cohort."""
    numbers = [study.prepared for study in cohort.studies]
    if any(number is None for number in numbers):
        return None
    folder = cohort.folder
    if not (folder / "images.npy").is_file() or not (folder / "images.json").is_file():
        raise CohortFault(["the table has prepared rows, but images.npy or images.json is missing in its folder"])
    try:
        layout = json.loads((folder / "images.json").read_bytes())
        images = np.load(folder / "images.npy", mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise CohortFault(["images.npy or images.json is damaged: make the cohort again"]) from error
    expected = (len(defaults.CHANNELS), *defaults.GRID.shape)
    if layout != preprocess_cache.layout(channels) or images.shape[1:] != expected or images.dtype != np.float16:
        raise CohortFault(["images.npy was prepared for another grid or other channels: make the cohort again"])
    order = np.array(numbers, np.int64)
    faults = FaultList()
    for study in cohort.studies:
        if not 0 <= (study.prepared or 0) < len(images):
            faults.add("images.npy has no such row", row=study.row, column="prepared")
    faults.check()
    in_order = np.array_equal(order, np.arange(len(images)))
    # The perfusion numbers of a prepared cohort are in its clinical records.
    count = len(order)
    presence = _presence(folder, len(images))[order]
    return images if in_order else images[order], presence, [None] * count, [None] * count


def _presence(folder: Path, count: int) -> NDArray[np.bool_]:
    """Presence (n, C) of the channels of ``images.npy``: that of ``presence.npy``, or all of them without this file."""
    every = np.ones((count, len(defaults.CHANNELS)), bool)
    path = folder / "presence.npy"
    if not path.is_file():
        return every
    try:
        presence = np.load(path)
    except (ValueError, EOFError) as error:
        raise CohortFault(["presence.npy is damaged: make the cohort again"]) from error
    if presence.shape != every.shape or presence.dtype != bool:
        raise CohortFault(["presence.npy does not fit images.npy: make the cohort again"])
    return np.asarray(presence)


def _prepare(
    cohort: Cohort, cache: Path, fill: Filler, progress: ProgressReporter, channels: Sequence[ChannelSpec]
) -> Arrays:
    missing = [study for study in cohort.studies if not _cached(study, cache, channels).exists()]
    with progress.stage("preparing", len(cohort.studies)) as advance:
        advance(len(cohort.studies) - len(missing))
        fill(missing, cache, lambda: advance(1))
    return _load(cohort, cache, channels)


def _load(cohort: Cohort, cache: Path, channels: Sequence[ChannelSpec]) -> Arrays:
    """Load every study from the cache; one that is not there is prepared, so that its fault is raised with its row."""
    faults, prepared = [], []
    for study in cohort.studies:
        try:
            prepared.append(preprocess_cache.prepare_cached(study.volumes, cache, channels))
        except RlvoError as error:
            faults.append(f"row {study.row}: {error.detail}")
    if faults:
        raise CohortFault(faults)
    return (
        np.stack([one.image for one in prepared]),
        np.stack([one.presence for one in prepared]),
        [one.perfusion for one in prepared],
        [one.flags for one in prepared],
    )


def _by_processes(jobs: int, channels: Sequence[ChannelSpec]) -> Filler:
    """Filler that runs ``jobs`` processes on this machine."""

    def fill(studies: Sequence[CohortRow], cache: Path, advance: Callable[[], None]) -> None:
        if jobs > 1 and len(studies) > 1:
            work = [(study.volumes, cache, channels) for study in studies]
            try:
                side_by_side(_try, work, jobs, lambda _: advance())
            except BrokenProcessPool:
                fault = "a process that prepared a study was killed, perhaps because memory ran out"
                raise CohortFault([f"{fault}: try --jobs 1, or --workers queue, which names the row"]) from None
        else:
            for study in studies:
                _try((study.volumes, cache, channels), lambda _: advance())

    return fill


def _try(work: tuple[preprocess_cache.Volumes, Path, Sequence[ChannelSpec]], tell: Callable[[bool], None]) -> None:
    with suppress(RlvoError):
        preprocess_cache.prepare_cached(*work)
    tell(True)


def _cached(study: CohortRow, cache: Path, channels: Sequence[ChannelSpec]) -> Path:
    return cache / f"{preprocess_cache.cache_key(study.volumes, channels)}.safetensors"


def _truth(
    cohort: Cohort, perfusion: list[PerfusionSummary | None]
) -> tuple[NDArray[np.float32], NDArray[np.float64] | None]:
    """Latents (n, k) and true probabilities (n,) of a synthetic cohort; for a real one the known latents, and None."""
    rows = cohort.studies
    path = cohort.folder / "truth.csv"
    if not path.is_file():
        pairs = zip(rows, perfusion, strict=True)
        return np.array([known_latents(study.record, numbers) for study, numbers in pairs], np.float32), None
    try:
        truth = pd.read_csv(path, dtype={"patient": str}).set_index("patient")
        known = truth.loc[[study.patient for study in rows], [*LATENTS, "probability"]].astype(np.float64)
    except (KeyError, ValueError) as error:
        fault = "truth.csv, the truth of phantoms, is damaged or lacks a patient"
        raise CohortFault([f"{fault}: make the cohort again, or remove the file of a real cohort"]) from error
    return known[list(LATENTS)].to_numpy(np.float32), known["probability"].to_numpy(np.float64)
