"""External validation: smooth calibration, O/E, scaled Brier score, pooling, missing outcomes and the report."""

from __future__ import annotations

import csv
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from app.evaluation import (
    logistic,
    metrics,
    missing_outcomes,
    pooling,
    smooth_calibration,
    tripod,
    validation,
    validation_report,
)
from app.evaluation.report_sections import Section, parts_of
from app.evaluation.validation import Groups, PredictionTable, Validation

RNG = np.random.default_rng(22)


def patients(count: int, *, shift: float = 0.0, slope: float = 1.0, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities; the true log-odds are ``slope`` times the predicted ones plus ``shift``."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(-1.0, 1.0, count)
    labels = (rng.random(count) < expit(slope * odds + shift)).astype(np.int64)
    return labels, expit(odds)


def test_logistic_fit_equals_sklearn_without_penalty() -> None:
    design = np.column_stack([np.ones(400), RNG.normal(size=(400, 2))])
    labels = (RNG.random(400) < expit(design @ [-0.5, 1.0, -0.3])).astype(np.int64)
    own = logistic.fit(design, labels)
    other = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000).fit(design, labels)
    assert own.converged
    assert own.coefficients == pytest.approx(other.coef_[0], abs=1e-5)


def test_separated_outcomes_are_reported_as_not_converged() -> None:
    x = np.linspace(-1, 1, 40)
    assert not logistic.fit(np.column_stack([np.ones(40), x]), (x > 0).astype(np.int64)).converged


def test_smooth_curve_of_a_calibrated_model_is_the_diagonal() -> None:
    labels, probabilities = patients(5000)
    found = smooth_calibration.smooth(labels, probabilities, rounds=50)
    assert found is not None
    assert found.knots == 5
    assert found.ici <= found.ici_if_calibrated
    assert np.abs(found.curve.y - found.curve.x).max() < 0.06
    assert found.curve.low is not None
    assert (found.curve.low <= found.curve.y).all()


def test_smooth_curve_finds_a_bend_that_no_line_shows() -> None:
    rng = np.random.default_rng(3)
    odds = rng.normal(0, 1.5, 4000)
    labels = (rng.random(4000) < expit(odds - 0.4 * (odds**2 - 2.25))).astype(np.int64)
    found = smooth_calibration.smooth(labels, expit(odds), rounds=20)
    assert found is not None
    truth = expit(logit(found.curve.x) - 0.4 * (logit(found.curve.x) ** 2 - 2.25))
    assert np.abs(found.curve.y - truth)[10:90].max() < 0.05  # measured: 0.03; the ends are linear
    assert found.ici > 3 * found.ici_if_calibrated
    assert found.e50 < found.e90


@pytest.mark.parametrize(("count", "knots"), [(60, 0), (200, 3)])
def test_few_events_give_a_stiffer_curve(count: int, knots: int) -> None:
    labels, probabilities = patients(count)
    found = smooth_calibration.smooth(labels, probabilities, rounds=5)
    assert found is not None
    assert found.knots == knots


def test_observed_by_expected_is_one_for_a_calibrated_model_and_high_for_too_low_predictions() -> None:
    calibrated = metrics.observed_expected(*patients(5000))
    low = metrics.observed_expected(*patients(5000, shift=0.5))
    assert calibrated.low < 1 < calibrated.high
    assert low.low > 1.1
    assert not np.isfinite(metrics.observed_expected(np.zeros(9, np.int64), np.full(9, 0.1)).value)


def test_scaled_brier_is_zero_for_the_prevalence_and_one_for_certainty() -> None:
    labels, _ = patients(500)
    assert metrics.scaled_brier(labels, np.full(500, labels.mean())).value == pytest.approx(0)
    assert metrics.scaled_brier(labels, labels.astype(float)).value == pytest.approx(1)


def test_pooling_equal_sites_has_no_variance_between_them() -> None:
    found = pooling.pool([1.0, 1.0, 1.0, 1.0], [0.1, 0.2, 0.1, 0.3])
    assert found is not None
    assert found.tau == 0
    assert found.mean.value == pytest.approx(1)


def test_pooling_recovers_mean_and_variance_between_sites() -> None:
    rng = np.random.default_rng(5)
    errors = rng.uniform(0.05, 0.2, 400)
    found = pooling.pool(rng.normal(0.3, np.hypot(0.25, errors)), errors)
    assert found is not None
    assert found.mean.value == pytest.approx(0.3, abs=0.04)
    assert found.tau == pytest.approx(0.25, abs=0.03)
    assert found.prediction[0] == pytest.approx(0.3 - 1.966 * 0.25, abs=0.08)


