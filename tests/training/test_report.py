"""Reports: figures show the computed numbers, and small subgroups show none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from app.evaluation import figures, subgroups
from app.evaluation.metrics import Comparison, Estimate, auc, f1
from app.registry.manifest import Measured, Threshold
from app.sdk.clinical import ClinicalRecord
from app.training import calibration, cross_validation, model_card, package, report, results_table
from app.training.cross_validation import CrossValidation, ModelSummary
from app.training.dataset import Dataset
from app.training.options import TrainConfig
from app.training.results_table import ORACLE, ModelScores, ResultRow
from app.training.splits import Split
from tests.factory import tiny_manifest
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
    table = subgroups.lines(replace(data, labels=labels), np.arange(400), PROBABILITIES, PROBABILITIES >= 0.3)
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


def test_subgroup_of_few_patients_with_many_studies_is_listed_without_numbers(data: Dataset) -> None:
    """Eight studies of two women with the outcome are two events."""
    labels = LABELS.copy()
    labels[360:] = [1] * 8 + [0] * 32
    own, rows = replace(data, labels=labels), np.arange(400)
    for events, patients in ((2, [1000] * 4 + [1001] * 4), (5, [1000, 1001, 1002, 1003, 1004, 1004, 1004, 1004])):
        groups = np.concatenate([rows[:360], patients, rows[368:]])
        found = {row.name: row for row in subgroups.rows_of(own, rows, PROBABILITIES, PROBABILITIES > 0.3, groups)}
        assert (found["sex: female"].events is None) == (events < 5)
        assert found["sex: male"].events is not None


def test_card_and_report_count_patients_and_not_their_studies(data: Dataset, tmp_path: Path) -> None:
    groups = np.arange(400) // 4
    part = _split(400)
    training = tiny_manifest().training.model_copy(update={"patients": 100, "positives": 60})
    manifest = tiny_manifest().model_copy(update={"training": training})
    rows = results_table.table({"DAFT": _noise(400, 1)}, LABELS, part, "DAFT", groups)
    assert rows[0].events == min(len(set(groups[part.test][LABELS[part.test] == value])) for value in (0, 1))
    card = model_card.write(manifest, rows, [], None, LABELS, part, groups=groups)
    develop, test = (len(set(groups[own].tolist())) for own in (part.develop, part.test))
    assert "100 patients with 400 studies, 60 with the outcome (60.0 %)" in card
    assert f"{develop} for development, {test} for the test." in card
    alone = model_card.write(manifest, rows, [], None, LABELS, part, groups=np.arange(400))
    assert "100 patients, 60 with the outcome" in alone
    assert f"{len(part.develop)} for development, {len(part.test)} for the test." in alone

    own = replace(data, groups=groups)
    models = {"DAFT": PROBABILITIES}
    path = report.write(
        tmp_path / "r", "t", [], own, np.arange(400), models, "DAFT", (PROBABILITIES > 0.3).astype(float)
    )
    positive = len(set(groups[LABELS == 1].tolist()))
    expected = f"100 patients, {positive} with the outcome in any study; 400 studies, {LABELS.sum()} with the outcome."
    assert expected in path.read_text(encoding="utf-8")


def test_predictive_value_without_such_a_decision_is_left_out() -> None:
    """If every patient is above the threshold, no negative predictive value exists; it was written as 0."""
    logits = RNG.normal(0, 1, 400) + LABELS
    rules = calibration.rules(LABELS, logits)
    low, high = (replace(rules, threshold=Threshold(value=value, rule="fixed")) for value in (1e-6, 1 - 1e-6))
    all_above, none_above = (package._measured(LABELS, logits, one, None) for one in (low, high))
    assert all_above["ppv"].value == pytest.approx(LABELS.mean(), abs=1e-4)
    assert "npv" not in all_above
    assert none_above["npv"].value == pytest.approx(1 - LABELS.mean(), abs=1e-4)
    assert "ppv" not in none_above


def test_command_on_the_card_has_every_option_that_the_run_needed() -> None:
    plain = TrainConfig(Path("c.csv"), Path("m/1.0.0"), None, 0, 3, 7, "cpu", quick=False, drop_unknown=False)
    assert package._command(plain) == "Made by `rlvo train c.csv --seed 7 --model daft --epochs 3`."
    config = replace(plain, quick=True, drop_unknown=True, accept_flags=True, i_know=True, accept="unit,hours")
    config = replace(config, columns=Path("x/columns.toml"), own_variables=Path("x/v.toml"), dicom=Path("x/studies"))
    text = package._command(config)
    for option in ("--quick", "--drop-unknown", "--accept-flags", "--i-know", "--accept unit,hours"):
        assert f" {option}" in text
    assert " --columns columns.toml --own-variables v.toml --dicom studies" in text


def test_card_shows_no_small_subgroup(data: Dataset) -> None:
    rows = np.arange(356, 364)  # four men and four women
    table = list(subgroups.lines(data, rows, PROBABILITIES[rows], PROBABILITIES[rows] >= 0.3, least=5))
    assert "| sex: female | <5 | too few of one outcome | | | |" in table
    assert any(line.startswith("| site one | 8 |") for line in table)


def test_subgroups_cover_the_given_rows_and_known_scanners(data: Dataset) -> None:
    rows = np.arange(100)
    table = list(subgroups.lines(data, rows, PROBABILITIES[rows], PROBABILITIES[rows] >= 0.3))
    assert any(line.startswith("| scanner A | 50 |") for line in table)
    assert not any(line.startswith("| sex: female") for line in table)  # no such patient in these rows
    assert sum(line.startswith("| scanner") for line in table) == 1


def test_area_under_the_roc_figure_is_the_auc() -> None:
    curve = figures.roc(LABELS, {"one": PROBABILITIES}).figure.axes[0].lines[0]
    share = np.trapezoid(curve.get_ydata(), curve.get_xdata())
    assert share == pytest.approx(auc(LABELS, PROBABILITIES), abs=1e-6)


def test_calibration_figure_has_one_dot_per_tenth_at_its_mean() -> None:
    drawing = figures.calibration(LABELS, PROBABILITIES, "one")
    (dots,) = [line for line in drawing.figure.axes[0].lines if line.get_marker() == "o"]
    parts = np.array_split(np.argsort(PROBABILITIES, kind="stable"), 10)
    assert dots.get_xdata() == pytest.approx([PROBABILITIES[part].mean() for part in parts], abs=1e-6)
    assert dots.get_ydata() == pytest.approx([LABELS[part].mean() for part in parts], abs=1e-6)


def test_same_report_has_the_same_bytes_and_replaces_the_earlier_one(tmp_path: Path, data: Dataset) -> None:
    def bytes_of() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((tmp_path / "report").iterdir())}

    rows, models = np.arange(400), {"one": PROBABILITIES, "other": PROBABILITIES[::-1]}
    report.write(tmp_path / "report", "title", ["| a table |"], data, rows, models, "one", PROBABILITIES >= 0.3)
    first = bytes_of()
    (tmp_path / "report" / "stale.txt").touch()
    report.write(tmp_path / "report", "title", ["| a table |"], data, rows, models, "one", PROBABILITIES >= 0.3)
    assert bytes_of() == first
    assert len(first) == 14  # Markdown and JSON, and SVG, PNG and JSON of four figures
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


def _noise(rows: int, seed: int) -> ModelScores:
    """Scores of a model that knows nothing, in four folds of the first 3/4 of the rows."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1.5, 1, rows)
    develop = np.arange(rows * 3 // 4)
    out_of_fold, each = logits.copy(), np.tile(logits, (4, 1)) + rng.normal(0, 0.1, (4, rows))
    out_of_fold[len(develop) :] = np.nan
    each[:, : len(develop)] = np.nan
    return ModelScores(out_of_fold, each, (0.4, 0.5, 0.5, 0.6))


def _split(rows: int) -> Split:
    develop = np.arange(rows * 3 // 4)
    parts = np.array_split(develop, 4)
    return Split(develop, np.arange(len(develop), rows), tuple((np.setdiff1d(develop, own), own) for own in parts))


def test_sd_over_folds_has_one_degree_of_freedom_less() -> None:
    (row,) = results_table.table({"noise": _noise(400, 1)}, LABELS, _split(400), "noise")
    assert row.folds == (pytest.approx(0.5), pytest.approx(np.std([0.4, 0.5, 0.5, 0.6], ddof=1)))
    line = ModelSummary("noise", (0.4, 0.6), Estimate(0.5, 0.4, 0.6), None)
    summary = CrossValidation(("a", "b"), np.arange(2), {}, {}, (line,))
    assert "0.500 ± 0.141" in cross_validation.markdown(summary, "noise")
    single = replace(line, by_block=(0.4,))
    assert "0.400 ± unknown" in cross_validation.markdown(replace(summary, lines=(single,)), "noise")


def test_labels_of_a_fold_do_not_choose_its_threshold() -> None:
    """Labels of the tested rows are changed: decisions on these rows stay as they are."""
    split, scores = _split(400), _noise(400, 2)
    own = split.folds[0][1]
    flipped = LABELS.copy()
    flipped[own] = 1 - flipped[own]
    learn = split.folds[0][0]
    one, other = (calibration.rules(labels[learn], scores.out_of_fold[learn]) for labels in (LABELS, flipped))
    assert one == other
    by_fold = [
        f1(LABELS[rows], calibration.rules(LABELS[learn], scores.out_of_fold[learn]).decide(scores.out_of_fold[rows]))
        for learn, rows in split.folds
    ]
    (row,) = results_table.table({"noise": scores}, LABELS, split, "noise")
    assert row.folds_f1 == (pytest.approx(np.mean(by_fold)), pytest.approx(np.std(by_fold, ddof=1)))


def test_pooled_decisions_do_not_depend_on_the_tested_labels() -> None:
    split, scores = _split(400), _noise(400, 3)
    changed = LABELS.copy()
    changed[split.test] = 1 - changed[split.test]
    one, other = (
        cross_validation.pool([("a", split, {"noise": scores})], labels, "noise") for labels in (LABELS, changed)
    )
    assert one.decided["noise"] == pytest.approx(other.decided["noise"])
    own = scores.rules(LABELS, split.develop).decide(scores.mean[split.test])
    assert one.decided["noise"] == pytest.approx(own.astype(float))


def test_decisions_of_several_repeats_are_pooled_as_their_share() -> None:
    split = _split(400)
    repeats = [(f"repeat {n}", split, {"noise": _noise(400, n)}) for n in (4, 5)]
    pooled = cross_validation.pool(repeats, LABELS, "noise")
    assert set(np.unique(pooled.decided["noise"])) <= {0.0, 0.5, 1.0}


def test_no_best_model_is_named_with_few_test_events() -> None:
    def row(name: str, events: int) -> ResultRow:
        return ResultRow(name, (0.7, 0.0), Estimate(0.8, 0, 1), 0.0, None, events=events)

    assert "9 test patients of the rarer outcome are too few" in results_table.verdict([row("a", 9), row("b", 9)])
    assert "Fewer than 5 test patients" in results_table.verdict([row("a", 3)], least=5)
    assert "7 test patients" in results_table.verdict([row("a", 7)], least=5)
    assert results_table.verdict([row("a", 10)]) == "Best on the folds and on the test part: a."


def test_table_with_several_comparisons_carries_the_note_on_multiplicity() -> None:
    scored = {name: _noise(400, seed) for seed, name in enumerate(("DAFT", "a", "b"))}
    text = results_table.markdown(results_table.table(scored, LABELS, _split(400), "DAFT"), "DAFT")
    assert "2 comparisons: p values" in text
    pooled = cross_validation.pool([("x", _split(400), scored)], LABELS, "DAFT")
    assert "2 comparisons: p values" in cross_validation.markdown(pooled, "DAFT")
    scored.pop("b")
    assert "comparisons" not in results_table.markdown(results_table.table(scored, LABELS, _split(400), "DAFT"), "DAFT")


def test_card_states_what_a_single_run_can_be_and_only_estimable_intervals() -> None:
    measured = {"auc": Measured(value=0.7, low=0.6, high=0.8), "calibration_intercept": Measured(value=0.1)}
    manifest = tiny_manifest().model_copy(update={"metrics": measured})  # the second name is that of old manifests
    rows = results_table.table({"DAFT": _noise(400, 1)}, LABELS, _split(400), "DAFT")
    card = model_card.write(manifest, rows, ["a note"], None, LABELS, _split(400))
    assert model_card.SINGLE_RUN in card
    assert "| auc | 0.700 | 0.600 to 0.800 |" in card
    assert "| calibration intercept | 0.100 |  |" in card
    assert "0.71 to 1.67" in (Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md").read_text()
