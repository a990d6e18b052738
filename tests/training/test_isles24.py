"""ISLES'24 importer on generated folder trees with the spellings of different releases."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from app.cli.training import commands
from app.training import cohort
from app.training.errors import CohortFault
from app.training.options import Target

BASELINE: dict[str, object] = {
    "Center": "1",
    "Sex": "F",
    "Age": 71,
    "Atrial fibrillation": 1,
    "Hypertension": 0,
    "Diabetes": "",
    "Hyperlipidemia": 1,
    "Anticoagulation": 0,
    "Lipid lowering drugs": 1,
    "PAIs": 0,
    "Glucose": 118,
    "Leucocytes": 8.5,
    "CRP": 0.4,
    "INR": 1.1,
    "Wake-up": 0,
    "In-House": 0,
    "Referral": 1,
    "Onset to door": "1:35",
    "NIHSS at admission": 14,
    "mRS premorbid": 0,
    "Door to imaging": "0:20:30",
    "Time of intervention": "0:55",
    "Door to recanalization": "2:10",
    "Door to first series": "1:20",
}
read = partial(cohort.read, target=Target.UNSUCCESSFUL_REPERFUSION)
ALL_21 = "21 patients (sub-stroke0001, sub-stroke0002, sub-stroke0003, ...)"
GRADES = ("0", "1", "2a", "2b", "2c", "3")


def write_patient(
    root: Path,
    number: int,
    grade: str,
    *,
    raw: str = "raw_data",
    session: str = "ses-01",
    stem: str = "sub-stroke",
    columns: bool = False,
    excel: bool = False,
    **changes: object,
) -> None:
    name = f"{stem}{number:04d}"
    acute = root / raw / name / session
    (acute / "perfusion-maps").mkdir(parents=True)
    for kind in ("ncct", "cta", "ctp"):
        (acute / f"{name}_{session}_{kind}.nii.gz").write_bytes(f"{number}{kind}".encode())
    for kind in ("tmax", "mtt", "cbf", "cbv"):
        (acute / "perfusion-maps" / f"{name}_{session}_{kind}.nii.gz").write_bytes(f"{number}{kind}".encode())
    later = root / raw / name / session.replace("1", "2")
    later.mkdir()
    (later / f"{name}_ses-02_dwi.nii.gz").write_bytes(b"never read")
    derived = root / "derivatives" / name / session
    derived.mkdir(parents=True)
    (derived / f"{name}_{session}_space-ncct_lvo-msk.nii.gz").write_bytes(b"drawn by a reader")
    (derived / f"{name}_{session}_space-ncct_cta.nii.gz").write_bytes(b"registered")
    phenotype = root / "phenotype" / name
    facts = {head: value for head, value in (BASELINE | changes).items() if value is not None}
    outcome = {"MRS 3 months": 3, "NIHSS 24h": 6, "mTici postinterventional": grade}
    write_table(phenotype / session / f"{name}_{session}_demographic_baseline", facts, columns, excel)
    write_table(phenotype / session.replace("1", "2") / f"{name}_ses-02_outcome", outcome, columns, excel)


def write_table(path: Path, facts: dict[str, object], columns: bool, excel: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [list(facts.items())] if columns else [[tuple(facts), tuple(facts.values())]]
    frame = pd.DataFrame(rows[0])
    if excel:
        frame.to_excel(path.with_name(path.name + ".xlsx"), index=False, header=False)
    else:
        frame.to_csv(path.with_name(path.name + ".csv"), index=False, header=False, encoding="utf-8-sig")


def write_data_set(root: Path, count: int = 24, **spelling: object) -> Path:
    for number in range(1, count + 1):
        write_patient(root, number, GRADES[number % 6], **spelling)  # type: ignore[arg-type]
    return root


@pytest.mark.parametrize(
    ("inside", "spelling"),
    [
        ("", {}),
        ("train", {"raw": "rawdata", "session": "ses-0001", "stem": "sub-strokecase"}),
        ("train", {"columns": True}),
        ("", {"excel": True}),
        ("", {"columns": True, "excel": True}),
    ],
)
def test_every_spelling_gives_the_same_cohort(tmp_path: Path, inside: str, spelling: dict[str, object]) -> None:
    write_data_set(tmp_path / inside, 22, **spelling)
    imported = read(tmp_path)
    assert imported.target == "unsuccessful_reperfusion"
    first = imported.studies[0]
    assert (first.patient, first.site) == ("sub-stroke0001", "1")
    assert set(first.volumes) == {"ncct", "cta", "ctp", "tmax", "cbf", "cbv", "mtt"}
    assert first.volumes["cta"].read_bytes() == b"1cta"  # type: ignore[index]  # the raw one, not the registered one
    record = first.record
    assert (record.age, record.sex, record.atrial_fibrillation, record.nihss) == (71, "female", True, 14)
    assert (record.diabetes, record.dyslipidemia, record.statin, record.antiplatelet) == (None, True, True, False)
    assert (record.onset_to_door, record.onset_to_imaging, record.glucose) == (95, 115.5, 118)
    assert [study.outcome for study in imported.studies[:6]] == [1, 1, 0, 0, 0, 1]  # mTICI 1, 2a, 2b, 2c, 3, 0


def test_headers_may_differ_in_case_spaces_and_prefix(tmp_path: Path) -> None:
    spelled = {"Age": None, "demographics::  age ": 66, "NIHSS at admission": None, "nihss  AT admission": 9}
    write_data_set(tmp_path, 21, **spelled)
    record = read(tmp_path).studies[0].record
    assert (record.age, record.nihss) == (66, 9)


def test_glucose_unit_follows_from_the_value(tmp_path: Path) -> None:
    write_data_set(tmp_path, 21, Glucose="6,5")
    record = read(tmp_path).studies[0].record
    assert (record.glucose, record.glucose_mmol_l) == (None, 6.5)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"Age": None, "Age (years)": 70},
            f"{ALL_21}, header 'age (years)': unknown; declare its field in columns.toml",
        ),
        ({"Sex": "x"}, f"{ALL_21}, header 'sex': the value cannot be read"),
        ({"Onset to door": "late"}, f"{ALL_21}, header 'onset to door': the value cannot be read"),
        ({"Hypertension": "perhaps"}, f"{ALL_21}, header 'hypertension': the value cannot be read"),
        ({"Age": 300}, "21 rows (2, 3, 4, ...), column age:"),
    ],
)
def test_unreadable_value_or_unknown_header_stops_the_import(
    tmp_path: Path, changes: dict[str, object], expected: str
) -> None:
    write_data_set(tmp_path, 21, **changes)
    with pytest.raises(CohortFault) as caught:
        read(tmp_path)
    (fault,) = caught.value.faults
    assert expected in fault


def test_unknown_grade_is_an_unknown_outcome(tmp_path: Path) -> None:
    write_data_set(tmp_path, 24)
    write_patient(tmp_path, 25, "")
    with pytest.raises(CohortFault, match="row 26: the outcome is unknown"):
        read(tmp_path)
    assert len(read(tmp_path, drop_unknown=True).studies) == 24


@pytest.mark.parametrize("grade", ["2A", "TICI 2a", "mTICI IIa"])
def test_grade_is_read_in_every_spelling(tmp_path: Path, grade: str) -> None:
    write_data_set(tmp_path, 24)
    write_patient(tmp_path, 25, grade)
    assert read(tmp_path).studies[-1].outcome == 1


def test_text_that_is_no_grade_is_refused(tmp_path: Path) -> None:
    write_data_set(tmp_path, 24)
    write_patient(tmp_path, 25, "2")
    with pytest.raises(
        CohortFault, match="sub-stroke0025, header 'mtici postinterventional': expected one of 0, 1, 2a"
    ):
        read(tmp_path)


def test_isles24_needs_an_explicit_target(tmp_path: Path) -> None:
    write_data_set(tmp_path, 24)
    with pytest.raises(CohortFault, match="give --target unsuccessful-reperfusion"):
        cohort.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 damaged", b"\xd0\xcf\x11\xe0"])
def test_damaged_phenotype_is_a_fault_and_no_traceback(tmp_path: Path, content: bytes) -> None:
    write_data_set(tmp_path, 24, excel=True)
    (table,) = (tmp_path / "phenotype" / "sub-stroke0003" / "ses-01").iterdir()
    table.write_bytes(content)
    with pytest.raises(CohortFault, match="sub-stroke0003"):
        read(tmp_path)


def test_volumes_without_phenotype_are_a_fault(tmp_path: Path) -> None:
    write_data_set(tmp_path, 21)
    (tmp_path / "raw_data" / "sub-stroke0099" / "ses-01").mkdir(parents=True)
    with pytest.raises(CohortFault, match="sub-stroke0099: there are volumes, but no phenotype"):
        read(tmp_path)


def test_imported_table_reads_the_same(tmp_path: Path) -> None:
    write_data_set(tmp_path / "isles")
    out = tmp_path / "tables" / "isles.csv"
    out.parent.mkdir()
    result = CliRunner().invoke(commands, ["import", "isles24", str(tmp_path / "isles"), str(out)])
    assert result.exit_code == 0, result.output
    assert "24 patients, 12 with unsuccessful_reperfusion" in result.stdout
    assert "door to first series, door to recanalization, time of intervention" in result.stdout
    assert "CC BY-NC-SA" in result.stdout
    columns = set(pd.read_csv(out).columns)
    assert not {"mrs_90", "time_of_intervention", "door_to_recanalization", "dwi"} & columns
    direct, written = read(tmp_path / "isles"), read(out)
    assert written.target == direct.target
    for one, other in zip(direct.studies, written.studies, strict=True):
        assert (one.record, one.outcome) == (other.record, other.outcome)
        assert {k: p.resolve() for k, p in one.volumes.items()} == {k: p.resolve() for k, p in other.volumes.items()}
    second = CliRunner().invoke(commands, ["import", "isles24", str(tmp_path / "isles"), str(out)])
    assert second.exit_code == 2
    assert "exists and is not overwritten" in second.stderr


def test_folder_with_another_layout_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(commands, ["import", "isles24", str(tmp_path), str(tmp_path / "t.csv")])
    assert result.exit_code == 2
    assert "not laid out as ISLES'24" in result.stderr


def test_grade_with_components_of_rlvo_is_refused(tmp_path: Path) -> None:
    frame = pd.DataFrame({"patient": np.arange(30), "ncct": "a.nii", "mtici": "3", "rescue_treatment": 0})
    frame.to_csv(tmp_path / "cohort.csv", index=False)
    with pytest.raises(CohortFault, match="column mtici: with rescue_treatment"):
        cohort.read(tmp_path)
