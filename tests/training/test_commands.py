"""The three commands as a user runs them, on a small synthetic cohort and on cohorts with faults."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from app.manifest import Manifest
from app.model import ModelVersion
from app.phantoms.biology import Preset
from app.training.commands import commands
from app.training.synthesize import synthesize

TRUNK = Path(__file__).resolve().parents[2] / "model_store" / "rlvo-synthetic" / "1.0.0"
PATIENTS = 90


def rlvo(*words: object) -> Result:
    return CliRunner().invoke(commands, [str(word) for word in words])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cohorts") / "small"
    # More events than in life, so that every fold of so few patients has some.
    synthesize(out, PATIENTS, 31, Preset.XOR)
    return out


@pytest.fixture(scope="module")
def trained(cohort: Path) -> tuple[Path, Result]:
    out = cohort.parent / "store" / "tried" / "0.1.0"
    return out, rlvo("train", cohort, "--out", out, "--trunk", TRUNK, "--quick", "--seed", 4)


def test_the_table_has_no_truth_in_it(cohort: Path) -> None:
    table = pd.read_csv(cohort / "cohort.csv")
    assert len(table) == PATIENTS
    assert not {"probability", "truncal", "intensity", "refractory"} & set(table.columns)
    assert np.load(cohort / "images.npy", mmap_mode="r").shape == (PATIENTS, 5, 40, 48, 40)
    truth = pd.read_csv(cohort / "truth.csv")
    assert list(truth["patient"]) == list(table["patient"])


def test_training_prints_the_table_and_writes_a_version_that_serves(trained: tuple[Path, Result]) -> None:
    out, result = trained
    assert result.exit_code == 0, result.output
    for name in ("clinical, logistic regression", "clinical, gradient boosting", "imaging + clinical, DAFT"):
        assert f"| {name} |" in result.stdout
    manifest = Manifest.model_validate_json((out / "manifest.json").read_text())
    assert (manifest.name, manifest.version, len(manifest.folds)) == ("tried", "0.1.0", 4)
    assert manifest.training.synthetic
    assert manifest.training.patients == PATIENTS
    assert not manifest.required_inputs
    assert ModelVersion.load(out, manifest, "cpu").check(out) < 1e-4
    card = (out / "card.md").read_text()
    assert "SYNTHETIC" in card
    assert "The trunk is that of rlvo-synthetic 1.0.0" in card


def test_the_same_seed_gives_the_same_digests(trained: tuple[Path, Result], cohort: Path) -> None:
    first, _ = trained
    copy = cohort.parent / "again"
    shutil.copytree(cohort, copy, ignore=shutil.ignore_patterns(".runs"))
    second = cohort.parent / "store" / "tried" / "0.1.1"
    assert rlvo("train", copy, "--out", second, "--trunk", TRUNK, "--quick", "--seed", 4).exit_code == 0
    one, other = (Manifest.model_validate_json((out / "manifest.json").read_text()) for out in (first, second))
    assert [fold.sha256 for fold in one.folds] == [fold.sha256 for fold in other.folds]
    assert one.calibration == other.calibration
    assert one.metrics == other.metrics


def test_a_version_is_never_written_over(trained: tuple[Path, Result], cohort: Path) -> None:
    out, _ = trained
    before = (out / "manifest.json").read_bytes()
    result = rlvo("train", cohort, "--out", out, "--trunk", TRUNK, "--quick")
    assert result.exit_code == 2
    assert "versions never change" in result.stderr
    assert (out / "manifest.json").read_bytes() == before


def test_evaluation_reports_discrimination_calibration_and_subgroups(
    trained: tuple[Path, Result], cohort: Path
) -> None:
    result = rlvo("evaluate", trained[0], cohort)
    assert result.exit_code == 0, result.output
    for words in ("| AUC |", "| AUC of the oracle |", "calibration slope", "conformal coverage", "| sex: female |"):
        assert words in result.stdout


def fault(cohort: Path, folder: Path, change: str, value: object) -> Result:
    """The result of training on the cohort with one cell of its fourth row, or one column, changed."""
    shutil.copytree(cohort, folder, ignore=shutil.ignore_patterns(".runs"))
    table = pd.read_csv(folder / "cohort.csv", dtype=str, keep_default_na=False)
    if change in table.columns:
        table.loc[3, change] = value
    else:
        table[change] = value
    table.to_csv(folder / "cohort.csv", index=False)
    return rlvo("train", folder, "--out", folder / "m" / "1.0.0", "--trunk", TRUNK, "--quick")


@pytest.mark.parametrize(
    ("change", "value", "said"),
    [
        ("prepared", "4000", "row 5, column prepared"),
        ("age", "seventy", "row 5, column age"),
        ("mrs_90", "1", "column mrs_90: it is known only after"),
        ("cta", "gone.nii.gz", "row 5, column cta: there is no such file"),
    ],
)
def test_a_fault_ends_with_status_2_and_its_row(
    cohort: Path, tmp_path: Path, change: str, value: str, said: str
) -> None:
    result = fault(cohort, tmp_path / "faulty", change, value)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "faulty" / "m").exists()


def test_a_corrupt_volume_is_told_with_its_row(cohort: Path, tmp_path: Path) -> None:
    table = pd.read_csv(cohort / "cohort.csv", dtype=str, keep_default_na=False).drop(columns="prepared")
    table["ncct"] = "head.nii.gz"
    (tmp_path / "head.nii.gz").write_bytes(b"\x1f\x8b not a volume")
    table.to_csv(tmp_path / "cohort.csv", index=False)
    result = rlvo("train", tmp_path, "--quick")
    assert result.exit_code == 2
    assert "row 2: " in result.stderr
    assert f"row {PATIENTS + 1}: " in result.stderr


def test_a_cohort_is_never_written_over_another(cohort: Path) -> None:
    result = rlvo("synthesize", cohort, "--patients", 3)
    assert result.exit_code == 2
    assert "exists" in result.stderr
