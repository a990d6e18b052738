"""The three commands as a user runs them, on a small synthetic cohort and on cohorts with faults."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from app.cli.training import commands
from app.inference.model_version import ModelVersion
from app.phantoms import biology
from app.phantoms.biology import Preset
from app.registry.manifest import Manifest
from app.training.cohort import CohortRow
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
    table = pd.read_csv(out / "cohort.csv", dtype=str, keep_default_na=False)
    table["site"], table["date"] = np.where(np.arange(PATIENTS) % 3, "east", "west"), dates()
    table.to_csv(out / "cohort.csv", index=False)
    return out


def dates() -> np.ndarray:
    return np.array([f"2024-{1 + n // 8:02d}-01" for n in range(PATIENTS)])


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
    for table in ("| act above | net benefit |", "| sex: female |", "| oracle (the true chances) |"):
        assert table in card


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
    assert "| site east |" in result.stdout


def test_two_versions_are_compared_on_the_same_patients(
    trained: tuple[Path, Result], logistic: tuple[Path, Result], cohort: Path, tmp_path: Path
) -> None:
    result = rlvo("evaluate", trained[0], logistic[0], cohort, "--report", tmp_path / "report")
    assert result.exit_code == 0, result.output
    assert "tried 0.1.0 minus" in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("| simple 0.1.0 |")]
    assert "p = " in line
    text = (tmp_path / "report" / "report.md").read_text()
    for figure in ("roc", "precision-recall", "calibration", "decision-curve"):
        assert f"]({figure}.svg)" in text
        ElementTree.parse(tmp_path / "report" / f"{figure}.svg")
        with Image.open(tmp_path / "report" / f"{figure}.png") as picture:
            assert min(picture.size) > 500


def test_only_some_patients_can_be_asked_for(trained: tuple[Path, Result], cohort: Path) -> None:
    nobody = rlvo("evaluate", trained[0], cohort, "--site", "elsewhere")
    assert nobody.exit_code == 2
    assert "0 patients are left" in nobody.stderr
    late = rlvo("evaluate", trained[0], cohort, "--since", "2024-03-01")
    assert f"on {(dates() >= '2024-03-01').sum()} patients" in late.stdout
    assert rlvo("evaluate", cohort, cohort).exit_code == 2


@pytest.fixture(scope="module")
def logistic(cohort: Path) -> tuple[Path, Result]:
    out = cohort.parent / "store" / "simple" / "0.1.0"
    return out, rlvo("train", cohort, "--out", out, "--model", "logistic", "--quick", "--seed", 4)


def test_a_simple_baseline_becomes_a_version_of_its_own(logistic: tuple[Path, Result]) -> None:
    out, result = logistic
    assert result.exit_code == 0, result.output
    manifest = Manifest.model_validate_json((out / "manifest.json").read_text())
    assert manifest.kind == "logistic"
    assert ModelVersion.load(out, manifest, "cpu").check(out) < 1e-6
    assert "DAFT |" not in result.stdout.replace("DAFT minus it |", "")


@pytest.mark.parametrize(
    ("validation", "heads"),
    [
        ("sites", "| model | east | west | AUC, mean ± SD |"),
        ("nested", "| model | repeat 1 | repeat 2 | AUC, mean ± SD |"),
        ("dates", "| model | AUC, folds (mean ± SD) |"),
    ],
)
def test_other_validations_are_options(cohort: Path, tmp_path: Path, validation: str, heads: str) -> None:
    arguments = ("train", cohort, "--model", "logistic", "--quick", "--validation", validation, "--repeats", 2)
    result = rlvo(*arguments, "--report", tmp_path / "report")
    assert result.exit_code == 0, result.output
    assert heads in result.stdout
    assert "| clinical, gradient boosting |" in result.stdout
    assert (tmp_path / "report" / "report.md").exists()


def test_many_ensembles_are_no_version(cohort: Path, tmp_path: Path) -> None:
    result = rlvo("train", cohort, "--validation", "sites", "--out", tmp_path / "m" / "1.0.0")
    assert result.exit_code == 2
    assert "none of them is the version" in result.stderr
    assert not (tmp_path / "m").exists()


def half(result: Result, models: tuple[str, ...]) -> None:
    """Every one of the models' intervals over all patients holds 0.5."""
    assert result.exit_code == 0, result.output
    for model in models:
        (line,) = [line for line in result.stdout.splitlines() if line.startswith(f"| {model} |")]
        low, high = map(float, re.findall(r"\((\d\.\d+)-(\d\.\d+)\)", line)[0])
        assert low < 0.5 < high, line


