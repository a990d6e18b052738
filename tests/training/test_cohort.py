from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from app.training import cohort
from app.training.errors import CohortFault
from app.training.options import Target


def rows(count: int = 24) -> list[dict[str, object]]:
    return [
        {
            "patient": f"p{n}",
            "site": "north",
            "ncct": "head.nii.gz",
            "age": 60 + n,
            "sex": "male",
            "atrial_fibrillation": n % 2,
            "smoking": "never",
            "nihss": 12,
            "perfusion.core_ml": 10.5,
            "final_stenosis_percent": 70 if n % 4 == 0 else 10,
            "etici": "2b",
            "rescue_treatment": 0,
        }
        for n in range(count)
    ]


def write(folder: Path, table: list[dict[str, object]], name: str = "cohort.csv") -> Path:
    (folder / "head.nii.gz").write_bytes(b"x")
    path = folder / name
    frame = pd.DataFrame(table)
    if name.endswith("parquet"):
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return path


def faults(folder: Path, table: list[dict[str, object]]) -> str:
    with pytest.raises(CohortFault) as caught:
        cohort.read(write(folder, table))
    return "\n".join(caught.value.faults)


@pytest.mark.parametrize("name", ["cohort.csv", "cohort.parquet"])
def test_table_is_read_with_its_types(tmp_path: Path, name: str) -> None:
    studies = cohort.read(write(tmp_path, rows(), name)).studies
    first = studies[0]
    assert (first.row, first.patient, first.outcome, first.record.nihss) == (2, "p0", 1, 12)
    assert first.record.atrial_fibrillation is False
    assert first.record.value("perfusion.core_ml") == 10.5
    assert first.volumes["ncct"] == tmp_path / "head.nii.gz"  # type: ignore[index]
    assert sum(study.outcome or 0 for study in studies) == 6


def test_folder_is_read_by_its_cohort_csv(tmp_path: Path) -> None:
    write(tmp_path, rows())
    assert len(cohort.read(tmp_path).studies) == 24


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("ncct", "gone.nii.gz", "row 5, column ncct: there is no such file"),
        ("ncct", "C:\\images\\gone.nii.gz", "row 5, column ncct: there is no such file; write the path with / and not"),
        ("ncct", "", "row 5: there is no volume"),
        ("patient", "", "row 5: the patient is missing"),
        ("age", "old", "row 5, column age: expected a number"),
        ("age", 300, "row 5, column age:"),
        ("nihss", 12.5, "row 5, column nihss: expected a whole number"),
        ("sex", "unknown", "row 5, column sex: expected one of female, male"),
        ("atrial_fibrillation", "perhaps", "row 5, column atrial_fibrillation: expected 1 or 0"),
        ("perfusion.core_ml", -4, "row 5, column perfusion.core_ml:"),
        ("final_stenosis_percent", 700, "row 5, column final_stenosis_percent: expected 0 to 100"),
        ("etici", "2d", "row 5, column etici: expected one of"),
        ("rescue_treatment", "", "row 5: the outcome is unknown"),
        ("date", "1.2.2024", "row 5, column date: not an ISO date"),
    ],
)
def test_fault_names_its_row(tmp_path: Path, column: str, value: object, expected: str) -> None:
    table = rows()
    for row in table:
        row.setdefault(column, "")
    table[3][column] = value
    assert expected in faults(tmp_path, table)


def test_all_faults_are_reported_together(tmp_path: Path) -> None:
    table = rows()
    table[1]["age"], table[2]["etici"], table[9]["ncct"] = "x", "9", "no.nii"
    assert [line.split(":")[0] for line in faults(tmp_path, table).splitlines()] == [
        "row 3, column age",
        "row 4, column etici",
        "row 11, column ncct",
    ]


@pytest.mark.parametrize("column", ["mrs_90", "passes", "door_to_recanalization"])
def test_post_procedure_column_is_refused(tmp_path: Path, column: str) -> None:
    assert f"column {column}: it is known only after" in faults(tmp_path, [row | {column: 1} for row in rows()])


def test_unknown_column_is_refused(tmp_path: Path) -> None:
    assert "column favourite_colour: unknown" in faults(tmp_path, [row | {"favourite_colour": 1} for row in rows()])


def test_fewer_than_twenty_patients_are_refused(tmp_path: Path) -> None:
    assert "3 rows are too few" in faults(tmp_path, rows(3))


def test_patient_in_two_folds_is_refused(tmp_path: Path) -> None:
    table = [row | {"fold": str(n % 4)} for n, row in enumerate(rows())]
    table[7]["patient"] = "p2"
    assert "row 9, column fold: the same patient has another fold in row 4" in faults(tmp_path, table)


@pytest.mark.parametrize(
    ("stenosis", "etici", "rescue", "outcome"),
    [
        ("51", "3", "0", 1),
        ("50", "3", "0", 0),
        ("10", "2a", "0", 1),
        ("10", "3", "1", 1),
        ("", "", "1", 1),
        ("", "3", "0", None),
        ("10", "", "0", None),
        ("10", "2b67", "no", 0),
    ],
)
def test_outcome_rule(tmp_path: Path, stenosis: str, etici: str, rescue: str, outcome: int | None) -> None:
    table = rows()
    table[0] |= {"final_stenosis_percent": stenosis, "etici": etici, "rescue_treatment": rescue}
    path = write(tmp_path, table)
    if outcome is None:
        with pytest.raises(CohortFault, match="row 2: the outcome is unknown"):
            cohort.read(path)
        assert len(cohort.read(path, drop_unknown=True).studies) == 23
    else:
        assert cohort.read(path).studies[0].outcome == outcome


