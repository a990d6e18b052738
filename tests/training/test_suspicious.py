"""Valid and suspicious values stop a run with one line for each kind; real columns that look similar pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from app.training import cohort, suspicious
from app.training.errors import CohortFault
from app.training.suspicious import CODES, Suspicion
from tests.conftest import shared_path
from tests.training import messy_tables

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "training.md"
COUNT = 120
RNG = np.random.default_rng(4)

Column = Sequence[Any]


def found(folder: Path, **columns: Column) -> list[Suspicion]:
    """Suspicions of a table of prepared studies with these columns."""
    count = len(next(iter(columns.values())))
    table = pd.DataFrame(
        {"patient": [f"p{n}" for n in range(count)], "prepared": range(count), "rescue_treatment": np.arange(count) % 2}
        | columns
    )
    table.to_csv(folder / "cohort.csv", index=False)
    inspection = cohort.inspect(folder, drop_unknown=True)
    assert inspection.faults.lines() == []
    return list(inspection.suspicions)


def with_code(values: Column, code: float, count: int) -> list[float]:
    return [*[code] * count, *list(values)[count:]]


def round_(values: Any, digits: int = 0) -> list[float]:
    return [float(value) for value in np.round(values, digits)]


AGES = round_(np.clip(RNG.normal(72, 9, COUNT), 18, 96))
MINUTES = round_(np.clip(RNG.lognormal(5.2, 0.7, COUNT), 20, 900))
PLATELETS = round_(np.clip(RNG.normal(230, 60, COUNT), 80, 480))
CRP = round_(np.clip(RNG.lognormal(1.4, 1.1, COUNT), 0.3, 180), 1)
CREATININE = round_(np.clip(RNG.lognormal(-0.02, 0.3, COUNT), 0.4, 6), 2)
LDL = round_(np.clip(RNG.normal(105, 35, COUNT), 25, 260))
LEUKOCYTES = round_(np.clip(RNG.lognormal(2.15, 0.3, COUNT), 2, 30), 1)
CLOT = round_(np.clip(RNG.lognormal(2.5, 0.5, COUNT), 3, 60), 1)
PRESSURE = round_(np.clip(RNG.normal(150, 25, COUNT), 80, 230))

WRONG: list[tuple[str, str, Column, str]] = [
    ("platelets of 999", "platelets", with_code(PLATELETS, 999, 4), "missing-code"),
    ("one platelet count of 999", "platelets", with_code(PLATELETS, 999, 1), "missing-code"),
    ("ages of 99", "age", with_code(AGES, 99, 9), "missing-code"),
    ("times of 999", "onset_to_door", with_code(MINUTES, 999, 6), "missing-code"),
    ("times of 888", "onset_to_imaging", with_code(MINUTES, 888, 6), "missing-code"),
    ("pressures of 99", "systolic_bp", with_code(PRESSURE, 99, 12), "missing-code"),
    ("an INR of 9", "inr", with_code([1.0, 1.1, 1.2, 0.9] * 30, 9, 2), "missing-code"),
    ("an INR of 9.9", "inr", with_code([1.0, 1.1, 1.2, 0.9] * 30, 9.9, 2), "missing-code"),
    ("leukocytes of 99", "leukocytes", with_code(LEUKOCYTES, 99, 3), "missing-code"),
    ("a clot density of -1", "imaging_signs.clot_hu", with_code([45, 52, 61, 38] * 30, -1, 3), "missing-code"),
    ("fractions", "final_stenosis_percent", [0.7, 0.1, 0, 0.99] * 30, "fraction"),
    ("one fraction among percent", "final_stenosis_percent", [0.7, *[10, 70, 0] * 40], "fraction"),
    ("0 and 1 for percent", "final_stenosis_percent", [0, 1, 0, 0] * 30, "fraction"),
    ("hours", "onset_to_door", round_(np.array(MINUTES) / 60, 1), "hours"),
    ("whole hours of a late window", "onset_to_imaging", [6, 12, 8, 24, 16, 10] * 20, "hours"),
    ("days of a spreadsheet", "onset_to_door", round_(np.array(MINUTES) / 1440, 4), "hours"),
    ("creatinine in mmol/L", "creatinine", round_(np.clip(np.array(CREATININE) * 0.0884, 0.1, 1), 3), "unit"),
    ("platelets in 10^11/L", "platelets", round_(np.array(PLATELETS) / 100, 2), "unit"),
    ("platelets in 10^12/L", "platelets", round_(np.array(PLATELETS) / 1000, 3), "unit"),
    ("leukocytes in 10^10/L", "leukocytes", round_(np.array(LEUKOCYTES) / 10, 2), "unit"),
    ("CRP in mg/dL", "crp", round_(np.array(CRP) / 10, 2), "unit"),
    ("LDL in mmol/L", "ldl", round_(np.array(LDL) / 38.7, 1), "unit"),
    ("one LDL in mmol/L", "ldl", with_code(LDL, 2.6, 1), "unit"),
    ("clots in cm", "imaging_signs.clot_length_mm", round_(np.array(CLOT) / 10, 1), "unit"),
    ("delayed tissue in litres", "perfusion.tmax6_ml", [0.05, 0.12, 0.2] * 40, "unit"),
]

RIGHT: list[tuple[str, str, Column]] = [
    ("usual ages", "age", AGES),
    ("a centre of old patients", "age", [*range(85, 100), *range(80, 101)] * 4),
    ("one patient of 99 years", "age", with_code(AGES, 99, 1)),
    ("one CRP of 99 after an infection", "crp", with_code([value for value in CRP if value < 50], 99, 1)),
    ("usual times", "onset_to_door", MINUTES),
    ("one time of 999 minutes in a long tail", "onset_to_door", with_code(MINUTES, 999, 1)),
    ("short times", "onset_to_imaging", [25, 40, 55, 35, 62, 80] * 20),
    ("strokes in the hospital", "onset_to_door", [0, 0, 45, 90, 0, 120] * 20),
    ("only strokes in the hospital", "onset_to_door", [0] * COUNT),
    ("usual platelets", "platelets", PLATELETS),
    ("thrombocytosis", "platelets", with_code(PLATELETS, 850, 1)),
    ("thrombocytopenia", "platelets", with_code(PLATELETS, 22, 3)),
    ("usual CRP", "crp", CRP),
    ("CRP below the detection limit", "crp", [0, 0, 0, 4, 12, 0] * 20),
    ("a sensitive CRP of healthy patients", "crp", [1.1, 0.8, 1.6, 2.4, 0.6, 3.1] * 20),
    ("usual creatinine", "creatinine", CREATININE),
    ("small patients", "creatinine", round_(np.array(CREATININE) * 0.6, 2)),
    ("dialysis", "creatinine", with_code(CREATININE, 9.0, 2)),
    ("low LDL on treatment", "ldl", round_(np.array(LDL) * 0.4)),
    ("usual leukocytes", "leukocytes", LEUKOCYTES),
    ("usual clots", "imaging_signs.clot_length_mm", CLOT),
    ("usual pressures", "systolic_bp", PRESSURE),
    ("glucose of 99", "glucose", [95, 97, 99, 99, 101, 104] * 20),
    ("stenosis of 99 %", "final_stenosis_percent", [99, 99, 0, 50, 99, 100] * 20),
    ("no stenosis", "final_stenosis_percent", [0] * COUNT),
    ("ASPECTS of 9", "aspects", [9, 9, 10, 8, 9, 7] * 20),
    ("NIHSS of 8 and 9", "nihss", [8, 9, 9, 14, 20, 8] * 20),
    ("NIHSS in few levels", "nihss", [8, 8, 8, 16, 16, 4] * 20),
    ("no delayed tissue", "perfusion.tmax6_ml", [0, 0, 0, 1.5, 0] * 24),
    ("clots darker than water", "imaging_signs.clot_hu", [-2, 45, 52, -1] * 30),
    ("few values", "ldl", [105, *[""] * (COUNT - 1)]),
]


@pytest.mark.parametrize(("column", "values", "code"), [c[1:] for c in WRONG], ids=[c[0] for c in WRONG])
def test_wrong_column_is_found_once_with_its_kind(tmp_path: Path, column: str, values: Column, code: str) -> None:
    (one,) = found(tmp_path, **{column: values})
    assert (one.code, one.column) == (code, column)
    assert one.line.startswith(f"{code}: ")
    assert "(found: " in one.line
    with pytest.raises(CohortFault, match=f"give --accept {code}"):
        suspicious.check(cohort.read(tmp_path, drop_unknown=True), "")
    section = suspicious.check(cohort.read(tmp_path, drop_unknown=True), code)
    assert f"- {one.line}" in section
    assert suspicious.check(cohort.read(tmp_path, drop_unknown=True), "all") == section


@pytest.mark.parametrize(("column", "values"), [c[1:] for c in RIGHT], ids=[c[0] for c in RIGHT])
def test_right_column_that_looks_similar_passes(tmp_path: Path, column: str, values: Column) -> None:
    assert found(tmp_path, **{column: values}) == []
    assert suspicious.check(cohort.read(tmp_path, drop_unknown=True), "") == ""


def test_unit_of_one_site_is_found_among_others(tmp_path: Path) -> None:
    """One of two hospitals writes LDL in mmol/L and times in hours; only its rows are listed."""
    site = np.where(np.arange(COUNT) % 3, "north", "south")
    south = site == "south"
    times = np.where(south, np.round(np.array(MINUTES) / 60, 1), MINUTES)
    suspicions = found(tmp_path, site=site, crp=np.where(south, np.array(CRP) / 10, CRP), onset_to_door=times)
    assert {one.code for one in suspicions} == {"unit", "hours"}
    assert all(set(one.rows) == {int(n) + 2 for n in np.flatnonzero(south)} for one in suspicions)


def stroke_trial() -> pd.DataFrame:
    """Real records of the International Stroke Trial; two pressures above the range of the record are left out."""
    table = pd.read_csv(shared_path("data", "ist", "ist_odd_hospitals.csv.gz"))
    table = table[table["systolic_bp"] <= 280].reset_index(drop=True)
    return pd.DataFrame(
        {
            "site": table["hospital"],
            "age": table["age"],
            "sex": table["sex"],
            "systolic_bp": table["systolic_bp"],
            "onset_to_imaging": table["delay_h"] * 60,
        }
    )


def test_real_trial_has_no_suspicious_column_in_any_hospital(tmp_path: Path) -> None:
    """9,256 real records of 236 hospitals, together, and each hospital of 20 patients or more as its own table."""
    table = stroke_trial()
    assert found(tmp_path, **{name: table[name].tolist() for name in table}) == []
    hospitals = [own for _, own in table.groupby("site") if len(own) >= 20]
    assert len(hospitals) > 100
    for own in hospitals:
        assert found(tmp_path, **{name: own[name].tolist() for name in own}) == []


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("hours", lambda table: table.assign(onset_to_imaging=table["onset_to_imaging"] / 60)),
        ("missing-code", lambda table: table.assign(age=table["age"].where(np.arange(len(table)) % 20 > 0, 99))),
        ("missing-code", lambda t: t.assign(onset_to_imaging=t["onset_to_imaging"].where(t.index % 20 > 0, 999))),
        ("missing-code", lambda table: table.assign(systolic_bp=table["systolic_bp"].where(table.index % 20 > 0, 99))),
    ],
)
def test_fault_put_into_the_real_trial_is_found(
    tmp_path: Path, code: str, change: Callable[[pd.DataFrame], pd.DataFrame]
) -> None:
    table = change(stroke_trial().head(2000))
    assert [one.code for one in found(tmp_path, **{name: table[name].tolist() for name in table})] == [code]


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        (messy_tables.one_patient(sex="female"), "two-sexes"),
        (messy_tables.one_patient(age=75), "two-ages"),
        (messy_tables.one_patient(age=60, date="2039-03-01"), "two-ages"),
        (messy_tables.one_patient(age=85, date=""), "two-ages"),
        (messy_tables.changed("ncct", "p0.nii.gz", 2), "same-image"),
    ],
)
def test_patients_that_contradict_each_other_are_found(tmp_path: Path, rows: list[dict[str, Any]], code: str) -> None:
    messy_tables.images(tmp_path)
    (one,) = cohort.inspect(messy_tables.plain(rows)(tmp_path)).suspicions
    assert (one.code, one.rows) == (code, (2, 3))


@pytest.mark.parametrize(
    ("column", "names", "row"),
    [
        ("site", ["Clínic", "clinic ", "Clínic", "Mar"], 3),
        ("site", ["site 1", "site-1", "site 1", "site 2"], 3),
        ("patient", ["P-007", "p 7", "P-70", "P-700"], 2),
        ("patient", ["a", "b1", "B01", "c"], 3),
        ("scanner", ["A", "B", "B", "b"], 5),
    ],
)
def test_name_in_two_spellings_is_found(tmp_path: Path, column: str, names: list[str], row: int) -> None:
    others = [f"other{n}" for n in range(24)] if column == "patient" else ["other"] * 24
    (one,) = found(tmp_path, **{"patient": [f"p{n}" for n in range(28)], column: [*names, *others]})
    assert (one.code, one.column, one.rows) == ("spelling", column, (row,))


def test_names_with_other_letters_or_numbers_pass(tmp_path: Path) -> None:
    names = ["a1", "a10", "a11", "1-11", "11-1", "b", "ab", "å b", "100", "10", "1"]
    assert not found(tmp_path, patient=[*names, *(f"p{n}" for n in range(20))])


def test_composed_and_decomposed_letters_are_one_site(tmp_path: Path) -> None:
    assert not found(tmp_path, site=["Cl\u00ednic", "Cli\u0301nic"] * 12)
    assert {study.site for study in cohort.read(tmp_path).studies} == {"Cl\u00ednic"}


@pytest.mark.parametrize(
    "rows",
    [
        messy_tables.one_patient(),
        messy_tables.one_patient(age=61, date="2024-03-20"),  # a birthday between two studies
        messy_tables.one_patient(age=63, date="2027-02-01"),
        messy_tables.one_patient(age=66, date=""),
        messy_tables.one_patient(age="", sex=""),
        messy_tables.both_sides(ncct="p0.nii.gz"),
    ],
)
def test_several_rows_of_one_patient_pass(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    messy_tables.images(tmp_path)
    assert cohort.inspect(messy_tables.plain(rows)(tmp_path)).suspicions == ()


@pytest.mark.parametrize(
    "rows",
    [
        messy_tables.one_patient(ncct="p0.nii.gz"),
        messy_tables.one_patient(ncct="copy.nii.gz"),
        messy_tables.one_patient(ncct="p0.nii.gz", etici="0", date="2024-03-01"),  # two outcomes of one study
        messy_tables.one_patient(ncct="", study_instance_uid="1.2.3"),
        messy_tables.one_patient(ncct="", accession_number="A7"),
    ],
)
def test_study_that_is_in_two_rows_of_its_patient_is_found(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    messy_tables.images(tmp_path)
    (tmp_path / "copy.nii.gz").write_bytes((tmp_path / "p0.nii.gz").read_bytes())
    first, second, *rest = rows
    if not second["ncct"]:
        first = first | {
            key: second[key] for key in ("ncct", "study_instance_uid", "accession_number") if key in second
        }
    (one,) = cohort.inspect(messy_tables.plain([first, second, *rest])(tmp_path)).suspicions
    assert (one.code, one.column, one.rows) == ("same-study", "patient", (2, 3))


def test_prepared_study_that_is_there_twice_is_found(tmp_path: Path) -> None:
    patients = [f"p{n}" for n in range(28)]
    (one,) = found(tmp_path, patient=[*patients, "p3"], prepared=[*range(28), 3], rescue_treatment=[0, 1] * 14 + [1])
    assert (one.code, one.rows) == ("same-study", (5, 30))
    assert not found(tmp_path, patient=[*patients, "p3"], prepared=range(29))


@pytest.mark.parametrize("word", ["unknown", "n/a", "-", ".", "?", "N.A.", "NaN", "not recorded", "k. A.", "s/d"])
@pytest.mark.parametrize("column", ["patient", "site", "scanner"])
def test_word_for_a_missing_name_is_found(tmp_path: Path, word: str, column: str) -> None:
    names = [f"p{n}" for n in range(COUNT)] if column == "patient" else ["north"] * COUNT
    (one,) = found(tmp_path, **{column: [word, word, *names[2:]]})
    assert (one.code, one.column, one.rows) == ("missing-code", column, (2, 3))
    (tmp_path / "columns.toml").write_text(f'missing = ["{word}"]\n')
    assert cohort.inspect(tmp_path).suspicions == ()


def test_short_names_of_sites_pass(tmp_path: Path) -> None:
    assert not found(tmp_path, site=["KA", "SD", "NS", "Nantes", "1", "0", "Null-Straße", "Nonell"] * 15)


@pytest.mark.parametrize(
    ("stenosis", "grade", "is_wrong"),
    [
        (100, "3", True),
        (100, "TICI 2c", True),
        (100, "2b", False),
        (99, "3", False),
        (100, "0", False),
        ("", "3", False),
    ],
)
def test_complete_reperfusion_of_an_occluded_artery_is_found(
    tmp_path: Path, stenosis: Any, grade: str, is_wrong: bool
) -> None:
    rest = {"final_stenosis_percent": [10, 70] * 12, "etici": ["2b", "3"] * 12}
    table = {"final_stenosis_percent": [stenosis], "etici": [grade]}
    suspicions = found(tmp_path, **{name: [*table[name], *rest[name]] for name in rest})
    assert [(one.code, one.rows) for one in suspicions] == ([("contradiction", (2,))] if is_wrong else [])


OUTCOMES = np.arange(COUNT) % 2
CHANCE = np.where(RNG.random(COUNT) < 0.8, OUTCOMES, 1 - OUTCOMES)
"""A flag that is right in four of five patients, which is better than any published sign."""


@pytest.mark.parametrize(
    ("column", "values", "is_wrong"),
    [
        ("nihss", OUTCOMES * 20 + np.arange(COUNT) % 7, True),
        ("nihss", 30 - OUTCOMES * 20, True),
        ("antiplatelet", OUTCOMES, True),
        ("smoking", np.where(OUTCOMES, "current", "never"), True),
        ("ldl", np.where(OUTCOMES, LDL, ""), True),
        ("ldl", np.where(OUTCOMES & (np.arange(COUNT) % 3 > 0), LDL, ""), True),
        ("imaging_signs.truncal_type", CHANCE, False),
        ("nihss", CHANCE * 8 + np.arange(COUNT) % 9, False),
        ("ldl", np.where(OUTCOMES | (np.arange(COUNT) == 6), LDL, ""), False),
        ("ldl", np.where(np.arange(COUNT) % 20 == 1, LDL, ""), False),  # six values, by chance of one outcome
        ("diabetes", np.ones(COUNT, int), False),
    ],
)
def test_column_that_tells_the_outcome_is_found(tmp_path: Path, column: str, values: Column, is_wrong: bool) -> None:
    suspicions = found(tmp_path, **{column: list(values)})
    assert [(one.code, one.column) for one in suspicions] == ([("tells-outcome", column)] if is_wrong else [])


@pytest.mark.parametrize("is_wrong", [True, False])
def test_image_that_only_patients_of_one_outcome_have_is_found(tmp_path: Path, is_wrong: bool) -> None:
    """A site without perfusion maps has patients of both outcomes, and is no fault."""
    has_map = OUTCOMES if is_wrong else np.arange(COUNT) % 4 > 1
    for n in range(COUNT):
        for name in ("ncct", "tmax"):
            (tmp_path / f"{name}{n}.nii.gz").write_bytes(f"{name} {n}".encode())
    volumes = {
        "ncct": [f"ncct{n}.nii.gz" for n in range(COUNT)],
        "tmax": [f"tmax{n}.nii.gz" if has else "" for n, has in enumerate(has_map)],
    }
    suspicions = found(tmp_path, prepared=[""] * COUNT, **volumes)
    assert [(one.code, one.column) for one in suspicions] == ([("tells-outcome", "tmax")] if is_wrong else [])


def test_own_variable_that_tells_the_outcome_is_found(tmp_path: Path) -> None:
    declared = '[variables.ward]\nlabel = "Ward"\nkind = "boolean"\n'
    (tmp_path / "variables.toml").write_text(declared, encoding="utf-8")
    (one,) = found(tmp_path, ward=list(OUTCOMES))
    assert (one.code, one.column) == ("tells-outcome", "own.ward")
    assert not found(tmp_path, ward=list(CHANCE))


def test_copy_of_an_image_under_another_name_is_found_and_an_equal_size_is_not(tmp_path: Path) -> None:
    messy_tables.images(tmp_path)
    half = b"\x00" * 200_000
    (tmp_path / "p4.nii.gz").write_bytes(half + b"a" + half)
    (tmp_path / "p5.nii.gz").write_bytes(half + b"b" + half)
    (tmp_path / "p6.nii.gz").write_bytes(half + b"a" + half)
    (tmp_path / "p7.nii.gz").write_bytes(half[:-9] + b"c" + half + half[:9])
    (one,) = cohort.inspect(messy_tables.plain(messy_tables.rows())(tmp_path)).suspicions
    assert (one.code, one.rows, one.column) == ("same-image", (6, 8), "ncct")


def test_only_the_rows_that_are_used_are_checked(tmp_path: Path) -> None:
    found(tmp_path, platelets=with_code(PLATELETS, 999, 4))
    read = cohort.read(tmp_path)
    part = cohort.Cohort(read.folder, read.studies[10:], suspicions=read.suspicions)
    assert suspicious.check(part, "") == ""


@pytest.mark.parametrize("text", ["everything", "unit,hour", "999"])
def test_unknown_code_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(CohortFault, match=f"--accept: give all, or codes separated by commas: {', '.join(CODES)}"):
        suspicious.accepted(text)


def test_every_code_is_documented() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    table = text[text.index("### Suspicious values") : text.index("### ISLES'24")]
    assert [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")] == list(CODES)
