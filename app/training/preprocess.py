"""From a cohort's studies to arrays: the service's own ``prepare`` on every study, each only once.

Notable choices:
- A prepared study is kept under the sha-256 of its files' contents and of the grid and channels. A killed preparation
  goes on where it stopped; an edited file is prepared again; a renamed one is not.
- A synthetic cohort may come prepared (``images.npy``, ``images.json``, ``truth.csv`` beside its table): tens of
  thousands of volumes need not be written to be read again.
- A study that cannot be prepared is a fault of its row. All rows are tried, then all faults are told.
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

from app.inference import preprocess_cache
from app.sdk.errors import RlvoError
from app.sdk.types import PerfusionSummary
from app.training.cohort import Cohort, CohortRow
from app.training.dataset import LATENTS, Dataset, known_latents
from app.training.errors import CohortFault
from app.training.process_pool import side_by_side

Filler = Callable[[Sequence[CohortRow], Path, Callable[[], None]], None]
"""Prepares studies into the cache's folder, somewhere and side by side, and tells of each that is done. It raises
nothing for a study that cannot be prepared: that one is tried again here, where its fault is told with its row."""


def dataset(
    cohort: Cohort, cache: Path, advance: Callable[[], None] = lambda: None, *, fill: Filler | None = None
) -> Dataset:
    """The cohort as arrays.

    :param cache: folder of prepared studies
    :param advance: told after each study
    :param fill: prepares those that are not in the cache yet; without it, they are prepared here one after another
    :raises CohortFault: naming every row that cannot be prepared
    """
    if any(study.outcome is None for study in cohort.studies):
        raise CohortFault(["rows of unknown outcome cannot be trained or scored on"])
    rows = list(cohort.studies)
    ready = _ready(cohort)
    if ready is not None:
        images, presence, perfusion = ready
        for _ in rows:
            advance()
    else:
        if fill is not None:
            missing = [study for study in rows if not _place(study, cache).exists()]
            for _ in range(len(rows) - len(missing)):
                advance()
            fill(missing, cache, advance)
            advance = _nothing
        images, presence, perfusion = _prepare_all(rows, cache, advance)
    patients = {name: number for number, name in enumerate(dict.fromkeys(study.patient for study in rows))}
    latents, oracle = _truth(cohort, rows, perfusion)
    return Dataset(
        images=images,
        presence=presence,
        records=[study.record for study in rows],
        perfusion=perfusion,
        labels=np.array([study.outcome for study in rows], np.int64),
        groups=np.array([patients[study.patient] for study in rows], np.int64),
        sites=np.array([study.site for study in rows]),
        latents=latents,
        oracle=oracle,
        scanners=np.array([study.scanner for study in rows]),
    )


Arrays = tuple[NDArray[np.float16], NDArray[np.bool_], list[PerfusionSummary | None]]


def _ready(cohort: Cohort) -> Arrays | None:
    """The arrays of a cohort that came prepared."""
    numbers = [study.prepared for study in cohort.studies]
    if any(number is None for number in numbers):
        return None
    folder = cohort.folder
    if not (folder / "images.npy").is_file() or not (folder / "images.json").is_file():
        raise CohortFault(["the table has prepared rows, but images.npy or images.json is not beside it"])
    if json.loads((folder / "images.json").read_text()) != preprocess_cache.layout():
        raise CohortFault(["images.npy was prepared for another grid or other channels: make the cohort again"])
    images = np.load(folder / "images.npy", mmap_mode="r")
    order = np.array(numbers, np.int64)
    beyond = [study.row for study in cohort.studies if not 0 <= (study.prepared or 0) < len(images)]
    if beyond:
        raise CohortFault([f"row {row}, column prepared: images.npy has no such row" for row in beyond])
    in_order = np.array_equal(order, np.arange(len(images)))
    # The record's own perfusion numbers serve; a prepared synthetic cohort carries them in its table.
    return images if in_order else images[order], np.ones((len(order), images.shape[1]), bool), [None] * len(order)


def _prepare_all(rows: list[CohortRow], cache: Path, advance: Callable[[], None]) -> Arrays:
    faults, done = [], []
    for study in rows:
        try:
            done.append(preprocess_cache.prepare_cached(study.volumes, cache))
        except RlvoError as error:
            faults.append(f"row {study.row}: {error.detail}")
        advance()
    if faults:
        raise CohortFault(faults)
    return (
        np.stack([one.image for one in done]),
        np.stack([one.presence for one in done]),
        [one.perfusion for one in done],
    )


def _nothing() -> None:
    """What is told where nobody listens."""


def by_processes(jobs: int) -> Filler:
    """Fills the cache by processes of this machine, ``jobs`` at once."""

    def fill(studies: Sequence[CohortRow], cache: Path, advance: Callable[[], None]) -> None:
        if jobs > 1 and len(studies) > 1:
            work = [(study.volumes, cache) for study in studies]
            try:
                side_by_side(_try, work, jobs, lambda _: advance())
            except BrokenProcessPool:
                fault = "a process that prepared a study was killed, perhaps for want of memory"
                raise CohortFault([f"{fault}: try --jobs 1, or --workers queue, which names its row"]) from None
        else:
            for study in studies:
                _try((study.volumes, cache), lambda _: advance())

    return fill


def _try(work: tuple[preprocess_cache.Volumes, Path], tell: Callable[[bool], None]) -> None:
    with suppress(RlvoError):
        preprocess_cache.prepare_cached(*work)
    tell(True)


def _place(study: CohortRow, cache: Path) -> Path:
    return cache / f"{preprocess_cache.cache_key(study.volumes)}.safetensors"


def _truth(
    cohort: Cohort, rows: list[CohortRow], perfusion: list[PerfusionSummary | None]
) -> tuple[NDArray[np.float32], NDArray[np.float64] | None]:
    """Latents and true chances of a synthetic cohort; of a real one, what is known of the latents, and None."""
    path = cohort.folder / "truth.csv"
    if not path.is_file():
        pairs = zip(rows, perfusion, strict=True)
        return np.array([known_latents(study.record, numbers) for study, numbers in pairs], np.float32), None
    truth = pd.read_csv(path, dtype={"patient": str}).set_index("patient")
    known = truth.loc[[study.patient for study in rows]]
    return known[list(LATENTS)].to_numpy(np.float32), known["probability"].to_numpy(np.float64)
