"""Reads a table of a hospital (.csv, .tsv, .txt, .xlsx, .parquet) into rows of text cells.

Design notes:
- No cell moves silently: a row with more or fewer cells than the header is refused, with its row number.
- Separator and encoding follow from the content. What was found is noted, so that a report can state it.
- A spreadsheet's percent cells become percent, its dates ISO dates, and its whole numbers have no decimals.
- Row numbers are those of a spreadsheet program. Empty rows count, but are not read.
"""

from __future__ import annotations

import codecs
import csv
import io
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
from openpyxl.utils.datetime import CALENDAR_MAC_1904
from openpyxl.utils.exceptions import InvalidFileException

from app.training.errors import CohortFault, FaultList, rows_text

TEXT, SPREADSHEET = (".csv", ".tsv", ".txt", ""), (".xlsx", ".xlsm")
SYSTEM_FILES = ("~$", "._")
"""First characters of lock files of a spreadsheet program, and of AppleDouble files."""
SEPARATORS = {"\t": "tab", ";": "semicolon", ",": "comma"}
ZIP, OLE = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    InvalidFileException,
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
)
"""Errors of openpyxl and zipfile for a damaged spreadsheet; those of XML are a ``SyntaxError``."""


@dataclass(frozen=True)
class RawTable:
    """Cells of a table before their columns are known.

    Attributes:
        header: Names of the columns.
        rows: Row number of a spreadsheet, and one cell for each column.
        notes: How the table was read, for a report.
        semicolons: The separator is a semicolon, so a comma is expected before decimals.
        from_1904: Day numbers of the spreadsheet count from 1904.
        percent: Row number and column of each percent cell of a spreadsheet, whose text is 100 times its number.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]
    notes: tuple[str, ...] = ()
    semicolons: bool = False
    from_1904: bool = False
    percent: frozenset[tuple[int, str]] = frozenset()


@dataclass
class _Lines:
    """Rows of one file with the numbers of a spreadsheet, before the header is separated."""

    rows: list[tuple[int, list[Any]]]
    notes: list[str] = field(default_factory=list)
    semicolons: bool = False
    from_1904: bool = False
    rectangular: bool = False  # a spreadsheet has no short rows
    percent: set[tuple[int, int]] = field(default_factory=set)  # row number and place of each percent cell


def read_table(path: Path, sheet: str = "") -> RawTable:
    """Read a table whose first row that is not empty is the header; ``sheet``: sheet of a spreadsheet.

    Raises:
        CohortFault: The file cannot be read as a table, or its rows do not agree with its header.
    """
    if not path.is_file():
        raise CohortFault(
            [f"there is no table {path.name}; give a .csv, .xlsx or .parquet, or a folder with a cohort.csv"]
        )
    if path.suffix.lower() == ".parquet" and not path.name.startswith(SYSTEM_FILES):
        return _parquet(path)
    lines = _lines(path, sheet)
    if not lines.rows:
        raise CohortFault([f"the table {path.name} is empty; expected a header, and one row for each study"])
    texts = [(number, _trimmed([cell_text(cell) for cell in cells], lines)) for number, cells in lines.rows]
    header = texts[0][1]
    faults = FaultList()
    _check_lengths(len(header), texts[1:], faults, short=not lines.rectangular)
    _check_header(header, texts[1:], faults)
    faults.check()
    named = [place for place, name in enumerate(header) if name]
    width = len(header)
    rows = [(number, [*cells, *[""] * (width - len(cells))]) for number, cells in texts[1:]]
    return RawTable(
        header=tuple(header[place] for place in named),
        rows=tuple((number, tuple(cells[place] for place in named)) for number, cells in rows),
        notes=tuple(lines.notes),
        semicolons=lines.semicolons,
        from_1904=lines.from_1904,
        percent=frozenset((number, header[place]) for number, place in lines.percent if place < width),
    )


def from_frame(frame: pd.DataFrame, notes: Sequence[str] = ()) -> RawTable:
    """Table of a data frame; its first row has number 2.

    Raises:
        CohortFault: Two columns have one name.
    """
    header = tuple(cell_text(name) for name in frame.columns)
    faults = FaultList()
    _check_names(header, faults)
    faults.check()
    rows = frame.astype(object).to_numpy()
    return RawTable(header, tuple((n, tuple(map(cell_text, cells))) for n, cells in enumerate(rows, 2)), tuple(notes))


def read_rows(path: Path) -> list[list[Any]]:
    """All rows of a text table or spreadsheet that are not empty, with the cells of a spreadsheet as objects.

    Raises:
        CohortFault: The file cannot be read as a table.
    """
    return [cells for _, cells in _lines(path, "").rows]


def cell_text(cell: Any) -> str:
    """Text of a cell without spaces around it; "" for a missing value."""
    if cell is None or cell is pd.NaT or cell is pd.NA or (isinstance(cell, float) and cell != cell):
        return ""
    if isinstance(cell, bool):
        return "1" if cell else "0"
    if isinstance(cell, datetime):
        return cell.date().isoformat() if cell.time() == time() else cell.isoformat(sep=" ", timespec="seconds")
    if isinstance(cell, date):
        return cell.isoformat()
    if isinstance(cell, float):
        return f"{cell:.0f}" if cell.is_integer() and abs(cell) < 1e15 else f"{cell:.15g}"
    return str(cell).strip("\ufeff\u200b \t\r\n\xa0")


def _lines(path: Path, sheet: str) -> _Lines:
    if path.name.startswith(SYSTEM_FILES):
        raise CohortFault([f"{path.name} is a file of the spreadsheet program or the system, not a table"])
    start = _head(path)
    if start.startswith(OLE):
        raise CohortFault([f"{path.name} is an old .xls or has a password; save it as .xlsx without a password"])
    suffix = path.suffix.lower()
    if suffix in SPREADSHEET:
        return _spreadsheet(path, sheet)
    if suffix not in TEXT:
        raise CohortFault([f"the table {path.name} cannot be read as {suffix}; save it as .xlsx, .csv or .parquet"])
    if start.startswith(ZIP):
        raise CohortFault([f"{path.name} is a spreadsheet with the name of a text table; rename it to .xlsx"])
    return _text_table(path)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(8)
    except OSError as error:
        raise CohortFault([f"the table {path.name} cannot be opened: {error.strerror}"]) from error


def _parquet(path: Path) -> RawTable:
    try:
        frame = pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise CohortFault([f"the table {path.name} cannot be read as .parquet; write it again"]) from error
    return from_frame(frame)


def decode_text(content: bytes, name: str) -> tuple[str, str]:
    """Text of a file, and its encoding: UTF-8, UTF-16, or Windows-1252 for text that is no UTF-8.

    Raises:
        CohortFault: The content is no text.
    """
    encoding = "utf-8-sig"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif content[1:200:2].count(0) > len(content[:200]) // 4:
        encoding = "utf-16-le"
    elif content[0:200:2].count(0) > len(content[:200]) // 4:
        encoding = "utf-16-be"
    elif b"\x00" in content:
        raise CohortFault([f"the table {name} is no text; save it as .xlsx, .csv or .parquet"])
    for candidate in (encoding, "cp1252", "latin-1"):
        try:
            return content.decode(candidate), candidate.removesuffix("-sig")
        except UnicodeDecodeError:
            if encoding.startswith("utf-16"):
                raise CohortFault([f"the table {name} is damaged UTF-16 text; save it again"]) from None
    raise AssertionError("latin-1 decodes every byte")


def _text_table(path: Path) -> _Lines:
    text, encoding = decode_text(path.read_bytes(), path.name)
    separator = ""
    if text[:4].casefold() == "sep=" and text[4:5]:  # the first line tells the separator to a spreadsheet program
        separator = text[4]
        text = text.partition("\n")[2]
    separator = separator or find_separator(text)
    try:
        parsed = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except csv.Error as error:
        fault = f"the table {path.name} cannot be split into cells ({error})"
        raise CohortFault([f"{fault}; a quotation mark may be open or inside a cell"]) from error
    rows: list[tuple[int, list[Any]]] = [
        (n, list(cells)) for n, cells in enumerate(parsed, 1) if any(map(str.strip, cells))
    ]
    notes = [f"separator {SEPARATORS.get(separator, separator)}", f"encoding {encoding}"]
    return _Lines(rows, notes, semicolons=separator == ";")


def find_separator(text: str) -> str:
    """Separator that is most frequent in the header, outside quotation marks."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    outside = "".join(header.split('"')[::2])
    return max(SEPARATORS, key=outside.count) if any(mark in outside for mark in SEPARATORS) else ","


