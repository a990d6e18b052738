"""`rlvo monitor` reports a miscalibrated version and a changed population, and no signal otherwise."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from app.cli.__main__ import app
from app.database import followup, predictions
from app.database.followup import FollowedUpPrediction
from app.database.session import Database
from app.operations import monitor
from app.operations.monitor import InputShift, WindowLength, report
from app.registry.manifest import Manifest
from app.registry.model_store import ModelStore
from app.sdk.followup import Etici, OutcomeDraft, ReviewDraft, ReviewReason, Verdict
from app.sdk.types import ModelRef
from tests.database.rows import add_answer
from tests.factory import tiny_manifest, tiny_version

START = datetime(2026, 1, 5, 12, tzinfo=UTC)  # a Monday


def cohort(count: int, seed: int = 0, **changes: Callable[[np.random.Generator], Any]) -> list[FollowedUpPrediction]:
    """Predictions of a calibrated version on patients like those of training, one per hour."""
    rng = np.random.default_rng(seed)
    predictions = []
    for number in range(count):
        probability = float(rng.uniform(0.05, 0.6))
        record = {
            "age": float(np.clip(rng.normal(73, 12), 20, 110)),
            "nihss": int(np.clip(rng.normal(15, 6), 0, 42)),
            "atrial_fibrillation": bool(rng.random() < 0.38),
            "smoking": str(rng.choice(["never", "former", "current"], p=[0.5, 0.3, 0.2])),
        }
        predictions.append(
            FollowedUpPrediction(
                created=START + timedelta(hours=number),
                probability=probability,
                clinical=record | {name: change(rng) for name, change in changes.items()},
                perfusion=None,
                flags=frozenset(),
                refractory=bool(rng.random() < probability),
                verdicts=(),
            )
        )
    return predictions


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return tiny_manifest()


def test_patients_like_those_of_training_give_no_signal(manifest: Manifest) -> None:
    result = report(cohort(600), manifest, WindowLength.WEEK)
    assert [window.predictions for window in result.windows] == [156, 168, 168, 108]
    assert result.signals == {}
    assert result.overall is not None
    assert result.overall.low <= result.overall.expected <= result.overall.high
    assert result.slope.value == pytest.approx(1, abs=0.35)
    assert result.in_the_large.value == pytest.approx(0, abs=0.35)


def test_window_numbers_follow_their_definitions(manifest: Manifest) -> None:
    patients = [
        replace(one, probability=probability, refractory=truth, verdicts=verdicts, flags=frozenset(flags))
        for one, probability, truth, verdicts, flags in zip(
            cohort(4),
            [0.1, 0.4, 0.6, 0.9],
            [False, True, True, None],
            [(True,), (True, False), (), ()],
            [[], ["out-of-distribution"], ["imputed"], []],
            strict=True,
        )
    ]
    (window,) = report(patients, manifest, WindowLength.MONTH).windows
    assert window.start == datetime(2026, 1, 1, tzinfo=UTC)
    assert window.probability == pytest.approx(0.5)
    assert (window.reviews, window.agreement) == (3, pytest.approx(2 / 3))
    assert window.out_of_distribution == 0.25
    calibration = window.calibration
    assert calibration is not None
    assert (calibration.patients, calibration.auc) == (3, 1.0)
    assert calibration.expected == pytest.approx((0.1 + 0.4 + 0.6) / 3)
    assert calibration.observed == pytest.approx(2 / 3)
    assert calibration.brier == pytest.approx((0.01 + 0.36 + 0.16) / 3)
    ages = [one.clinical["age"] for one in patients]
    age = window.shifts[0]
    assert (age.variable, age.known, age.missing) == ("age", 4, 0.0)
    assert age.deviations == pytest.approx((np.mean(ages) - 73) / 12)
    core = next(shift for shift in window.shifts if shift.variable == "core_ml")
    assert (core.known, core.missing, core.deviations, core.signal) == (0, 1.0, 0.0, False)


def test_older_patients_give_a_signal_in_their_windows(manifest: Manifest) -> None:
    older = cohort(168, seed=1, age=lambda rng: float(rng.normal(88, 5)))
    later = [replace(one, created=one.created + timedelta(weeks=4)) for one in older]
    result = report([*cohort(400), *later], manifest, WindowLength.WEEK)
    assert set(result.signals) == {
        window.start for window in result.windows if window.start >= datetime(2026, 2, 2, tzinfo=UTC)
    }
    assert all(signal.startswith("age +1.") for signals in result.signals.values() for signal in signals)


def test_category_and_flag_give_signals(manifest: Manifest) -> None:
    patients = cohort(60, smoking=lambda _: "current", atrial_fibrillation=lambda _: True)
    (window,) = report(patients, manifest, WindowLength.MONTH).windows
    signals = {shift.variable: shift for shift in window.shifts if shift.signal}
    assert set(signals) == {"smoking", "atrial_fibrillation"}
    assert signals["smoking"].deviations == pytest.approx((1 - 0.2) / np.sqrt(0.2 * 0.8), abs=1e-6)
    assert signals["atrial_fibrillation"].deviations == pytest.approx((1 - 0.38) / 0.49, abs=1e-4)


def test_signal_needs_a_large_and_significant_shift() -> None:
    assert not InputShift("age", 1.4, 4, 0).signal  # three standard errors of four patients are 1.5
    assert InputShift("age", 1.6, 4, 0).signal
    assert not InputShift("age", 0.4, 10_000, 0).signal
    assert InputShift("age", -0.6, 10_000, 0).signal


def test_underestimating_version_gives_a_calibration_signal(manifest: Manifest) -> None:
    patients = [replace(one, probability=one.probability / 4) for one in cohort(300)]
    result = report(patients, manifest, WindowLength.MONTH)
    assert [signals[0].startswith("calibration:") for signals in result.signals.values()] == [True]
    heads, rows = monitor.table(result)
    assert rows[0][heads.index("observed (95 %)")].endswith("!")
    assert result.in_the_large is not None
    assert result.in_the_large.value > 0.5
    assert result.drift.changed
    assert "rlvo recalibrate mine@1.0.0" in monitor.proposal(result, "mine@1.0.0")


def test_repeated_predictions_about_a_subject_are_no_evidence_of_drift(manifest: Manifest) -> None:
    """Five predictions about each of 40 subjects, of whom two more than expected have the outcome."""
    once = [replace(one, probability=0.25, refractory=n % 10 in (1, 4, 8)) for n, one in enumerate(cohort(40))]
    repeated = [
        replace(one, created=START + timedelta(minutes=5 * n + again), caller="pacs", subject=f"S-{n}")
        for n, one in enumerate(once)
        for again in range(5)
    ]
    found = report(repeated, manifest, WindowLength.MONTH)
    alone = report(once, manifest, WindowLength.MONTH)
    assert found.drift == alone.drift
    limits, own = (one.overall.limits if one.overall else (0, 0) for one in (found, alone))
    assert limits == pytest.approx(own)
    unnamed = report([replace(one, subject=None) for one in repeated], manifest, WindowLength.MONTH)
    assert unnamed.drift.patients == 200
    assert unnamed.overall
    assert unnamed.overall.limits[1] < limits[1]


def test_window_outside_the_interval_but_inside_the_limits_gives_no_signal(manifest: Manifest) -> None:
    """One window in twenty of a calibrated version is outside of its 95 % interval."""
    patients = [
        replace(one, probability=0.2, refractory=number % 10 in (3, 6, 9)) for number, one in enumerate(cohort(100))
    ]
    result = report(patients, manifest, WindowLength.MONTH)
    (window,) = result.windows
    assert window.calibration is not None
    assert not window.calibration.low <= window.calibration.expected
    assert not [text for text in window.signals if text.startswith("calibration")]
    assert monitor.proposal(result, "mine@1.0.0") == ""


def test_few_events_say_nothing_yet(manifest: Manifest) -> None:
    patients = [replace(one, probability=0.2, refractory=number % 5 == 0) for number, one in enumerate(cohort(60))]
    result = report(patients, manifest, WindowLength.MONTH)
    assert result.drift.text.startswith("12 events (12.0 expected): nothing can be said yet; only a ratio of 2.1")
    document = monitor.document(result)["drift"]
    assert isinstance(document, dict)
    assert (document["silent"], document["changed"], document["events"]) == (True, False, 12)


def test_too_few_of_one_outcome_are_not_recalibrated(manifest: Manifest) -> None:
    patients = [replace(one, probability=0.9, refractory=False) for one in cohort(20)]
    result = report(patients, manifest, WindowLength.MONTH)
    assert result.drift.changed
    assert "too few outcomes to recalibrate" in monitor.proposal(result, "mine@1.0.0")


def test_drift_needs_no_outcomes_or_reviews(manifest: Manifest) -> None:
    patients = [replace(one, refractory=None) for one in cohort(50, age=lambda _: 25.0)]
    result = report(patients, manifest, WindowLength.MONTH)
    assert (result.overall, result.slope) == (None, None)
    assert [signals[0].split()[0] for signals in result.signals.values()] == ["age"]
    _, rows = monitor.table(result)
    assert rows[0][3:10] == ["0", "", "", "", "", "", ""]
    assert result.drift.text.startswith("0 events (0.0 expected): nothing can be said yet; no change would be seen")


def answered(database: Database, model: ModelRef, created: datetime, clinical: dict[str, Any]) -> str:
    """Store a finished prediction with this creation time; return its id."""
    return add_answer(database, {"created": created}, model=model, clinical=clinical)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    tiny_version(tmp_path / "store")
    return tmp_path / "store"


def test_command_writes_table_and_figures(tmp_path: Path, store: Path, database: Database, database_url: str) -> None:
    entry = ModelStore(store).resolve("tiny")
    model = ModelRef(name=entry.name, version=entry.version, digest=entry.digest)
    ids = [answered(database, model, START + timedelta(days=20 * n), {"age": 25 + n}) for n in range(12)]
    answered(database, model.model_copy(update={"version": "9.9.9"}), START, {"age": 70})
    erased = answered(database, model, START, {"age": 70})
    with database.session() as session:
        for number, prediction_id in enumerate(ids[:8]):
            etici = Etici.NONE if number < 2 else Etici.COMPLETE
            draft = OutcomeDraft(etici=etici, rescue_treatment=False, final_stenosis_percent=10.0)
            followup.set_outcome(session, prediction_id, None, draft)
        reviewed = ReviewDraft(reviewer="r-1", verdict=Verdict.OVERRIDE, reason=ReviewReason.OTHER)
        followup.add_review(session, ids[0], None, reviewed)
        followup.add_review(session, ids[0], None, ReviewDraft(reviewer="r-1", verdict=Verdict.AGREE))
        followup.add_review(session, ids[0], None, reviewed.model_copy(update={"reviewer": "r-2"}))
        predictions.erase(session, erased, None)
    environment = {"RLVO_DATABASE_URL": database_url, "RLVO_MODEL_STORE": str(store), "RLVO_DEFAULT_MODEL": "tiny"}

    def rlvo(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["monitor", *arguments], env=environment)

    run = rlvo("--out", str(tmp_path / "out"), "--strict")
    assert run.exit_code == 1, run.output  # an age of 25 years is a signal
    rows = list(csv.DictReader((tmp_path / "out" / "monitor.csv").read_text().splitlines()))
    assert sum(int(row["patients"]) for row in rows[:-1]) == int(rows[-1]["patients"]) == 12
    assert rows[-1]["from"] == "all"
    assert rows[-1]["outcomes"] == "8"
    assert rows[-1]["observed (95 %)"].startswith("25%")
    assert rows[0]["agreement"] == "50% of 2"  # only the last review of each reviewer counts
    assert "age -4.0 SD !" in rows[0]["largest shift"]
    assert "age -4.0 SD" in run.output
    for name in ("over-time", "shifts", "calibration"):
        ElementTree.parse(tmp_path / "out" / f"{name}.svg")
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads((tmp_path / "out" / "monitor.json").read_text())
    assert sum(window["predictions"] for window in document["windows"]) == 12
    assert document["overall"]["patients"] == 8
    assert any("age -4.0 SD" in window["signals"] for window in document["windows"])
    later = rlvo("tiny@1.0.0", "--since", "2026-08-01", "--window", "day")
    assert later.exit_code == 0
    assert "2026-08-13" in later.output
    assert "2026-01-05" not in later.output
    assert rlvo("--since", "2030-01-01").exit_code == 2
    assert rlvo("--window", "year").exit_code == 2
