"""The programs in examples/ run against the real service, as their docstrings say."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .service_process import TIMEOUT_S, RunningService

pytestmark = pytest.mark.xdist_group("e2e")

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
TRUNK = ROOT / "model_store" / "rlvo-synthetic" / "2.3.0"
RUN = "import runpy, sys, app.sdk; sys.modules['rlvo'] = app.sdk; runpy.run_path(sys.argv[0], run_name='__main__')"
"""Installed alone, the client is `rlvo`; in this checkout the same files are `app.sdk`."""


def run(name: str, *arguments: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run one example as a program, with ``rlvo`` importable."""
    code = f"import sys; sys.argv = {[str(EXAMPLES / name), *map(str, arguments)]!r}; {RUN}"
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=(environment or os.environ) | {"PYTHONPATH": str(ROOT)},
        timeout=3 * TIMEOUT_S,
    )


@pytest.fixture(scope="module")
def study_folder(patient: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ncct.nii.gz, cta.nii.gz and clinical.json."""
    folder = tmp_path_factory.mktemp("example") / "patient-1"
    folder.mkdir()
    for name in ("ncct", "cta", "clinical"):
        shutil.copy(patient[name], folder)
    return folder


def test_every_example_is_listed_and_tested() -> None:
    programs = {path.name for path in EXAMPLES.glob("*.py")}
    listed = (EXAMPLES / "README.md").read_text()
    assert {name for name in programs if f"]({name})" in listed} == programs
    assert {name for name in programs if f'"{name}"' in Path(__file__).read_text()} == programs


def test_predict_saves_report_and_maps(service: RunningService, study_folder: Path, tmp_path: Path) -> None:
    files = [study_folder / name for name in ("ncct.nii.gz", "cta.nii.gz", "clinical.json")]
    done = run("predict.py", *files, "--url", service.url, "--out", tmp_path / "results")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()[:2]
    assert first.startswith(("Refractory: ", "Not refractory: ", "Undetermined: "))
    assert second.startswith("Probability of refractory LVO: ")
    assert "Research use only" in done.stdout
    saved = {path.name for path in (tmp_path / "results").iterdir()}
    assert {"attribution-cta.nii.gz", "attribution-ncct.nii.gz"} <= saved
    assert any(name.endswith(".html") for name in saved)


def test_predict_prints_why_a_study_is_refused(service: RunningService, study_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cta.nii.gz").write_bytes(b"not a volume")
    files = [study_folder / "ncct.nii.gz", tmp_path / "cta.nii.gz", study_folder / "clinical.json"]
    done = run("predict.py", *files, "--url", service.url)
    assert done.returncode == 1
    assert done.stderr.startswith("The service refused the study: ")
    assert "NIfTI" in done.stderr


def test_async_batch_gives_one_line_a_study_and_repeats_nothing(
    service: RunningService, study_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "patient-2"
    shutil.copytree(study_folder, other)
    record = json.loads((other / "clinical.json").read_text())
    (other / "clinical.json").write_text(json.dumps(record | {"age": 45}))
    outputs = [run("async_batch.py", study_folder, other, "--url", service.url) for _ in range(2)]
    assert all(done.returncode == 0 for done in outputs), outputs[0].stderr
    assert outputs[0].stdout == outputs[1].stdout
    rows = list(csv.DictReader(outputs[0].stdout.splitlines()))
    assert [row["study"] for row in rows] == ["patient-1", "patient-2"]
    assert all(0 <= float(row["probability"]) <= 1 and not row["error"] for row in rows)
    with service.client() as client:
        assert sum(1 for prediction in client.list() if prediction.attribution is None) >= 2
    keys = "SELECT count(*), count(DISTINCT prediction_id) FROM idempotency_keys WHERE key LIKE 'batch-%'"
    assert service.query(keys) == [(2, 2)]


def test_explain_prints_contributions_that_add_up(service: RunningService, study_folder: Path) -> None:
    with service.client() as client:
        record = json.loads((study_folder / "clinical.json").read_text())
        sent = client.predict(ncct=study_folder / "ncct.nii.gz", cta=study_folder / "cta.nii.gz", clinical=record)
    done = run("explain.py", sent.id, "--volume", study_folder / "cta.nii.gz", "--url", service.url)
    assert done.returncode == 0, done.stderr
    assert "log-odds" in done.stdout
    assert "peak at voxel" in done.stdout


def run_alone(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run an example that needs no service and no client, in an empty folder."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=4 * TIMEOUT_S,
    )


def test_a_version_is_validated_cell_by_cell(tmp_path: Path) -> None:
    done = run_alone("validate_at_your_site.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Research use only" in done.stdout
    assert "100 patients, 0 of them without a known outcome" in done.stdout
    out = tmp_path / "validate_at_your_site"
    assert all((out / name).stat().st_size > 10_000 for name in ("figures.png", "subgroups.png", "report/report.html"))


def test_hospitals_are_pooled_and_one_is_recalibrated(tmp_path: Path) -> None:
    done = run_alone("pool_and_recalibrate.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the calibration has changed" in done.stdout
    assert "Update: intercept" in done.stdout
    assert done.stdout.rpartition("events (")[2].partition(":")[2].startswith(" no change")
    names = {path.name for path in (tmp_path / "pool_and_recalibrate").iterdir()}
    assert names == {"sites.png", "calibration.png"}


@pytest.mark.soak
def test_a_cohort_becomes_a_version_of_the_store(tmp_path: Path) -> None:
    cohort, store = tmp_path / "cohort", tmp_path / "store"
    made = [sys.executable, "-m", "app.cli", "synthesize", "--patients", "80", "--preset", "interaction", str(cohort)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(made, check=True, capture_output=True, env=environment, timeout=3 * TIMEOUT_S)
    store.mkdir()
    done = run(
        "train_own_cohort.py",
        cohort,
        "--out",
        tmp_path / "mine" / "1.0.0",
        "--store",
        store,
        "--option=--quick",
        f"--option=--trunk={TRUNK}",
        "--option=--publish-anyway",
        environment=environment,
    )
    assert done.returncode == 0, done.stderr
    assert (store / "mine" / "1.0.0" / "manifest.json").is_file()
    assert "rlvo models promote mine@1.0.0" in done.stdout
