"""``variables.toml`` and the columns of own variables: faults name file, variable and what to do; rows are named."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path

import numpy as np
import pytest

from app.inference.clinical_encoder import fit
from app.inference.own_variables import taken_names
from app.registry.manifest import ClinicalVariable, VariableKind
from app.training import cells, cohort, columns, provenance, unread_columns, variables
from app.training.errors import CohortFault
from app.training.model_card import own_table
from app.training.options import PublishedModel
from app.training.own_variables import FILE, OwnColumns, find, read
from tests.factory import VARIABLES, tiny_manifest
from tests.training.test_cohort import rows, write
from tests.training.test_run_key import cohort_in, config, data_of, run
from tests.training.tiny import tiny_dataset

DECLARED = """
[variables.ddimer]
label = "D-dimer"
kind = "number"
unit = "ng/mL"
range = [0, 100000]
log = true
group = "laboratory"

[variables.pacemaker]
label = "Pacemaker"
kind = "boolean"

[variables.grade]
label = "Leukoaraiosis"
kind = "category"
values = ["none", "mild", "very-severe"]
"""


def declare(folder: Path, text: str = DECLARED) -> Path:
    path = folder / FILE
    path.write_text(text)
    return path


def own(folder: Path, text: str = DECLARED) -> tuple[ClinicalVariable, ...]:
    return read(declare(folder, text))


def table(**columns_: object) -> list[dict[str, object]]:
    own_cells = {"ddimer": 250.5, "Pacemaker": "yes", "own.grade": "Very severe"} | columns_
    return [row | own_cells for row in rows()]


def test_file_becomes_variables_of_the_manifest(tmp_path: Path) -> None:
    ddimer, pacemaker, grade = own(tmp_path)
    assert (ddimer.name, ddimer.kind, ddimer.unit, ddimer.log) == ("own.ddimer", VariableKind.NUMBER, "ng/mL", True)
    assert ddimer.own is not None
    assert (ddimer.own.label, ddimer.own.group, ddimer.own.low, ddimer.own.high) == ("D-dimer", "laboratory", 0, 100000)
    assert (pacemaker.kind, grade.categories) == (VariableKind.FLAG, ("none", "mild", "very-severe"))
    assert find(None, tmp_path / "elsewhere") == ()


NUMBER = 'label = "L"\nkind = "number"\nunit = "mL"\nrange = [0, 1]\n'
FLAG = 'label = "L"\nkind = "boolean"\n'
WORDS = 'label = "L"\nkind = "category"\nvalues = ["a", "b"]\n'


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[variables.a]\nkind = ", "variables.toml is no TOML"),
        ("", r"expected one section \[variables.NAME\]"),
        ("a = 1", r"expected one section \[variables.NAME\]"),
        ("variables = 3", r"expected one section \[variables.NAME\]"),
        ("[variables]", r"expected one section \[variables.NAME\]"),
        (f"[variables.a]\n{FLAG}[other]\n", r"expected one section \[variables.NAME\]"),
        ("".join(f"[variables.a{n}]\n{FLAG}" for n in range(33)), "33 variables are too many; declare at most 32"),
        ("[variables]\na = 1", r"variables.toml, a: expected a section \[variables.a\]"),
        (f"[variables.number_of_passes]\n{FLAG}", "number_of_passes: .*only after the puncture.*remove it"),
        (f"[variables.tici_final]\n{NUMBER}", "tici_final: .*only after the puncture"),
        (f"[variables.age]\n{NUMBER}", "age: a field of the record .*; use that field, or give another name"),
        (f"[variables.core_ml]\n{NUMBER}", "core_ml: a field of the record"),
        (f"[variables.DDimer]\n{FLAG}", "DDimer: expected small letters"),
        (f'[variables."Jane Doe, 4711"]\n{FLAG}', r"variables.toml, \(a variable\): expected small letters"),
        ('[variables.a]\nlabel = "L"\n', "a: kind: expected number, boolean, category"),
        (f"[variables.a]\n{FLAG}".replace("boolean", "text"), "a: kind: expected number, boolean, category"),
        (f"[variables.a]\n{FLAG}".replace('"boolean"', '["boolean"]'), "a: kind: expected number, boolean, category"),
        (f"[variables.a]\n{FLAG}".replace('"boolean"', "{of = 1}"), "a: kind: expected number, boolean, category"),
        (f'[variables.a]\n{FLAG}group = ["other"]\n', "a: group: expected one of presentation"),
        (f'[variables.a]\n{FLAG}unit = "mL"\n', "a: unit: not a member of a boolean; it has label, kind, group"),
        (f"[variables.a]\n{FLAG}".replace('"L"', '""'), "a: label: expected a name for readers"),
        (f"[variables.a]\n{FLAG}".replace('"L"', f'"{"L" * 61}"'), "a: label: expected a name for readers"),
        (f"[variables.a]\n{FLAG}".replace('"L"', '"a\\nb"'), "a: label: expected a name for readers"),
        (f"[variables.a]\n{FLAG}".replace('"L"', '"Final TICI"'), "a: label: .*only after the puncture"),
        (f'[variables.a]\n{FLAG}group = "blood"\n', "a: group: expected one of presentation, history, imaging"),
        (
            f"[variables.a]\n{NUMBER}".replace('unit = "mL"\n', ""),
            'a: unit: expected .*unit = "1" for a number without',
        ),
        (f"[variables.a]\n{NUMBER}".replace("range = [0, 1]", ""), "a: range: expected the lowest and the highest"),
        (f"[variables.a]\n{NUMBER}".replace("[0, 1]", "[1, 0]"), "a: range: expected"),
        (f"[variables.a]\n{NUMBER}".replace("[0, 1]", "[0, nan]"), "a: range: expected"),
        (f"[variables.a]\n{NUMBER}".replace("[0, 1]", "[0, inf]"), "a: range: expected"),
        (f"[variables.a]\n{NUMBER}".replace("[0, 1]", '[0, "1"]'), "a: range: expected"),
        (f"[variables.a]\n{NUMBER}".replace("[0, 1]", "[-1, 1]") + "log = true\n", "a: log: a range below 0"),
        (f"[variables.a]\n{NUMBER}log = 1\n", "a: log: expected true or false"),
        (f"[variables.a]\n{WORDS}".replace('["a", "b"]', '["a"]'), "a: values: expected 2 to 12 different words"),
        (f"[variables.a]\n{WORDS}".replace('"b"', '"a"'), "a: values: expected 2 to 12 different words"),
        (f"[variables.a]\n{WORDS}".replace('"b"', '"Jane Doe"'), "a: values: expected small letters"),
        (f"[variables.a]\n{WORDS}".replace('"b"', "3"), "a: values: expected small letters"),
    ],
)
def test_fault_names_the_file_the_variable_and_what_to_do(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(CohortFault, match=fault) as refusal:
        own(tmp_path, text)
    assert "variables.toml" in str(refusal.value)
    assert "Jane" not in str(refusal.value)


def test_all_faults_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(CohortFault) as refusal:
        own(tmp_path, f"[variables.age]\n{FLAG}[variables.a]\nkind = 1\n[variables.b]\n{NUMBER}")
    assert len(refusal.value.faults) == 2


def test_file_that_is_missing_or_too_large_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortFault, match=r"there is no file gone\.toml"):
        find(tmp_path / "gone.toml", tmp_path)
    (tmp_path / FILE).write_bytes(b"# " + b"x" * 70_000)
    with pytest.raises(CohortFault, match="larger than 64 KiB"):
        find(None, tmp_path)
    (tmp_path / FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(CohortFault, match="is no TOML"):
        find(None, tmp_path)


def test_columns_are_read_with_or_without_the_section(tmp_path: Path) -> None:
    declare(tmp_path)
    read_cohort = cohort.read(write(tmp_path, table()))
    assert read_cohort.studies[0].record.own == {"ddimer": 250.5, "pacemaker": True, "grade": "very-severe"}
    assert [variable.name for variable in read_cohort.own] == ["own.ddimer", "own.pacemaker", "own.grade"]
    empty = cohort.read(write(tmp_path, table(ddimer="", Pacemaker="")))
    assert empty.studies[0].record.own == {"grade": "very-severe"}


def test_word_of_a_category_may_be_one_that_python_reserves(tmp_path: Path) -> None:
    (grade,) = own(tmp_path, f"[variables.a]\n{WORDS}".replace('"a", "b"', '"mro", "name", "value", "none"'))
    kind = columns.types_with([grade])["own.a"]
    assert issubclass(kind, StrEnum)
    assert [cells.parse_cell(word, kind) for word in ("MRO", "Name", "none")] == ["mro", "name", "none"]


def test_file_of_an_editor_that_writes_a_mark_before_the_text_is_read(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\xef\xbb\xbf" + DECLARED.encode())
    assert len(find(None, tmp_path)) == 3
    (tmp_path / columns.FILE).write_bytes(b"\xef\xbb\xbfmissing = ['NA']")
    assert columns.find_rules(None, tmp_path).missing == ("NA",)


def test_versions_that_declare_more_variables_than_a_record_has_are_refused_together(tmp_path: Path) -> None:
    first, second = (own(tmp_path, "".join(f"[variables.{n}{k}]\n{FLAG}" for k in range(20))) for n in "ab")
    assert len(OwnColumns(None, {"m/1.0.0": first, "m/1.0.1": first}).find(tmp_path / "x")) == 20
    with pytest.raises(CohortFault, match=r"40 own variables.*32.*fewer versions"):
        OwnColumns(None, {"m/1.0.0": first, "m/1.0.1": second}).find(tmp_path / "x")


def test_columns_toml_gives_another_header_to_an_own_variable(tmp_path: Path) -> None:
    declare(tmp_path)
    named = [
        {("Dímero D" if key == "ddimer" else key): cell for key, cell in row.items()} for row in table(ddimer="NA")
    ]
    (tmp_path / columns.FILE).write_text('[columns."Dímero D"]\nfield = "ddimer"\nmissing = ["NA"]\n')
    assert cohort.read(write(tmp_path, named)).studies[0].record.own == {"pacemaker": True, "grade": "very-severe"}


@pytest.mark.parametrize(
    ("cells", "fault"),
    [
        ({"ddimer": 100_001}, "column own.ddimer: must be a number within 0 to 100000 ng/mL"),
        ({"ddimer": 999_999.9}, "if it means missing, declare it in columns.toml"),
        ({"ddimer": "high"}, "column own.ddimer: expected a number"),
        ({"Pacemaker": "maybe"}, "column own.pacemaker: expected 1 or 0"),
        ({"own.grade": "huge"}, "column own.grade: expected one of none, mild, very-severe"),
    ],
)
def test_value_out_of_its_declaration_names_the_rows(tmp_path: Path, cells: dict[str, object], fault: str) -> None:
    declare(tmp_path)
    wrong = [row | (cells if place in (3, 5) else {}) for place, row in enumerate(table())]
    with pytest.raises(CohortFault) as refusal:
        cohort.read(write(tmp_path, wrong))
    (line,) = refusal.value.faults
    assert line.startswith("2 rows (5, 7), ")
    assert fault in line
    assert not any(str(cell) in line for cell in cells.values() if "9" not in str(cell))  # the form of 9 is 9


def test_code_of_a_missing_value_is_suspicious_in_an_own_column_too(tmp_path: Path) -> None:
    declare(tmp_path)
    coded = [row | {"ddimer": 9999 if place % 6 == 0 else 200 + place} for place, row in enumerate(table())]
    found = cohort.read(write(tmp_path, coded)).suspicions
    assert ("missing-code", "own.ddimer", (2, 8, 14, 20)) in [(one.code, one.column, one.rows) for one in found]


def test_undeclared_column_is_refused_with_the_way_to_declare_it(tmp_path: Path) -> None:
    with pytest.raises(CohortFault, match=r"column ddimer: unknown; .*variable of your own in variables.toml"):
        cohort.read(write(tmp_path, [row | {"ddimer": 5} for row in rows()]))


def test_version_declares_the_columns_of_an_evaluation(tmp_path: Path) -> None:
    declared = {"mine 1.0.0": own(tmp_path)}
    (tmp_path / FILE).unlink()
    path = write(tmp_path, table())
    assert cohort.read(path, own=OwnColumns(declared=declared)).studies[0].record.own
    declare(tmp_path, DECLARED.replace("100000", "50000"))
    with pytest.raises(CohortFault, match=r"mine 1\.0\.0 declares ddimer in another way"):
        cohort.read(path, own=OwnColumns(declared=declared))
    declare(tmp_path, DECLARED.replace('"D-dimer"', '"D dimer"'))  # a label changes no cell
    assert cohort.read(path, own=OwnColumns(declared=declared)).studies


def test_table_is_the_same_whether_its_file_or_the_version_declares_its_columns(tmp_path: Path) -> None:
    declared = own(tmp_path)
    plain = cohort.read(write(tmp_path, table()))
    fitted = fit([study.record for study in plain.studies], declared).own
    assert fitted != declared
    assert OwnColumns(declared={"mine 1.0.0": fitted}).find(tmp_path / "elsewhere") == declared


def test_every_column_of_a_cohort_is_a_name_that_is_taken() -> None:
    assert {name.rpartition(".")[2] for name in columns.known_fields()} <= taken_names()


def test_rows_for_a_prediction_have_own_values(tmp_path: Path) -> None:
    declare(tmp_path)
    assert cohort.read_for_prediction(write(tmp_path, table()))[0].record.own


def test_own_variables_are_used_unless_others_are_chosen(tmp_path: Path) -> None:
    declared = own(tmp_path)
    assert [variable.name for variable in variables.select((), declared)][-3:] == [v.name for v in declared]
    assert variables.parse("ddimer, Age", declared) == ("age", "own.ddimer")
    assert variables.parse("own.grade,nihss", declared) == ("nihss", "own.grade")
    everything = ",".join(variable.name for variable in variables.select((), declared))
    assert variables.parse(everything, declared) == ()
    with pytest.raises(CohortFault, match="unknown: ddimer"):
        variables.parse("ddimer")
    with pytest.raises(CohortFault, match="give the file that declares own ones to --own-variables"):
        variables.parse("own.toml", declared)


def test_own_variable_without_a_value_is_refused(tmp_path: Path) -> None:
    data = replace(tiny_dataset(np.zeros(4), np.zeros(4), np.arange(4) % 2), own=own(tmp_path))
    with pytest.raises(CohortFault, match=r"no study has a value of own.ddimer, own.pacemaker, own.grade"):
        variables.check_values((), data)
    variables.check_values(("age",), data)
    assert data.first(2).own == data.own


def test_declaration_is_part_of_the_run(tmp_path: Path) -> None:
    plain = cohort_in(tmp_path)
    declared = replace(plain, own=own(tmp_path))
    wider = replace(plain, own=own(tmp_path, DECLARED.replace("100000", "200000")))
    digests = {provenance.data_digest(one, data_of(one)) for one in (plain, declared, wider)}
    assert len(digests) == 3
    assert run(declared).folder != run(plain).folder
    assert run(plain, config(own_variables=Path("elsewhere"))).folder == run(plain).folder


def test_data_digest_without_own_variables_is_that_of_earlier_releases(tmp_path: Path) -> None:
    row = provenance._plain(cohort_in(tmp_path).studies[0].record)
    assert isinstance(row, dict)
    assert "own" not in row


def test_card_lists_the_own_variables_with_their_ranges(tmp_path: Path) -> None:
    text = own_table(tiny_manifest(variables=(*VARIABLES, *own(tmp_path))))
    assert "| `own.ddimer` | D-dimer | a number within 0 to 100000 ng/mL |" in text
    assert "| `own.grade` | Leukoaraiosis | one of none, mild, very-severe |" in text
    assert own_table(tiny_manifest()) == ""
    (odd,) = own(tmp_path, f"[variables.a]\n{NUMBER}".replace('"L"', '"a|b"').replace('"mL"', '"n|g"'))
    assert "| `own.a` | a/b | a number within 0 to 1 n/g |" in own_table(tiny_manifest(variables=(*VARIABLES, odd)))


def test_unused_own_column_is_said(tmp_path: Path) -> None:
    declare(tmp_path)
    found = cohort.read(write(tmp_path, table()))
    assert "own." not in unread_columns.of_training(found, PublishedModel.DAFT)
    assert "own.ddimer" in unread_columns.of_training(found, PublishedModel.DAFT, ("age",))
    assert "own.ddimer" in unread_columns.of_version(found, tiny_manifest())
