"""Reads a table of outcomes for predictions of the service: ``rlvo outcomes import``.

Design notes:
- The file is read as the table of a cohort is: same formats, ``columns.toml``, eTICI spellings, dates and faults.
- A row names its prediction by ``prediction`` (the id), or by ``subject`` or ``patient`` with an optional ``date``.
- A row without any finding has no outcome yet. A row with some of them needs eTICI and rescue treatment, as in the API.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from app.sdk.etici import parse_etici
from app.sdk.followup import PSEUDONYM, OutcomeDraft
from app.training import cells as parsing
from app.training import columns, table_reader
from app.training.columns import COMPONENTS, ColumnRules
from app.training.errors import CohortFault, FaultList
from app.training.table_reader import RawTable

KEYS = {"prediction": "prediction", "prediction_id": "prediction", "subject": "subject", "patient": "subject"}
"""Field of each header that names a prediction."""
PREDICTION = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class OutcomeEntry:
    """One row: its row number in a spreadsheet, what names the prediction, and the outcome."""

    row: int
    prediction: str
    subject: str
    day: date | None
    draft: OutcomeDraft


@dataclass(frozen=True)
class OutcomeTable:
    """Rows with an outcome, the row numbers of those without one, and the columns that are not used."""

    entries: tuple[OutcomeEntry, ...]
    without: tuple[int, ...]
    unused: tuple[str, ...]


def read(path: Path, *, rules: Path | None = None, date_format: str = "") -> OutcomeTable:
    """Read a table of outcomes.

    Args:
        path: Table (.csv, .xlsx, .parquet).
        rules: ``columns.toml``; None: the one in the folder of the table, if there is one.
        date_format: Form of the dates, as ``dd/mm/yyyy``; "": ISO, or that of ``columns.toml``.

    Raises:
        CohortFault: All faults of the table.
    """
    if rules is not None and not rules.is_file():
        raise CohortFault([f"there is no file {rules.name}; `rlvo table check` writes a template"])
    given = columns.read_rules(rules or path.parent / columns.FILE)
    raw = table_reader.read_table(path, given.sheet)
    faults = FaultList()
    keys = _keys(raw, given, faults)
    rest, other_rules = _without(raw, given, set(keys))
    table = columns.map_columns(rest, other_rules, faults)
    for name in ("etici", "rescue_treatment"):
        if name not in table.fields.values():
            faults.add(f"column {name} is missing; an outcome needs eTICI and rescue treatment")
    if not keys:
        faults.add("no column names the predictions; give prediction, or subject and perhaps date")
    try:
        pattern = parsing.date_pattern(date_format or given.date_format)
    except ValueError as error:
        raise CohortFault([str(error)]) from None
    faults.check()
    mark = parsing.decimal_mark(table.cells("final_stenosis_percent"), "," if raw.semicolons else ".")
    places = {field: raw.header.index(header) for header, field in keys.items()}
    entries, without = [], []
    for (row, named), (_, texts) in zip(table.rows, raw.rows, strict=True):
        if not any(named.get(name) for name in COMPONENTS):
            without.append(row)
            continue
        own = {field: texts[place] for field, place in places.items()} | named
        entry = _entry(row, own, mark, pattern, raw, faults)
        if entry is not None:
            entries.append(entry)
    faults.check()
    used = (*COMPONENTS, "date")
    unused = tuple(header for header, field in table.fields.items() if field and field not in used)
    return OutcomeTable(tuple(entries), tuple(without), unused)


def _keys(raw: RawTable, rules: ColumnRules, faults: FaultList) -> dict[str, str]:
    """Field by header, for the columns that name a prediction."""
    keys: dict[str, str] = {}
    for header in raw.header:
        rule = rules.columns.get(header)
        field = KEYS.get(columns.normalised(rule.field if rule else header), "")
        if field and field in keys.values():
            faults.add(f"it is {field}, and so is another column; remove one of them", column=header)
        elif field:
            keys[header] = field
    return keys


def _without(raw: RawTable, rules: ColumnRules, headers: set[str]) -> tuple[RawTable, ColumnRules]:
    """The table and its rules without the columns ``headers``."""
    kept = [place for place, header in enumerate(raw.header) if header not in headers]
    rows = tuple((number, tuple(texts[place] for place in kept)) for number, texts in raw.rows)
    table = replace(raw, header=tuple(raw.header[place] for place in kept), rows=rows)
    others = {header: rule for header, rule in rules.columns.items() if header not in headers}
    return table, rules.model_copy(update={"columns": others})


def _entry(
    row: int, own: Mapping[str, str], mark: str, pattern: str, raw: RawTable, faults: FaultList
) -> OutcomeEntry | None:
    before = len(faults)
    prediction, subject = own.get("prediction", "").casefold(), own.get("subject", "")
    if not prediction and not subject:
        faults.add("names no prediction and no subject", row=row)
    if prediction and not PREDICTION.fullmatch(prediction):
        faults.add("expected the id of a prediction", row=row, column="prediction", found=parsing.form_of(prediction))
    if not prediction and subject and not re.fullmatch(PSEUDONYM, subject):
        message = "expected a pseudonym of letters, digits and . _ - as it was sent with the study"
        faults.add(message, row=row, column="subject", found=parsing.form_of(subject))
    day = None
    if text := own.get("date", ""):
        try:
            day = parsing.parse_day(text, pattern, from_1904=raw.from_1904)
        except ValueError as error:
            faults.add(str(error), row=row, column="date", found=parsing.form_of(text))
    draft = _draft(row, own, mark, faults)
    if len(faults) > before or draft is None:
        return None
    return OutcomeEntry(row, prediction, subject, day, draft)


def _draft(row: int, own: Mapping[str, str], mark: str, faults: FaultList) -> OutcomeDraft | None:
    before = len(faults)
    parsers: dict[str, Callable[[str], object]] = {
        "etici": parse_etici,
        "rescue_treatment": parsing.parse_flag,
        "final_stenosis_percent": lambda text: _percent(text, mark),
    }
    values: dict[str, object] = {}
    for name, parse in parsers.items():
        text = own.get(name, "")
        if not text and name != "final_stenosis_percent":
            faults.add("missing; an outcome needs eTICI and rescue treatment", row=row, column=name)
            continue
        try:
            values[name] = parse(text) if text else None
        except ValueError as error:
            faults.add(str(error), row=row, column=name, found=parsing.form_of(text))
    return OutcomeDraft.model_validate(values) if len(faults) == before else None


def _percent(text: str, mark: str) -> float:
    number = parsing.parse_number(text, mark)
    if not 0 <= number <= 100:
        raise ValueError("expected 0 to 100")
    return number
