"""Preprocessing of a training cohort by workers: each study is one job, described by a file.

Design notes:
- The job file is in the cache folder, named by the digest of the study. The queue carries only its path, so the tables
  of the engine hold no path of a patient's file.
- A job may run twice: a study that is in the cache already is left as it is.
- A job that fails leaves a file with the reason. A job that stops its worker each time is given up.
- A fault of the environment is no reason: the job raises, and the engine starts it again until the fault is over.
- All workers must see the folder of the cohort under the same path, on other machines by a shared disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from app.core.environment import is_environment_fault
from app.inference import preprocess_cache
from app.sdk.errors import RlvoError
from app.sdk.types import Input


class HasVolumes(Protocol):
    """A study with the paths of its volumes, such as a row of a training cohort."""

    @property
    def volumes(self) -> Mapping[Input, Path]: ...


S = TypeVar("S", bound=HasVolumes)

GIVEN_UP = "the worker stopped, or exceeded its limits, each time it tried to prepare the study"


@dataclass(frozen=True)
class PreprocessJob:
    """One study to prepare into the cache.

    Attributes:
        folder: Folder of the cache.
        key: Digest of the study.
    """

    folder: Path
    key: str

    @property
    def path(self) -> Path:
        """The job file, which the queue carries."""
        return self.folder / f"{self.key}.order"

    @property
    def ended(self) -> bool:
        """Whether the job has succeeded or failed."""
        return (self.folder / f"{self.key}.safetensors").exists() or self._failed.exists()

    @property
    def given_up(self) -> bool:
        """Whether the job stopped its worker in each try."""
        return self._failed.exists() and self._failed.read_text() == GIVEN_UP

    @property
    def _failed(self) -> Path:
        return self.folder / f"{self.key}.failed"

    @property
    def _tries(self) -> Path:
        return self.folder / f"{self.key}.tries"

    def run_job(self, tries: int) -> None:
        """Prepares the study into the cache, or writes the reason of the failure; at most ``tries`` times.

        Raises the error of a full disk or another fault of the environment.
        """
        if self.ended or not self.path.exists():
            return
        with self._tries.open("ab") as file:
            file.write(b".")
        if self._tries.stat().st_size > tries:
            self._fail(GIVEN_UP)
            return
        volumes = {Input(name): Path(path) for name, path in json.loads(self.path.read_text()).items()}
        try:
            preprocess_cache.prepare_cached(volumes, self.folder)
        except (RlvoError, OSError) as error:
            if is_environment_fault(error):
                self._take_back_try()
                raise
            self._fail(getattr(error, "detail", None) or type(error).__name__)

    def clear(self) -> None:
        """Removes the files of the job; the prepared study stays."""
        for path in (self.path, self._failed, self._tries):
            path.unlink(missing_ok=True)

    def _take_back_try(self) -> None:
        """Counts one try less; those that stopped a worker still count."""
        with suppress(OSError):
            if tries := self._tries.stat().st_size - 1:
                os.truncate(self._tries, tries)
            else:
                self._tries.unlink()

    def _fail(self, reason: str) -> None:
        draft = self._failed.with_suffix(".part")
        draft.write_text(reason)
        draft.replace(self._failed)


def write(studies: Sequence[S], cache: Path) -> Iterator[tuple[S, PreprocessJob]]:
    """Writes a job file into ``cache`` for each study; a study whose files cannot be read gets none."""
    cache.mkdir(parents=True, exist_ok=True)
    for study in studies:
        with suppress(OSError):
            job = PreprocessJob(cache.resolve(), preprocess_cache.cache_key(study.volumes))
            job.clear()
            draft = job.path.with_suffix(".part")
            draft.write_text(json.dumps({name: str(path.resolve()) for name, path in study.volumes.items()}))
            draft.replace(job.path)
            yield study, job


def job_at(path: Path) -> PreprocessJob:
    """The job of a job file."""
    return PreprocessJob(path.parent, path.stem)
