"""Turns DICOM studies of a cohort into volumes, with the roles and the geometry of the service.

A row without paths of volumes names its study by ``study_instance_uid`` or ``accession_number``. The studies lie in one
folder, in any order and with any file names.

Design notes:
- The volumes are kept in ``.dicom`` in the cohort's folder, so a study is converted once and a killed run continues. An
  edited, added or removed file makes other volumes. They hold no identifier.
- All studies are tried before the faults of those that cannot be used are raised together.
- Flags of the conversion, such as a doubtful role, count like those of the preparation.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from app.core.filesystem import atomic_directory
from app.dicom.conversion import Conversion
from app.dicom.errors import Unreadable
from app.dicom.head import read_head
from app.dicom.isolated import convert_isolated
from app.sdk.errors import RlvoError
from app.sdk.types import Flag, Input
from app.training import distributed
from app.training.cohort import Cohort, CohortRow
from app.training.errors import CohortFault, FaultList
from app.training.progress import ProgressReporter

__all__ = ["convert"]

CACHE_VERSION = 1  # increase it when the conversion changes; older volumes are not read
_FOLDER = ".dicom"
_SUMMARY = "conversion.json"
_SECONDS = 900.0  # of one conversion


def convert(cohort: Cohort, folder: Path | None, progress: ProgressReporter, *, jobs: int = 1) -> Cohort:
    """Give each row that names a DICOM study its volumes.

    Args:
        cohort: the cohort.
        folder: folder of the DICOM studies; None if none is given.
        progress: shows the conversions.
        jobs: studies that are converted at the same time.

    Returns:
        The cohort, with volumes in all rows.

    Raises:
        CohortFault: with every row whose study is not in the folder, or cannot be used.
    """
    wanted = [study for study in cohort.studies if study.dicom]
    if not wanted:
        return cohort
    if folder is None:
        raise CohortFault(["rows name DICOM studies by their UID or accession number: give their folder with --dicom"])
    if not folder.is_dir():
        raise CohortFault(["--dicom: there is no such folder"])
    cache = cohort.folder / _FOLDER
    if distributed.is_first_rank():
        _convert(wanted, folder, cache, progress, jobs)
    distributed.barrier()
    done = _convert(wanted, folder, cache, ProgressReporter(), jobs)  # from the cache
    return replace(cohort, studies=tuple(done.get(study.row, study) for study in cohort.studies))


def _convert(
    wanted: Sequence[CohortRow], folder: Path, cache: Path, progress: ProgressReporter, jobs: int
) -> dict[int, CohortRow]:
    index, faults = _Index(folder), FaultList()
    found = []
    for study in wanted:
        files, fault = index.files(study)
        if fault:
            faults.add(fault, row=study.row)
        else:
            found.append((study, files))
    faults.check()
    done: dict[int, CohortRow] = {}

    def one(pair: tuple[CohortRow, list[Path]]) -> tuple[CohortRow, _Volumes | RlvoError]:
        try:
            return pair[0], _volumes(pair[1], cache)
        except RlvoError as error:
            return pair[0], error

    with progress.stage("converting DICOM", len(found)) as advance, ThreadPoolExecutor(max(jobs, 1)) as threads:
        for study, made in threads.map(one, found):
            if isinstance(made, RlvoError):
                faults.add(made.detail, row=study.row)
            else:
                done[study.row] = replace(study, volumes=made.files, conversion_flags=made.flags)
            advance(1)
    faults.check()
    return done


@dataclass
class _Index:
    """The files of a folder by study, and the studies of each accession number."""

    folder: Path
    by_uid: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    by_accession: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def __post_init__(self) -> None:
        for path in sorted(self.folder.rglob("*")):
            if not path.is_file():
                continue
            try:
                with path.open("rb") as file:
                    head = read_head(file)
            except Unreadable:
                continue  # not DICOM, or a directory file of a disc
            self.by_uid[head.study_uid].append(path)
            if head.accession:
                self.by_accession[head.accession.decode("latin-1")].add(head.study_uid)

    def files(self, study: CohortRow) -> tuple[list[Path], str]:
        """Files of the study of a row, or a fault."""
        uid, accession = study.dicom or ("", "")
        named = {uid} if uid else self.by_accession.get(accession, set())
        if len(named) > 1:
            return [], "several DICOM studies have its accession number: name one by study_instance_uid"
        files = self.by_uid.get(next(iter(named), ""), [])
        column = "study_instance_uid" if uid else "accession_number"
        return files, "" if files else f"the folder of --dicom has no study with its {column}"


@dataclass(frozen=True)
class _Volumes:
    """NIfTI files of a study, and the flags of their conversion."""

    files: Mapping[Input, Path]
    flags: tuple[Flag, ...]


def _volumes(files: Sequence[Path], cache: Path) -> _Volumes:
    """The volumes of a study, from the cache if possible. Raises RlvoError."""
    target = cache / _key(files)
    if not (target / _SUMMARY).exists():
        cache.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".files-") as linked:
            for number, path in enumerate(files):
                _link(path, Path(linked) / f"{number:05d}")
            shutil.rmtree(target, ignore_errors=True)
            with atomic_directory(target) as draft:
                made = convert_isolated(Path(linked), draft, timeout_s=_SECONDS)
                (draft / _SUMMARY).write_text(json.dumps(_summary(made)))
    summary = json.loads((target / _SUMMARY).read_bytes())
    volumes = {Input(name): target / f"{name}.nii" for name in summary["volumes"]}
    return _Volumes(volumes, tuple(Flag.model_validate(each) for each in summary["flags"]))


def _summary(made: Conversion) -> dict[str, object]:
    flags = [flag.model_dump(mode="json") for flag in made.flags]
    return {"volumes": [name.value for name in made.volumes], "flags": flags}


def _key(files: Sequence[Path]) -> str:
    """Changes with the names, sizes and times of the files."""
    known = [[str(path), (status := path.stat()).st_size, status.st_mtime_ns] for path in files]
    return hashlib.sha256(json.dumps([CACHE_VERSION, known]).encode()).hexdigest()


def _link(path: Path, target: Path) -> None:
    """Place a file in a folder, as a link if the disk is the same."""
    try:
        os.link(path.resolve(), target)
    except OSError:
        shutil.copyfile(path, target)
