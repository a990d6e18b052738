"""`rlvo validate VERSION --from-outcomes`: the answers that the service gave, on the outcomes that it holds."""

from __future__ import annotations

import csv
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from app.cli.__main__ import app
from app.database import followup
from app.database.session import Database
from app.database.tables import PredictionRow
from app.evaluation.aggregate import Aggregate
from app.operations import federation, recorded_outcomes
from app.registry.model_store import ModelStore, StoredVersion
from app.sdk.errors import InvalidRequest
from app.sdk.followup import Etici, OutcomeDraft
from app.sdk.types import ModelRef
from tests.database.rows import add_answer
from tests.factory import tiny_version
from tests.operations.test_monitor import START

ANSWERS = 120


@pytest.fixture
def version(tmp_path: Path) -> StoredVersion:
    tiny_version(tmp_path / "store")
    return ModelStore(tmp_path / "store").resolve("tiny")


@pytest.fixture
def answers(database: Database, version: StoredVersion) -> list[str]:
    """Answers of two callers: each subject twice, every tenth without an outcome, a few withheld."""
    rng = np.random.default_rng(0)
    model = ModelRef(name=version.name, version=version.version, digest=version.digest)
    ids = []
    for number in range(ANSWERS):
        caller = "north" if number % 3 else "south"
        clinical = {"age": 60.0 + number % 40, "sex": "female" if number % 2 else "male"}
        clinical |= {"atrial_fibrillation": number % 4 == 0, "hypertension": number % 3 == 0}
        probability = float(rng.uniform(0.05, 0.7))
        values = {"created": START + timedelta(days=number), "probability": probability}
        values |= {"withheld": ["cta-missing"]} if number % 20 == 0 else {}
        subject = f"s-{number // 2}-{number % 3}"
        prediction = add_answer(database, values, model=model, clinical=clinical, caller=caller, subject=subject)
        if number % 10:
            etici = Etici.NONE if rng.random() < probability else Etici.COMPLETE
            draft = OutcomeDraft(etici=etici, rescue_treatment=False, final_stenosis_percent=10.0)
            with database.session() as session:
                followup.set_outcome(session, prediction, None, draft)
        ids.append(prediction)
    return ids


def test_answers_become_a_table_with_flow_sites_and_subgroups(
    database: Database, version: StoredVersion, answers: list[str]
) -> None:
    with database.reading() as session:
        table = recorded_outcomes.table(session, version.manifest)
    assert table.flow == (
        ("answers", ANSWERS),
        ("predicted", ANSWERS),
        ("outcome unknown", 12),
        ("analysed", ANSWERS - 12),
    )
    assert table.sites is not None
    assert set(table.sites.tolist()) == {"north", "south"}
    assert (table.groups["decision"].levels == "withheld").sum() == 6
    assert {"sex", "age", "decision"} <= set(table.groups)
    assert table.characteristics["age"][:2] == [60.0, 61.0]
    assert table.dates is not None
    assert table.dates[1] == "2026-01-06"
    assert len(answers) == len(table)


def test_first_answer_about_a_subject_counts(database: Database, version: StoredVersion, answers: list[str]) -> None:
    with database.session() as session:
        for one in answers[:30]:
            session.execute(update(PredictionRow).where(PredictionRow.id == one).values(subject="same", caller="north"))
    with database.reading() as session:
        table = recorded_outcomes.table(session, version.manifest)
    assert table.flow[1] == ("left out: a later answer about the same subject", 29)
    assert table.dates is not None
    assert table.dates[0] == "2026-01-05"


def test_subjects_of_two_callers_are_two_patients(
    database: Database, version: StoredVersion, answers: list[str]
) -> None:
    with database.session() as session:
        for one, caller in zip(answers[:2], ("north", "south"), strict=True):
            session.execute(update(PredictionRow).where(PredictionRow.id == one).values(subject="1", caller=caller))
    with database.reading() as session:
        assert len(recorded_outcomes.table(session, version.manifest)) == ANSWERS


def test_outcomes_of_one_kind_are_refused(database: Database, version: StoredVersion, answers: list[str]) -> None:
    assert answers
    with database.reading() as session, pytest.raises(InvalidRequest, match="0 answers have an outcome"):
        recorded_outcomes.table(session, version.manifest, caller="west")


@pytest.mark.usefixtures("answers")
def test_recorded_outcomes_give_an_aggregate_for_other_sites(
    tmp_path: Path, database_url: str, version: StoredVersion
) -> None:
    environment = {"RLVO_DATABASE_URL": database_url, "RLVO_MODEL_STORE": str(tmp_path / "store")}
    arguments = ["validate", "tiny", "--from-outcomes", "--rounds", "100", "--out", str(tmp_path / "out")]
    more = ["--export-aggregate", str(tmp_path / "bundle.json"), "--as-site", "here", "--share-subgroups"]
    run = CliRunner().invoke(app, [*arguments, *more], env=environment)
    assert run.exit_code == 0, run.output
    found, _ = federation.read(tmp_path / "bundle.json", Aggregate)
    assert (found.predictor, found.predictor_digest) == ("tiny@1.0.0", version.digest)
    assert (found.patients, found.outcome_unknown) == (ANSWERS - 12, 12)
    assert "decision" not in found.subgroups  # six withheld answers are too few, and no other level is small enough


@pytest.mark.usefixtures("answers")
def test_command_writes_the_report(tmp_path: Path, database_url: str) -> None:
    environment = {"RLVO_DATABASE_URL": database_url, "RLVO_MODEL_STORE": str(tmp_path / "store")}
    arguments = ["validate", "tiny", "--from-outcomes", "--rounds", "100", "--out", str(tmp_path / "out")]
    run = CliRunner().invoke(app, [*arguments, "--site", "north", "--since", "2026-01-20"], env=environment)
    assert run.exit_code == 0, run.output
    assert "Validation of tiny@1.0.0 on its recorded outcomes" in run.output
    assert "| Score-ICAD, 2 of 9 items |" in run.output
    rows = list(csv.reader((tmp_path / "out" / "flow.csv").read_text().splitlines()))
    assert ["answers", str(ANSWERS - 15)] in rows
    assert ["left out: another site", "35"] in rows
    mixed = CliRunner().invoke(app, [*arguments, "--threshold", "0.2"], env=environment)
    assert mixed.exit_code == 2
    assert CliRunner().invoke(app, [*arguments, "--since", "1/2/2026"], env=environment).exit_code == 2
