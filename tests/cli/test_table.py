"""``rlvo table check``: one line for each column, the faults, and the template of ``columns.toml``."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.cli.table import table
from app.training import cohort
from app.training.columns import ColumnRules
from tests.training import messy_tables


def check(*arguments: object) -> Result:
    return CliRunner().invoke(table, ["check", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    messy_tables.images(tmp_path)
    return tmp_path


def test_usable_table_is_summarised_and_its_template_changes_nothing(folder: Path) -> None:
    path = messy_tables.workbook(messy_tables.rows())(folder)
    before = cohort.read(path)
    result = check(path)
    assert result.exit_code == 0, result.output
    assert "cohort.xlsx: 24 rows, 12 columns; sheet 'Sheet'" in result.stdout
    assert "age -> age, 24 of 24 filled\n" in result.stdout
    assert "| final_stenosis_percent | 24 | 6 | 6 |" in result.stdout
    assert cohort.read(path) == before


def test_faults_are_one_line_for_each_column(folder: Path) -> None:
    rows = [row | {"age": "Jane", "sex": "V", 'Edad "x"\n': "60", "eTICI": row["etici"]} for row in messy_tables.rows()]
    path = messy_tables.plain(rows)(folder)
    result = check(path)
    assert result.exit_code == 2
    (age,) = [line for line in result.stdout.splitlines() if line.startswith("age ->")]
    assert "24 of 24 filled; 24 rows (2, 3, 4, ...), column age: expected a number" in age
    assert "Jane" not in result.stdout
    assert "it is etici, and so is column etici" in result.stdout
    assert len(result.stdout.splitlines()) < 24


def test_corrected_template_makes_the_table_usable(folder: Path) -> None:
    rows = [
        {("Edad" if name == "age" else name): cell for name, cell in row.items()} | {"sex": "VM"[n % 2]}
        for n, row in enumerate(messy_tables.rows())
    ]
    path = messy_tables.plain(rows)(folder)
    assert check(path).exit_code == 2
    rules = folder / "columns.toml"
    template = rules.read_text()
    ColumnRules.model_validate(tomllib.loads(template))
    assert 'the table has "M", "V"' in template
    corrected = template.replace('# [columns."Edad"]\n# field = ""', '[columns."Edad"]\nfield = "age"')
    corrected = corrected.replace(
        'field = "sex"\nmissing = []  # as ["999"]\nvalues = {}', 'field = "sex"\nvalues = { V = "male", M = "female" }'
    )
    rules.write_text(corrected)
    result = check(path)
    assert result.exit_code == 0, result.output
    assert rules.read_text() == corrected  # an existing file is kept
    first, second = cohort.read(path).studies[:2]
    assert (first.record.age, first.record.sex, second.record.sex) == (60, "male", "female")


def test_unknown_target_and_missing_file_are_refused(folder: Path) -> None:
    assert check(folder / "none.csv").exit_code != 0
    result = check(messy_tables.plain(messy_tables.rows())(folder), "--target", "rLVO2")
    assert result.exit_code == 2
    assert "unsuccessful-reperfusion" in result.stderr


def test_suspicious_values_stand_in_the_line_of_their_column_until_they_are_accepted(folder: Path) -> None:
    rows = [row | {"patient": "p0"} if n == 1 else row for n, row in enumerate(messy_tables.fractions())]
    rows[1] |= {"sex": "female", "age": 60, "ncct": "p0.nii.gz", "date": rows[0]["date"]}
    rows[3] |= {"ncct": "p2.nii.gz"}
    path = messy_tables.plain(rows)(folder)
    result = check(path)
    assert result.exit_code == 2
    (stenosis,) = [line for line in result.stdout.splitlines() if line.startswith("final_stenosis_percent ->")]
    assert "fraction: 24 rows (2, 3, 4, ...), column final_stenosis_percent:" in stenosis
    assert result.stdout.splitlines()[-1] != ""
    assert "give --accept fraction,same-image,same-study,two-sexes" in result.stdout
    assert check(path, "--accept", "fraction,two-sexes,same-image").exit_code == 2
    assert check(path, "--accept", "fraction, two-sexes,same-image,same-study").exit_code == 0
    assert check(path, "--accept", "all").exit_code == 0
    assert check(path, "--accept", "none").exit_code != 0
