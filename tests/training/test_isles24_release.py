"""Headers, values and layouts of the ISLES'24 release, as its public readers show them (docs/isles24.md)."""

from __future__ import annotations

import shutil
from datetime import datetime, time, timedelta
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from app.cli.training import commands
from app.training import cohort, isles24, isles24_values
from app.training.errors import CohortFault
from app.training.options import Target
from tests.training.test_isles24 import read, write_data_set, write_patient, write_table

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "isles24.md"
RELEASE: dict[str, object] = {
    "Center": 1,
    "Sex": "M",
    "Age": 71,
    "Atrial fibrillation": 0,
    "Hypertension": 1,
    "Diabetes": 0,
    "Hyperlipidemia": 1,
    "Anticoagulation": 0,
    "Lipid lowering drugs": 0,
    "PAIs": 1,
    "Glucose": 118,
    "Leucocytes": 8.5,
    "CRP": 0.4,
    "INR": 1.1,
    "Wake-up": 0,
    "In-House": 0,
    "Referral": 1,
    "Onset to door": "0 days 01:35:00",
    "Alert to door": "0 days 00:40:00",
    "NIHSS at admission": 14,
    "mRS at admission": 4,
    "mRS premorbid": 0,
    "Door to imaging": "0 days 00:20:30",
    "Door to groin": "0 days 01:05:00",
    "Door to first series": "0 days 01:20:00",
    "Time of intervention": "0 days 00:55:00",
    "Door to recanalization": "0 days 02:10:00",
}
"""The 27 headers of the baseline table, in their order."""


@pytest.mark.parametrize("excel", [False, True])
def test_every_header_of_the_release_is_read_or_dropped_by_name(tmp_path: Path, excel: bool) -> None:
    write_data_set(tmp_path, 21, excel=excel, **dict.fromkeys(RELEASE) | RELEASE)  # type: ignore[arg-type]
    imported = isles24.load(tmp_path)
    first = imported.frame.iloc[0]
    assert (first["age"], first["sex"], first["onset_to_door"], first["onset_to_imaging"]) == (
        "71",
        "male",
        "95",
        "115.5",
    )
    assert imported.unused == {"in-house", "referral", "crp", "alert to door", "mrs at admission"}
    assert imported.post_procedure == {
        "door to groin",
        "door to first series",
        "door to recanalization",
        "time of intervention",
    }
    assert imported.notes.lines() == []
    assert len(read(tmp_path).studies) == 21


@pytest.mark.parametrize("head", ["mTici postinterventional", "TICI postinterventional", "tici  Postinterventional"])
@pytest.mark.parametrize("grade", ["2a", "2A", "nan", ""])
def test_grade_of_the_second_session_is_read(tmp_path: Path, head: str, grade: str) -> None:
    write_patient(tmp_path, 1, "3")
    table = tmp_path / "phenotype" / "sub-stroke0001" / "ses-02" / "sub-stroke0001_ses-02_outcome"
    facts = {"NIHSS 24h": 6, "mRS 24h": "nan", "mRS discharge": 3, "mRS 3 months": 2, head: grade}
    write_table(table, facts, columns=False, excel=False)
    expected = "2a" if grade.casefold() == "2a" else ""
    assert isles24.load(tmp_path).frame["mtici"].tolist() == [expected]


@pytest.mark.parametrize("head", [head for head in RELEASE if head not in ("Center", "Age")])
@pytest.mark.parametrize("word", ["nan", "NaN", "NaT", "None", "n/a"])
def test_missing_value_as_text_is_an_empty_cell(tmp_path: Path, head: str, word: str) -> None:
    write_patient(tmp_path, 1, "3", **RELEASE | {head: word})  # type: ignore[arg-type]
    imported = isles24.load(tmp_path)
    field = isles24_values.field_of(head.casefold())
    assert not field or field not in imported.frame
    assert imported.notes.lines() == []


@pytest.mark.parametrize(
    ("cell", "minutes"),
    [
        ("1:35", 95),
        ("01:35:00", 95),
        ("26:15", 1575),
        ("0 days 01:35:00", 95),
        ("0 days 01:35:00.000000", 95),
        ("1 days 02:15:00", 1575),
        ("1 day, 2:15:00", 1575),
        (time(1, 35), 95),
        (timedelta(hours=26, minutes=15), 1575),
        (datetime.fromisoformat("1900-01-01T02:15:00"), 1575),
    ],
)
def test_time_is_read_in_every_form(cell: object, minutes: float) -> None:
    facts, note = isles24_values.read("onset_to_door", cell)
    assert float(facts["onset_to_door"]) == pytest.approx(minutes)
    assert not note