def test_pooling_equals_the_published_reml_estimate_of_the_bcg_trials() -> None:
    """Thirteen trials of BCG vaccine, log relative risks (Colditz 1994); metafor's REML: -0.7145, tau2 0.3132."""
    values = (-0.8893, -1.5854, -1.3481, -1.4416, -0.2175, -0.7861, -1.6209, 0.0120, -0.4694, -1.3713, -0.3394, 0.4459)
    values += (-0.0173,)
    variances = (0.3256, 0.1946, 0.4154, 0.0200, 0.0512, 0.0069, 0.2230, 0.0040, 0.0564, 0.0730, 0.0124, 0.5325, 0.0714)
    found = pooling.pool(values, np.sqrt(variances).tolist())
    assert found is not None
    assert found.mean.value == pytest.approx(-0.7145, abs=2e-4)
    assert found.tau**2 == pytest.approx(0.3132, abs=1e-3)


def test_two_sites_are_not_pooled() -> None:
    assert pooling.pool([1.0, 2.0], [0.1, 0.1]) is None


def test_extremes_equal_every_assignment_of_the_unknown_outcomes() -> None:
    probabilities = np.array([0.1, 0.2, 0.35, 0.5, 0.5, 0.8, 0.9, 0.3])
    outcomes = np.array([0, np.nan, 1, np.nan, 0, 1, np.nan, np.nan])
    found = {one.name: one for one in missing_outcomes.bounds(probabilities, outcomes, threshold=0.4)}
    every = {name: [] for name in found}
    for filled in product((0, 1), repeat=4):
        labels = outcomes.copy()
        labels[~np.isfinite(outcomes)] = filled
        y = labels.astype(np.int64)
        every["AUC"].append(metrics.auc(y, probabilities))
        every["O/E"].append(y.sum() / probabilities.sum())
        every["outcome share"].append(y.mean())
        every["Brier score"].append(metrics.brier(y, probabilities))
        every["net benefit at 0.4"].append(float(metrics.net_benefit(y, probabilities, np.array([0.4]))[0]))
    for name, values in every.items():
        assert (found[name].low, found[name].high) == pytest.approx((min(values), max(values))), name


def test_weights_correct_an_outcome_that_is_missing_where_the_prediction_is_high() -> None:
    labels, probabilities = patients(2000)
    hidden = np.random.default_rng(2).random(2000) < expit(logit(probabilities) + 1)
    found = missing_outcomes.bounds(probabilities, np.where(hidden, np.nan, labels))
    share = next(one for one in found if one.name == "outcome share")
    assert share.weighted is not None
    assert abs(share.weighted.value - labels.mean()) < abs(share.known - labels.mean()) / 2
    assert share.weighted.low < labels.mean() < share.weighted.high


def test_known_outcomes_need_no_bounds() -> None:
    assert missing_outcomes.bounds(np.array([0.1, 0.9]), np.array([0.0, 1.0])) == []


def a_table() -> PredictionTable:
    labels, probabilities = patients(400)
    outcomes = labels.astype(float)
    outcomes[:12] = np.nan
    sites = np.array(["A", "B", "<C>", "D"])[np.arange(400) % 4]
    sex = np.array(["female", "male", ""])[np.arange(400) % 3]
    return PredictionTable(
        probabilities,
        outcomes,
        sites=sites,
        dates=np.array(["2026-01-02"] * 399 + ["2026-03-04"]),
        groups={"sex": Groups(sex, ("female", "male", ""))},
        characteristics={"sex": [value or None for value in sex]},
        kept=np.column_stack([probabilities < 0.6, probabilities > 0.2]),
        flow=(("rows of the table", 400), ("predicted", 400), ("outcome unknown", 12), ("analysed", 388)),
    )


@pytest.fixture(scope="module")
def result() -> Validation:
    return validation.validate(a_table(), threshold=0.3, level=0.9, rounds=100)


