"""`rlvo compare`: two versions on the outcomes on record, by their answers and by their scores as a shadow."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from scipy.special import expit
from typer.testing import CliRunner

from app.cli.__main__ import app
from app.database import followup, predictions, shadow_scores
from app.database.followup import LiveScore
from app.database.session import Database
from app.database.shadow_scores import ShadowScore
from app.evaluation.metrics import auc, brier, delong
from app.operations import version_comparison
from app.registry.manifest import Manifest
from app.registry.model_store import ModelStore
from app.sdk.errors import InvalidRequest
from app.sdk.followup import Etici, OutcomeDraft
from app.sdk.types import ModelRef
from tests.database.rows import add_answer
from tests.factory import tiny_manifest, tiny_version

START = datetime(2026, 3, 2, 12, tzinfo=UTC)
NAMES = ("tiny@1.0.0", "tiny@1.1.0")


def scores(count: int = 80, seed: int = 0) -> tuple[list[LiveScore], list[LiveScore], np.ndarray]:
    """Scores of two versions for the same subjects, and their outcomes, a quarter of them positive."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4 == 0
    both: list[list[LiveScore]] = []
    for version, noise in enumerate((1.0, 2.0)):
        logits = 2.0 * labels - 1.5 + rng.normal(0, noise, count)
        both.append(
            [
                LiveScore(
                    f"{version}-{n}",
                    "pacs",
                    f"S-{n}",
                    START + timedelta(days=n),
                    float(expit(logits[n])),
                    bool(labels[n]),
                )
                for n in range(count)
            ]
        )
    return both[0], both[1], labels.astype(np.int64)


def values(given: list[LiveScore]) -> np.ndarray:
    return np.array([one.probability for one in given])


def test_same_patients_are_compared_by_delong() -> None:
    first, second, labels = scores()
    result = version_comparison.compare(NAMES, first, second)
    one, other = result.shared
    assert result.difference == delong(labels, values(first), values(second))
    assert one.auc is not None
    assert other.brier is not None
    assert one.auc.value == pytest.approx(auc(labels, values(first)))
    assert other.brier.value == pytest.approx(brier(labels, values(second)))
    assert one.slope is not None
    assert one.in_the_large is not None
    assert (one.patients, one.events, result.contradicting) == (80, 20, 0)


def test_patients_of_one_version_only_are_in_its_own_row() -> None:
    first, second, _ = scores()
    result = version_comparison.compare(NAMES, first, second[:60])
    assert [one.patients for one in result.own] == [80, 60]
    assert [one.patients for one in result.shared] == [60, 60]


def test_outcome_of_either_prediction_is_that_of_the_patient() -> None:
    first, second, labels = scores()
    unknown = [replace(one, refractory=None) for one in second]
    result = version_comparison.compare(NAMES, first, unknown)
    assert result.difference == delong(labels, values(first), values(second))
    without = [replace(one, refractory=None) for one in first]
    assert version_comparison.compare(NAMES, without, unknown).shared[0].patients == 0


def test_contradicting_outcomes_leave_the_patient_out() -> None:
    first, second, _ = scores()
    second[3] = replace(second[3], refractory=not first[3].refractory)
    result = version_comparison.compare(NAMES, first, second)
    assert (result.contradicting, result.shared[0].patients) == (1, 79)
    assert any("1 patients with contradicting outcomes" in note for note in version_comparison.notes(result))


def test_same_subject_of_another_tenant_or_day_is_another_patient() -> None:
    first, second, _ = scores()
    for change in ({"caller": "other"}, {"created": START - timedelta(days=1)}):
        moved = [replace(one, **change) for one in second]  # type: ignore[arg-type]
        assert version_comparison.compare(NAMES, first, moved).shared[0].patients == 0
    anonymous = [replace(one, subject=None) for one in first]
    shadow = [replace(one, probability=0.5) for one in anonymous]
    assert version_comparison.compare(NAMES, anonymous, shadow).shared[0].patients == 80  # the same predictions


def test_last_score_of_a_patient_counts() -> None:
    first, second, labels = scores()
    earlier = [replace(one, probability=0.5, prediction_id=f"a{one.prediction_id}") for one in first]
    result = version_comparison.compare(NAMES, [*earlier, *first], second)
    assert result.difference == delong(labels, values(first), values(second))