@pytest.mark.parametrize(
    ("field", "cell", "facts", "note"),
    [
        ("age", "90+", {"age": "90"}, "a bound"),
        ("inr", ">8", {"inr": "8"}, "a bound"),
        ("nihss", "≥ 20", {"nihss": "20"}, "a bound"),
        ("leukocytes", "<0,5", {"leukocytes": "0.5"}, "a bound"),
        ("glucose", 35, {}, "not certain between 30 and 40"),
        ("glucose", "30", {}, "not certain"),
        ("glucose", "39.9", {}, "not certain"),
        ("glucose", 29.9, {"glucose_mmol_l": "29.9"}, ""),
        ("glucose", 40, {"glucose": "40"}, ""),
        ("dyslipidemia", 2, {}, "neither 0 nor 1"),
        ("onset_to_door", "-1 days +23:10:00", {}, "below 0"),
        ("onset_to_door", "3 days 00:00:00", {}, "longer than 48 h"),
        ("onset_to_door", 95, {}, "without a unit"),
        ("onset_to_door", "0.07", {}, "without a unit"),
    ],
)
def test_value_with_two_readings_is_noted_and_not_guessed(
    field: str, cell: object, facts: dict[str, str], note: str
) -> None:
    found, said = isles24_values.read(field, cell)
    assert found == facts
    assert note in said
    assert bool(note) == bool(said)


def test_notes_are_one_line_for_each_header_and_stand_in_the_summary(tmp_path: Path) -> None:
    write_data_set(tmp_path / "i", 21, **RELEASE | {"Glucose": 35, "Age": "90+"})
    result = CliRunner().invoke(commands, ["import", "isles24", str(tmp_path / "i"), str(tmp_path / "t.csv")])
    assert result.exit_code == 0, result.output
    notes = [line for line in result.stdout.splitlines() if line.startswith("Note: ")]
    assert len(notes) == 2
    assert all("21 patients (sub-stroke0001, sub-stroke0002, sub-stroke0003, ...)" in line for line in notes)
    assert "(found: 99+)" in "".join(notes)
    assert "no commercial use" in result.stdout
    assert len(read(tmp_path / "i").notes) == 2


def test_files_of_the_system_are_ignored(tmp_path: Path) -> None:
    plain, copied = write_data_set(tmp_path / "plain", 21), tmp_path / "copied"
    shutil.copytree(plain, copied)
    for path in [path for path in copied.rglob("*") if path.is_file()]:
        (path.parent / f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")
    (copied / "phenotype" / "._sub-stroke0001").write_bytes(b"\x00")
    (copied / "phenotype" / ".DS_Store").write_bytes(b"\x00")
    shutil.copytree(copied / "phenotype", copied / "phenotype" / "__MACOSX")
    (copied / "clinical_data-description.xlsx").write_bytes(b"no table")
    assert isles24.load(copied).frame.equals(isles24.load(plain).frame)


def test_layout_of_the_challenge_has_a_folder_for_each_session(tmp_path: Path) -> None:
    usual, other = write_data_set(tmp_path / "usual", 21), tmp_path / "other"
    shutil.copytree(usual, other, ignore=shutil.ignore_patterns("phenotype"))
    for session, number in (("ses-01", "ses-0001"), ("ses-02", "ses-0002")):
        (other / "phenotype" / number).mkdir(parents=True)
        for path in (usual / "phenotype").rglob(f"{session}/*.csv"):
            name = path.name.replace("sub-stroke", "sub-strokecase").replace(session, "ses-0001")
            shutil.copy(path, other / "phenotype" / number / name)
    assert isles24.load(other).frame.equals(isles24.load(usual).frame)


def test_unknown_header_is_reported_once_and_can_be_declared(tmp_path: Path) -> None:
    renamed = {
        "Age": None,
        "Age (years)": 71,
        "Onset to door": None,
        "Stroke to door": "1:35",
        "Comment": "x",
        "Sex": 1,
    }
    write_data_set(tmp_path, 21, **renamed)
    with pytest.raises(CohortFault) as caught:
        read(tmp_path)
    assert len(caught.value.faults) == 4  # three headers, and the values of the sex
    rules = """
[columns."Age (years)"]
field = "age"
[columns."stroke to door"]
field = "onset_to_door"
[columns."Comment"]
field = ""
[columns."Sex"]
field = "sex"
values = { 1 = "female" }
"""
    (tmp_path / "columns.toml").write_text(rules)
    record = read(tmp_path).studies[0].record
    assert (record.age, record.sex, record.onset_to_door, record.onset_to_imaging) == (71, "female", 95, 115.5)
    (tmp_path / "columns.toml").rename(tmp_path / "other.toml")
    arguments = ["import", "isles24", str(tmp_path), str(tmp_path / "t.csv"), "--columns", str(tmp_path / "other.toml")]
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code == 0, result.output
    assert "comment" in result.stdout
    written = cohort.read(tmp_path / "t.csv", target=Target.UNSUCCESSFUL_REPERFUSION)
    assert written.studies[0].record == record


def test_every_header_is_documented_with_its_use() -> None:
    text = DOCUMENT.read_text(encoding="utf-8").casefold()
    for head in [*RELEASE, *isles24.GRADE]:
        assert f"`{head.casefold()}`" in text, head
    table = pd.Series([line for line in text.splitlines() if "https://github.com/" in line])
    assert len(table) >= 6
