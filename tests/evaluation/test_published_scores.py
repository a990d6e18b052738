"""Published scores: points, missing items, ranges, and their comparison with a version."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from app.evaluation import metrics, score_comparison, validation, validation_report
from app.evaluation.validation import PredictionTable
from app.sdk.clinical import ClinicalRecord, ImagingSigns, Smoking
from app.sdk.published_scores import ABC2D_ODDS, NOT_IMPLEMENTED, SCORE_ICAD, SCORES, TARGET_NOTE, PublishedScore

ROOT = Path(__file__).parents[2]
HIGH = ClinicalRecord(
    atrial_fibrillation=False,
    hypertension=True,
    diabetes=True,
    smoking=Smoking.CURRENT,
    dyslipidemia=True,
    nihss=6,
    imaging_signs=ImagingSigns(hyperdense_artery=False),
)
LOW = ClinicalRecord(
    atrial_fibrillation=True,
    hypertension=False,
    diabetes=False,
    smoking=Smoking.NEVER,
    dyslipidemia=False,
    nihss=7,
    imaging_signs=ImagingSigns(hyperdense_artery=True),
)


def test_points_of_score_icad_are_those_of_the_abstract() -> None:
    assert [item.points for item in SCORE_ICAD.items] == [5, 1, 1, 1, 1, 3, 3, 3, 2]
    assert SCORE_ICAD.highest == 20


@pytest.mark.parametrize(
    ("record", "ends"),
    [
        (HIGH, (9, 20)),
        (LOW, (0, 11)),
        (LOW.model_copy(update={"atrial_fibrillation": False}), (5, 16)),
        (LOW.model_copy(update={"smoking": Smoking.FORMER}), (0, 11)),
        (HIGH.model_copy(update={"smoking": None}), (8, 20)),
        (ClinicalRecord(), (0, 20)),
    ],
)
def test_score_icad_has_the_range_that_its_missing_items_leave_open(
    record: ClinicalRecord, ends: tuple[float, float]
) -> None:
    found = SCORE_ICAD.of(record)
    assert found.range == ends
    assert found.value is None  # the record has no field for four items
    assert set(found.missing) >= {item.text for item in SCORE_ICAD.items if not item.field}


def test_odds_ratios_of_abc2d_are_those_of_the_abstract() -> None:
    assert ABC2D_ODDS.of(HIGH).value == pytest.approx(math.log(2.90 * 2.80 * 27.29 * 2.92 * 2.86))
    assert ABC2D_ODDS.of(LOW).value == 0
    one = LOW.model_copy(update={"nihss": 6, "diabetes": True})
    assert ABC2D_ODDS.of(one).value == pytest.approx(math.log(2.92) + math.log(2.80))
    assert ABC2D_ODDS.of(LOW.model_copy(update={"imaging_signs": None})).missing == ("no hyperdense artery on CT",)


def test_texts_name_sum_range_and_unit() -> None:
    assert SCORE_ICAD.of(HIGH).summary.text == "9 to 20 of 20 points"
    assert SCORE_ICAD.of(ClinicalRecord()).summary.text == "no item known"
    assert ABC2D_ODDS.of(LOW).summary.text == "0 of 7.52 log odds"


@pytest.mark.parametrize("score", SCORES)
def test_no_record_leaves_the_range_of_a_score(score: PublishedScore) -> None:
    for flag, smoking, nihss, sign in product((None, False, True), (None, *Smoking), (None, 0, 6, 7, 42), (None, True)):
        record = ClinicalRecord(
            atrial_fibrillation=flag,
            hypertension=flag,
            diabetes=not flag,
            smoking=smoking,
            nihss=nihss,
            imaging_signs=ImagingSigns(hyperdense_artery=sign),
        )
        found = score.of(record)
        low, high = found.range
        assert 0 <= low <= high <= score.highest
        assert found.value is None or found.value == low == high
        assert bool(found.missing) == (low < high)


@pytest.mark.parametrize("score", SCORES)
def test_fields_of_the_items_are_fields_of_the_record(score: PublishedScore) -> None:
    assert all(item.state(ClinicalRecord()) is None for item in score.items)
    assert all((item.state(HIGH), item.state(LOW)) == (True, False) for item in score.items if item.field)


def cohort(count: int = 200) -> tuple[list[ClinicalRecord], np.ndarray, np.ndarray]:
    """Records without lipids and signs, outcomes, and probabilities; one patient in ten has no NIHSS."""
    rng = np.random.default_rng(22)
    draws = rng.random((count, 4)) < [0.4, 0.7, 0.3, 0.25]
    records = [
        ClinicalRecord(
            atrial_fibrillation=bool(row[0]),
            hypertension=bool(row[1]),
            diabetes=bool(row[2]),
            smoking=Smoking.CURRENT if row[1] else Smoking.FORMER,
            nihss=None if place % 10 == 0 else int(place % 20),
        )
        for place, row in enumerate(draws)
    ]
    labels = (draws[:, 3] | (~draws[:, 0] & (rng.random(count) < 0.3))).astype(np.int64)
    return records, labels, np.clip(0.2 + 0.3 * labels + rng.normal(0, 0.2, count), 0.01, 0.99)


def test_comparison_uses_the_known_items_on_the_same_patients() -> None:
    records, labels, probabilities = cohort()
    icad, abc2d = score_comparison.compare(records, labels, probabilities)
    assert (icad.name, icad.patients) == ("Score-ICAD, 4 of 9 items", 200)
    assert (abc2d.name, abc2d.patients) == ("ABC2D (published odds ratios), 4 of 5 items", 180)
    assert "hyperlipidaemia" in icad.missing
    assert abc2d.missing == ("no hyperdense artery on CT",)
    sums = np.array([SCORE_ICAD.of(record).range[0] for record in records])
    assert icad.score is not None
    assert icad.score.value == pytest.approx(metrics.auc(labels, sums))
    rows = np.array([place % 10 != 0 for place in range(len(records))])
    assert abc2d.version is not None
    assert abc2d.difference is not None
    assert abc2d.score is not None
    assert abc2d.version.value == pytest.approx(metrics.auc(labels[rows], probabilities[rows]))
    assert abc2d.difference.difference == pytest.approx(abc2d.version.value - abc2d.score.value)


def test_markdown_names_the_used_items_and_the_target() -> None:
    text = score_comparison.markdown(score_comparison.compare(*cohort()))
    assert "\n| Score-ICAD, 4 of 9 items | 200 | 0." in text
    assert TARGET_NOTE in text
    assert score_comparison.markdown([]) == ""


def test_too_few_outcomes_give_no_auc_and_no_items_give_no_row() -> None:
    records, labels, probabilities = cohort()
    rare = np.where(np.cumsum(labels) <= 4, labels, 0)
    assert [row.score for row in score_comparison.compare(records, rare, probabilities)] == [None, None]
    assert score_comparison.compare([ClinicalRecord(age=70.0)] * 200, labels, probabilities) == []


def test_validation_report_has_the_scores_with_their_target(tmp_path: Path) -> None:
    records, labels, probabilities = cohort()
    outcomes = labels.astype(np.float64)
    outcomes[:5] = np.nan
    table = PredictionTable(probabilities, outcomes, records=tuple(records))
    result = validation.validate(table, rounds=20)
    text = validation_report.write(tmp_path / "with", "A", result, "a.csv")
    assert "## Published scores" in text
    assert "| Score-ICAD, 4 of 9 items | 195 |" in text
    assert TARGET_NOTE in text
    assert "REMIT" in text
    assert (tmp_path / "with" / "published-scores.csv").read_text().startswith("score,patients,events,auc,")
    bare = validation.validate(PredictionTable(probabilities, outcomes), rounds=20)
    assert "Published scores" not in validation_report.write(tmp_path / "without", "A", bare, "a.csv")
    assert not (tmp_path / "without" / "published-scores.csv").exists()


def test_document_has_every_item_with_its_points_and_every_score_that_is_left_out() -> None:
    text = (ROOT / "docs" / "scores.md").read_text()
    for score in SCORES:
        for item in score.items:
            field = f"`{item.field}`" if item.field else "no field"
            assert f"| {item.text} | {item.points:.3g} | {field} |" in text
    assert all(name in text for name in NOT_IMPLEMENTED)
