"""Reports: figures show the computed numbers, and small subgroups show none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from app.evaluation import figures, subgroups
from app.evaluation.metrics import Comparison, Estimate, auc
from app.reporting.drawing import CircleShape, LineShape
from app.sdk.clinical import ClinicalRecord
from app.training import report, results_table
from app.training.dataset import Dataset
from app.training.results_table import ORACLE, ResultRow
from app.training.splits import Split
from tests.training.tiny import tiny_dataset

RNG = np.random.default_rng(3)
LABELS = (RNG.random(400) < 0.25).astype(np.int64)
PROBABILITIES = expit(-1.3 + LABELS + RNG.normal(0, 1, 400))
SEXES = np.where(np.arange(400) < 360, "male", "female")


@pytest.fixture
def data() -> Dataset:
    plain = tiny_dataset(np.zeros(400), np.zeros(400), LABELS)
    records = [ClinicalRecord.model_validate({"age": 70, "sex": sex}) for sex in SEXES]
    return replace(plain, records=records, scanners=np.where(np.arange(400) % 2, "", "A"))


def lines(data: Dataset, labels: np.ndarray) -> dict[str, list[str]]:
    table = subgroups.lines(replace(data, labels=labels), np.arange(400), PROBABILITIES, 0.3)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in list(table)[2:]]
    return {row[0]: row[1:] for row in cells}


def test_subgroup_with_few_events_is_listed_without_numbers(data: Dataset) -> None:
    labels = LABELS.copy()
    labels[360:] = [1] * 4 + [0] * 36
    cells = lines(data, labels)
    assert cells["sex: female"] == ["40", "too few of one outcome", "", "", ""]
    labels[364] = 1  # the fifth event
    cells = lines(data, labels)
    assert cells["sex: female"][:2] == ["40", "5"]
    assert cells["sex: female"][2].startswith(f"{auc(labels[360:], PROBABILITIES[360:]):.3f} (")


def test_subgroups_cover_the_given_rows_and_known_scanners(data: Dataset) -> None:
    rows = np.arange(100)
    table = list(subgroups.lines(data, rows, PROBABILITIES[rows], 0.3))
    assert any(line.startswith("| scanner A | 50 |") for line in table)
    assert not any(line.startswith("| sex: female") for line in table)  # no such patient in these rows
    assert sum(line.startswith("| scanner") for line in table) == 1


def test_area_under_the_roc_figure_is_the_auc() -> None:
    steps = [shape for shape in figures.roc(LABELS, {"one": PROBABILITIES}).shapes if isinstance(shape, LineShape)]
    curve = [line for line in steps if line.stroke == figures.COLOURS[0] and line.width == 2]
    x = np.array([curve[0].x1, *(line.x2 for line in curve)])
    y = np.array([curve[0].y1, *(line.y2 for line in curve)])
    share = np.trapezoid((figures.TOP + figures.SIDE - y) / figures.SIDE, (x - figures.LEFT) / figures.SIDE)
    assert share == pytest.approx(auc(LABELS, PROBABILITIES), abs=1e-6)


def test_calibration_figure_has_one_dot_per_tenth_at_its_mean() -> None:
    drawing = figures.calibration(LABELS, PROBABILITIES, "one")
    dots = [shape for shape in drawing.shapes if isinstance(shape, CircleShape)]
    assert len(dots) == 10
    parts = np.array_split(np.argsort(PROBABILITIES, kind="stable"), 10)
    reach = 1.0  # upper end of the axes; the highest probabilities are near 1
    across = [(dot.x - figures.LEFT) / figures.SIDE * reach for dot in dots]
    assert across == pytest.approx([PROBABILITIES[part].mean() for part in parts], abs=1e-6)
    up = [(figures.TOP + figures.SIDE - dot.y) / figures.SIDE * reach for dot in dots]
    assert up == pytest.approx([LABELS[part].mean() for part in parts], abs=1e-6)


def test_same_report_has_the_same_bytes_and_replaces_the_earlier_one(tmp_path: Path, data: Dataset) -> None:
    def bytes_of() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((tmp_path / "report").iterdir())}

    rows, models = np.arange(400), {"one": PROBABILITIES, "other": PROBABILITIES[::-1]}
    report.write(tmp_path / "report", "title", ["| a table |"], data, rows, models, "one", 0.3)
    first = bytes_of()
    (tmp_path / "report" / "stale.txt").touch()
    report.write(tmp_path / "report", "title", ["| a table |"], data, rows, models, "one", 0.3)
    assert bytes_of() == first
    assert len(first) == 9
    assert "| a table |" in first["report.md"].decode()
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_verdict_names_the_best_models_without_the_oracle() -> None:
    def row(name: str, folds: float, test: float) -> ResultRow:
        return ResultRow(name, (folds, 0.0), Estimate(test, 0, 1), 0.0, Comparison(0, 0, 0, 1))

    simple, deep, oracle = row("logistic", 0.7, 0.6), row("DAFT", 0.6, 0.8), row(ORACLE, 0.9, 0.9)
    assert results_table.verdict([simple, deep, oracle]) == "Best on the folds: logistic. Best on the test part: DAFT."
    assert results_table.verdict([simple, oracle]).endswith("test part: logistic.")


def test_oracle_is_scored_like_any_model() -> None:
    rows = np.arange(400)
    split = Split(rows[:300], rows[300:], ((rows[:150], rows[150:300]), (rows[150:300], rows[:150])))
    oracle = results_table.of_oracle(PROBABILITIES, LABELS, split)
    assert oracle.aucs == (auc(LABELS[150:300], PROBABILITIES[150:300]), auc(LABELS[:150], PROBABILITIES[:150]))
    line, other = results_table.table({ORACLE: oracle, "same": oracle}, LABELS, split, ORACLE)
    assert line.test.value == auc(LABELS[300:], PROBABILITIES[300:])
    assert other.comparison is not None
    assert other.comparison.difference == 0
