"""`rlvo recalibrate`: a version of its own, with lineage; too few events are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from app.inference.model_version import ModelVersion
from app.registry.model_store import ModelStore
from app.training.errors import CohortFault
from app.training.progress import ProgressReporter
from app.training.recalibrate_version import RULE_EVENTS, check_events
from app.training.score import EvalConfig, predict_cohort
from tests.cli.training_runs import rlvo

STORE = Path(__file__).resolve().parents[2] / "model_store"
PARENT = "rlvo-synthetic-lr"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    monkeypatch.setenv("RLVO_MODEL_STORE", str(tmp_path / "store"))
    store = ModelStore(tmp_path / "store")
    store.folder.mkdir()
    store.add(STORE / PARENT / "1.0.0")
    return store


def test_shifted_cohort_gives_a_version_with_lineage_that_can_be_rolled_back(store: ModelStore, cohort: Path) -> None:
    result = rlvo("recalibrate", f"{PARENT}@1.0.0", "--cohort", cohort, "--name", PARENT, "--version", "1.0.1")
    assert result.exit_code == 0, result.output
    parent, entry = store.resolve(f"{PARENT}@1.0.0"), store.resolve(f"{PARENT}@1.0.1")
    store.verify(entry)
    lineage = entry.manifest.extra["recalibration"]
    assert lineage["parent"] == f"{PARENT}@1.0.0"
    assert lineage["parent_digest"] == parent.digest
    assert lineage["patients"] == 90
    assert lineage["intercept_estimate"]["low"] < lineage["intercept_estimate"]["value"]
    assert parent.digest in entry.card()
    assert entry.manifest.folds == parent.manifest.folds
    assert set(entry.manifest.metrics) <= {"auc", "auprc"}
    ModelVersion.load(entry.folder, entry.manifest, "cpu").verify_golden_cases(entry.folder)
    old, new = (
        next(iter(predict_cohort(EvalConfig([e.folder], cohort, i_know=True), ProgressReporter()).predictions.values()))
        for e in (parent, entry)
    )
    expected = expit(lineage["intercept"] + lineage["slope"] * logit(old.probabilities))
    assert new.probabilities == pytest.approx(expected)
    if entry.manifest.threshold == parent.manifest.threshold:
        assert np.array_equal(new.kept, old.kept)
    store.set_alias(PARENT, "champion", "1.0.0")
    store.set_alias(PARENT, "champion", "1.0.1")
    assert store.previous_version(PARENT, "champion") == "1.0.0"
    again = rlvo("recalibrate", f"{PARENT}@1.0.0", "--cohort", cohort, "--name", PARENT, "--version", "1.0.1")
    assert again.exit_code == 2
    assert "versions never change" in again.output
    overlap = rlvo("evaluate", entry.folder, cohort)
    assert overlap.exit_code == 2
    assert "--i-know" in overlap.output


def test_remarks_on_the_cohort_are_printed_and_stand_in_the_card(
    store: ModelStore, cohort: Path, tmp_path: Path
) -> None:
    shutil.copytree(cohort, tmp_path / "own", ignore=shutil.ignore_patterns(".*"))
    (tmp_path / "own" / "truth.csv").unlink()
    table = pd.read_csv(tmp_path / "own" / "cohort.csv", dtype=str, keep_default_na=False)
    table["patient"] = [f"p{n // 2}" for n in range(len(table))]
    negative = table.index[(table["final_stenosis_percent"].astype(float) <= 50) & (table["rescue_treatment"] == "0")]
    table.loc[negative[:3], "etici"] = ""
    table.to_csv(tmp_path / "own" / "cohort.csv", index=False)
    arguments = ("--name", PARENT, "--version", "1.0.1", "--drop-unknown", "--accept", "all")
    result = rlvo("recalibrate", PARENT, "--cohort", tmp_path / "own", *arguments)
    assert result.exit_code == 0, result.output
    card = store.resolve(f"{PARENT}@1.0.1").card()
    for remark in ("rows of unknown outcome were left out", "Intervals and p values take the studies of a patient"):
        assert remark in result.output
        assert remark in card
    recalibration = store.resolve(f"{PARENT}@1.0.1").manifest.extra["recalibration"]
    assert recalibration["patients"] == len(set(table.drop(negative[:3])["patient"]))
    assert f"on {recalibration['patients']} patients" in result.output
    report = rlvo(
        "validate", store.folder / PARENT / "1.0.0", tmp_path / "own", *arguments[4:], "--out", tmp_path / "v"
    )
    assert report.exit_code == 0, report.output
    assert "No outcome is missing" not in report.output
    assert "| 11 | missing data and how they were handled | " in report.output


@pytest.mark.parametrize("name", ["Mine", "../mine"])
def test_wrong_name_is_refused(store: ModelStore, cohort: Path, name: str) -> None:
    result = rlvo("recalibrate", PARENT, "--cohort", cohort, "--name", name, "--version", "1.0.0")
    assert result.exit_code == 2


def test_too_few_events_are_refused_with_the_number_that_is_needed() -> None:
    with pytest.raises(CohortFault, match="4 more, which are about 40 more patients"):
        check_events((np.arange(60) < 6).astype(np.int64))
    check_events((np.arange(60) < 10).astype(np.int64))
    assert RULE_EVENTS > 10
