"""What a run and an evaluation write for a paper: predictions of each patient, table 1, flow, and numbers as JSON."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import Result

from app.evaluation.metrics import auc
from app.registry.manifest import Manifest
from tests.cli.training_runs import PATIENTS, TRUNK, rlvo

pytestmark = pytest.mark.xdist_group("cohort")  # one cohort, and one trained version, for all

FIGURES = ("roc", "precision-recall", "calibration", "decision-curve")


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def folder_of(result: Result) -> Path:
    """The folder that the output names."""
    (line,) = [one for one in result.stdout.splitlines() if one.startswith("Report, figures and predictions")]
    return Path(line.partition(": ")[2])


@pytest.fixture(scope="module")
def logistic(cohort: Path) -> tuple[Path, Result]:
    out = cohort.parent / "store" / "paper" / "0.1.0"
    return out, rlvo("train", cohort, "--out", out, "--model", "logistic", "--quick", "--variables", "age,sex,core_ml")


def test_report_lies_in_a_named_folder_with_all_files(logistic: tuple[Path, Result], cohort: Path) -> None:
    out, result = logistic
    assert result.exit_code == 0, result.output
    folder = folder_of(result)
    document = json.loads((folder / "report.json").read_text())
    assert folder == cohort / "reports" / f"small-logistic-{document['run'][:8]}"
    expected = {"report.md", "report.json", "table1.csv", "missing.csv", "flow.csv", "test.csv", "out-of-fold.csv"}
    expected |= {f"{figure}.{end}" for figure in FIGURES for end in ("svg", "png", "json")}
    assert {path.name for path in folder.iterdir()} == expected
    digest = hashlib.sha256((out / "manifest.json").read_bytes()).hexdigest()
    assert (document["version"], document["manifest_sha256"]) == ("paper@0.1.0", digest)
    assert document["variables"] == ["age", "sex", "perfusion.core_ml"]
    (line,) = [row for row in document["results_table"] if row["name"] == "clinical + CTP, logistic regression"]
    assert line["test"]["value"] == document["models"]["clinical + CTP, logistic regression"]["auc"]["value"]


def test_metrics_of_the_report_follow_from_the_predictions_of_each_patient(logistic: tuple[Path, Result]) -> None:
    out, result = logistic
    folder, manifest = folder_of(result), Manifest.model_validate_json((out / "manifest.json").read_text())
    own = [line for line in lines(folder / "test.csv") if line["version"] == "paper@0.1.0"]
    labels = np.array([int(line["outcome"]) for line in own])
    probabilities = np.array([float(line["probability"]) for line in own])
    assert auc(labels, probabilities) == pytest.approx(manifest.metrics["auc"].value, abs=1e-3)
    assert {line["decision"] for line in own if float(line["probability"]) > manifest.threshold.value} <= {"1"}
    development = [line for line in lines(folder / "out-of-fold.csv") if line["version"] == "paper@0.1.0"]
    assert len(own) + len(development) == PATIENTS
    assert not {line["patient"] for line in own} & {line["patient"] for line in development}
    assert {line["fold"] for line in development} == {"1", "2", "3", "4"}
    assert {line["flags"] for line in own} == {"unknown"}  # this cohort came prepared
    others = {line["version"] for line in lines(folder / "test.csv")} - {"paper@0.1.0"}
    assert [name.startswith("run ") for name in others] == [True]


def test_chosen_variables_are_those_of_the_version_and_its_card(logistic: tuple[Path, Result], cohort: Path) -> None:
    out, _ = logistic
    manifest = Manifest.model_validate_json((out / "manifest.json").read_text())
    assert [variable.name for variable in manifest.clinical.variables] == ["age", "sex", "perfusion.core_ml"]
    card = (out / "card.md").read_text()
    assert "does not predict from the columns" in card
    assert "nihss" in card.partition("does not predict from the columns")[2].partition("\n")[0]
    assert "Clinical variables: age, sex, perfusion.core_ml." in card
    assert "--variables age,sex,perfusion.core_ml" in card
    refused = rlvo("train", cohort, "--variables", "age,weight")
    assert refused.exit_code == 2
    assert "unknown: weight; expected some of age, sex" in refused.stderr


def test_choice_of_variables_is_another_run(logistic: tuple[Path, Result], cohort: Path) -> None:
    key = json.loads((folder_of(logistic[1]) / "report.json").read_text())["run"]
    arguments = ("train", cohort, "--model", "logistic", "--quick", "--variables")
    perfusion = rlvo(*arguments, "perfusion.core_ml")
    assert perfusion.exit_code == 0, perfusion.output
    assert "| clinical, logistic regression |" not in perfusion.stdout  # the record alone has no variable
    assert json.loads((folder_of(perfusion) / "report.json").read_text())["run"] != key
    same = rlvo(*arguments, "perfusion.core_ml,sex,age")
    assert json.loads((folder_of(same) / "report.json").read_text())["run"] == key


def test_card_has_table_1_flow_and_modalities(logistic: tuple[Path, Result]) -> None:
    card = (logistic[0] / "card.md").read_text()
    for text in (
        "## Flow of the studies",
        "## Table 1",
        "## Missing values",
        "## By modality",
        "| NCCT present | 90 |",
    ):
        assert text in card
    assert "removed from all |" not in card  # a logistic regression sees no image
    assert "| age, years | mean ± SD | 0 (0 %) |" in card


def test_evaluation_writes_its_predictions_with_the_version(logistic: tuple[Path, Result], cohort: Path) -> None:
    out, _ = logistic
    result = rlvo("evaluate", out, cohort, "--i-know", "--site", "east")
    assert result.exit_code == 0, result.output
    folder = folder_of(result)
    assert folder.parent == cohort / "reports"
    assert folder.name.startswith("small-paper-0.1.0-")
    rows = lines(folder / "evaluation.csv")
    assert {(row["part"], row["version"], row["site"]) for row in rows} == {("evaluation", "paper@0.1.0", "east")}
    document = json.loads((folder / "report.json").read_text())
    assert len(rows) == document["patients"] == 60
    labels = np.array([int(row["outcome"]) for row in rows])
    area = auc(labels, np.array([float(row["probability"]) for row in rows]))
    assert area == pytest.approx(document["models"]["paper 0.1.0"]["auc"]["value"], abs=1e-3)
    decided = np.array([row["decision"] == "1" for row in rows])
    assert document["decisions"]["paper 0.1.0"]["sensitivity"] == pytest.approx(decided[labels == 1].mean())
    assert document["first_minus"] == {}
    assert [line["step"] for line in lines(folder / "flow.csv")] == [
        "studies in the table",
        "left out: another site (--site)",
        "analysed",
    ]
    other = rlvo("evaluate", out, cohort, "--i-know", "--site", "west")
    assert folder_of(other) != folder


def test_sites_left_out_in_turn_have_their_patients_and_numbers(cohort: Path, tmp_path: Path) -> None:
    arguments = ("train", cohort, "--model", "logistic", "--quick", "--validation", "sites")
    result = rlvo(*arguments, "--report", tmp_path / "report")
    assert result.exit_code == 0, result.output
    rows = [line for line in lines(tmp_path / "report" / "test.csv") if line["model"].startswith("clinical + CTP")]
    assert len(rows) == PATIENTS
    assert all(row["fold"] == row["site"] for row in rows)
    assert not (tmp_path / "report" / "out-of-fold.csv").exists()
    document = json.loads((tmp_path / "report" / "report.json").read_text())
    assert document["blocks"] == ["east", "west"]
    east = [row for row in rows if row["site"] == "east"]
    labels, own = ([float(row[name]) for row in east] for name in ("outcome", "probability"))
    (line,) = [one for one in document["cross_validation"] if one["name"].startswith("clinical + CTP")]
    assert line["by_block"][0] == pytest.approx(auc(np.array(labels, int), np.array(own)), abs=1e-3)


def test_left_out_rows_are_in_the_flow(cohort: Path, tmp_path: Path) -> None:
    shutil.copytree(cohort, tmp_path / "c", ignore=shutil.ignore_patterns(".*", "reports"))
    table = pd.read_csv(tmp_path / "c" / "cohort.csv", dtype=str, keep_default_na=False)
    known = (table["etici"].isin(["0", "1", "2a"])) | (table["final_stenosis_percent"].astype(float) > 50)
    rows = table.index[~known & (table["rescue_treatment"] == "0")][:6]
    table.loc[rows, "etici"] = ""
    table.to_csv(tmp_path / "c" / "cohort.csv", index=False)
    arguments = ("train", tmp_path / "c", "--model", "logistic", "--quick", "--drop-unknown")
    result = rlvo(*arguments, "--report", tmp_path / "report")
    assert result.exit_code == 0, result.output
    steps = {line["step"]: line["studies"] for line in lines(tmp_path / "report" / "flow.csv")}
    assert steps["left out: unknown outcome (--drop-unknown)"] == str(len(rows))
    assert int(steps["analysed"]) == PATIENTS - len(rows)


def test_folder_with_other_files_is_refused_before_training(cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").touch()
    for arguments in (("train", cohort), ("evaluate", TRUNK, cohort)):
        result = rlvo(*arguments, "--report", tmp_path)
        assert result.exit_code == 2
        assert "other files" in result.stderr
    assert (tmp_path / "thesis.docx").exists()
