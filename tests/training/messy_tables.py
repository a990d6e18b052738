"""Messy tables as hospitals have them, and what rlvo says to each; ``docs/training.md`` shows the list.

``python -m tests.training.messy_tables`` writes the list into the document.
"""

from __future__ import annotations

import csv
import io
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import openpyxl

from app.training import cohort, suspicious
from app.training.errors import CohortFault
from app.training.options import Target

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "training.md"
START, END = "<!-- messy tables: written by tests/training/messy_tables.py -->", "<!-- end of messy tables -->"
PATIENTS = 24

Row = dict[str, Any]


def rows() -> list[Row]:
    """A valid table: 24 patients, 6 of them with rLVO."""
    return [
        {
            "patient": f"p{n}",
            "site": "north",
            "date": f"2024-03-{1 + n:02d}",
            "ncct": f"p{n}.nii.gz",
            "age": 60 + n,
            "sex": "male",
            "atrial_fibrillation": n % 2,
            "nihss": 12,
            "inr": 1.1,
            "final_stenosis_percent": 70 if n % 4 == 0 else 10,
            "etici": "2b",
            "rescue_treatment": 0,
        }
        for n in range(PATIENTS)
    ]


def images(folder: Path) -> None:
    """Write one file for each patient of the valid table."""
    for n in range(PATIENTS):
        (folder / f"p{n}.nii.gz").write_bytes(f"volume {n}".encode())


def numbers(column: str, *values: float) -> list[Row]:
    """The valid table with one more column of numbers, whose values repeat."""
    return [row | {column: values[n % len(values)]} for n, row in enumerate(rows())]


def one_patient(**other: Any) -> list[Row]:
    """The valid table with a second row of the first patient, with ``other`` cells."""
    first, second, *rest = rows()
    return [first, second | {"patient": first["patient"], "age": first["age"]} | other, *rest]


def both_sides(**other: Any) -> list[Row]:
    """The table of ``one_patient``, whose first two rows are occlusions of two sides."""
    first, second, *rest = one_patient(**other)
    return [first | {"occlusion_side": "left"}, second | {"occlusion_side": "right"}, *rest]


def occluded() -> list[Row]:
    """The valid table with the stenosis before the procedure in the first two rows."""
    first, second, *rest = rows()
    return [one | {"final_stenosis_percent": 100, "etici": "3"} for one in (first, second)] + rest


def telling() -> list[Row]:
    """The valid table with rescue treatment in every second row, and a higher NIHSS in these."""
    return [
        row
        | {
            "rescue_treatment": n % 2,
            "final_stenosis_percent": 10,
            "nihss": 12 + n % 2,
            "atrial_fibrillation": n // 2 % 2,
        }
        for n, row in enumerate(rows())
    ]


def changed(column: str, value: Any, count: int = PATIENTS, name: str = "") -> list[Row]:
    """The valid table with a value in the first rows of a column, which may get another name."""
    table = rows()
    for row in table[:count]:
        row[column] = value
    return [{(name if key == column and name else key): cell for key, cell in row.items()} for row in table]


