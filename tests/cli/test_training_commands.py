"""The training commands as a user runs them, on a small synthetic cohort and on cohorts with faults."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.special import expit
from typer.testing import Result

from app.inference.model_version import ModelVersion
from app.phantoms import biology
from app.phantoms.biology import Preset
from app.registry.manifest import Manifest
from app.sdk.published_scores import TARGET_NOTE
from app.training.synthesize import synthesize
from tests.cli.training_runs import PATIENTS, TRUNK, dates, rlvo

pytestmark = pytest.mark.xdist_group("cohort")  # one cohort, and one trained version, for all

SEED = 2
"""With this seed the network ranks these few patients better than chance; otherwise no version is written."""


@pytest.fixture(scope="module")
def trained(cohort: Path) -> tuple[Path, Result]:
    out = cohort.parent / "store" / "tried" / "0.1.0"
    return out, rlvo("train", cohort, "--out", out, "--trunk", TRUNK, "--quick", "--seed", SEED)


def test_cohort_table_holds_no_true_values(cohort: Path) -> None:
    table = pd.read_csv(cohort / "cohort.csv")
    assert len(table) == PATIENTS
    assert not {"probability", "truncal", "intensity", "refractory"} & set(table.columns)
    assert np.load(cohort / "images.npy", mmap_mode="r").shape == (PATIENTS, 5, 40, 48, 40)
    truth = pd.read_csv(cohort / "truth.csv")
    assert list(truth["patient"]) == list(table["patient"])


def test_training_prints_the_table_and_writes_a_loadable_version(trained: tuple[Path, Result]) -> None:
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
    assert "Trunk and last block are those of rlvo-synthetic 2.3.0" in card
    for table in ("| act above | net benefit (95 % interval) |", "| sex: female |", "| oracle (the true chances) |"):
        assert table in card


def test_same_seed_gives_same_digests(trained: tuple[Path, Result], cohort: Path) -> None:
    first, _ = trained
    copy = cohort.parent / "again"
    shutil.copytree(cohort, copy, ignore=shutil.ignore_patterns(".runs"))
    second = cohort.parent / "store" / "tried" / "0.1.1"
    assert rlvo("train", copy, "--out", second, "--trunk", TRUNK, "--quick", "--seed", SEED).exit_code == 0
    one, other = (Manifest.model_validate_json((out / "manifest.json").read_text()) for out in (first, second))
    assert [fold.sha256 for fold in one.folds] == [fold.sha256 for fold in other.folds]
    assert one.calibration == other.calibration
    assert one.metrics == other.metrics
    assert one.training.data_sha256 == other.training.data_sha256


def test_edited_table_is_trained_anew(trained: tuple[Path, Result], cohort: Path) -> None:
    """The same command on an edited table uses no checkpoint, and the manifest has another data digest."""
    copy, second = cohort.parent / "edited", cohort.parent / "store" / "tried" / "0.1.3"
    shutil.copytree(cohort, copy)
    table = pd.read_csv(copy / "cohort.csv", dtype=str, keep_default_na=False)
    table["age"] = table["age"].to_numpy()[::-1]
    table.to_csv(copy / "cohort.csv", index=False)
    assert rlvo("train", copy, "--out", second, "--trunk", TRUNK, "--quick", "--seed", SEED).exit_code == 0
    one, other = (Manifest.model_validate_json((out / "manifest.json").read_text()) for out in (trained[0], second))
    assert not {fold.sha256 for fold in one.folds} & {fold.sha256 for fold in other.folds}
    assert one.training.data_sha256 != other.training.data_sha256


def test_existing_version_is_not_overwritten(trained: tuple[Path, Result], cohort: Path) -> None:
    out, _ = trained
    before = (out / "manifest.json").read_bytes()
    result = rlvo("train", cohort, "--out", out, "--trunk", TRUNK, "--quick")
    assert result.exit_code == 2
    assert "versions never change" in result.stderr
    assert (out / "manifest.json").read_bytes() == before


def test_evaluation_prints_discrimination_calibration_and_subgroups(trained: tuple[Path, Result], cohort: Path) -> None:
    result = rlvo("evaluate", trained[0], cohort, "--i-know")
    assert result.exit_code == 0, result.output
    for text in ("| AUC |", "| AUC of the oracle |", "calibration slope", "conformal coverage", "| sex: female |"):
        assert text in result.stdout
    assert "| site east |" in result.stdout


def test_validation_of_a_version_has_its_threshold_and_its_training_patients(
    cohort: Path, logistic: tuple[Path, Result], tmp_path: Path
) -> None:
    out = tmp_path / "validation"
    result = rlvo("validate", logistic[0], cohort, "--i-know", "--out", out, "--rounds", 100)
    assert result.exit_code == 0, result.output
    threshold = json.loads((logistic[0] / "manifest.json").read_text())["threshold"]["value"]
    assert f"Decisions at the threshold {threshold:.3g}" in result.stdout
    assert "## Training patients" in result.stdout
    assert "| 12g | how the predictions were calculated | " in result.stdout
    assert (out / "report.html").is_file()


def test_two_versions_are_compared_on_the_same_patients(
    trained: tuple[Path, Result], logistic: tuple[Path, Result], cohort: Path, tmp_path: Path
) -> None:
    result = rlvo("evaluate", trained[0], logistic[0], cohort, "--i-know", "--report", tmp_path / "report")
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


def test_images_of_two_patients_stop_the_run_until_accepted(cohort: Path, tmp_path: Path) -> None:
    shutil.copytree(cohort, tmp_path / "c", ignore=shutil.ignore_patterns(".*"))
    table = pd.read_csv(tmp_path / "c" / "cohort.csv", dtype=str, keep_default_na=False)
    table.loc[5, "prepared"] = table.loc[3, "prepared"]
    table.to_csv(tmp_path / "c" / "cohort.csv", index=False)
    arguments = ("train", tmp_path / "c", "--quick", "--model", "logistic", "--out", tmp_path / "m" / "1.0.0")
    result = rlvo(*arguments)
    assert result.exit_code == 2, result.output
    assert "rows 5, 7: the same images under several patients" in result.stderr
    assert not (tmp_path / "m").exists()
    accepted = rlvo(*arguments, "--accept-flags")
    assert accepted.exit_code == 0, accepted.output
    card = (tmp_path / "m" / "1.0.0" / "card.md").read_text()
    for text in (accepted.stdout, card):
        assert "Accepted with `--accept-flags`" in text
        assert "90 studies came prepared, and their flags are unknown" in text


def test_patients_of_the_training_are_refused_without_consent(
    trained: tuple[Path, Result], cohort: Path, tmp_path: Path
) -> None:
    """Evaluation, and a trunk, on the training patients; a single patient under another id is found by its image."""
    shutil.copytree(cohort, tmp_path / "c", ignore=shutil.ignore_patterns(".*"))
    table = pd.read_csv(tmp_path / "c" / "cohort.csv", dtype=str, keep_default_na=False)
    (tmp_path / "c" / "truth.csv").unlink()
    table["patient"] = [f"new-{number}" for number in range(PATIENTS)]
    table.to_csv(tmp_path / "c" / "cohort.csv", index=False)
    for arguments in (
        ("evaluate", trained[0], cohort),
        ("evaluate", trained[0], tmp_path / "c"),
        ("train", cohort, "--trunk", trained[0], "--quick", "--model", "logistic"),
    ):
        result = rlvo(*arguments)
        assert result.exit_code == 2, result.output
        assert "tried 0.1.0 was trained on 72 of these 90 studies" in result.stderr
    manifest = (trained[0] / "manifest.json").read_text()
    assert "phantom-31-" not in manifest
    known = rlvo("evaluate", trained[0], cohort, "--i-know").stdout
    assert "trained on 72 of these" in known
    assert "was tested, and not trained, on 18 of these 90 studies" in known


def test_evaluation_selects_patients_by_site_and_date(trained: tuple[Path, Result], cohort: Path) -> None:
    elsewhere = rlvo("evaluate", trained[0], cohort, "--site", "elsewhere")
    assert elsewhere.exit_code == 2
    assert "0 patients are left" in elsewhere.stderr
    late = rlvo("evaluate", trained[0], cohort, "--i-know", "--since", "2024-03-01")
    assert f"on {(dates() >= '2024-03-01').sum()} patients" in late.stdout
    assert rlvo("evaluate", cohort, cohort).exit_code == 2


def test_card_states_what_each_component_decided(trained: tuple[Path, Result]) -> None:
    out, _ = trained
    events = Manifest.model_validate_json((out / "manifest.json").read_text()).training.positives
    card = (out / "card.md").read_text()
    assert "Outcome rLVO, from final_stenosis_percent, etici, rescue_treatment" in card
    assert "| component | rows with a value | positive | positive alone |" in card
    sites = [line for line in card.splitlines() if line.startswith(("| east |", "| west |"))]
    assert sum(int(line.split("|")[2]) for line in sites) == events
    assert "separator comma" in card


def test_target_option_is_named_for_a_table_of_grades_only(tmp_path: Path) -> None:
    (tmp_path / "head.nii.gz").write_bytes(b"x")
    table = pd.DataFrame({"patient": range(30), "ncct": "head.nii.gz", "mtici": "3"})
    table.to_csv(tmp_path / "cohort.csv", index=False)
    result = rlvo("train", tmp_path)
    assert result.exit_code == 2
    assert "give --target unsuccessful-reperfusion" in result.stderr
    assert rlvo("train", tmp_path, "--target", "mtici").exit_code == 2


def test_site_of_one_outcome_is_left_out_by_name(cohort: Path, tmp_path: Path) -> None:
    shutil.copytree(cohort, tmp_path / "sites", ignore=shutil.ignore_patterns(".*"))
    table = pd.read_csv(tmp_path / "sites" / "cohort.csv", dtype=str, keep_default_na=False)
    without = table["final_stenosis_percent"].astype(float) <= 50
    without &= ~table["etici"].isin(["0", "1", "2a"]) & ~table["rescue_treatment"].isin(["1", "True", "true"])
    table.loc[table.index[without][:5], "site"] = "north"
    table.to_csv(tmp_path / "sites" / "cohort.csv", index=False)
    arguments = ("train", tmp_path / "sites", "--model", "logistic", "--quick", "--validation", "sites")
    result = rlvo(*arguments, "--report", tmp_path / "report")
    assert result.exit_code == 0, result.output
    assert "| model | east | west | AUC, mean ± SD |" in result.stdout
    assert "| Score-ICAD, 5 of 9 items |" in result.stdout
    note = "Sites that are not a test part, because their patients have one outcome only: north."
    assert note in result.stdout
    assert note in (tmp_path / "report" / "report.md").read_text()


@pytest.fixture(scope="module")
def logistic(cohort: Path) -> tuple[Path, Result]:
    out = cohort.parent / "store" / "simple" / "0.1.0"
    return out, rlvo("train", cohort, "--out", out, "--model", "logistic", "--quick", "--seed", 4)


def test_logistic_baseline_can_be_published(logistic: tuple[Path, Result]) -> None:
    out, result = logistic
    assert result.exit_code == 0, result.output
    manifest = Manifest.model_validate_json((out / "manifest.json").read_text())
    assert manifest.kind == "logistic"
    assert ModelVersion.load(out, manifest, "cpu").check(out) < 1e-6
    assert "DAFT |" not in result.stdout.replace("DAFT minus it |", "")
    assert "| Score-ICAD, 5 of 9 items |" in result.stdout
    assert TARGET_NOTE in result.stdout


@pytest.mark.parametrize(
    ("validation", "heads"),
    [
        ("sites", "| model | east | west | AUC, mean ± SD |"),
        ("nested", "| model | repeat 1 | repeat 2 | AUC, mean ± SD |"),
        ("dates", "| model | AUC, folds (mean ± SD) |"),
    ],
)
def test_every_validation_prints_its_table_and_writes_a_report(
    cohort: Path, tmp_path: Path, validation: str, heads: str
) -> None:
    arguments = ("train", cohort, "--model", "logistic", "--quick", "--validation", validation, "--repeats", 2)
    result = rlvo(*arguments, "--report", tmp_path / "report")
    assert result.exit_code == 0, result.output
    assert heads in result.stdout
    assert "| clinical, gradient boosting |" in result.stdout
    assert (tmp_path / "report" / "report.md").exists()


def test_validation_with_many_splits_writes_no_version(cohort: Path, tmp_path: Path) -> None:
    result = rlvo("train", cohort, "--validation", "sites", "--out", tmp_path / "m" / "1.0.0")
    assert result.exit_code == 2
    assert "none of them is the version" in result.stderr
    assert not (tmp_path / "m").exists()


def check_chance_level(result: Result, models: tuple[str, ...]) -> None:
    """Check that the AUC interval of each model over all patients includes 0.5."""
    assert result.exit_code == 0, result.output
    for model in models:
        (line,) = [line for line in result.stdout.splitlines() if line.startswith(f"| {model} |")]
        low, high = map(float, re.findall(r"\((\d\.\d+)-(\d\.\d+)\)", line)[0])
        assert low < 0.5 < high, line


def test_random_labels_score_at_chance_level(cohort: Path, tmp_path: Path) -> None:
    """Clinical data of the cohort with the outcomes of the null preset (test_trainer.py does the same for DAFT)."""
    shutil.copytree(cohort, tmp_path / "null", ignore=shutil.ignore_patterns(".*"))
    table = pd.read_csv(tmp_path / "null" / "cohort.csv", dtype=str, keep_default_na=False)
    people = biology.draw(PATIENTS, 31, Preset.NULL)
    table["final_stenosis_percent"] = [80 if person.refractory else 10 for person in people]
    table["etici"], table["rescue_treatment"] = "3", "0"
    table.to_csv(tmp_path / "null" / "cohort.csv", index=False)
    arguments = ("train", tmp_path / "null", "--model", "logistic", "--quick", "--validation", "nested")
    check_chance_level(
        rlvo(*arguments, "--repeats", 1), ("clinical, logistic regression", "clinical + CTP, logistic regression")
    )


def with_outcomes(cohort: Path, folder: Path, outcomes: np.ndarray) -> Path:
    """Write the cohort with other outcomes (PATIENTS,)."""
    shutil.copytree(cohort, folder, ignore=shutil.ignore_patterns(".*"))
    table = pd.read_csv(folder / "cohort.csv", dtype=str, keep_default_na=False)
    table["final_stenosis_percent"] = np.where(outcomes, "80", "10")
    table["etici"], table["rescue_treatment"] = "3", "0"
    table.to_csv(folder / "cohort.csv", index=False)
    return folder


def test_model_below_chance_is_not_published_unless_accepted(cohort: Path, tmp_path: Path) -> None:
    ignorant = with_outcomes(cohort, tmp_path / "coins", np.random.default_rng(6).random(PATIENTS) < 0.4)
    out = tmp_path / "store" / "coins" / "0.1.0"
    arguments = ("train", ignorant, "--out", out, "--model", "logistic", "--quick", "--report", tmp_path / "report")
    refused = rlvo(*arguments)
    assert refused.exit_code == 2, refused.output
    assert "worse than chance" in refused.stderr
    assert "--publish-anyway" in refused.stderr
    assert not out.exists()
    assert "| clinical, gradient boosting |" in (tmp_path / "report" / "report.md").read_text()
    accepted = rlvo(*arguments, "--publish-anyway")
    assert accepted.exit_code == 0, accepted.output
    manifest = Manifest.model_validate_json((out / "manifest.json").read_text())
    assert manifest.calibration.slope == 0
    assert expit(manifest.calibration.intercept) == pytest.approx(24 / 72, abs=0.02)
    assert (
        "Published with `--publish-anyway`: the model ranks patients worse than chance" in (out / "card.md").read_text()
    )


def test_too_few_events_are_refused_before_training(cohort: Path, tmp_path: Path) -> None:
    rare = with_outcomes(cohort, tmp_path / "rare", np.arange(PATIENTS) % 5 == 0)
    arguments = ("train", rare, "--model", "logistic", "--quick")
    result = rlvo(*arguments, "--out", tmp_path / "m" / "1.0.0")
    assert result.exit_code == 2, result.output
    assert "a version needs at least 20 of each" in result.stderr
    assert not list(rare.glob(".runs/*"))
    assert rlvo(*arguments).exit_code == 0  # the table alone has no such floor


@pytest.mark.soak
def test_null_preset_scores_at_chance_level(tmp_path: Path) -> None:
    synthesize(tmp_path / "null", 599, 7, Preset.NULL)
    result = rlvo("train", tmp_path / "null", "--trunk", TRUNK, "--validation", "nested", "--repeats", 1)
    check_chance_level(result, ("clinical, logistic regression", "all imaging", "imaging + clinical, DAFT"))


def test_killed_run_resumes_to_the_same_version(trained: tuple[Path, Result], cohort: Path) -> None:
    """SIGKILL during the second fold; the same command then gives the same weights."""
    copy = cohort.parent / "killed"
    shutil.copytree(cohort, copy, ignore=shutil.ignore_patterns(".*"))
    out = cohort.parent / "store" / "tried" / "0.1.2"
    arguments = ["train", str(copy), "--out", str(out), "--trunk", str(TRUNK), "--quick", "--seed", str(SEED)]
    with subprocess.Popen(
        [sys.executable, "-m", "app.cli", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        for _ in range(2400):
            if list(copy.glob(".runs/*/daft-*-1.pt")):
                break
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    assert rlvo(*arguments).exit_code == 0
    one, other = (Manifest.model_validate_json((folder / "manifest.json").read_text()) for folder in (trained[0], out))
    assert [fold.sha256 for fold in one.folds] == [fold.sha256 for fold in other.folds]
