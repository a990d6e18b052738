"""A cohort's preparation through the queue: a real worker does it, behind everybody else, and faults stay with rows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from app.cli.queue_preprocessing import by_queue
from app.inference import preprocess_cache
from app.phantoms import cohort as phantoms
from app.training import cohort, preprocess
from app.training.cohort import CohortRow
from app.training.errors import CohortFault
from app.worker import preprocess_jobs
from tests.factory import tiny_version

COARSE = {"ncct": (4.0, 4.0, 4.0), "cta": (4.0, 4.0, 4.0), "perfusion": (5.0, 5.0, 6.0)}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[CohortRow]:
    """A phantom, and a patient whose NCCT is no volume."""
    folder = tmp_path_factory.mktemp("cohort")
    phantoms.write_patient(folder / "good", 3, spacing_mm=COARSE)
    (folder / "bad.nii.gz").write_bytes(b"\x1f\x8b not a volume")
    table = pd.DataFrame({"patient": ["good", "bad"], "ncct": ["good/ncct.nii.gz", "bad.nii.gz"]})
    table.to_csv(folder / "cohort.csv", index=False)
    return cohort.to_predict(folder)


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A worker as `rlvo worker` starts one, on a service of its own, whose settings this process has too."""
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
    with subprocess.Popen([sys.executable, "-m", "app.cli.__main__", "worker"], env=os.environ | settings) as process:
        yield process
        process.send_signal(signal.SIGTERM)


@pytest.mark.usefixtures("worker")
def test_a_worker_prepares_what_the_trainer_then_reads(studies: list[CohortRow], tmp_path: Path) -> None:
    cache, ticks = tmp_path / "cache", []
    by_queue(studies, cache, lambda: ticks.append(None))
    assert len(ticks) == 2
    assert [path.name for path in cache.iterdir()] == [f"{preprocess_cache.cache_key(studies[0].volumes)}.safetensors"]
    found = preprocess_cache.prepare_cached(studies[0].volumes, cache)
    assert found.presence.tolist() == [True, False, False, False, False]  # the NCCT alone
    with pytest.raises(CohortFault, match="row 3: "):
        preprocess.dataset(cohort.Cohort(tmp_path, tuple(known(study) for study in studies)), cache)


def known(study: CohortRow) -> CohortRow:
    return replace(study, outcome=0)


def test_an_order_that_kills_its_workers_is_given_up(studies: list[CohortRow], tmp_path: Path) -> None:
    ((_, order),) = preprocess_jobs.write(studies[:1], tmp_path)
    order._tries.write_bytes(b"...")  # three workers began and never ended
    preprocess_jobs.job_at(order.path).carry_out(tries=3)
    assert order.given_up
    assert order.ended
    order.clear()
    assert not list(tmp_path.iterdir())


def test_what_is_prepared_already_is_left_alone(studies: list[CohortRow], tmp_path: Path) -> None:
    ((_, order),) = preprocess_jobs.write(studies[:1], tmp_path)
    place = tmp_path / f"{order.key}.safetensors"
    place.write_bytes(b"here already")
    preprocess_jobs.job_at(order.path).carry_out(tries=3)
    assert place.read_bytes() == b"here already"
