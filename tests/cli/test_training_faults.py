"""Faults of a cohort, as the training commands report them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import Result

from app.cli import queue_preprocessing
from app.core.filesystem import locked
from app.training.cohort import CohortRow
from tests.cli.training_runs import PATIENTS, TRUNK, rlvo
from tests.training import messy_tables

pytestmark = pytest.mark.xdist_group("cohort")  # one cohort, and one trained version, for all

LOGISTIC = TRUNK.parents[1] / "rlvo-synthetic-lr" / "1.0.0"


def train_with_fault(cohort: Path, folder: Path, change: str, value: object) -> Result:
    """Train on the cohort with one cell of its fourth row changed, or with one more column."""
    shutil.copytree(cohort, folder, ignore=shutil.ignore_patterns(".runs"))
    table = pd.read_csv(folder / "cohort.csv", dtype=str, keep_default_na=False)
    if change in table.columns:
        table.loc[3, change] = value
    else:
        table[change] = value
    table.to_csv(folder / "cohort.csv", index=False)
    return rlvo("train", folder, "--out", folder / "m" / "1.0.0", "--trunk", TRUNK, "--quick")


@pytest.mark.parametrize(
    ("change", "value", "message"),
    [
        ("prepared", "4000", "row 5, column prepared"),
        ("age", "seventy", "row 5, column age"),
        ("mrs_90", "1", "column mrs_90: it is known only after"),
        ("cta", "gone.nii.gz", "90 rows (2, 3, 4, ...), column cta: there is no such file"),
    ],
)
def test_cohort_fault_exits_with_2_and_names_its_row(
    cohort: Path, tmp_path: Path, change: str, value: str, message: str
) -> None:
    result = train_with_fault(cohort, tmp_path / "faulty", change, value)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "faulty" / "m").exists()


@pytest.mark.parametrize(
    ("events", "options", "message"),
    [
        (0, (), "the test part has patients of one outcome only"),
        (3, ("--validation", "nested"), "has patients of one outcome only"),
        (12, ("--out", "m/1.0.0"), "a version needs at least 20 of each"),
    ],
)
def test_outcomes_that_cannot_be_split_are_refused_before_images_are_prepared(
    tmp_path: Path, events: int, options: tuple[str, ...], message: str
) -> None:
    """The images are no volumes, so a run that prepared them would name these."""
    rows = [row | {"final_stenosis_percent": 70 if n < events else 10} for n, row in enumerate(messy_tables.rows())]
    messy_tables.images(tmp_path)
    path = messy_tables.plain(rows)(tmp_path)
    result = rlvo("train", path, "--trunk", TRUNK, "--quick", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / ".prepared").exists()
    if events == 12:  # without a version, these outcomes are enough
        assert "row 2: " in rlvo("train", path, "--trunk", TRUNK, "--quick", "--accept", "all").stderr


def test_second_training_of_one_run_is_refused_while_the_first_runs(cohort: Path, tmp_path: Path) -> None:
    """They would write the same checkpoints. Another seed is another run."""
    shutil.copytree(cohort, tmp_path / "c", ignore=shutil.ignore_patterns(".runs", "reports"))
    command = ("train", tmp_path / "c", "--trunk", TRUNK, "--quick")
    assert rlvo(*command, "--model", "logistic").exit_code == 0
    (folder,) = (tmp_path / "c" / ".runs").iterdir()
    with locked(folder):
        second = rlvo(*command)
        assert second.exit_code == 2
        assert "another process trains on this cohort with these options" in second.stderr
        assert rlvo(*command, "--model", "logistic", "--seed", 3).exit_code == 0
    assert rlvo(*command, "--model", "logistic").exit_code == 0


def corrupt(cohort: Path, folder: Path) -> Path:
    """Write the cohort with a file that is no volume as the NCCT of each patient."""
    table = pd.read_csv(cohort / "cohort.csv", dtype=str, keep_default_na=False).drop(columns="prepared")
    table["ncct"] = [f"head{n}.nii.gz" for n in range(len(table))]
    for n, name in enumerate(table["ncct"]):
        (folder / name).write_bytes(b"\x1f\x8b not a volume %d" % n)
    table.to_csv(folder / "cohort.csv", index=False)
    return folder


def test_corrupt_volume_is_reported_with_its_row(cohort: Path, tmp_path: Path) -> None:
    result = rlvo("train", corrupt(cohort, tmp_path), "--out", tmp_path / "m" / "1.0.0", "--quick", "--jobs", 1)
    assert result.exit_code == 2
    assert "row 2: " in result.stderr
    assert f"row {PATIENTS + 1}: " in result.stderr
    assert not (tmp_path / "m").exists()


def test_queue_receives_the_studies_to_prepare(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[str] = []

    def queue(studies: Sequence[CohortRow], cache: Path, advance: Callable[[], None]) -> None:
        received.extend(study.patient for study in studies)

    monkeypatch.setattr(queue_preprocessing, "by_queue", queue)
    result = rlvo("train", corrupt(cohort, tmp_path), "--quick", "--workers", "queue")
    assert result.exit_code == 2  # the queue prepared nothing, and the volumes cannot be read
    assert len(received) == PATIENTS


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ("test 1 2 3 1", "row 6, column fold: the same patient has another fold in row 3"),
        ("test 1 2 3 4", "has patients of one outcome only"),
    ],
)
def test_invalid_folds_are_reported(cohort: Path, tmp_path: Path, folds: str, message: str) -> None:
    table = pd.read_csv(cohort / "cohort.csv", dtype=str, keep_default_na=False)
    table["fold"] = [folds.split()[n % 5] for n in range(PATIENTS)]
    if folds.endswith("1"):
        table.loc[4, ["patient", "fold"]] = [table.loc[1, "patient"], "3"]
    else:
        own = table["fold"] == "4"
        table.loc[own, ["final_stenosis_percent", "etici", "rescue_treatment"]] = ["10", "3", "0"]
    shutil.copytree(cohort, tmp_path / "c", ignore=shutil.ignore_patterns(".*"))
    table.to_csv(tmp_path / "c" / "cohort.csv", index=False)
    result = rlvo("train", tmp_path / "c", "--out", tmp_path / "m" / "1.0.0", "--quick", "--model", "logistic")
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_suspicious_values_stop_a_run_and_what_is_accepted_stands_in_the_report(
    cohort: Path, tmp_path: Path, command: str
) -> None:
    shutil.copytree(cohort, tmp_path / "c", ignore=shutil.ignore_patterns(".*"))
    table = pd.read_csv(tmp_path / "c" / "cohort.csv", dtype=str, keep_default_na=False)
    table["final_stenosis_percent"] = (table["final_stenosis_percent"].astype(float) / 100).astype(str)
    table.loc[table["rescue_treatment"] == "0", "etici"] = np.where(
        np.arange((table["rescue_treatment"] == "0").sum()) % 2, "3", "2a"
    )
    table["platelets"] = ["999" if n < 5 else str(180 + n) for n in range(PATIENTS)]
    table.to_csv(tmp_path / "c" / "cohort.csv", index=False)
    report, given = tmp_path / "report", [tmp_path / "c", "--report", tmp_path / "report"]
    words = ["train", *given, "--model", "logistic", "--quick", "--trunk", TRUNK] if command == "train" else []
    words = words or ["evaluate", LOGISTIC, *given]
    result = rlvo(*words)
    assert result.exit_code == 2
    assert "missing-code: 5 rows (2, 3, 4, ...), column platelets" in result.stderr
    assert "fraction: " in result.stderr
    assert len(result.stderr.splitlines()) == 3
    assert not report.exists()
    accepted = rlvo(*words, "--accept", "missing-code,fraction")
    assert accepted.exit_code == 0, accepted.output
    text = (report / "report.md").read_text()
    assert "Accepted with `--accept`:" in text
    assert "- missing-code: 5 rows (2, 3, 4, ...), column platelets" in text
    assert "does not predict from the columns" in text


def test_three_patients_are_too_few(cohort: Path, tmp_path: Path) -> None:
    shutil.copytree(cohort, tmp_path / "c", ignore=shutil.ignore_patterns(".*"))
    pd.read_csv(cohort / "cohort.csv", dtype=str).head(3).to_csv(tmp_path / "c" / "cohort.csv", index=False)
    result = rlvo("train", tmp_path / "c", "--out", tmp_path / "m" / "1.0.0", "--quick")
    assert result.exit_code == 2
    assert "3 rows are too few" in result.stderr
    assert not (tmp_path / "m").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_device_is_reported(cohort: Path) -> None:
    result = rlvo("train", cohort, "--device", "cuda", "--quick")
    assert result.exit_code == 2
    assert "no CUDA device" in result.stderr


def test_existing_cohort_is_not_overwritten(cohort: Path) -> None:
    result = rlvo("synthesize", cohort, "--patients", 3)
    assert result.exit_code == 2
    assert "exists" in result.stderr
