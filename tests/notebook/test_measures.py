"""rlvo.evaluation on arrays and data frames: the numbers of app.evaluation, and faults that are said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import rlvo.evaluation as ev
from app.core import json_text
from app.evaluation import aggregate, metrics, validation
from app.evaluation.recalibration import Update
from app.evaluation.validation import PredictionTable
from app.training.errors import CohortFault

COUNT = 400


@pytest.fixture(scope="module")
def patients() -> pd.DataFrame:
    """Predictions that are too low: the true log-odds are 0.8 higher."""
    rng = np.random.default_rng(4)
    log_odds = rng.normal(-1, 1, COUNT)
    outcome = rng.random(COUNT) < 1 / (1 + np.exp(-(log_odds + 0.8)))
    return pd.DataFrame(
        {
            "outcome": outcome.astype(int),
            "probability": 1 / (1 + np.exp(-log_odds)),
            "other": rng.random(COUNT),
            "hospital": np.resize(["north", "east", "south", "west"], COUNT),
            "sex": np.resize(["female", "male", None], COUNT),
            "age": rng.normal(70, 12, COUNT),
        }
    )


def test_numbers_are_those_of_the_command_line(patients: pd.DataFrame) -> None:
    labels, own = patients["outcome"].to_numpy(), patients["probability"].to_numpy()
    expected = validation.validate(PredictionTable(own, labels.astype(float)), rounds=200)
    by_key = {one.key: one.estimate for one in expected.measures}
    assert ev.discrimination("outcome", "probability", data=patients).auc == by_key["auc"]
    found = ev.calibration("outcome", "probability", data=patients)
    assert (found.in_the_large, found.slope, found.observed_expected) == (by_key["citl"], by_key["slope"], by_key["oe"])
    assert (found.ici, found.e50, found.e90) == tuple(by_key[key].value for key in ("ici", "e50", "e90"))
    brier = ev.brier_score("outcome", "probability", data=patients, rounds=200)
    assert (brier.score, brier.scaled) == (by_key["brier"], by_key["brier_scaled"])
    benefit = ev.net_benefit("outcome", "probability", data=patients)
    assert benefit.value.tolist() == [row.net_benefit.value for row in expected.decisions]
    assert benefit.to_frame()["treat_all"].tolist() == [row.of_all for row in expected.decisions]
    comparison = ev.compare_auc("outcome", "probability", "other", data=patients)
    assert comparison == metrics.delong(labels, own, patients["other"].to_numpy())


@pytest.mark.parametrize(
    "form", [np.asarray, list, pd.Series, lambda v: pd.array(v), lambda v: pd.Series(v).astype("Float64")]
)
def test_every_form_of_values_gives_the_same_numbers(form: Callable[..., Any], patients: pd.DataFrame) -> None:
    named = ev.discrimination("outcome", "probability", data=patients)
    given = ev.discrimination(form(patients["outcome"].to_numpy()), form(patients["probability"].to_numpy()))
    flags = ev.discrimination(patients["outcome"] == 1, patients["probability"])
    assert named == given == flags


FAULTS: dict[str, tuple[Callable[[pd.DataFrame], object], str]] = {
    "missing outcome": (
        lambda d: ev.drift(d["outcome"].where(d.index != 7), d["probability"]),
        r"outcome: 1 of 400 patients \(row 7\)",
    ),
    "missing probability": (lambda d: ev.brier_score([0, 1], [0.1, None]), "probability: 1 of 2 .* without a value"),
    "percent": (lambda d: ev.discrimination(d["outcome"], 100 * d["probability"]), "divide percent by 100"),
    "infinite": (lambda d: ev.discrimination([0, 1], [0.1, np.inf]), "infinite"),
    "second of two": (
        lambda d: ev.compare_auc("outcome", "probability", "age", data=d),
        "second: .* below 0 or above 1",
    ),
    "third class": (lambda d: ev.calibration([0, 1, 2], [0.1, 0.2, 0.3]), r"\(row 2\) with another value than 0 and 1"),
    "text": (lambda d: ev.discrimination(["no", "yes"], [0.1, 0.2]), "expected numbers"),
    "text of numbers": (lambda d: ev.discrimination([0, 1], ["0.1", "0.2"]), "expected numbers"),
    "lengths": (lambda d: ev.discrimination([0, 1, 1], [0.1, 0.2]), "outcome has 3 patients and probability has 2"),
    "two columns": (lambda d: ev.discrimination([0, 1], [[0.9, 0.1], [0.2, 0.8]]), r"found the shape \(2, 2\)"),
    "one class": (lambda d: ev.discrimination([1, 1], [0.1, 0.2]), "all 2 are 1"),
    "no patient": (lambda d: ev.discrimination([], []), "there is no patient"),
    "no such column": (lambda d: ev.discrimination("dead", "probability", data=d), "no column 'dead'; it has outcome"),
    "no table": (lambda d: ev.discrimination("outcome", d["probability"]), "give its table as data="),
    "repeated column": (
        lambda d: ev.discrimination("outcome", "probability", data=pd.concat([d, d[["outcome"]]], axis=1)),
        "several columns 'outcome'",
    ),
    "other order": (
        lambda d: ev.discrimination(d["outcome"], d["probability"].sort_values()),
        "outcome and probability have different indexes",
    ),
    "other order of a group": (
        lambda d: ev.subgroups(d["outcome"], d["probability"], d["sex"].iloc[::-1]),
        "outcome and sex have different indexes",
    ),
    "other order of a group than of the probabilities": (
        lambda d: ev.subgroups(d["outcome"].to_numpy(), d["probability"], d["sex"].iloc[::-1]),
        "probability and sex have different indexes",
    ),
    "other order of the sites": (
        lambda d: ev.pool_sites(d["outcome"].to_numpy(), d["probability"], d["hospital"].iloc[::-1]),
        "probability and site have different indexes",
    ),
    "levels of two types": (
        lambda d: ev.subgroups("outcome", "probability", [["a", 1][n % 2] for n in range(len(d))], data=d),
        "by: .*values of several types",
    ),
    "levels that are lists": (
        lambda d: ev.subgroups("outcome", "probability", pd.Series([[1]] * len(d)), data=d),
        "by: .*values of several types",
    ),
    "no resample": (
        lambda d: ev.discrimination("outcome", "probability", data=d, rounds=0),
        "rounds: expected at least 1",
    ),
    "no resample of a score": (
        lambda d: ev.brier_score("outcome", "probability", data=d, rounds=-1),
        "rounds: expected at least 1",
    ),
    "no resample of a validation": (lambda d: ev.validate(d, rounds=0), "rounds: expected at least 1"),
    "threshold of a validation": (lambda d: ev.validate(d, threshold=5, rounds=1), "threshold: expected .* 0 and 1"),
    "level of a validation": (lambda d: ev.validate(d, level=95, rounds=1), "level: expected .* 0 and 1"),
    "undivided number": (lambda d: ev.subgroups("outcome", "probability", "age", data=d), "pandas.cut"),
    "undivided whole number": (
        lambda d: ev.subgroups("outcome", "probability", d["age"].astype(int), data=d),
        "age: .* different numbers are no subgroups",
    ),
    "threshold": (lambda d: ev.decisions("outcome", "probability", 1.0, data=d), "each between 0 and 1"),
    "few sites": (
        lambda d: ev.pool_sites("outcome", "probability", "sex", data=d),
        "2 of 2 sites have 10 patients of either outcome; pooling needs 3",
    ),
    "two estimates": (lambda d: ev.pool_estimates([1, 2], [0.1, 0.1]), "2 sites; pooling needs 3"),
    "no error": (lambda d: ev.pool_estimates([1, 2, 3], [0.1, 0.0, 0.1]), "standard errors above 0"),
    "prevalence": (lambda d: ev.study_size(16, 0.7), "prevalence: expected a number between 0.001 and 0.999"),
    "no rows of a plot": (lambda d: ev.plot_forest([]), "nothing to plot"),
    "no such measure": (lambda d: ev.plot_forest([], "brier"), "expected auc, observed_expected, slope"),
    "one file that is no list": (lambda d: ev.pool_aggregates("a.json"), "files: expected a list"),
    "no file": (lambda d: ev.pool_aggregates([]), "there is no file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str, patients: pd.DataFrame) -> None:
    call, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        call(patients)


def test_a_repeated_column_is_refused_by_a_validation(patients: pd.DataFrame) -> None:
    repeated = pd.concat([patients, 1 - patients[["probability"]]], axis=1)
    with pytest.raises(CohortFault, match="the name is there twice"):
        ev.validate(repeated, rounds=1)


@pytest.mark.parametrize("name", ["outcome", "probability"])
def test_a_subgroup_may_have_the_name_of_an_argument(patients: pd.DataFrame, name: str) -> None:
    halves = pd.Series(["a", "b"] * (COUNT // 2), name=name)
    rows = ev.subgroups(patients["outcome"], patients["probability"], halves).rows
    assert [one.name for one in rows] == [f"{name}: a", f"{name}: b"]
    with pytest.raises(ValueError, match=f"{name} have different indexes"):
        ev.subgroups(patients["outcome"], patients["probability"], halves.iloc[::-1])


def test_one_resample_may_have_one_class_alone() -> None:
    outcome, probability = np.arange(400) < 2, np.linspace(0.9, 0.1, 400)
    for seed in range(20):
        found = ev.discrimination(outcome, probability, rounds=1, seed=seed).average_precision
        assert (found.low, found.high) == (0.0, 1.0)


def test_arrays_need_no_index(patients: pd.DataFrame) -> None:
    turned = patients.iloc[::-1]
    found = ev.discrimination(turned["outcome"], turned["probability"].to_numpy())
    assert found.auc.value == pytest.approx(ev.discrimination("outcome", "probability", data=patients).auc.value)


def test_results_are_frozen_and_become_frames(patients: pd.DataFrame) -> None:
    found = ev.calibration("outcome", "probability", data=patients)
    with pytest.raises(FrozenInstanceError):
        found.ici = 0.0  # type: ignore[misc]
    frame = found.to_frame()
    assert frame.columns.tolist() == ["measure", "value", "low", "high"]
    assert frame.set_index("measure").loc["calibration slope", "low"] == found.slope.low
    curve = found.curve_frame()
    assert len(curve) == 100
    assert (curve["low"] <= curve["high"]).all()
    separated = ev.calibration([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])
    assert separated.curve is None
    assert separated.curve_frame().empty
    assert np.isnan(separated.ici)


def test_subgroups_name_the_patients_without_a_level(patients: pd.DataFrame) -> None:
    frame = ev.subgroups("outcome", "probability", ["sex", "hospital"], data=patients).to_frame()
    assert frame["subgroup"].tolist()[:3] == ["sex: female", "sex: male", "sex: not recorded"]
    assert frame["patients"].sum() == 2 * COUNT
    ages = pd.cut(patients["age"], [0, 20, 70, 120])
    by_age = ev.subgroups(patients["outcome"], patients["probability"], ages).to_frame()
    assert by_age["subgroup"].tolist() == ["age: (20, 70]", "age: (70, 120]"]
    empty = patients["sex"].fillna("")
    for levels in (empty, empty.astype("category")):
        listed = ev.subgroups(patients["outcome"], patients["probability"], levels).to_frame()
        assert listed["subgroup"].tolist() == ["sex: female", "sex: male", "sex: not recorded"]
        assert listed["patients"].sum() == COUNT
    accents = np.resize(["Cl\u00ednic", "Cli\u0301nic"], COUNT)
    assert len(ev.subgroups(patients["outcome"], patients["probability"], accents).rows) == 1
    few = ev.subgroups([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4], ["a", "a", "b", "b"])
    assert few.rows[0].auc is None
    assert few.to_frame()["auc"].isna().all()


def test_a_recalibration_is_the_closed_test_and_keeps_the_index(patients: pd.DataFrame) -> None:
    update = ev.recalibrate("outcome", "probability", data=patients)
    assert update.update is Update.INTERCEPT
    assert 0.5 < update.intercept < 1.1
    shown = patients.iloc[::-1]
    new = ev.recalibrated(update, "probability", data=shown)
    assert new.index.equals(shown.index)
    assert new.mean() == pytest.approx(patients["outcome"].mean(), abs=0.02)
    none = ev.recalibrate(patients["outcome"], new.sort_index())
    assert none.update is Update.NONE
    assert ev.recalibrated(none, new).equals(new.rename("recalibrated"))


def test_drift_takes_outcomes_of_one_class(patients: pd.DataFrame) -> None:
    assert ev.drift("outcome", "probability", data=patients).changed
    assert not ev.drift([0, 0, 0], [0.1, 0.1, 0.2]).changed


def test_studies_of_one_patient_are_taken_together(patients: pd.DataFrame) -> None:
    known = patients.assign(subject=[f"p{n}" for n in range(len(patients))])
    assert ev.recalibrate("outcome", "probability", patient="subject", data=known) == ev.recalibrate(
        "outcome", "probability", data=known
    )
    copies = pd.concat([known] * 4, ignore_index=True)
    alone = ev.drift("outcome", "probability", data=known)
    assert ev.drift("outcome", "probability", patient="subject", data=copies) == alone
    assert ev.drift("outcome", "probability", data=copies).patients == 4 * alone.patients
    update = ev.recalibrate("outcome", "probability", patient="subject", data=copies)
    assert (update.patients, update.events) == (len(known), int(known["outcome"].sum()))
    unnamed = copies.assign(subject=None)
    assert ev.drift("outcome", "probability", patient="subject", data=unnamed).patients == len(copies)
    with pytest.raises(ValueError, match="different indexes"):
        ev.drift(known["outcome"], known["probability"], patient=known["subject"].iloc[::-1])


def test_study_size_is_the_largest_criterion() -> None:
    found = ev.study_size(0.16, 0.73, threshold=0.2)
    frame = found.to_frame()
    assert len(frame) == 6
    assert found.patients == max(one.patients for one in found.criteria) == frame["patients"].max()
    assert found.events == round(0.16 * found.patients)


def test_sites_are_pooled_from_patients_and_from_files(patients: pd.DataFrame, tmp_path: Path) -> None:
    found = ev.pool_sites("outcome", "probability", "hospital", data=patients)
    files = []
    for name, own in patients.groupby("hospital"):
        table = PredictionTable(own["probability"].to_numpy(), own["outcome"].to_numpy(float))
        document = aggregate.of(table, str(name), "mine").model_dump(mode="json")
        json_text.write(tmp_path / f"{name}.json", {"document": document, "signatures": []})
        files.append(tmp_path / f"{name}.json")
    by_files = ev.pool_aggregates(files)
    for one, other in zip(found.pooled, by_files.pooled, strict=True):
        assert one.mean.value == pytest.approx(other.mean.value, rel=1e-6)
    frame = found.to_frame().set_index("measure")
    assert frame.loc["AUC", "prediction_low"] < frame.loc["AUC", "low"] < frame.loc["AUC", "mean"]
    assert found.sites_frame()["patients"].tolist() == [100, 100, 100, 100]


def test_sites_may_have_numbers_of_which_some_are_missing(patients: pd.DataFrame) -> None:
    numbers = pd.Series(np.resize(np.arange(14.0), COUNT)).where(patients.index > 5)
    often = pd.concat([patients] * 3, ignore_index=True)
    found = ev.pool_sites("outcome", "probability", pd.concat([numbers] * 3, ignore_index=True), data=often)
    assert len(found.sites) == 15
    assert found.sites[-1].name == "not recorded"


def test_a_frame_is_validated_and_reported(patients: pd.DataFrame, tmp_path: Path) -> None:
    unknown = patients.assign(outcome=patients["outcome"].where(patients.index > 10))
    found = ev.validate(unknown, site="hospital", subgroups=["sex", "age=60,75"], threshold=0.3, rounds=100)
    known = unknown.dropna(subset="outcome")
    auc = next(one.estimate for one in found.measures if one.key == "auc")
    assert auc == ev.discrimination("outcome", "probability", data=known).auc
    assert ("outcome unknown", 11) in found.table.flow
    report = ev.write_report(found, tmp_path / "report", title="Mine")
    assert "Mine" in report.read_text(encoding="utf-8")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("")
    with pytest.raises(CohortFault, match="other files"):
        ev.write_report(found, tmp_path / "other")
    with pytest.raises(CohortFault, match="column probability: expected a probability"):
        ev.validate(patients.assign(probability=12.0))
