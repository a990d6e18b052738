"""Stage 3 of a training run: draw and freeze the split, or the splits, of the chosen validation."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from app.core.display_names import NOT_RECORDED
from app.evaluation.clusters import of_patients
from app.training import distributed, provenance, publication, splits
from app.training.cohort import Cohort
from app.training.dataset import Dataset
from app.training.errors import FaultList
from app.training.options import TrainConfig, Validation
from app.training.splits import Split

NO_EFFECT = ("jobs", "report", "out", "model", "accept", "accept_flags", "i_know", "publish_anyway", "compare")
"""Arguments that change no number of a fitted model."""

BY_CONTENT = ("cohort", "trunk", "device", "own_variables")
"""Arguments that enter the key by their content, not by their text."""


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
        digest: SHA-256 of the table, the images and the truth (``provenance.data_digest``).
        folder: ``.runs/KEY`` in the cohort's folder. The key depends on that digest, the code, and all arguments that
            change a number. The same command resumes from its own checkpoints. If one of these changes, the run starts
            again and uses no earlier checkpoint.
        notes: What the validation leaves out, for the report.
    """

    parts: tuple[RunSplit, ...]
    digest: str
    folder: Path
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Strata:
    """What a split is drawn by: outcome, number of the patient, and site of each study (n,)."""

    labels: splits.Rows
    groups: splits.Rows
    sites: NDArray[np.str_]

    @classmethod
    def of(cls, cohort: Cohort) -> _Strata:
        """Strata of the studies of a table, all of which have an outcome."""
        patients = {name: number for number, name in enumerate(dict.fromkeys(one.patient for one in cohort.studies))}
        return cls(
            np.array([study.outcome for study in cohort.studies], np.int64),
            np.array([patients[study.patient] for study in cohort.studies], np.int64),
            np.array([study.site for study in cohort.studies]),
        )


def check(cohort: Cohort, config: TrainConfig) -> None:
    """Check that the cohort has the split of the validation, before its images are prepared.

    Raises:
        CohortFault: If the cohort has no such split.
        PublicationRefused: If a version is requested and the development part has too few events.
    """
    strata = _Strata.of(cohort)
    (_, _, part), *_ = _draw(cohort, strata, config)
    _check_events(part, strata, config)


def _check_events(part: Split, strata: _Strata | Dataset, config: TrainConfig) -> None:
    if config.out is not None:
        clusters = of_patients(strata.groups[part.develop])
        objections = publication.too_few_events(strata.labels[part.develop], clusters)
        publication.check(objections, accepted=config.publish_anyway)


def split(cohort: Cohort, data: Dataset, config: TrainConfig, device: torch.device) -> RunSplits:
    """Draw the splits and keep each in ``split.json`` of its folder.

    Raises:
        CohortFault: If the cohort has no such split.
        PublicationRefused: If a version is requested and the development part has too few events.
    """
    digest = provenance.data_digest(cohort, data)
    folder = cohort.folder / ".runs" / _key(config, digest, device)
    parts = tuple(RunSplit(block, part, folder / name) for block, name, part in _draw(cohort, data, config))
    _check_events(parts[0].split, data, config)
    if distributed.is_first_rank():
        for part in parts:
            splits.freeze(part.folder / "split.json", part.split, digest)
    return RunSplits(parts, digest, folder, _notes(cohort, data, config))


def _notes(cohort: Cohort, data: Dataset, config: TrainConfig) -> tuple[str, ...]:
    notes = []
    if config.validation is not Validation.PAPER and any(study.fold for study in cohort.studies):
        notes.append(f"The column fold is not used: the validation `{config.validation}` draws its own parts.")
    untested = splits.sites_of_one_outcome(data.labels, data.sites) if config.validation is Validation.SITES else ()
    if untested:
        notes.append(
            f"Sites that are not a test part, because their patients have one outcome only: {', '.join(untested)}."
        )
    return tuple(notes)


def _key(config: TrainConfig, digest: str, device: torch.device) -> str:
    given = {name: str(value) for name, value in asdict(config).items() if name not in (*NO_EFFECT, *BY_CONTENT)}
    parts = given | {
        "data": digest,
        "code": provenance.code_digest(),
        "trunk": "" if config.trunk is None else provenance.version_digest(config.trunk),
        "device": device.type,
        "ranks": distributed.rank_count(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _folder_name(block: str, number: int) -> str:
    """Name of the folder of one split. The digest keeps apart blocks that differ in special characters or case only."""
    digest = hashlib.sha256(block.encode()).hexdigest()[:8]
    return f"{re.sub('[^A-Za-z0-9]+', '-', block)[:40]}-{digest}-{number}"


def _draw(cohort: Cohort, data: _Strata | Dataset, config: TrainConfig) -> Iterator[tuple[str, str, Split]]:
    """Block, name of the folder, and split, for each split of the validation."""
    labels, groups, sites, seed = data.labels, data.groups, data.sites, config.seed
    match config.validation:
        case Validation.PAPER:
            own = np.array([study.fold for study in cohort.studies])
            yield "", "", splits.given(own, labels) if own[0] else splits.split(labels, groups, sites, seed)
        case Validation.DATES:
            _check_known(cohort, "date", "")
            yield "", "", splits.by_date(labels, groups, sites, [study.date for study in cohort.studies], seed)
        case Validation.SITES:
            _check_known(cohort, "site", NOT_RECORDED)  # its patients can be of a site that is tested
            for site, part in splits.by_site(labels, groups, sites, seed).items():
                yield site, _folder_name(site, 0), part
        case Validation.NESTED:
            for block, parts in splits.nested(labels, groups, sites, seed, config.repeats).items():
                for number, part in enumerate(parts):
                    yield block, _folder_name(block, number), part


def _check_known(cohort: Cohort, column: str, missing: str) -> None:
    """Check that no study has the value ``missing`` in a column.

    Raises:
        CohortFault: With the rows that have it.
    """
    faults = FaultList()
    for study in cohort.studies:
        if getattr(study, column) == missing:
            faults.add("missing", row=study.row, column=column)
    faults.check()