def _spreadsheet(path: Path, sheet: str) -> _Lines:
    try:
        content = path.read_bytes()  # openpyxl leaves a damaged file open
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # styles and rules that openpyxl does not know
            values = openpyxl.load_workbook(io.BytesIO(content), data_only=True)
            formulas = openpyxl.load_workbook(io.BytesIO(content))
    except UNREADABLE as error:
        raise CohortFault([f"the spreadsheet {path.name} is damaged; open it, and save it again as .xlsx"]) from error
    used = [page.title for page in values.worksheets if page.max_row > 1 or page["A1"].value is not None]
    if sheet and sheet not in used:
        raise CohortFault([f"{path.name} has no sheet {sheet!r} with cells; it has {', '.join(used)}"])
    if not used:
        return _Lines([])
    title = sheet or used[0]
    unstored = _unstored(values[title], formulas[title])
    if unstored:
        fault = f"{path.name} has formulas without a stored result in {', '.join(unstored[:3])}"
        raise CohortFault([f"{fault}; open the file in a spreadsheet program, and save it"])
    notes = [f"sheet {title!r}" + (f", the first of {len(used)}" if len(used) > 1 and not sheet else "")]
    rows, percent = _cells(values[title], notes)
    if rows and (merged := _merged(values[title], rows[0][0])):
        fault = f"{path.name} has merged cells in {', '.join(merged[:3])}; only the first cell has the value"
        raise CohortFault([f"{fault}: split them, and write the value into each cell that it is meant for"])
    from_1904 = values.epoch == CALENDAR_MAC_1904
    return _Lines(rows, notes, from_1904=from_1904, rectangular=True, percent=percent)