def test_report_has_every_part_and_escapes_the_names_of_the_table(tmp_path: Path, result: Validation) -> None:
    text = validation_report.write(tmp_path, "A & B", result, "a.csv")
    page = (tmp_path / "report.html").read_text()
    for title in (
        "Flow",
        "Table 1",
        "Performance",
        "Calibration curve",
        "Decisions",
        "Conformal",
        "Missing",
        "TRIPOD+AI",
    ):
        assert f"## {title}" in text
    assert "&lt;C&gt;" in page
    assert "<C>" not in page
    assert "A &amp; B" in page
    assert "<script" not in page
    assert "src=" not in page
    assert "sex: not recorded" in text
    with (tmp_path / "measures.csv").open(newline="") as file:
        rows = {row["measure"]: row for row in csv.DictReader(file)}
    assert float(rows["auc"]["value"]) == pytest.approx(metrics.auc(result.labels, result.probabilities), abs=1e-5)
    assert {"oe", "slope", "ici", "brier_scaled", "sensitivity", "coverage_1"} <= set(rows)
    assert {path.name for path in tmp_path.glob("*.csv")} >= {"sites.csv", "pooled.csv", "missing-outcomes.csv"}


def test_remarks_stand_first_as_paragraphs_and_tables(tmp_path: Path, result: Validation) -> None:
    remark = "**It was trained on 3.**\n\n## Flags\n\n| flag | rows |\n|---|---|\n| metal | 2-4 |\n\n- one\n- two"
    first = Section("Remarks", parts_of(remark))
    text = validation_report.write(tmp_path, "A", result, "a.csv", first=[first])
    page = (tmp_path / "report.html").read_text()
    assert text.index("It was trained on 3.") < text.index("## Flow")
    assert "**" not in page
    assert "<th scope=col>flag</th>" in page
    assert "<td>2-4</td>" in page
    assert "<p>- one</p><p>- two</p>" in page


def test_report_replaces_all_files_of_an_earlier_one(tmp_path: Path, result: Validation) -> None:
    validation_report.write(tmp_path / "out", "A", result, "a.csv")
    without_sites = replace(result, sites=(), pooled=())
    validation_report.write(tmp_path / "out", "A", without_sites, "a.csv")
    assert not list((tmp_path / "out").glob("sites.csv"))
    assert (tmp_path / "out" / "measures.csv").exists()


@pytest.mark.parametrize(
    ("probabilities", "labels", "reason"),
    [
        (np.full(60, 0.3), np.arange(60) % 2, "the probabilities are all equal"),
        (np.linspace(0.1, 0.9, 60), np.repeat([0, 1], 30), "the probabilities separate the outcomes"),
        (np.linspace(0.1, 0.9, 60), np.repeat([0, 1], [59, 1]), "one outcome is too rare"),
    ],
)
def test_report_names_the_reason_for_a_missing_curve(
    tmp_path: Path, probabilities: np.ndarray, labels: np.ndarray, reason: str
) -> None:
    found = validation.validate(PredictionTable(probabilities, labels.astype(np.float64)), rounds=10)
    text = validation_report.write(tmp_path, "A", found, "a.csv")
    assert f"The curve cannot be estimated: {reason}" in text


def test_report_says_that_patients_have_several_studies(tmp_path: Path, result: Validation) -> None:
    names = np.array([f"p{n // 2}" for n in range(400)])
    repeated = replace(result, table=replace(result.table, sites=None, patients=names))
    text = validation_report.write(tmp_path, "A", repeated, "a.csv")
    assert "The 388 studies are of 194 patients." in text
    # Sites that number their patients alike have different patients.
    of_sites = replace(repeated, table=replace(repeated.table, sites=np.array(["A", "B"] * 200)))
    assert "studies are of" not in validation_report.write(tmp_path, "A", of_sites, "a.csv")


def test_patients_without_a_site_are_listed_but_are_no_site() -> None:
    table = a_table()
    assert table.sites is not None
    unknown = replace(table, sites=np.where(table.sites == "D", "", table.sites))
    found = validation.validate(unknown, threshold=0.3, rounds=100)
    assert "not recorded" in {site.name for site in found.sites}
    assert {pooled.sites for pooled in found.pooled} == {3}
    assert next(item.text for item in tripod.items(found, "a.csv") if item.number == "6a") == "3 sites."


def test_items_of_tripod_that_the_data_cannot_fill_are_named(result: Validation) -> None:
    found = {item.number: item.text for item in tripod.items(result, "a.csv")}
    assert "2026-01-02 to 2026-03-04" in found["5b"]
    assert "12 patients have no outcome" in found["11"]
    assert not found["8c"]
    assert found["15"] == "Probability; decision at 0.3."
    assert {"8c", "17"} <= set(tripod.blanks(tripod.items(result, "a.csv")))


def test_one_class_of_outcomes_is_refused() -> None:
    with pytest.raises(ValueError, match="with and patients without"):
        validation.validate(PredictionTable(np.array([0.1, 0.2]), np.array([0.0, 0.0])))
