"""Stage 3 of a training run: draw and freeze the split, or the splits, of the chosen validation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from app.inference import preprocess_cache
from app.training import distributed, publication, splits
from app.training.cohort import Cohort
from app.training.dataset import Dataset
from app.training.errors import CohortFault
from app.training.options import TrainConfig, Validation
from app.training.splits import Split

NO_EFFECT = ("jobs", "report", "out", "model", "publish_anyway")  # arguments that change no number of a fitted model


@dataclass(frozen=True)
class RunSplit:
    """One split of a run: its block (a site, or a repeat; "" for a single split) and its folder of checkpoints."""

    block: str
    split: Split
    folder: Path


@dataclass(frozen=True)
class RunSplits:
    """All splits of a run.

    Attributes:
        parts: The splits; a single one for the validations ``paper`` and ``dates``.
        digest: SHA-256 of the cohort's patients and outcomes.
        folder: ``.runs/KEY`` in the cohort's folder. The key depends on the cohort and on all arguments that change a
            number: the same command resumes from its own checkpoints, and another command never uses them.
        notes: What the validation leaves out, for the report.
    """

    parts: tuple[RunSplit, ...]
    digest: str
    folder: Path
    notes: tuple[str, ...] = ()


def split(cohort: Cohort, data: Dataset, config: TrainConfig) -> RunSplits:
    """Draw the splits and keep each in ``split.json`` of its folder.

    Raises:
        CohortFault: If the cohort has no such split.
        PublicationRefused: If a version is requested and the development part has too few events.
    """
    digest = splits.digest_of([study.patient for study in cohort.studies], data.labels)
    folder = cohort.folder / ".runs" / _key(config, digest)
    parts = tuple(RunSplit(block, part, folder / name) for block, name, part in _draw(cohort, data, config))
    if config.out is not None:
        objections = publication.too_few_events(data.labels[parts[0].split.develop])
        publication.check(objections, accepted=config.publish_anyway)
    if distributed.is_first_rank():
        for part in parts:
            splits.freeze(part.folder / "split.json", part.split, digest)
    return RunSplits(parts, digest, folder, _notes(data, config))


def _notes(data: Dataset, config: TrainConfig) -> tuple[str, ...]:
    untested = splits.sites_of_one_outcome(data.labels, data.sites) if config.validation is Validation.SITES else ()
    if not untested:
        return ()
    return (f"Sites that are not a test part, because their patients have one outcome only: {', '.join(untested)}.",)


def _key(config: TrainConfig, digest: str) -> str:
    given = {name: str(value) for name, value in asdict(config).items() if name not in NO_EFFECT}
    parts = given | {"cohort": digest, "layout": preprocess_cache.layout()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _draw(cohort: Cohort, data: Dataset, config: TrainConfig) -> Iterator[tuple[str, str, Split]]:
    """Block, name of the folder, and split, for each split of the validation."""
    labels, groups, sites, seed = data.labels, data.groups, data.sites, config.seed
    match config.validation:
        case Validation.PAPER:
            own = np.array([study.fold for study in cohort.studies])
            yield "", "", splits.given(own, labels) if own[0] else splits.split(labels, groups, sites, seed)
        case Validation.DATES:
            undated = [f"row {study.row}, column date: missing" for study in cohort.studies if not study.date]
            if undated:
                raise CohortFault(undated)
            yield "", "", splits.by_date(labels, groups, sites, [study.date for study in cohort.studies], seed)
        case Validation.SITES:
            for site, part in splits.by_site(labels, groups, sites, seed).items():
                yield site, f"{site}-0".replace(" ", "-"), part
        case Validation.NESTED:
            for block, parts in splits.nested(labels, groups, sites, seed, config.repeats).items():
                for number, part in enumerate(parts):
                    yield block, f"{block}-{number}".replace(" ", "-"), part
