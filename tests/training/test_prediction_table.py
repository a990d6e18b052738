"""Table of predictions of any predictor: faults are named by row without values, and a usual table is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openpyxl
import pytest
from typer.testing import CliRunner

from app.cli.training import commands
from app.training import prediction_table
from app.training.errors import CohortFault
from app.training.prediction_table import TableColumns

HEAD = "probability,outcome,site,date,age,conformal\n"
ROWS = "0.1,0,A,2026-01-01,50,0\n0.8,1,A,2026-02-01,70,0 1\n0.4,,B,2026-03-01,,none\n"
ROWS += ",1,B,2026-03-02,80,1\n0.6,yes,B,2026-04,65,1\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "predictions.csv"
    path.write_text(text)
    return path


def test_usual_table_is_read_with_its_flow(tmp_path: Path) -> None:
    columns = TableColumns(conformal="conformal", subgroups=["age=60,75"])
    table = prediction_table.read(write(tmp_path, HEAD + ROWS), columns)
    assert table.probabilities.tolist() == [0.1, 0.8, 0.4, 0.6]
    assert np.array_equal(table.outcomes, [0, 1, np.nan, 1], equal_nan=True)
    assert table.dates is not None
    assert table.dates.tolist() == ["2026-01-01", "2026-02-01", "2026-03-01", "2026-04-01"]
    assert table.groups["age"].levels.tolist() == ["under 60", "60 to under 75", "", "60 to under 75"]
    assert table.kept is not None
    assert table.kept.tolist() == [[True, False], [True, True], [False, False], [False, True]]
    assert dict(table.flow) == {
        "rows of the table": 5,
        "left out: no probability": 1,
        "predicted": 4,
        "outcome unknown": 1,
        "analysed": 3,
    }


def test_empty_names_and_those_of_a_report_of_rlvo_are_read(tmp_path: Path) -> None:
    rows = "p1,0.1,0,not recorded,,50,0\n,0.8,1,KA,,70,0 1\n,0.4,0,,,60,0\n"
    table = prediction_table.read(write(tmp_path, "patient," + HEAD + rows), TableColumns())
    assert table.sites is not None
    assert table.sites.tolist() == ["not recorded", "KA", ""]
    assert table.clusters is None


def test_site_and_date_select_patients(tmp_path: Path) -> None:
    more = ROWS + "0.2,0,B,2026-05-01,66,0\n"
    table = prediction_table.read(write(tmp_path, HEAD + more), TableColumns(), since="2026-04-01", only_site="B")
    assert table.probabilities.tolist() == [0.6, 0.2]
    assert dict(table.flow)["left out: before 2026-04-01"] == 1


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (HEAD + "17,0,A,,,0\n", "row 2, column probability: expected a probability between 0 and 1"),
        (HEAD + "x,0,A,,,0\n", "row 2, column probability: expected a number"),
        (HEAD + "0.5,2,A,,,0\n", "row 2, column outcome: expected 1 or 0"),
        (HEAD + "0.5,1,n/a,,,0\n", "row 2, column site: a word for a missing site; leave the cell empty"),
        ("patient," + HEAD + "unknown,0.5,1,A,,,0\n", "row 2, column patient: a word for a missing patient"),
        (HEAD + "0.5,1,A,01.02.2026,,0\n", "row 2, column date: not an ISO date"),
        (HEAD + "0.5,1,A,,,\n", "row 2, column conformal: expected not-refractory or 0"),
        ("p,outcome\n0.5,1\n", "the table has no column probability; it has p, outcome; name yours with --probability"),
        (HEAD + "0.5,1,A,,,0\n0.4,1,A,,,0\n", "of one outcome only"),
    ],
)
def test_faults_are_named_with_their_row(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(CohortFault) as caught:
        prediction_table.read(write(tmp_path, text), TableColumns(conformal="conformal" if "conformal" in text else ""))
    assert fault in "\n".join(caught.value.faults)


def test_limits_that_do_not_increase_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortFault, match="increasing limits"):
        prediction_table.read(write(tmp_path, HEAD + ROWS), TableColumns(subgroups=["age=75,60"]))


LINES = "patient,row,model,probability,outcome\np1,2,A,0.1,0\np2,3,A,0.8,1\np1,2,B,0.4,0\np2,3,B,0.6,1\n"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (LINES, "column model: 2 values, so that a study has several lines; keep the lines of one of them"),
        (LINES.replace("B", "A"), "2 rows (4, 5): it is of the same study as an earlier row; keep one of them"),
        ("patient,probability,outcome\na,0.1,0\nb,0.8,1\na,0.1,0\n", "row 4: it is of the same study"),
    ],
)
def test_study_with_several_lines_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(CohortFault) as caught:
        prediction_table.read(write(tmp_path, text), TableColumns())
    assert fault in "\n".join(caught.value.faults)


def test_patient_with_several_studies_is_counted(tmp_path: Path) -> None:
    path = write(tmp_path, "patient,model,probability,outcome\na,X,0.1,0\nb,Y,0.8,1\na,X,0.3,0\n")
    table = prediction_table.read(path, TableColumns())
    assert table.patients is not None
    assert table.patients.tolist() == ["a", "b", "a"]


def test_percent_cells_of_a_spreadsheet_are_probabilities(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    for line in [("probability", "outcome"), (0.35, 1), (0.004, 0), (0.2, 0)]:
        sheet.append(line)
    for row in (2, 3):
        sheet.cell(row, 1).number_format = "0.0%"
    book.save(tmp_path / "predictions.xlsx")
    table = prediction_table.read(tmp_path / "predictions.xlsx", TableColumns())
    assert table.probabilities.tolist() == pytest.approx([0.35, 0.004, 0.2])


def test_table_of_a_program_with_decimal_commas_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "probability;outcome;mrs\n0,35;1,0;10,0\n0,004;0,0;2,0\n0,2;;9,0\n")
    table = prediction_table.read(path, TableColumns(subgroups=["mrs"]))
    assert np.array_equal(table.outcomes, [1, 0, np.nan], equal_nan=True)
    assert table.groups["mrs"].order == ("2,0", "9,0", "10,0")


def test_variable_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortFault, match="--subgroup age is given twice"):
        prediction_table.read(write(tmp_path, HEAD + ROWS), TableColumns(subgroups=["age=60", "age=75"]))


def test_command_writes_a_report_and_refuses_another_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    chances = rng.random(120)
    lines = [f"{p:.4f},{int(rng.random() < p)},{'AB'[n % 2]}" for n, p in enumerate(chances)]
    path = write(tmp_path, "risk,dead,hospital\n" + "\n".join(lines) + "\n")
    options = ["--probability", "risk", "--outcome", "dead", "--site-column", "hospital", "--rounds", "100"]
    out = tmp_path / "out"
    result = CliRunner().invoke(commands, ["validate", str(path), "--out", str(out), *options])
    assert result.exit_code == 0, result.output
    assert "| AUC | " in result.stdout
    assert (out / "report.html").is_file()
    result = CliRunner().invoke(commands, ["validate", str(path), "--out", str(tmp_path), *options])
    assert result.exit_code == 2
    assert "--out" in result.output
