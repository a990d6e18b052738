"""Predictions of each patient: an out-of-fold probability does not depend on the own outcome; columns are the same."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.sdk.clinical import ClinicalRecord
from app.sdk.types import Flag
from app.training import patient_files
from app.training.cohort import CohortRow
from app.training.patient_files import Predictions, Source
from app.training.results_table import ORACLE, ModelScores
from app.training.split import RunSplit
from app.training.splits import Split
from tests.training.tiny import tiny_dataset

COUNT = 200
DEVELOP = np.arange(160)
FOLDS = np.array_split(DEVELOP, 4)
SPLIT = Split(DEVELOP, np.arange(160, COUNT), tuple((np.setdiff1d(DEVELOP, own), own) for own in FOLDS))
RNG = np.random.default_rng(2)
LABELS = (RNG.random(COUNT) < 0.3).astype(np.int64)
LOGITS = RNG.normal(-1, 1, COUNT) + LABELS
STUDIES = [CohortRow(n + 2, f"p{n}", "one", "", "", {}, None, ClinicalRecord(), int(LABELS[n])) for n in range(COUNT)]


def scores() -> ModelScores:
    out_of_fold, each = LOGITS.copy(), np.tile(LOGITS, (4, 1))
    out_of_fold[160:], each[:, :160] = np.nan, np.nan
    return ModelScores(out_of_fold, each, (0.5,) * 4)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_own_outcomes_of_a_fold_do_not_change_its_probabilities() -> None:
    own = FOLDS[1]
    changed = LABELS.copy()
    changed[own] = 1 - changed[own]
    one, other = (
        patient_files.out_of_fold({"m": scores()}, labels, SPLIT, ["1"] * COUNT)[0] for labels in (LABELS, changed)
    )
    inside = np.isin(one.rows, own)
    assert one.probabilities[inside] == pytest.approx(other.probabilities[inside])
    assert (one.decided[inside] == other.decided[inside]).all()
    assert not np.allclose(one.probabilities[~inside], other.probabilities[~inside])


def test_files_have_one_line_for_each_study_and_model(tmp_path: Path) -> None:
    names = [str(1 + n // 40) if n < 160 else "" for n in range(COUNT)]
    data = tiny_dataset(np.zeros(COUNT), np.zeros(COUNT), LABELS)
    flags = [(Flag(code="slice-thickness", detail="x"),), *[()] * (COUNT - 2), None]
    data = replace(data, flags=flags)
    models = {"a": scores(), "b": scores(), ORACLE: scores()}
    sources = {"a": Source("mine@1.0.0", "ab" * 32), "b": Source("run 12")}
    own = patient_files.out_of_fold(models, LABELS, SPLIT, names)
    patient_files.write(tmp_path / "out-of-fold.csv", patient_files.DEVELOPMENT, own, STUDIES, data, sources)
    tested = patient_files.tested([(RunSplit("", SPLIT, tmp_path), models)], LABELS)
    patient_files.write(tmp_path / "test.csv", patient_files.TEST, tested, STUDIES, data, sources)
    lines = read(tmp_path / "out-of-fold.csv")
    assert tuple(lines[0]) == patient_files.COLUMNS
    assert [line["patient"] for line in lines] == [f"p{n}" for n in range(160)] * 2
    assert {line["version"] for line in lines} == {"mine@1.0.0", "run 12"}
    first = lines[0]
    assert (first["row"], first["part"], first["fold"], first["flags"]) == ("2", "development", "1", "slice-thickness")
    assert (first["model"], first["manifest_sha256"]) == ("a", "ab" * 32)
    assert all(int(line["outcome"]) == LABELS[int(line["row"]) - 2] for line in lines)
    assert {line["conformal"] for line in lines} <= {
        "refractory",
        "not-refractory",
        "not-refractory refractory",
        "none",
    }
    late = read(tmp_path / "test.csv")
    assert [line["patient"] for line in late] == [f"p{n}" for n in range(160, COUNT)] * 2
    assert late[-1]["flags"] == "unknown"
    rules = scores().rules(LABELS, DEVELOP)
    expected = rules.probabilities(LOGITS[160:])
    assert [float(line["probability"]) for line in late[:40]] == pytest.approx(expected, rel=1e-5)
    assert [line["decision"] for line in late[:40]] == [str(int(p >= rules.threshold.value)) for p in expected]


def test_cells_that_a_spreadsheet_would_run_are_written_as_text(tmp_path: Path) -> None:
    studies = [replace(STUDIES[0], patient="=cmd|'/c calc'!A1", site="+1-2")]
    data = replace(tiny_dataset(np.zeros(1), np.zeros(1), LABELS[:1]), flags=[()])
    one = Predictions("@m", np.array([0]), ["-x"], np.array([0.5]), np.array([True]), None)
    patient_files.write(tmp_path / "e.csv", "evaluation", [one], studies, data, {"@m": Source("=v")})
    (line,) = read(tmp_path / "e.csv")
    assert [line[name] for name in ("patient", "site", "fold", "model", "version")] == [
        "'=cmd|'/c calc'!A1",
        "'+1-2",
        "'-x",
        "'@m",
        "'=v",
    ]
    assert (line["conformal"], line["probability"], line["decision"]) == ("", "0.5", "1")


def test_flags_of_the_version_are_added_to_those_of_the_preparation() -> None:
    flag, other = Flag(code="out-of-distribution", detail="x"), Flag(code="coverage", detail="x")
    assert patient_files.flag_text((other, other), (flag,)) == "coverage out-of-distribution"
    assert patient_files.flag_text(None, (flag,)) == "unknown out-of-distribution"
    assert patient_files.flag_text(()) == ""


def test_empty_conformal_set_is_not_an_empty_cell() -> None:
    assert patient_files.conformal_text(np.array([False, False])) == "none"
    assert patient_files.conformal_text(np.array([True, True])) == "not-refractory refractory"
