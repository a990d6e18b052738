"""``rlvo outcomes import`` with a real service: all or nothing, and twice the same table changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import update
from typer.testing import CliRunner, Result

from app.cli.__main__ import app
from app.database import job_state, predictions
from app.database.tables import PredictionRow
from app.sdk.client import Client
from tests.api.server import Server, started
from tests.database.results import result as finished_result
from tests.factory import tiny_version
from tests.study import new_prediction

HEAD = "prediction,subject,date,etici,rescue_treatment,final_stenosis_percent\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("outcomes")
    tiny_version(folder / "store")
    with started(folder, folder / "store") as running:
        yield running


def predicted(server: Server, subject: str, day: int = 1, *, finished: bool = True) -> str:
    """Store a prediction of this day of March 2026, as a study without keys does; return its id."""
    new = new_prediction(caller="local", subject=subject)
    database = server.database()
    with database.session() as session:
        predictions.add(session, new)
    with database.session() as session:
        if finished:
            study = job_state.start(session, new.id)
            assert study is not None
            assert job_state.succeed(session, study, finished_result())
        created = datetime(2026, 3, day, 23, 30, tzinfo=UTC)
        session.execute(update(PredictionRow).where(PredictionRow.id == new.id).values(created=created))
    database.close()
    return new.id


def imported(server: Server, folder: Path, text: str, *options: str) -> Result:
    (folder / "outcomes.csv").write_text(HEAD + text)
    return CliRunner().invoke(app, ["outcomes", "import", str(folder / "outcomes.csv"), "--url", server.url, *options])


def grade(server: Server, prediction: str) -> str | None:
    with Client(server.url) as client:
        outcome = client.outcome(prediction)
    return None if outcome is None else outcome.etici.value


def test_table_is_checked_then_recorded_then_unchanged(server: Server, tmp_path: Path) -> None:
    by_id, by_subject = predicted(server, "A-1"), predicted(server, "A-2")
    text = f"{by_id},,,TICI 2b,0,60\n,A-2,,1,yes,\n,A-3,,,,\n"
    check = imported(server, tmp_path, text, "--check")
    assert check.exit_code == 0, check.output
    assert check.stdout.strip() == "2 to record, 0 to correct, 0 unchanged, 1 rows without an outcome yet"
    assert grade(server, by_id) is None
    assert imported(server, tmp_path, text).stdout.startswith("2 recorded, 0 corrected, 0 unchanged")
    assert (grade(server, by_id), grade(server, by_subject)) == ("2b", "1")
    assert imported(server, tmp_path, text).stdout.startswith("0 recorded, 0 corrected, 2 unchanged")


def test_a_stenosis_as_a_fraction_is_refused(server: Server, tmp_path: Path) -> None:
    predictions = [predicted(server, f"F-{number}") for number in (1, 2)]
    refused = imported(server, tmp_path, f"{predictions[0]},,,3,0,0.7\n{predictions[1]},,,3,0,70\n")
    assert refused.exit_code == 2
    assert "row 2, column final_stenosis_percent: it is below 1 %" in refused.output
    assert [grade(server, each) for each in predictions] == [None, None]


def test_other_outcome_on_record_needs_consent(server: Server, tmp_path: Path) -> None:
    own, new = predicted(server, "B-1"), predicted(server, "B-2")
    assert imported(server, tmp_path, f"{own},,,3,0,0\n").exit_code == 0
    text = f"{own},,,2a,0,0\n{new},,,3,0,0\n"
    refused = imported(server, tmp_path, text)
    assert refused.exit_code == 2
    assert "row 2: another outcome is on record; give --correct" in refused.stderr
    assert (grade(server, own), grade(server, new)) == ("3", None)
    corrected = imported(server, tmp_path, text, "--correct")
    assert corrected.stdout.startswith("1 recorded, 1 corrected, 0 unchanged")
    assert (grade(server, own), grade(server, new)) == ("2a", "3")


def test_outcome_of_a_subject_belongs_to_its_predictions_of_that_day(server: Server, tmp_path: Path) -> None:
    champion, challenger, later = predicted(server, "C-1"), predicted(server, "C-1"), predicted(server, "C-1", 20)
    unclear = imported(server, tmp_path, ",C-1,,0,0,\n")
    assert unclear.exit_code == 2
    assert "row 2: the subject has predictions of several days; give the date" in unclear.stderr
    assert imported(server, tmp_path, ",C-1,2026-03-01,0,0,\n").stdout.startswith("2 recorded")
    assert [grade(server, one) for one in (champion, challenger, later)] == ["0", "0", None]


def test_all_rows_are_resolved_before_the_first_is_written(server: Server, tmp_path: Path) -> None:
    good, waiting = predicted(server, "D-1"), predicted(server, "D-2", finished=False)
    unknown = "0192f3a4-7c1e-7b7e-9d0a-3f5a1c2b4d6e"
    text = f"{good},,,3,0,\n{unknown},,,3,0,\n{waiting},,,3,0,\n,D-9,,3,0,\n,D-1,2026-03-02,3,0,\n"
    text += f"{good},D-7,,3,0,\n,D-1,,2a,0,\n,D-2,,3,0,\n"
    result = imported(server, tmp_path, text)
    assert result.exit_code == 2
    for message in (
        "row 3: there is no prediction with this id",
        "row 4: the prediction has no result",
        "row 6: the subject has no prediction of this date",
        "row 7: the prediction with this id is of another subject",
        "row 8: another row gives the same prediction another outcome",
        "2 rows (5, 9): the subject has no prediction with a result",
    ):
        assert message in result.stderr
    assert grade(server, good) is None
    for value in ("D-1", "D-9", unknown):
        assert value not in result.stderr


def test_damaged_table_is_refused_before_the_service_is_asked(tmp_path: Path) -> None:
    (tmp_path / "outcomes.csv").write_text("subject,etici\nS-1,4\n")
    address = "http://127.0.0.1:9"  # nothing listens there
    result = CliRunner().invoke(app, ["outcomes", "import", str(tmp_path / "outcomes.csv"), "--url", address])
    assert result.exit_code == 2
    assert "column rescue_treatment is missing" in result.stderr