def _unstored(values: Any, formulas: Any) -> list[str]:
    """Coordinates of the formulas whose result is not in the file."""
    return [
        written.coordinate
        for cells, row in zip(values.iter_rows(), formulas.iter_rows(), strict=True)
        for cell, written in zip(cells, row, strict=True)
        if cell.value is None and written.data_type == "f"
    ]


def _merged(sheet: Any, header: int) -> list[str]:
    """Ranges of merged cells that have a value and reach beyond the row ``header``, in the order of the sheet."""
    ranges = [one for one in sheet.merged_cells.ranges if one.max_row > header]
    filled = [one for one in ranges if cell_text(sheet.cell(one.min_row, one.min_col).value)]
    return [one.coord for one in sorted(filled, key=lambda one: (one.min_row, one.min_col))]


def _cells(sheet: Any, notes: list[str]) -> tuple[list[tuple[int, list[Any]]], set[tuple[int, int]]]:
    """Rows of a sheet that are not empty, and the percent cells; a cell that shows 60 % has the value 60."""
    rows, letters, percent = [], set(), set()
    for cells in sheet.iter_rows():
        values = [cell.value for cell in cells]
        for place, cell in enumerate(cells):
            is_number = isinstance(cell.value, int | float) and not isinstance(cell.value, bool)
            if is_number and "%" in str(cell.number_format):
                values[place] = round(cell.value * 100, 10)
                letters.add(cell.column_letter)
                percent.add((cell.row, place))
        if any(map(cell_text, values)):
            rows.append((cells[0].row, values))
    if hidden := sum(bool(sheet.row_dimensions[number].hidden) for number, _ in rows):
        notes.append(f"{hidden} hidden rows, which are read too")
    if letters:
        notes.append(f"percent cells in {', '.join(sorted(letters))}")
    return rows, percent


def _trimmed(cells: list[str], lines: _Lines) -> list[str]:
    """Cells of a spreadsheet without empty cells at the end; a text table keeps them, because they show a shift."""
    if lines.rectangular:
        while cells and not cells[-1]:
            cells.pop()
    return cells


def _check_lengths(width: int, rows: Iterable[tuple[int, list[str]]], faults: FaultList, *, short: bool) -> None:
    longer = [number for number, cells in rows if len(cells) > width]
    shorter = [number for number, cells in rows if len(cells) < width] if short else []
    if longer:
        faults.add(
            f"{rows_text(longer)}: more cells than the header, which has {width}; look for a separator at the "
            "end of the row, a decimal comma or a text without quotation marks, or a title above the header"
        )
    if shorter:
        faults.add(f"{rows_text(shorter)}: fewer cells than the header, which has {width}; the row may be cut off")


def _check_names(header: Sequence[str], faults: FaultList) -> None:
    for place, name in enumerate(header):
        if name and name in header[:place]:
            faults.add("the name is there twice; rename or remove one of the columns", column=name)


def _check_header(header: list[str], rows: Sequence[tuple[int, list[str]]], faults: FaultList) -> None:
    for place, name in enumerate(header):
        if not name and any(place < len(cells) and cells[place] for _, cells in rows):
            faults.add(f"column {place + 1} has values and no name; give it a name, or remove it")
    _check_names(header, faults)
    if not rows:
        faults.add("the table has a header and no row; expected one row for each study")
