"""The file of results of `rlvo predict-cohort`, also after a spreadsheet program has saved it again.

Design notes:
- A spreadsheet program changes separator, encoding, decimal mark and words. Such a file is written back in its own form
  before lines are added, so that one file never has two forms.
- A file that is no file of results is refused and stays as it is.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from app.core import csv_text
from app.training import cells, table_reader
from app.training.errors import CohortFault

PATIENT, PROBABILITY, FLAG, STUDY, VERSION = "patient", "probability", "refractory", "study", "version"


def listed_studies(results: Path, columns: Sequence[str]) -> dict[str, str]:
    """Digest of each study that an earlier run finished, by patient; a last line that a crash cut off is removed.

    Raises:
        CohortFault: The file has other columns, or a spreadsheet program has changed its numbers.
    """
    content = results.read_bytes() if results.exists() else b""
    if not content:
        return {}
    header = ",".join(columns).encode() + b"\n"
    if content.startswith(header):
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(results, len(whole))
        try:
            return _digests(csv.DictReader(whole.decode("utf-8").splitlines()))
        except UnicodeDecodeError:
            pass  # saved with another encoding
    if header.startswith(content):  # a crash cut off the header
        os.truncate(results, 0)
        return {}
    lines = _restored(results, content, columns)
    draft = results.with_name(f".{results.name}.part")
    with draft.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [columns, *([line[column] for column in columns] for line in lines)]
        )
        file.flush()
        os.fsync(file.fileno())
    draft.replace(results)
    return _digests(lines)


def mixed_versions(results: Path) -> str:
    """Sentence on a file whose answers are of several model versions; empty for one version.

    An alias such as `champion` can be promoted while a cohort is predicted, or between two runs that share a file.
    """
    lines = csv.DictReader(results.read_text(encoding="utf-8").splitlines())
    counts = Counter(version for line in lines if (version := csv_text.plain(line[VERSION])))
    if len(counts) < 2:
        return ""
    shown = ", ".join(f"{version} ({count})" for version, count in sorted(counts.items()))
    advice = "compute a measure of one version only, or predict again with --model name@version into another file"
    return f"{results.name} has answers of {len(counts)} versions, {shown}: {advice}"


def _digests(lines: Iterable[Mapping[str, str]]) -> dict[str, str]:
    return {csv_text.plain(line[PATIENT]): line[STUDY] for line in lines}


def _restored(results: Path, content: bytes, columns: Sequence[str]) -> list[dict[str, str]]:
    """Lines of a file of results that a spreadsheet program has saved, without the header."""
    refused = f"{results.name} is no file of results of predict-cohort; choose another name with --results"
    if content.startswith((table_reader.ZIP, table_reader.OLE)):
        raise CohortFault([f"{refused}, or save it as CSV"])
    text, _ = table_reader.decode_text(content, results.name)
    if text[:4].casefold() == "sep=":
        text = text.partition("\n")[2]
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=table_reader.find_separator(text), strict=True))
    except csv.Error as error:
        raise CohortFault([refused]) from error
    rows = [[cell.strip() for cell in row] for row in rows if any(map(str.strip, row))]
    if not rows or tuple(filter(None, rows[0])) != tuple(columns):
        raise CohortFault([refused])
    lines = [dict(zip(columns, [*row, *[""] * len(columns)], strict=False)) for row in rows[1:]]
    return [_line(results.name, number, line) for number, line in enumerate(lines, 2)]


def _line(name: str, number: int, line: dict[str, str]) -> dict[str, str]:
    """One line with points in its numbers, and with ``true`` or ``false``."""
    line = {c: cell.replace(",", ".") if cells.COMMA_NUMBER.fullmatch(cell) else cell for c, cell in line.items()}
    try:
        if line[FLAG]:
            line[FLAG] = str(cells.parse_flag(line[FLAG])).lower()
        if line[PROBABILITY] and not 0 <= float(line[PROBABILITY]) <= 1:
            raise ValueError
    except ValueError:
        fault = f"{name}, row {number}: a spreadsheet program changed the values"
        raise CohortFault([f"{fault}; move the file away and start again"]) from None
    return line