def test_missing_or_unreadable_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortFault, match="there is no table"):
        cohort.read(tmp_path / "cohort.csv")
    (tmp_path / "cohort.parquet").write_bytes(b"not parquet")
    with pytest.raises(CohortFault, match="cannot be read"):
        cohort.read(tmp_path / "cohort.parquet")


def grades(count: int = 24, **other: object) -> list[dict[str, object]]:
    return [
        {"patient": f"p{n}", "ncct": "head.nii.gz", "mtici": "2a" if n % 4 == 0 else "2b"} | other for n in range(count)
    ]


def test_grade_alone_needs_an_explicit_target(tmp_path: Path) -> None:
    text = faults(tmp_path, grades())
    assert text.startswith("column mtici: rLVO needs at least one of final_stenosis_percent, etici, rescue_treatment")
    assert "--target unsuccessful-reperfusion" in text
    read = cohort.read(tmp_path / "cohort.csv", target=Target.UNSUCCESSFUL_REPERFUSION)
    assert (read.target, sum(study.outcome or 0 for study in read.studies)) == ("unsuccessful_reperfusion", 6)


@pytest.mark.parametrize(
    ("table", "target", "expected"),
    [
        (rows(), None, "rLVO"),
        (rows(), Target.RLVO, "rLVO"),
        (rows(), Target.UNSUCCESSFUL_REPERFUSION, "unsuccessful_reperfusion"),
        (grades(rescue_treatment=0), Target.RLVO, "rLVO"),
        (grades(rescue_treatment=0), Target.UNSUCCESSFUL_REPERFUSION, "unsuccessful_reperfusion"),
    ],
)
def test_target_is_one_choice(
    tmp_path: Path, table: list[dict[str, object]], target: Target | None, expected: str
) -> None:
    assert cohort.read(write(tmp_path, table), target=target).target == expected


@pytest.mark.parametrize(
    ("table", "target", "expected"),
    [
        (grades(), Target.RLVO, "rLVO needs at least one of"),
        (grades(rescue_treatment=0), None, "choose with --target rlvo or --target unsuccessful-reperfusion"),
        ([{"patient": f"p{n}", "ncct": "head.nii.gz"} for n in range(24)], None, "no outcome: give at least one of"),
        (
            [{"patient": f"p{n}", "ncct": "head.nii.gz", "rescue_treatment": 0} for n in range(24)],
            Target.UNSUCCESSFUL_REPERFUSION,
            "--target unsuccessful-reperfusion needs the column mtici or etici",
        ),
    ],
)
def test_target_without_its_columns_is_refused(
    tmp_path: Path, table: list[dict[str, object]], target: Target | None, expected: str
) -> None:
    with pytest.raises(CohortFault, match=expected):
        cohort.read(write(tmp_path, table), target=target)


def test_counts_say_what_each_component_decided_and_what_was_left_out(tmp_path: Path) -> None:
    table = rows()
    table[1] |= {"etici": "2a", "rescue_treatment": ""}  # decided by eTICI alone
    table[2] |= {"etici": "TICI IIa", "rescue_treatment": "yes"}  # two components
    table[3] |= {"rescue_treatment": "", "site": "south"}  # unknown
    table[5] |= {"rescue_treatment": "", "final_stenosis_percent": ""}  # unknown
    read = cohort.read(write(tmp_path, table), drop_unknown=True)
    counts = read.counts
    assert counts is not None
    assert counts.alone == {"final_stenosis_percent": 6, "etici": 1, "rescue_treatment": 0}
    assert counts.positive == {"final_stenosis_percent": 6, "etici": 2, "rescue_treatment": 1}
    assert counts.known == {"final_stenosis_percent": 23, "etici": 24, "rescue_treatment": 21}
    assert counts.missing == {"final_stenosis_percent": 1, "etici": 0, "rescue_treatment": 2}
    assert (counts.dropped, len(read.studies)) == (2, 22)
    assert counts.sites == {"north": {1: 8, 0: 14, None: 1}, "south": {None: 1}}
    text = "\n".join(counts.lines())
    assert "| etici | 24 | 2 | 1 |" in text
    assert "| south | 0 | 0 | 1 |" in text
    assert "2 rows of unknown outcome were left out (`--drop-unknown`); missing: final_stenosis_percent in 1" in text


def test_counts_of_a_complete_table_name_nothing_left_out(tmp_path: Path) -> None:
    counts = cohort.read(write(tmp_path, rows())).counts
    assert counts is not None
    assert "left out" not in "\n".join(counts.lines())


def test_patient_with_a_faulty_row_is_one_line_and_no_value_is_shown(tmp_path: Path) -> None:
    table = [row | {"age": "Jane Doe"} for row in rows()]
    (line,) = faults(tmp_path, table).splitlines()
    assert line.startswith("24 rows (2, 3, 4, ...), column age: expected a number")
    assert line.endswith("(found: aaaa aaa)")


@pytest.mark.parametrize(("named", "unnamed"), [("", "one"), ("north", "not recorded")])
def test_row_without_a_site_is_no_site_beside_named_ones(tmp_path: Path, named: str, unnamed: str) -> None:
    (tmp_path / "head.nii.gz").touch()
    table = pd.DataFrame(rows())
    table["site"] = [named] * 20 + [""] * 4
    table.to_csv(tmp_path / "cohort.csv", index=False)
    sites = [study.site for study in cohort.read(tmp_path).studies]
    assert sites == [named or "one"] * 20 + [unnamed] * 4
