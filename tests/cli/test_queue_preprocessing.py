"""Preprocessing of a cohort through the queue: a real worker prepares the studies, and faults name their rows."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pandas as pd
import pytest

from app.cli.queue_preprocessing import by_queue
from app.inference import preprocess_cache
from app.phantoms import cohort as phantoms
from app.training import cohort
from app.training.cohort import CohortRow
from app.training.errors import CohortFault
from app.training.preprocess import preprocess
from app.training.progress import ProgressReporter
from app.worker import preprocess_jobs
from tests.disks import fill
from tests.factory import tiny_version

COARSE = {"ncct": (4.0, 4.0, 4.0), "cta": (4.0, 4.0, 4.0), "perfusion": (5.0, 5.0, 6.0)}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[CohortRow]:
    """A phantom, and a patient whose NCCT file is no volume."""
    folder = tmp_path_factory.mktemp("cohort")
    phantoms.write_patient(folder / "good", 3, spacing_mm=COARSE)
    (folder / "bad.nii.gz").write_bytes(b"\x1f\x8b not a volume")
    table = pd.DataFrame({"patient": ["good", "bad"], "ncct": ["good/ncct.nii.gz", "bad.nii.gz"]})
    table.to_csv(folder / "cohort.csv", index=False)
    return cohort.read_for_prediction(folder)


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process of `rlvo worker`; this process has the same settings."""
    tiny_version(tmp_path / "models")
    settings = {
        "RLVO_DATA_DIR": str(tmp_path / "data"),
        "RLVO_MODEL_STORE": str(tmp_path / "models"),
        "RLVO_DEFAULT_MODEL": "tiny",
        "RLVO_THREADS": "1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "data").mkdir()
    with subprocess.Popen([sys.executable, "-m", "app.cli", "worker"], env=os.environ | settings) as process:
        yield process
        process.send_signal(signal.SIGTERM)


@pytest.mark.usefixtures("worker")
def test_worker_prepares_the_studies_that_training_reads(studies: list[CohortRow], tmp_path: Path) -> None:
    cache, ticks = tmp_path / ".prepared", []
    by_queue(studies, cache, lambda: ticks.append(None))
    assert len(ticks) == 2
    assert [path.name for path in cache.iterdir()] == [f"{preprocess_cache.cache_key(studies[0].volumes)}.safetensors"]
    prepared = preprocess_cache.prepare_cached(studies[0].volumes, cache)
    assert prepared.presence.tolist() == [True, False, False, False, False]  # only the NCCT
    with pytest.raises(CohortFault, match="row 3: "):
        preprocess(cohort.Cohort(tmp_path, tuple(replace(study, outcome=0) for study in studies)), ProgressReporter())


def test_job_that_stops_its_workers_is_given_up(studies: list[CohortRow], tmp_path: Path) -> None:
    ((_, job),) = preprocess_jobs.write(studies[:1], tmp_path)
    job._tries.write_bytes(b"...")  # three tries without a result
    preprocess_jobs.job_at(job.path).run_job(tries=3)
    assert job.given_up
    assert job.ended
    job.clear()
    assert not list(tmp_path.iterdir())


def test_fault_of_the_environment_takes_back_its_own_try_only(
    studies: list[CohortRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NoReturn:
        raise OSError(errno.EIO, "x")

    ((_, job),) = preprocess_jobs.write(studies[:1], tmp_path)
    job._tries.write_bytes(b"..")  # two tries that stopped their workers
    monkeypatch.setattr(preprocess_cache, "prepare_cached", fail)
    with pytest.raises(OSError, match="x"):
        preprocess_jobs.job_at(job.path).run_job(tries=3)
    assert job._tries.read_bytes() == b".."


def test_prepared_study_is_not_prepared_again(studies: list[CohortRow], tmp_path: Path) -> None:
    ((_, job),) = preprocess_jobs.write(studies[:1], tmp_path)
    prepared = tmp_path / f"{job.key}.safetensors"
    prepared.write_bytes(b"prepared")
    preprocess_jobs.job_at(job.path).run_job(tries=3)
    assert prepared.read_bytes() == b"prepared"


def test_full_disk_ends_no_job_and_uses_up_no_try(studies: list[CohortRow], small_disk: Path) -> None:
    ((_, job),) = preprocess_jobs.write(studies[:1], small_disk)
    job._tries.touch()
    filler = fill(small_disk)
    for _ in range(5):  # more than the tries
        with pytest.raises(OSError, match="No space left"):
            preprocess_jobs.job_at(job.path).run_job(tries=3)
    assert not job.ended
    with filler.open("r+b") as file:
        file.truncate(filler.stat().st_size - 8192)  # enough to count the try, not for the study
    with pytest.raises(OSError, match="No space left"):
        preprocess_jobs.job_at(job.path).run_job(tries=3)
    assert not job.ended
    assert sorted(path.suffix for path in small_disk.iterdir()) == ["", ".order"]
    filler.unlink()
    preprocess_jobs.job_at(job.path).run_job(tries=3)
    assert job.ended
    assert not job.given_up
