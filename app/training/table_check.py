"""Checks a table before training: one line for each column, and the template of ``columns.toml``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from app.training import cohort, columns, suspicious
from app.training.cohort import Inspection
from app.training.options import Target
from app.training.own_variables import OwnColumns


@dataclass(frozen=True)
class TableCheck:
    """Result of a check: summary, template of ``columns.toml``, and whether the table can be used."""

    text: str
    template: str
    usable: bool


def check(
    path: Path,
    *,
    drop_unknown: bool = False,
    target: Target | None = None,
    rules: Path | None = None,
    date_format: str = "",
    accept: str = "",
    own: Path | None = None,
) -> TableCheck:
    """Check a table with the arguments of ``cohort.read``.

    Args:
        path: Table, or folder.
        drop_unknown: See ``cohort.read``, as for ``target``, ``rules`` and ``date_format``.
        target: Outcome.
        rules: ``columns.toml``.
        date_format: Form of the dates.
        accept: Codes of suspicious values that are right.
        own: ``variables.toml``; None: the one in the folder of the table, if there is one.

    Raises:
        CohortFault: The file cannot be read as a table, or a code is unknown.
    """
    codes = suspicious.accepted(accept)
    inspection = cohort.inspect(
        path, drop_unknown=drop_unknown, target=target, rules=rules, date_format=date_format, own=OwnColumns(own)
    )
    given = columns.read_rules(rules or (path if path.is_dir() else path.parent) / columns.FILE)
    refused = [one for one in inspection.suspicions if one.code not in codes]
    usable = inspection.cohort is not None and not refused
    advice = f"\n{suspicious.advice(refused)}" if refused else ""
    return TableCheck(
        _summary(path, inspection) + advice, columns.template(inspection.raw, given, inspection.own), usable
    )


def _summary(path: Path, inspection: Inspection) -> str:
    raw, faults, fields = inspection.raw, inspection.faults, inspection.table.fields
    notes = "".join(f"; {note}" for note in raw.notes)
    lines = [f"{path.name}: {len(raw.rows)} rows, {len(raw.header)} columns{notes}"]
    named = {field for field in fields.values() if field}
    rest = [*faults.lines(), *(one.line for one in inspection.suspicions if one.column not in named)]
    for header in raw.header:
        field = fields[header]
        filled = sum(bool(cells[field]) for _, cells in inspection.table.rows) if field else 0
        use = f"{field}, {filled} of {len(raw.rows)} filled" if field else "not used"
        said = [line for name in dict.fromkeys((header, field)) if name for line in faults.lines(name)]
        said += [one.line for one in inspection.suspicions if field and one.column == field]
        rest = [line for line in rest if line not in said]
        lines.append("; ".join([f"{header} -> {use}", *said]))
    lines += rest
    if inspection.cohort is not None and inspection.cohort.counts is not None:
        lines += ["", *inspection.cohort.counts.lines()]
    return "\n".join(lines)