def test_labels_that_mean_nothing_score_a_half(cohort: Path, tmp_path: Path) -> None:
    """The facts of the cohort with the null preset's outcomes (test_loop.py does the same to DAFT)."""
    shutil.copytree(cohort, tmp_path / "null", ignore=shutil.ignore_patterns(".*"))
    table = pd.read_csv(tmp_path / "null" / "cohort.csv", dtype=str, keep_default_na=False)
    people = biology.draw(PATIENTS, 31, Preset.NULL)
    table["final_stenosis_percent"] = [80 if person.refractory else 10 for person in people]
    table["etici"], table["rescue_treatment"] = "3", "0"
    table.to_csv(tmp_path / "null" / "cohort.csv", index=False)
    arguments = ("train", tmp_path / "null", "--model", "logistic", "--quick", "--validation", "nested")
    half(rlvo(*arguments, "--repeats", 1), ("clinical, logistic regression", "clinical + CTP, logistic regression"))


@pytest.mark.soak
def test_nobody_learns_the_null_preset(tmp_path: Path) -> None:
    synthesize(tmp_path / "null", 599, 7, Preset.NULL)
    result = rlvo("train", tmp_path / "null", "--trunk", TRUNK, "--validation", "nested", "--repeats", 1)
    half(result, ("clinical, logistic regression", "all imaging", "imaging + clinical, DAFT"))


def test_a_killed_run_goes_on_to_the_same_version(trained: tuple[Path, Result], cohort: Path) -> None:
    """Killed (SIGKILL) once the second fold has begun; started again, it ends with the very weights."""
    copy = cohort.parent / "killed"
    shutil.copytree(cohort, copy, ignore=shutil.ignore_patterns(".*"))
    out = cohort.parent / "store" / "tried" / "0.1.2"
    words = ["train", str(copy), "--out", str(out), "--trunk", str(TRUNK), "--quick", "--seed", "4"]
    with subprocess.Popen(
        [sys.executable, "-m", "app.cli.__main__", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        for _ in range(2400):
            if list(copy.glob(".runs/*/daft-*-1.pt")):
                break
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    assert rlvo(*words).exit_code == 0
    one, other = (Manifest.model_validate_json((folder / "manifest.json").read_text()) for folder in (trained[0], out))
    assert [fold.sha256 for fold in one.folds] == [fold.sha256 for fold in other.folds]


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


def corrupt(cohort: Path, folder: Path) -> Path:
    """The cohort with a volume for everybody that is none."""
    table = pd.read_csv(cohort / "cohort.csv", dtype=str, keep_default_na=False).drop(columns="prepared")
    table["ncct"] = "head.nii.gz"
    (folder / "head.nii.gz").write_bytes(b"\x1f\x8b not a volume")
    table.to_csv(folder / "cohort.csv", index=False)
    return folder


def test_a_corrupt_volume_is_told_with_its_row(cohort: Path, tmp_path: Path) -> None:
    result = rlvo("train", corrupt(cohort, tmp_path), "--out", tmp_path / "m" / "1.0.0", "--quick", "--jobs", 1)
    assert result.exit_code == 2
    assert "row 2: " in result.stderr
    assert f"row {PATIENTS + 1}: " in result.stderr
    assert not (tmp_path / "m").exists()


def test_the_queue_is_handed_what_is_to_prepare(cohort: Path, tmp_path: Path) -> None:
    handed: list[str] = []

    def queue(studies: Sequence[CohortRow], cache: Path, advance: Callable[[], None]) -> None:
        handed.extend(study.patient for study in studies)

    words = ["train", str(corrupt(cohort, tmp_path)), "--quick", "--workers", "queue"]
    assert CliRunner().invoke(commands, words, obj=queue).exit_code == 2  # the volumes are what they were
    assert len(handed) == PATIENTS
    without = CliRunner().invoke(commands, words)
    assert without.exit_code == 2
    assert "knows the queue" in without.stderr


@pytest.mark.parametrize(
    ("folds", "said"),
    [
        ("test 1 2 3 1", "row 6, column fold: the patient of row 3 is in another fold there"),
        ("test 1 2 3 4", "has patients of one outcome only"),
    ],
)
def test_folds_that_cannot_be_are_told(cohort: Path, tmp_path: Path, folds: str, said: str) -> None:
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
    assert said in result.stderr
    assert not (tmp_path / "m").exists()


def test_three_patients_are_too_few(cohort: Path, tmp_path: Path) -> None:
    shutil.copytree(cohort, tmp_path / "c", ignore=shutil.ignore_patterns(".*"))
    pd.read_csv(cohort / "cohort.csv", dtype=str).head(3).to_csv(tmp_path / "c" / "cohort.csv", index=False)
    result = rlvo("train", tmp_path / "c", "--out", tmp_path / "m" / "1.0.0", "--quick")
    assert result.exit_code == 2
    assert "3 rows are too few" in result.stderr
    assert not (tmp_path / "m").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_told(cohort: Path) -> None:
    result = rlvo("train", cohort, "--device", "cuda", "--quick")
    assert result.exit_code == 2
    assert "no CUDA device" in result.stderr


def test_a_cohort_is_never_written_over_another(cohort: Path) -> None:
    result = rlvo("synthesize", cohort, "--patients", 3)
    assert result.exit_code == 2
    assert "exists" in result.stderr
