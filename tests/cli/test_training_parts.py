"""What a run says of its own folds, of a column that it does not use, and of patients with several studies."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import Result

from app.registry.manifest import Manifest
from tests.cli.training_runs import PATIENTS, rlvo

pytestmark = pytest.mark.xdist_group("cohort")

FOLDS = np.array(["test", "blue", "red"])[np.arange(PATIENTS) % 3]


def train(cohort: Path, folder: Path, *options: object, **columns: Sequence[object]) -> Result:
    """Train a logistic regression on the cohort with these columns; the report is in ``folder/report``."""
    shutil.copytree(cohort, folder / "own", ignore=shutil.ignore_patterns(".*"))
    (folder / "own" / "truth.csv").unlink()  # it names the patients of the cohort
    table = pd.read_csv(folder / "own" / "cohort.csv", dtype=str, keep_default_na=False).assign(**columns)
    table.to_csv(folder / "own" / "cohort.csv", index=False)
    arguments = ("train", folder / "own", "--model", "logistic", "--quick", "--report", folder / "report")
    return rlvo(*arguments, *options)


def test_own_folds_are_the_protocol_of_the_version(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "store" / "own" / "1.0.0"
    result = train(cohort, tmp_path, "--out", out, "--publish-anyway", fold=FOLDS)
    assert result.exit_code == 0, result.output
    protocol = Manifest.model_validate_json((out / "manifest.json").read_text()).training.protocol
    assert protocol == "the test part and the 2 folds of the table's column fold; ensemble of the folds"
    card = (out / "card.md").read_text()
    assert protocol in card
    assert "80/20" not in card
    assert set(pd.read_csv(tmp_path / "report" / "out-of-fold.csv")["fold"]) == {"blue", "red"}


def test_column_of_folds_that_is_not_used_is_named(cohort: Path, tmp_path: Path) -> None:
    result = train(cohort, tmp_path, "--validation", "dates", fold=FOLDS)
    assert result.exit_code == 0, result.output
    assert "The column fold is not used: the validation `dates` draws its own parts." in result.stdout
    assert set(pd.read_csv(tmp_path / "report" / "out-of-fold.csv")["fold"]) == {1, 2, 3, 4}


def test_protocol_has_the_share_of_the_latest_patients_if_it_is_no_fifth(cohort: Path, tmp_path: Path) -> None:
    out, years = tmp_path / "store" / "own" / "1.0.0", np.where(np.arange(PATIENTS) < PATIENTS // 2, "2023", "2024")
    options = ("--validation", "dates", "--out", out, "--publish-anyway")
    result = train(cohort, tmp_path, *options, date=[f"{year}-01-01" for year in years])
    assert result.exit_code == 0, result.output
    protocol = Manifest.model_validate_json((out / "manifest.json").read_text()).training.protocol
    assert protocol.startswith("the latest 50 % (of few dates) for the test; four folds of the others")


def test_patients_with_several_studies_are_counted(cohort: Path, tmp_path: Path) -> None:
    twice = np.arange(PATIENTS) // 2
    result = train(cohort, tmp_path, "--accept", "all", patient=[f"p{n:03d}" for n in twice])
    assert result.exit_code == 0, result.output
    assert f"The {PATIENTS} studies are of {PATIENTS // 2} patients." in result.stdout
    assert f"The {PATIENTS} studies are of {PATIENTS // 2} patients." in (tmp_path / "report" / "report.md").read_text()


def test_so_few_patients_that_trees_cannot_be_divided_are_trained(cohort: Path, tmp_path: Path) -> None:
    """All trees then give one probability, and the calibration cannot follow the rounding of its log-odds."""
    result = train(cohort, tmp_path, fold=np.array(["test", "blue", "red"])[np.arange(PATIENTS) // 2 % 3])
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("| clinical, gradient boosting |")]
    assert "| 0.500" in line
