"""Options of a training run. This module imports no torch, so that ``--help`` answers quickly."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from app.registry.manifest import NAME_PATTERN, VERSION_PATTERN
from app.training import report_folder
from app.training.errors import CohortFault


class PublishedModel(StrEnum):
    """The published model: the one model of the results table that is packaged as the model version.

    The other models of the table are trained for comparison. The simple model can be the better one.
    """

    DAFT = "daft"
    FILM = "film"
    CONCAT = "concat"
    IMAGING = "imaging"
    LOGISTIC = "logistic"


class Target(StrEnum):
    """The target: the outcome that a version predicts."""

    RLVO = "rlvo"
    UNSUCCESSFUL_REPERFUSION = "unsuccessful-reperfusion"

    @property
    def outcome(self) -> str:
        """Name of the outcome in manifests and reports."""
        return "rLVO" if self is Target.RLVO else "unsuccessful_reperfusion"


class Validation(StrEnum):
    """The validation: how the test patients are chosen.

    ``paper`` and ``dates`` make one split, thus one ensemble, which can be packaged as a version. ``sites`` and
    ``nested`` make many splits with one ensemble each; they measure only.
    """

    PAPER = "paper"
    DATES = "dates"
    SITES = "sites"
    NESTED = "nested"

    @property
    def has_many_splits(self) -> bool:
        """Whether the run trains more than one ensemble."""
        return self in (Validation.SITES, Validation.NESTED)


@dataclass(frozen=True)
class TrainConfig:
    """Arguments of ``rlvo train``. Each field that can change a number is part of the run's key (``split.py``).

    Attributes:
        out: Folder of the new version, ``model_store/NAME/VERSION``; None: no version is written.
        trunk: Version whose image trunk and last block are reused without training.
        phantoms: Number of phantoms on which a new trunk is pretrained; 0: none.
        jobs: Folds, or studies, that run at the same time.
        report: Folder of the report; None: a folder in ``reports`` beside the table, named after the table and the run.
        target: None: rLVO, if the table has any of its components.
        columns: ``columns.toml`` of the table; None: the one in its folder, if there is one.
        date_format: Form of the dates, as ``dd/mm/yyyy``; "": ISO.
        dicom: Folder of the DICOM studies that rows name by UID or accession number.
        variables: Names of the clinical variables (``variables.py``); (): the default ones and the own ones.
        own_variables: ``variables.toml`` of the table; None: the one in its folder, if there is one.
        compare: Networks of the results table besides ``model``; (): all of them.
        publish_anyway: Write a version in spite of few events or a ranking below chance (``publication.py``).
        accept_flags: Train although the preparation doubts some images, or images repeat under several patients.
        i_know: Train although the version of ``trunk`` was trained on some of the patients.
        accept: Codes of suspicious values that are accepted, separated by commas; ``all``: every code.
    """

    cohort: Path
    out: Path | None
    trunk: Path | None
    phantoms: int
    epochs: int
    seed: int
    device: str
    quick: bool
    drop_unknown: bool
    model: PublishedModel = PublishedModel.DAFT
    validation: Validation = Validation.PAPER
    repeats: int = 5
    jobs: int = 1
    report: Path | None = None
    target: Target | None = None
    columns: Path | None = None
    date_format: str = ""
    dicom: Path | None = None
    variables: tuple[str, ...] = ()
    own_variables: Path | None = None
    compare: tuple[PublishedModel, ...] = ()
    publish_anyway: bool = False
    accept_flags: bool = False
    i_know: bool = False
    accept: str = ""

    def check(self) -> None:
        """Check that the version and the report can be written.

        Raises:
            CohortFault: If the version exists or has no valid name, if a path is a file where a folder is needed, if
                the validation trains no single ensemble, or if the report's folder has other files.
        """
        if self.out is not None:
            self._check_version(self.out)
        report_folder.check(self.report)

    def _check_version(self, out: Path) -> None:
        if out.exists():
            raise CohortFault([f"version {out.name} exists; versions never change: choose another"])
        if not re.fullmatch(NAME_PATTERN, out.parent.name) or not re.fullmatch(VERSION_PATTERN, out.name):
            expected = "a folder NAME/VERSION, with small letters, digits and hyphens, as model_store/mine/1.0.0"
            raise CohortFault([f"--out: expected {expected}"])
        if any(folder.exists() and not folder.is_dir() for folder in out.parents):
            raise CohortFault(["--out: a part of its path is a file; name a new folder"])
        if self.validation.has_many_splits:
            fault = f"the validation `{self.validation}` trains many ensembles, and none of them is the version"
            raise CohortFault([f"{fault}: leave out --out, and train the version by `paper` or `dates`"])