def text(table: list[Row], separator: str = ",", end: str = "") -> str:
    """Text of a table; ``end`` is added to each row but the header."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(table[0]), delimiter=separator, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    header, *lines = out.getvalue().splitlines()
    return "\n".join([header, *(line + end for line in lines)]) + "\n"


def plain(table: list[Row], **options: str) -> Callable[[Path], Path]:
    """Writer of a table as comma-separated UTF-8 text."""
    return encoded(text(table, **options))


def encoded(content: str, encoding: str = "utf-8") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "cohort.csv").write_bytes(content.encode(encoding))
        return folder / "cohort.csv"

    return write


def stored(content: bytes, name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def workbook(table: list[Row], change: Callable[[Any], None] = lambda sheet: None) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        book = openpyxl.Workbook()
        sheet = book.active
        sheet.append(list(table[0]))
        for row in table:
            sheet.append(list(row.values()))
        change(sheet)
        book.save(folder / "cohort.xlsx")
        return folder / "cohort.xlsx"

    return write


def hide(sheet: Any) -> None:
    """Hide the rows 3 and 4."""
    sheet.row_dimensions[3].hidden = sheet.row_dimensions[4].hidden = True


def declared(table: list[Row], rules: str) -> Callable[[Path], Path]:
    """Writer of a table with a ``columns.toml`` next to it."""

    def write(folder: Path) -> Path:
        (folder / "columns.toml").write_text(rules, encoding="utf-8")
        return plain(table)(folder)

    return write


def damaged(folder: Path) -> Path:
    path = workbook(rows())(folder)
    path.write_bytes(path.read_bytes()[:3000])
    return path


def percent(sheet: Any) -> None:
    place = list(rows()[0]).index("final_stenosis_percent") + 1
    for row in range(2, PATIENTS + 2):
        cell = sheet.cell(row, place)
        cell.value, cell.number_format = cell.value / 100, "0%"


def formula(sheet: Any) -> None:
    sheet["E2"].value = "=30+30"


def second_sheet(sheet: Any) -> None:
    sheet.parent.create_sheet("notes")["A1"].value = "checked by R-1"


def title(sheet: Any) -> None:
    sheet.insert_rows(1)
    sheet["A1"].value = "Cohort of 2024"


def decimal_commas() -> list[Row]:
    return [row | {"inr": "1,1", "age": f"{60 + n},5"} for n, row in enumerate(rows())]


def blank_rows() -> str:
    lines = text(changed("age", "old", 1)).splitlines()
    return "\n".join([lines[0], "," * 11, "", *lines[1:]])


def duplicate_header() -> str:
    return text(rows()).replace("inr", "age", 1)


def dates(form: str) -> list[Row]:
    return [row | {"date": date.fromisoformat(row["date"]).strftime(form)} for row in rows()]


def serials() -> list[Row]:
    return [row | {"date": 45352 + n} for n, row in enumerate(rows())]


def spanish() -> list[Row]:
    """A table with ``M`` for mujer and ``V`` for varon."""
    return [row | {"sex": "MV"[n % 2]} for n, row in enumerate(rows())]


def grades() -> list[Row]:
    """A table with the grade of reperfusion and no component of rLVO."""
    return [{"patient": f"p{n}", "ncct": f"p{n}.nii.gz", "mtici": "2b" if n % 4 else "2a"} for n in range(PATIENTS)]


def old() -> list[Row]:
    """A table of old patients, one of them 99 years old."""
    return [row | {"age": 76 + n} for n, row in enumerate(rows())]


def fractions() -> list[Row]:
    return [row | {"final_stenosis_percent": row["final_stenosis_percent"] / 100} for row in rows()]


@dataclass(frozen=True)
class MessyTable:
    """One table: what is in it, its writer, the options of the command, and a value that is shown if it is read."""

    content: str
    write: Callable[[Path], Path]
    options: str = ""
    shown: str = "age"


ALIASES = '[columns."Edad"]\nfield = "age"\n'
WORDS = '[columns."sex"]\nfield = "sex"\nvalues = { V = "male", M = "female" }\n'
CODES = '[columns."nihss"]\nfield = "nihss"\nmissing = ["999"]\n'
IGNORED = '[columns."Comment"]\nfield = ""\n'

TABLES = [
    MessyTable("a comma at the end of each row, not of the header", plain(rows(), end=",")),
    MessyTable("a comma at the end of each row and of the header", encoded(text(rows()).replace("\n", ",\n"))),
    MessyTable("a text with a comma and no quotation marks", encoded(text(rows()).replace("p3,north", "p3,nor, th"))),
    MessyTable("a decimal comma in a file with commas, `1,1`", encoded(text(rows()).replace(",1.1,", ",1,1,"))),
    MessyTable("rows that are cut off", encoded(text(rows()).replace(",2b,0\np1,", "\np1,"))),
    MessyTable("semicolons and decimal commas", encoded(text(decimal_commas(), ";"))),
    MessyTable("tabs", encoded(text(rows(), "\t"))),
    MessyTable("`sep=;` in the first line", encoded("sep=;\n" + text(rows(), ";"))),
    MessyTable("UTF-8 with a byte-order mark", encoded(text(rows()), "utf-8-sig")),
    MessyTable("UTF-16, as Excel's Unicode text", encoded(text(rows(), "\t"), "utf-16")),
    MessyTable("Latin-1, a site `Lleó`", encoded(text(changed("site", "Lleó")), "latin-1"), shown="site"),
    MessyTable("empty rows before the first patient, whose age is `old`", encoded(blank_rows())),
    MessyTable("the same header twice", encoded(duplicate_header())),
    MessyTable("a column with values and no header", plain(changed("inr", 1.1, name=" "))),
    MessyTable("an open quotation mark", encoded(text(rows()).replace("p3,", '"p3,'))),
    MessyTable("an empty file", stored(b"", "cohort.csv")),
    MessyTable("a header and no row", encoded(text(rows()).splitlines()[0] + "\n")),
    MessyTable("a spreadsheet, .xlsx", workbook(rows())),
    MessyTable("a spreadsheet with a damaged file", damaged),
    MessyTable("a spreadsheet with a password, or an old .xls", stored(b"\xd0\xcf\x11\xe0 old", "cohort.xlsx")),
    MessyTable("a spreadsheet named .csv", stored(b"PK\x03\x04 zip", "cohort.csv")),
    MessyTable("the spreadsheet program's lock file", stored(b"lock", "~$cohort.xlsx")),
    MessyTable("a title above the header of a spreadsheet", workbook(rows(), title)),
    MessyTable("a formula that was never computed", workbook(rows(), formula)),
    MessyTable("a stenosis that the spreadsheet shows as 70 %", workbook(rows(), percent), shown="outcomes"),
    MessyTable("two sheets", workbook(rows(), second_sheet)),
    MessyTable("a site in merged cells", workbook(rows(), lambda sheet: sheet.merge_cells("B2:B13"))),
    MessyTable("age and sex in merged cells", workbook(rows(), lambda sheet: sheet.merge_cells("E5:F5"))),
    MessyTable("merged cells without a value", workbook(rows(), lambda sheet: sheet.merge_cells("N2:O5"))),
    MessyTable("two hidden rows of a filter", workbook(rows(), hide)),
    MessyTable("`#N/A` in the ages", plain(changed("age", "#N/A"))),
    MessyTable("the header `eTICI`", plain(changed("etici", "2b", name="eTICI")), shown="outcomes"),
    MessyTable("the header `TICI`", plain(changed("etici", "2b", name="TICI"))),
    MessyTable("the header `mRS 90`", plain(changed("inr", 3, name="mRS 90"))),
    MessyTable("the header `atrial fibrilation`", plain(changed("atrial_fibrillation", 1, name="atrial fibrilation"))),
    MessyTable("the header `Edad`", plain(changed("age", 60, name="Edad"))),
    MessyTable("the header `Edad`, declared", declared(changed("age", 60, name="Edad"), ALIASES)),
    MessyTable("the header `Age [years]`", plain(changed("age", 60, name="Age [years]"))),
    MessyTable("the header `Glucose (mmol/L)`", plain(numbers("Glucose (mmol/L)", 6.1, 7.4))),
    MessyTable("the header `Hospital`", plain(changed("site", "north", name="Hospital"))),
    MessyTable("a column `Comment`, declared as ignored", declared(changed("inr", "x", name="Comment"), IGNORED)),
    MessyTable("sex as `M` and `F`", plain(changed("sex", "F", 12)), shown="sex"),
    MessyTable("sex as `V` and `M`", plain(spanish())),
    MessyTable(
        "sex as `V` and `M`, declared",
        declared([r | {"sex": "MV"[n % 2]} for n, r in enumerate(rows())], WORDS),
        shown="sex",
    ),
    MessyTable("flags as `si` and `Y`", plain(changed("atrial_fibrillation", "si", 12)), shown="atrial_fibrillation"),
    MessyTable("a flag of 2", plain(changed("atrial_fibrillation", 2, 3))),
    MessyTable("NIHSS 999 for missing", plain(changed("nihss", 999, 5))),
    MessyTable("NIHSS 999 for missing, declared", declared(changed("nihss", 999, 5), CODES), shown="nihss"),
    MessyTable("`NA` for a missing age", plain(changed("age", "NA", 4))),
    MessyTable("`inf` as INR", plain(changed("inr", "inf", 1))),
    MessyTable("`1e999` as INR", plain(changed("inr", "1e999", 1))),
    MessyTable("`>8` as INR", plain(changed("inr", ">8", 2))),
    MessyTable("`1,234` as INR", plain(changed("inr", "1,234", 2))),
    MessyTable("an age of 300 in every row", plain(changed("age", 300))),
    MessyTable("dates as `15/03/2024`", plain(dates("%d/%m/%Y"))),
    MessyTable("dates as `15/03/2024`", plain(dates("%d/%m/%Y")), "--date-format dd/mm/yyyy", "date"),
    MessyTable("dates as `03/15/2024`", plain(dates("%m/%d/%Y")), "--date-format dd/mm/yyyy"),
    MessyTable("days of Excel, `45352`", plain(serials())),
    MessyTable("days of Excel, `45352`", plain(serials()), "--date-format excel", "date"),
    MessyTable("eTICI as `TICI 2b`", plain(changed("etici", "TICI 2b")), shown="outcomes"),
    MessyTable("eTICI as `2`", plain(changed("etici", "2", 2))),
    MessyTable("NIHSS -1 for missing", plain(changed("nihss", -1, 5))),
    MessyTable("platelets 999 for missing", plain(numbers("platelets", 231, 187, 999, 264, 305, 198, 222, 243))),
    MessyTable(
        "platelets 999 for missing, declared",
        declared(
            numbers("platelets", 231, 187, 999, 264, 305, 198, 222, 243),
            '[columns."platelets"]\nfield = "platelets"\nmissing = ["999"]\n',
        ),
    ),
    MessyTable(
        "platelets 999 that are right",
        plain(numbers("platelets", 231, 187, 999, 264, 305, 198, 222, 243)),
        "--accept missing-code",
    ),
    MessyTable("an age of 99 for unknown in eight rows", plain(changed("age", 99, 8))),
    MessyTable("one patient of 99 years among old patients", plain(old())),
    MessyTable("stenosis as a fraction, `0.7`", plain(fractions())),
    MessyTable("onset to door in hours", plain(numbers("onset_to_door", 2, 3.5, 1, 6, 12, 8))),
    MessyTable("short onset to door, in minutes", plain(numbers("onset_to_door", 25, 55, 40, 70, 35, 90))),
    MessyTable("glucose in mmol/L", plain(numbers("glucose", 5.6, 7.1, 6.3, 9.8))),
    MessyTable("creatinine in umol/L", plain(numbers("creatinine", 71, 88, 95, 102))),
    MessyTable("creatinine in mmol/L", plain(numbers("creatinine", 0.12, 0.16, 0.18, 0.21))),
    MessyTable("platelets per uL", plain(numbers("platelets", 231000, 187000, 264000))),
    MessyTable("platelets in 10^12/L", plain(numbers("platelets", 0.231, 0.187, 0.264))),
    MessyTable("CRP in mg/dL", plain(numbers("crp", 0.3, 0.5, 0.4, 1.9, 0.2))),
    MessyTable("CRP in mg/L, few with an infection", plain(numbers("crp", 1.2, 3.4, 2.1, 41, 5))),
    MessyTable("LDL in mmol/L", plain(numbers("ldl", 2.6, 3.1, 1.9))),
    MessyTable("HbA1c in mmol/mol", plain(numbers("hba1c", 38, 45, 52))),
    MessyTable("a blood pressure in kPa", plain(numbers("systolic_bp", 18.5, 20.1))),
    MessyTable("one image for two patients", plain(changed("ncct", "p0.nii.gz", 2))),
    MessyTable("one study in two rows of its patient", plain(one_patient(ncct="p0.nii.gz"))),
    MessyTable("two sides of one patient in one study", plain(both_sides(ncct="p0.nii.gz"))),
    MessyTable("the site `unknown`", plain(changed("site", "unknown", 3))),
    MessyTable("an eTICI of 3 beside a stenosis of 100 %", plain(occluded())),
    MessyTable("an NIHSS that tells the outcome", plain(telling())),
    MessyTable("two sexes of one patient", plain(one_patient(sex="female"))),
    MessyTable("two ages of one patient, a day apart", plain(one_patient(age=71))),
    MessyTable("two ages of one patient, ten years apart", plain(one_patient(age=70, date="2034-03-01"))),
    MessyTable("a site in two spellings", plain(changed("site", "North", 2))),
    MessyTable("an AppleDouble file as table", stored(b"\x00\x05\x16\x07", "._cohort.csv")),
    MessyTable("an AppleDouble file as image", plain(changed("ncct", "._p0.nii.gz", 1))),
    MessyTable("a folder as image", plain(changed("ncct", ".", 1))),
    MessyTable("`mtici`, no component of rLVO", plain(grades())),
    MessyTable("`mtici`, no component of rLVO", plain(grades()), "--target unsuccessful-reperfusion", "outcomes"),
    MessyTable("rescue unknown in five rows", plain(changed("rescue_treatment", "", 5))),
    MessyTable("rescue unknown in five rows", plain(changed("rescue_treatment", "", 5)), "--drop-unknown", "dropped"),
]


def said(table: MessyTable, folder: Path) -> str:
    """What rlvo says to a table: its faults, or what was read."""
    images(folder)
    words = table.options.split()
    options: dict[str, Any] = {"drop_unknown": "--drop-unknown" in words}
    if "--target" in words:
        options["target"] = Target(words[1])
    if "--date-format" in words:
        options["date_format"] = words[1]
    try:
        read = cohort.read(table.write(folder), **options)
        suspicious.check(read, words[1] if "--accept" in words else "")
    except CohortFault as error:
        return "<br>".join(error.faults)
    last = read.studies[-1]
    counts = read.counts
    assert counts is not None
    shown = {
        "outcomes": f"{sum(s.outcome or 0 for s in read.studies)} with {read.target}",
        "dropped": f"{counts.dropped} left out, {sum(s.outcome or 0 for s in read.studies)} with {read.target}",
        "site": f"site {last.site} in row {last.row}",
        "date": f"date {last.date} in row {last.row}",
    }
    value = shown.get(table.shown) or f"{table.shown} {_first_and_last(read, table.shown)}"
    return f"read, {len(read.studies)} patients: {value}{''.join(f'; {note}' for note in read.notes)}"


def _first_and_last(read: cohort.Cohort, field: str) -> str:
    first, last = (study.record.value(field) for study in (read.studies[0], read.studies[-1]))
    return f"{first} in the first row, {last} in the last"


def markdown() -> str:
    """The list as a Markdown table."""
    lines = ["| the table has | rlvo says |", "|---|---|"]
    for table in TABLES:
        with tempfile.TemporaryDirectory() as folder:
            answer = said(table, Path(folder)).replace("|", "\\|")
        option = f", with `{table.options}`" if table.options else ""
        lines.append(f"| {table.content}{option} | {answer} |")
    return "\n".join(lines)


def documented() -> str:
    """The list as it stands in the document."""
    found = re.search(f"{re.escape(START)}\n(.*?)\n{re.escape(END)}", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    return found[1] if found else ""


if __name__ == "__main__":
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{START}\n{markdown()}\n{END}{after}", encoding="utf-8")
    sys.stdout.write(f"wrote {len(TABLES)} tables to {DOCUMENT.name}\n")