@pytest.mark.parametrize(("events", "compared"), [(9, False), (10, True)])
def test_few_events_are_counted_and_not_compared(events: int, compared: bool) -> None:
    first, second, _ = scores()
    rare = [[replace(one, refractory=n < events) for n, one in enumerate(given)] for given in (first, second)]
    result = version_comparison.compare(NAMES, rare[0], rare[1])
    assert (result.difference is not None) == compared
    assert (result.shared[0].auc is not None) == compared
    (note,) = version_comparison.notes(result)
    assert note.startswith("AUC of" if compared else "Not compared: the same patients have 9 of the rarer outcome; 10")
    heads, rows = version_comparison.table(result)
    assert all(len(row) == len(heads) for row in rows)


def test_version_of_another_target_is_refused() -> None:
    manifest: Manifest = tiny_manifest()
    version_comparison.check_targets([manifest])
    training = manifest.training.model_copy(update={"target": "unsuccessful_reperfusion"})
    with pytest.raises(InvalidRequest, match="predicts unsuccessful_reperfusion"):
        version_comparison.check_targets([manifest, manifest.model_copy(update={"training": training})])


def answered(database: Database, model: ModelRef, subject: str, probability: float, day: int) -> str:
    values = {"created": START + timedelta(days=day), "probability": probability}
    return add_answer(database, values, model=model, subject=subject)


def test_command_reads_answers_shadows_and_outcomes(tmp_path: Path, database: Database, database_url: str) -> None:
    tiny_version(tmp_path / "store")
    tiny_version(tmp_path / "store", version="1.1.0")
    entry = ModelStore(tmp_path / "store").resolve("tiny@1.0.0")
    model = ModelRef(name=entry.name, version=entry.version, digest=entry.digest)
    first, second, labels = scores(48)
    for n in range(48):
        own = answered(database, model, f"S-{n}", first[n].probability, n)
        if n % 2:  # the second version scored this one as a shadow, and answered the others itself
            difference = second[n].probability - first[n].probability
            with database.session() as session:
                shadow_scores.store(session, ShadowScore(own, "tiny", "1.1.0", "1.0.0", difference, True))
        else:
            answered(database, model.model_copy(update={"version": "1.1.0"}), f"S-{n}", second[n].probability, n)
        grade = Etici.NONE if labels[n] else Etici.COMPLETE
        draft = OutcomeDraft(etici=grade, rescue_treatment=False, final_stenosis_percent=5.0)
        with database.session() as session:
            followup.set_outcome(session, own, None, draft)
    erased = answered(database, model, "S-99", 0.9, 1)
    with database.session() as session:
        followup.set_outcome(session, erased, None, OutcomeDraft(etici=Etici.NONE, rescue_treatment=False))
        predictions.erase(session, erased, None)
    environment = {"RLVO_DATABASE_URL": database_url, "RLVO_MODEL_STORE": str(tmp_path / "store")}

    def rlvo(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["compare", *arguments], env=environment)

    run = rlvo("tiny@1.0.0", "tiny@1.1.0", "--out", str(tmp_path / "out"))
    assert run.exit_code == 0, run.output
    assert "AUC of tiny@1.0.0 minus tiny@1.1.0 on the same patients: " in run.output
    document = json.loads((tmp_path / "out" / "comparison.json").read_text())
    expected = delong(labels, values(first), values(second))
    assert document["auc_difference"]["difference"] == pytest.approx(expected.difference)
    assert document["auc_difference"]["p"] == pytest.approx(expected.p)
    assert [one["patients"] for one in (*document["own"], *document["same"])] == [48, 48, 48, 48]
    lines = list(csv.DictReader((tmp_path / "out" / "comparison.csv").read_text().splitlines()))
    assert float(lines[2]["auc"]) == pytest.approx(auc(labels, values(first)), abs=1e-5)
    assert (tmp_path / "out" / "decision-curve.png").read_bytes().startswith(b"\x89PNG")
    late = rlvo("tiny@1.0.0", "tiny@1.1.0", "--since", "2026-04-10")
    assert late.exit_code == 1
    assert "Not compared" in late.output
    assert rlvo("tiny@1.0.0", "tiny@1.0.0").exit_code == 2
