"""Tables as hospitals have them: what is read, what is refused, and the list of them in the documentation."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.training import cells, cohort, columns, table_reader
from app.training.errors import CohortFault
from tests.training import messy_tables
from tests.training.messy_tables import TABLES, MessyTable


def read(folder: Path, content: str, name: str = "cohort.csv", encoding: str = "utf-8") -> table_reader.RawTable:
    (folder / name).write_bytes(content.encode(encoding))
    return table_reader.read_table(folder / name)


def test_documentation_shows_what_is_said_to_each_messy_table() -> None:
    assert len(TABLES) >= 40
    assert messy_tables.documented() == messy_tables.markdown()


@pytest.mark.parametrize("table", TABLES, ids=[f"{n}" for n in range(len(TABLES))])
def test_answer_to_a_messy_table_is_short_and_shows_no_path(table: MessyTable, tmp_path: Path) -> None:
    answer = messy_tables.said(table, tmp_path)
    assert len(answer.split("<br>")) <= 3
    assert len(answer) < 400
    assert str(tmp_path) not in answer


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("extra", ["{0}", "{0}x", "{0}{0}", "{0}1{0}2"])
def test_row_longer_than_the_header_is_refused_with_its_number(tmp_path: Path, separator: str, extra: str) -> None:
    lines = ["a,b,c", "1,2,3", "4,5,6" + extra.format(","), "7,8,9"]
    with pytest.raises(CohortFault, match="row 3: more cells than the header, which has 3"):
        read(tmp_path, "\n".join(lines).replace(",", separator))


@pytest.mark.parametrize("content", ["a,b,\n1,2,\n3,4,\n", 'a,b\n1,"2,"\n3,4\n', "a,b\n1,2\n,,,\n".replace(",,,", ",")])
def test_look_alike_of_a_long_row_is_read(tmp_path: Path, content: str) -> None:
    table = read(tmp_path, content)
    assert table.header == ("a", "b")
    assert table.rows[0][1][0] == "1"


def test_parquet_and_spreadsheet_give_the_same_cells_as_text(tmp_path: Path) -> None:
    frame_rows = messy_tables.rows()
    text = table_reader.read_table(messy_tables.plain(frame_rows)(tmp_path))
    sheet = table_reader.read_table(messy_tables.workbook(frame_rows)(tmp_path))
    assert (sheet.header, sheet.rows) == (text.header, text.rows)


@given(st.binary(max_size=300), st.sampled_from(["cohort.csv", "cohort.xlsx", "cohort.parquet", "cohort.ods"]))
def test_any_content_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str) -> None:
    path = tmp_path_factory.mktemp("any") / name
    path.write_bytes(content)
    with contextlib.suppress(CohortFault):
        cohort.inspect(path)


@given(st.text(max_size=30))
def test_any_cell_is_parsed_or_refused(cell: str) -> None:
    for kind in (bool, int, float, *{kind for kind in columns.column_types().values() if kind is not str}):
        for mark in (".", ",", ""):
            with contextlib.suppress(ValueError):
                cells.parse_cell(cell, kind, mark)


@pytest.mark.parametrize(
    ("column", "default", "cell", "number"),
    [
        (["1,5", "1,234"], ".", "1,234", 1.234),
        (["1.5", "1.234"], ".", "1.234", 1.234),
        (["1.234"], ".", "1.234", 1.234),
        (["1,234"], ",", "1,234", 1.234),
        (["0,123"], ".", "0,123", 0.123),
        (["12"], ",", "12", 12),
        (["1e3"], ".", "1e3", 1000),
        (["-4,5"], ".", "-4,5", -4.5),
    ],
)
def test_decimal_mark_follows_from_the_column(column: list[str], default: str, cell: str, number: float) -> None:
    assert cells.parse_number(cell, cells.decimal_mark(column, default)) == number


@pytest.mark.parametrize(
    ("column", "default", "cell"),
    [
        (["1,5", "1.234"], ".", "1.234"),
        (["1.5", "1,234"], ".", "1,234"),
        (["1,234"], ".", "1,234"),
        (["1.234"], ",", "1.234"),
        (["1.5", "2,5", "1.234"], ".", "1.234"),
        (["1.234,5"], ".", "1.234,5"),
        (["1_000"], ".", "1_000"),
        (["١٢"], ".", "١٢"),
        (["nan"], ".", "nan"),
        (["-inf"], ".", "-inf"),
    ],
)
def test_number_with_two_readings_or_none_is_refused(column: list[str], default: str, cell: str) -> None:
    with pytest.raises(ValueError, match=r"three digits|expected a number"):
        cells.parse_number(cell, cells.decimal_mark(column, default))


@pytest.mark.parametrize(
    ("cell", "date_format", "day"),
    [
        ("2024-03-09", "", "2024-03-09"),
        ("2024-03-09 10:15", "", "2024-03-09"),
        ("2024-03-09T10:15:00Z", "iso", "2024-03-09"),
        ("9/3/2024", "dd/mm/yyyy", "2024-03-09"),
        ("03/09/2024", "mm/dd/yyyy", "2024-03-09"),
        ("09.03.24", "dd.mm.yy", "2024-03-09"),
        ("09-03-2024 10:15", "dd-mm-yyyy hh:mm", "2024-03-09"),
        ("2024-03-09", "dd/mm/yyyy", "2024-03-09"),
        ("45360", "excel", "2024-03-09"),
        ("45360.43", "excel", "2024-03-09"),
    ],
)
def test_date_of_a_declared_form_is_read(cell: str, date_format: str, day: str) -> None:
    assert cells.parse_day(cell, cells.date_pattern(date_format)).isoformat() == day


@pytest.mark.parametrize(
    ("cell", "date_format"),
    [
        ("20240309", ""),
        ("2024-W10-6", ""),
        ("2024-3-9", ""),
        ("2024-02-30", ""),
        ("2024-03-09x", ""),
        ("09/03/2024", ""),
        ("45360", ""),
        ("31/02/2024", "dd/mm/yyyy"),
        ("03/15/2024", "dd/mm/yyyy"),
        ("2024", "excel"),
        ("20240309", "excel"),
    ],
)
def test_date_of_another_form_is_refused(cell: str, date_format: str) -> None:
    with pytest.raises(ValueError, match="date"):
        cells.parse_day(cell, cells.date_pattern(date_format))


@pytest.mark.parametrize("date_format", ["dd/mm", "yyyy", "%d/%m/%Y", "day", "dd/dd/yyyy", "mm/yyyy/mm"])
def test_date_format_without_day_month_and_year_is_refused(date_format: str) -> None:
    with pytest.raises(ValueError, match="--date-format: expected"):
        cells.date_pattern(date_format)


@pytest.mark.parametrize("header", ["eTICI", "ETICI", "Final stenosis percent", "rescue-treatment", " mTICI "])
def test_outcome_in_another_case_is_never_advised_to_be_removed(tmp_path: Path, header: str) -> None:
    assert columns.match(header) in {"etici", "final_stenosis_percent", "rescue_treatment", "mtici"}


@pytest.mark.parametrize("header", ["TICI", "e-TICI", "eTICI score", "residual stenosis", "Rescue_stenting", "eTICl"])
def test_name_that_may_be_the_outcome_gets_the_right_name(tmp_path: Path, header: str) -> None:
    table = messy_tables.changed("inr", 1, name=header)
    messy_tables.images(tmp_path)
    with pytest.raises(CohortFault) as caught:
        cohort.read(messy_tables.plain(table)(tmp_path))
    (fault,) = caught.value.faults
    assert re.search(r"etici|final_stenosis_percent|rescue_treatment", fault)
    assert "remove it" not in fault


@pytest.mark.parametrize("header", ["mrs_90", "passes", "NIHSS 24h", "Door to recanalization"])
def test_column_known_after_the_puncture_is_still_refused(tmp_path: Path, header: str) -> None:
    with pytest.raises(CohortFault, match="known only after the puncture"):
        cohort.read(messy_tables.plain(messy_tables.changed("inr", 1, name=header))(tmp_path))


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("field =", "columns.toml is no TOML"),
        ("[columns.age]\nfields = 'age'", "columns.toml, columns.age.field: Field required"),
        ("[columns.Alter]\nfield = 'age'", "column Alter: columns.toml names it, and the table does not have it"),
        ("[columns.age]\nfield = 'old'", "column age: columns.toml gives it the unknown field old"),
        ("[columns.inr]\nfield = 'age'", "column inr: it is age, and so is column age"),
        ("date_format = 'day first'", "--date-format: expected"),
    ],
)
def test_wrong_rules_are_refused(tmp_path: Path, rules: str, expected: str) -> None:
    with pytest.raises(CohortFault, match=re.escape(expected)):
        cohort.read(messy_tables.declared(messy_tables.rows(), rules)(tmp_path))


def test_declared_words_switch_off_the_short_words(tmp_path: Path) -> None:
    table = [row | {"sex": "VM"[n % 2]} for n, row in enumerate(messy_tables.rows())]
    path = messy_tables.declared(table, '[columns.sex]\nfield = "sex"\nvalues = { V = "male" }\n')(tmp_path)
    with pytest.raises(CohortFault, match=r"12 rows \(3, 5, 7, ...\), column sex: expected one of female, male"):
        cohort.read(path)
