"""Parses the cells of a table: numbers, flags, categories and dates.

Design notes:
- A cell is parsed strictly. A text that can be read in two ways is refused, with the way to write it.
- Messages contain no value of a patient. ``form_of`` shows the form of a value instead.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from enum import StrEnum

from app.sdk.clinical import Sex, Side

TRUE = ("1", "1.0", "1,0", "true", "yes", "y", "si", "sí", "s", "oui", "o", "ja", "j", "verdadero", "wahr", "vrai")
FALSE = ("0", "0.0", "0,0", "false", "no", "n", "non", "nein", "falso", "falsch", "faux")
SYNONYMS: dict[type, dict[str, str]] = {
    Sex: {"m": "male", "f": "female", "w": "female"},
    Side: {"l": "left", "r": "right"},
}
"""Short words of categories. ``M`` can also be ``mujer``; such a column contains ``H`` or ``V``, which are refused."""

POINT_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
COMMA_NUMBER = re.compile(r"[+-]?\d+,\d+", re.ASCII)
GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}[.,]\d{3}", re.ASCII)  # 1.234 and 1,234: a decimal mark, or thousands

ISO_DAY = re.compile(r"(\d{4}-\d{2}-\d{2})(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:Z|[+-]\d{2}:?\d{2})?)?", re.ASCII)
ISO, SERIAL = "iso", "excel"
TOKENS = {"yyyy": "%Y", "yy": "%y", "dd": "%d", "hh": "%H", "ss": "%S"}
DAYS_OF_SERIAL = range(20_000, 80_000)  # 1954 to 2119


def form_of(text: str) -> str:
    """Form of a value without the value: 9 for a digit, a for a letter, at most 20 characters."""
    form = re.sub(r"[^\W\d_]", "a", re.sub(r"\d", "9", text))
    return form if len(form) <= 20 else f"{form[:17]}..."


def composed(name: str) -> str:
    """Name in the composed form of Unicode: macOS can write ``é`` as two characters, which look like one."""
    return unicodedata.normalize("NFC", name)


def spelling(name: str) -> str:
    """What names of one patient or site share: no case, accents, kinds of spaces, nor zeros before a number."""
    letters = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"[\s_-]+", " ", letters.casefold()).strip())


def decimal_mark(cells: Iterable[str], default: str = ".") -> str:
    """Mark before the decimals of a column of numbers, from the numbers with only one reading.

    Returns:
        ``.`` or ``,``; "" if the column has both marks; ``default`` if no number decides.
    """
    marks = set()
    for cell in cells:
        if not GROUPED.fullmatch(cell):
            marks |= {"."} if "." in cell and POINT_NUMBER.fullmatch(cell) else set()
            marks |= {","} if COMMA_NUMBER.fullmatch(cell) else set()
    return (marks.pop() if len(marks) == 1 else "") if marks else default


def parse_number(cell: str, mark: str = ".") -> float:
    """Number of a cell; ``mark`` is the decimal mark of its column.

    Raises:
        ValueError: The cell is no finite number, or it has two readings.
    """
    grouped = GROUPED.fullmatch(cell)
    if grouped and (not mark or mark not in cell):
        raise ValueError("three digits after the mark can be decimals or thousands; write the number without the mark")
    if not POINT_NUMBER.fullmatch(cell) and not COMMA_NUMBER.fullmatch(cell):
        raise ValueError("expected a number without unit or comparison, an empty cell, or a code of columns.toml")
    number = float(cell.replace(",", "."))
    if abs(number) == float("inf"):
        raise ValueError("the number is too large")
    return number


def parse_flag(cell: str) -> bool:
    """Flag of a cell. Raises ValueError."""
    word = cell.casefold()
    if word in TRUE or word in FALSE:
        return word in TRUE
    raise ValueError("expected 1 or 0, true or false, yes or no")


def parse_category(cell: str, kind: type[StrEnum], *, synonyms: bool = True) -> str:
    """Value of a category; case, spaces and underscores do not matter. Raises ValueError."""
    word = "-".join(re.split(r"[\s_-]+", cell.casefold()))
    word = SYNONYMS.get(kind, {}).get(word, word) if synonyms else word
    if word not in list(kind):
        raise ValueError(f"expected one of {', '.join(kind)}; map other words in columns.toml")
    return word


def parse_cell(cell: str, kind: type, mark: str = ".", *, synonyms: bool = True) -> object:
    """Cell as the type of its field; without ``synonyms``, short words such as ``M`` are refused. Raises ValueError."""
    if kind is bool:
        return parse_flag(cell)
    if kind in (int, float):
        number = parse_number(cell, mark)
        if kind is int and number != int(number):
            raise ValueError("expected a whole number")
        return int(number) if kind is int else number
    return parse_category(cell, kind, synonyms=synonyms) if issubclass(kind, StrEnum) else cell


def date_pattern(date_format: str) -> str:
    """Pattern of ``strptime`` for a format such as ``dd/mm/yyyy`` or ``dd.mm.yyyy hh:mm``; "" for ISO, or ``excel``.

    Raises:
        ValueError: The format does not give one day, one month and one year.
    """
    form = date_format.casefold().strip()
    if form in ("", ISO):
        return ""
    if form == SERIAL:
        return SERIAL
    pattern = form.replace("hh:mm", "%H:%M")
    for token, directive in TOKENS.items():
        pattern = pattern.replace(token, directive)
    pattern = pattern.replace("mm", "%m")
    directives = sorted(re.findall(r"%.", pattern.replace("%H:%M", "").replace("%S", "")))
    known = directives in (["%Y", "%d", "%m"], ["%d", "%m", "%y"]) and "%" not in form
    if not known or re.search(r"[a-z]", re.sub(r"%.", "", pattern)):
        raise ValueError("--date-format: expected a format such as dd/mm/yyyy, mm/dd/yyyy, dd.mm.yyyy, iso or excel")
    return pattern


def parse_day(cell: str, pattern: str = "", *, from_1904: bool = False) -> date:
    """Day of a cell: an ISO date (YYYY-MM-DD, also with a time), or the form that the caller states.

    Args:
        cell: Text of the cell.
        pattern: Result of ``date_pattern``. ISO dates are accepted with every pattern.
        from_1904: A spreadsheet's day numbers count from 1904.

    Raises:
        ValueError: The text is no such date; the message names the option.
    """
    iso = ISO_DAY.fullmatch(cell)
    try:
        if iso:
            return date.fromisoformat(iso[1])
        if pattern == SERIAL and POINT_NUMBER.fullmatch(cell) and int(float(cell)) in DAYS_OF_SERIAL:
            return (date(1904, 1, 1) if from_1904 else date(1899, 12, 30)) + timedelta(days=int(float(cell)))
        if pattern not in ("", SERIAL):
            return datetime.strptime(f"{cell} +0000", f"{pattern} %z").date()
    except ValueError:
        pass
    if re.fullmatch(r"\d{5}(?:\.\d+)?", cell, re.ASCII) and not pattern:
        raise ValueError("expected an ISO date (YYYY-MM-DD); for a spreadsheet's day number, give --date-format excel")
    if pattern:
        raise ValueError("expected a date of the form in --date-format, or an ISO date (YYYY-MM-DD)")
    raise ValueError("not an ISO date (YYYY-MM-DD); give the form of the column with --date-format, as dd/mm/yyyy")
