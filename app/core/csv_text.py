"""CSV files that a spreadsheet program opens without running a cell as a formula.

Design notes:
- A spreadsheet program runs a text that begins with one of ``MARKS`` as a formula (OWASP, CSV injection). ``write``
  puts an apostrophe before such a text; ``plain`` removes it. A number, also one written as text, keeps its sign.
- Files are UTF-8 with commas, a header, and one line feed after each row.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

Cell = str | float | bool | None
_NUMBER = re.compile(r"[+-]\d+(?:\.\d+)?", re.ASCII)
MARKS = ("=", "+", "-", "@", "\t", "\n")


def text_of(cell: Cell) -> str:
    """Text of a cell: a number with six significant digits, 1 or 0 for a flag, "" for None and NaN."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, bool | int):
        return str(int(cell))
    if isinstance(cell, float):
        return f"{cell:.6g}"
    cell = cell.replace("\r\n", "\n").replace("\r", "\n")  # csv does not quote a carriage return
    return f"'{cell}" if cell.startswith(MARKS) and not _NUMBER.fullmatch(cell) else cell


def plain(text: str) -> str:
    """Text of a cell without the apostrophe of ``text_of``."""
    return text[1:] if text.startswith("'") and text[1:].startswith(MARKS) else text


def write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Write a file in one step, in place of an earlier one."""
    draft = path.with_name(f".{path.name}.part")
    with draft.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([text_of(name) for name in header])
        writer.writerows([text_of(cell) for cell in row] for row in rows)
    draft.replace(path)
