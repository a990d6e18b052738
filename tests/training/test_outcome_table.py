"""A table of outcomes is read as a cohort's table is, with all faults at once and no value of a patient in them."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from app.sdk.followup import Etici
from app.training import outcome_table
from app.training.errors import CohortFault
from app.training.outcome_table import OutcomeTable

ID = "0192f3a4-7c1e-7b7e-9d0a-3f5a1c2b4d6e"


def read(folder: Path, text: str, rules: str = "", date_format: str = "") -> OutcomeTable:
    (folder / "outcomes.csv").write_text(text, encoding="utf-8")
    if rules:
        (folder / "columns.toml").write_text(rules, encoding="utf-8")
    return outcome_table.read(folder / "outcomes.csv", date_format=date_format)


def faults(folder: Path, text: str, rules: str = "") -> str:
    with pytest.raises(CohortFault) as caught:
        read(folder, text, rules)
    return "\n".join(caught.value.faults)


def test_rows_name_their_prediction_or_subject(tmp_path: Path) -> None:
    text = f"prediction,subject,date,etici,rescue_treatment,final_stenosis_percent\n{ID},,,TICI 2b,0,\n"
    text += f",S-1,2026-03-01,2a,yes,60.5\n{ID.upper()},S-2,,3,1,0\n"
    first, second, third = read(tmp_path, text).entries
    assert (first.row, first.prediction, first.draft.etici, first.draft.rescue_treatment) == (2, ID, Etici("2b"), False)
    assert first.draft.refractory is None  # the stenosis could decide, and was not measured
    assert (second.subject, second.day, second.draft.final_stenosis_percent) == ("S-1", date(2026, 3, 1), 60.5)
    assert (third.prediction, third.draft.refractory) == (ID, True)


def test_hospital_table_is_declared_in_columns_toml(tmp_path: Path) -> None:
    rules = 'date_format = "dd/mm/yyyy"\ndecimal = ","\n[columns.NHC]\nfield = "subject"\n[columns.Rescate]\n'
    rules += 'field = "rescue_treatment"\nvalues = { P = "1", N = "0" }\n[columns.Nota]\nfield = ""\n'
    text = "NHC;Date;eTICI;Rescate;final stenosis percent;Nota;Age\nS-1;13/02/2026;IIb;P;55,5;x;70\nS-2;;2c;N;;y;80\n"
    table = read(tmp_path, text, rules)
    assert [(entry.subject, entry.draft.rescue_treatment) for entry in table.entries] == [("S-1", True), ("S-2", False)]
    assert table.entries[0].day == date(2026, 2, 13)
    assert table.entries[0].draft.final_stenosis_percent == 55.5
    assert table.unused == ("Age",)


def test_patient_of_predict_cohort_is_the_subject(tmp_path: Path) -> None:
    (entry,) = read(tmp_path, "patient,etici,rescue_treatment\nP-1,2b50,0\n").entries
    assert (entry.subject, entry.day, entry.draft.final_stenosis_percent) == ("P-1", None, None)


def test_row_without_any_finding_has_no_outcome_yet(tmp_path: Path) -> None:
    table = read(tmp_path, "subject,etici,rescue_treatment,final_stenosis_percent\nS-1,,,\nS-2,3,0,\n")
    assert (table.without, [entry.row for entry in table.entries]) == ((2,), [3])


def test_all_faults_are_reported_together_without_values(tmp_path: Path) -> None:
    text = "prediction,subject,date,etici,rescue_treatment,final_stenosis_percent\n"
    text += (
        f"{ID},,,2,0,10\nJane,,,3,0,\n,Jane Roe,,3,0,\n,S-1,1/3/2026,3,0,\n,,,3,0,\n,S-2,,,0,\n,S-3,,3,perhaps,500\n"
    )
    said = faults(tmp_path, text)
    for expected in (
        "row 2, column etici: expected one of 0, 1, 2a",
        "row 3, column prediction: expected the id of a prediction",
        "row 4, column subject: expected a pseudonym",
        "row 5, column date: not an ISO date",
        "row 6: names no prediction and no subject",
        "row 7, column etici: missing; an outcome needs eTICI and rescue treatment",
        "row 8, column rescue_treatment: expected 1 or 0",
        "row 8, column final_stenosis_percent: expected 0 to 100",
    ):
        assert expected in said
    for value in ("Jane", "perhaps", "500", "1/3/2026"):
        assert value not in said


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("subject,etici", "column rescue_treatment is missing"),
        ("etici,rescue_treatment", "no column names the predictions"),
        ("subject,patient,etici,rescue_treatment", "it is subject, and so is another column"),
        ("subject,etici,rescue_treatment,stenosi", "column stenosi: unknown"),
        ("subject,eTICI,etici,rescue_treatment", "it is etici, and so is column eTICI"),
    ],
)
def test_wrong_columns_are_refused(tmp_path: Path, header: str, message: str) -> None:
    assert message in faults(tmp_path, f"{header}\n{','.join('0' * len(header.split(',')))}\n")
