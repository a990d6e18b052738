"""Reads a table of predicted probabilities and outcomes of any predictor for ``rlvo validate``.

Design notes:
- A row without a probability is left out and counted. A row without an outcome stays, as its outcome can be missing for
  a reason. Any other cell that cannot be read is a fault.
- ``evaluation.csv`` of ``rlvo evaluate`` is such a table; its conformal sets are read from the column ``conformal``.
- A study counts once. The files of rlvo can have a line for each model of a study, and are then refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.core.display_names import NOT_RECORDED
from app.evaluation.metrics import Array
from app.evaluation.validation import Groups, PredictionTable, Texts
from app.sdk.summary import Headline
from app.training import cells
from app.training.errors import CohortFault, FaultList
from app.training.row_rules import NOT_A_NAME
from app.training.table_reader import RawTable, read_table

MOST_LEVELS = 6
"""Numbers with more different values than this are divided into thirds."""
STUDY, MODELS = ("patient", "row"), ("model", "version")
"""Columns that name a study, and those that name its predictor, as in ``patient_files``."""
CLASSES = ({Headline.NOT_REFRACTORY.value, "0"}, {Headline.REFRACTORY.value, "1"})
EMPTY_SETS = {"none"}


@dataclass(frozen=True)
class TableColumns:
    """Names of the columns of a table; "" if it has none. ``site`` and ``date`` are then found by these names.

    ``subgroups`` are ``NAME``, or ``NAME=60,75`` with the limits of a number.
    """

    probability: str = "probability"
    outcome: str = "outcome"
    site: str = ""
    date: str = ""
    conformal: str = ""
    subgroups: Sequence[str] = ()


def read(
    path: Path, columns: TableColumns, *, since: str = "", only_site: str = "", date_format: str = ""
) -> PredictionTable:
    """Read the table, and select the patients of ``since`` (ISO date) or later and of the site ``only_site``.

    Raises:
        CohortFault: With every fault of the table.
    """
    return of_raw(read_table(path), columns, since=since, only_site=only_site, date_format=date_format)


def of_raw(
    raw: RawTable, columns: TableColumns, *, since: str = "", only_site: str = "", date_format: str = ""
) -> PredictionTable:
    """Like ``read``, from the cells of a table."""
    columns = _found(raw, columns, since=since, only_site=only_site)
    faults = FaultList()
    probabilities = _probabilities(raw, columns.probability, faults)
    outcomes = _outcomes(raw, columns.outcome, faults)
    dates = _dates(raw, columns.date, date_format, faults, required=bool(since)) if columns.date else None
    kept = _sets(raw, columns.conformal, faults) if columns.conformal else None
    sites = np.array(_texts(raw, columns.site)) if columns.site else None
    variables = [_variable(raw, wanted) for wanted in columns.subgroups]
    _check_names(raw, columns.site, faults)
    faults.check()
    flow = [("rows of the table", len(raw.rows))]
    selections: list[tuple[str, NDArray[np.bool_]]] = [("no probability", np.isfinite(probabilities))]
    if sites is not None and only_site:
        selections.append(("another site", np.asarray(sites == cells.composed(only_site))))
    if dates is not None and since:
        selections.append((f"before {since}", np.asarray(dates >= _day(since))))
    rows = np.ones(len(raw.rows), bool)
    for reason, chosen in selections:
        if left_out := int((rows & ~chosen).sum()):
            flow.append((f"left out: {reason}", left_out))
        rows &= chosen
    _check_repeats(raw, rows, faults)
    faults.check()
    known = outcomes[rows & np.isfinite(outcomes)]
    flow += [
        ("predicted", int(rows.sum())),
        ("outcome unknown", int(rows.sum()) - len(known)),
        ("analysed", len(known)),
    ]
    if not 0 < known.sum() < len(known):
        fault = f"{len(known)} patients have a probability and an outcome, of one outcome only or of none"
        raise CohortFault([f"{fault}; a validation needs patients with and without the outcome"])
    return PredictionTable(
        probabilities=probabilities[rows],
        outcomes=outcomes[rows],
        sites=None if sites is None else sites[rows],
        dates=None if dates is None else dates[rows],
        groups={one.name: Groups(one.levels[rows], one.order) for one in variables},
        characteristics={
            one.name: [value for value, inside in zip(one.values, rows, strict=True) if inside] for one in variables
        },
        kept=None if kept is None else kept[rows],
        flow=tuple(flow),
        patients=np.array(_texts(raw, STUDY[0]))[rows] if STUDY[0] in raw.header else None,
    )


def _check_names(raw: RawTable, site: str, faults: FaultList) -> None:
    """Refuse words for a missing site or patient, which would all be one site or one patient."""
    for column, kind in ((site, "site"), (STUDY[0], STUDY[0])):
        for number, text in _numbered(raw, column) if column in raw.header else ():
            if text and text != NOT_RECORDED and NOT_A_NAME.fullmatch(text):
                fault = f"a word for a missing {kind}; leave the cell empty"
                faults.add(fault, row=number, column=column, found=cells.form_of(text))


def _check_repeats(raw: RawTable, rows: NDArray[np.bool_], faults: FaultList) -> None:
    """Refuse a study with several lines, by different models or by a copied row; ``rows`` (n,) are those in use."""
    names = [name for name in STUDY if name in raw.header]
    if STUDY[0] not in names:
        return
    used = [pair for pair, inside in zip(raw.rows, rows, strict=True) if inside]
    places, models = ([raw.header.index(name) for name in given if name in raw.header] for given in (names, MODELS))
    lines: dict[tuple[str, ...], list[tuple[int, tuple[str, ...]]]] = defaultdict(list)
    for number, texts in used:
        if all(study := tuple(texts[place] for place in places)):
            lines[study].append((number, texts))
    several = [own for own in lines.values() if len(own) > 1]
    for place in models:
        if any(len({texts[place] for _, texts in own}) > 1 for own in several):
            count = len({texts[place] for _, texts in used})
            fault = f"{count} values, so that a study has several lines; keep the lines of one of them"
            faults.add(fault, column=raw.header[place])
            return
    for own in several:
        # Without the column ``row``, different lines of a patient can be different studies.
        seen: set[tuple[str, ...]] = set()
        for number, texts in own:
            line = () if len(names) == len(STUDY) else texts
            if line in seen:
                faults.add("it is of the same study as an earlier row; keep one of them", row=number)
            seen.add(line)


def _found(raw: RawTable, columns: TableColumns, *, since: str, only_site: str) -> TableColumns:
    """The columns, with ``site`` and ``date`` if the table has them and no other names are given."""
    names = {name: getattr(columns, name) or (name if name in raw.header else "") for name in ("site", "date")}
    columns = replace(columns, **names)
    variables = [one.partition("=")[0] for one in columns.subgroups]
    named = [columns.probability, columns.outcome, columns.site, columns.date, columns.conformal]
    named += variables
    absent = [name for name in dict.fromkeys(named) if name and name not in raw.header]
    options = {columns.probability: "; name yours with --probability", columns.outcome: "; name yours with --outcome"}
    faults = [
        f"the table has no column {name}; it has {', '.join(raw.header)}{options.get(name, '')}" for name in absent
    ]
    faults += [
        f"--subgroup {name} is given twice; give its limits together, as {name}=60,75"
        for name in dict.fromkeys(variables)
        if variables.count(name) > 1
    ]
    if only_site and not columns.site:
        faults.append("--site needs --site-column, the name of the column of the site")
    if since and not columns.date:
        faults.append("--since needs --date-column, the name of the column of the date")
    if faults:
        raise CohortFault(faults)
    return columns


def _texts(raw: RawTable, name: str) -> list[str]:
    place = raw.header.index(name)
    return [cells.composed(row[place]) for _, row in raw.rows]


def _numbered(raw: RawTable, name: str) -> list[tuple[int, str]]:
    place = raw.header.index(name)
    return [(number, row[place]) for number, row in raw.rows]


def _probabilities(raw: RawTable, name: str, faults: FaultList) -> Array:
    mark = "," if raw.semicolons else "."
    mark = cells.decimal_mark(_texts(raw, name), mark) or mark
    values = np.full(len(raw.rows), np.nan)
    for place, (row, cell) in enumerate(_numbered(raw, name)):
        if not cell:
            continue
        try:
            values[place] = cells.parse_number(cell, mark)
        except ValueError as error:
            faults.add(str(error), row=row, column=name, found=cells.form_of(cell))
            continue
        if (row, name) in raw.percent:  # it shows 35 %, and its number is 0.35
            values[place] /= 100
        if not 0 <= values[place] <= 1:
            faults.add("expected a probability between 0 and 1; divide percent by 100", row=row, column=name)
    return values


def _outcomes(raw: RawTable, name: str, faults: FaultList) -> Array:
    values = np.full(len(raw.rows), np.nan)
    for place, (row, cell) in enumerate(_numbered(raw, name)):
        try:
            values[place] = float(cells.parse_flag(cell)) if cell else np.nan
        except ValueError as error:
            faults.add(f"{error}, or an empty cell", row=row, column=name, found=cells.form_of(cell))
    return values


def _day(since: str) -> str:
    try:
        return cells.parse_day(since).isoformat()
    except ValueError:
        raise CohortFault(["--since: expected an ISO date (YYYY-MM-DD)"]) from None


def _dates(raw: RawTable, name: str, date_format: str, faults: FaultList, *, required: bool) -> Texts:
    """ISO dates (n,); a month (YYYY-MM) is its first day."""
    try:
        pattern = cells.date_pattern(date_format)
    except ValueError as error:
        raise CohortFault([str(error)]) from None
    days = []
    for row, cell in _numbered(raw, name):
        text = f"{cell}-01" if len(cell) == 7 and cell[4:5] == "-" else cell
        try:
            days.append(cells.parse_day(text, pattern, from_1904=raw.from_1904).isoformat() if cell else "")
        except ValueError as error:
            faults.add(str(error), row=row, column=name, found=cells.form_of(cell))
            days.append("")
        if required and not cell:
            faults.add("missing; --since needs it", row=row, column=name)
    return np.array(days)


def _sets(raw: RawTable, name: str, faults: FaultList) -> NDArray[np.bool_]:
    kept = np.zeros((len(raw.rows), 2), bool)
    for place, (row, cell) in enumerate(_numbered(raw, name)):
        words = set(cell.replace(",", " ").split())
        kept[place] = [bool(words & names) for names in CLASSES]
        if not words or words - CLASSES[0] - CLASSES[1] - EMPTY_SETS:
            expected = (
                f"expected {Headline.NOT_REFRACTORY} or 0, {Headline.REFRACTORY} or 1, both with a space, or none"
            )
            faults.add(expected, row=row, column=name, found=cells.form_of(cell))
    return kept


@dataclass(frozen=True)
class _Variable:
    """A variable of the subgroups: its values (n,) for table 1, its level (n,), and all levels in their order."""

    name: str
    values: Sequence[float | str | None]
    levels: Texts
    order: tuple[str, ...]


def _variable(raw: RawTable, wanted: str) -> _Variable:
    """Words, or ranges of a number; the level of an empty cell is ""."""
    name, _, limits = wanted.partition("=")
    texts = _texts(raw, name)
    numbers = [_number(cell) for cell in texts]
    is_number = all(number is not None for number, cell in zip(numbers, texts, strict=True) if cell)
    values = np.array([np.nan if number is None else number for number in numbers])
    many = is_number and len(np.unique(values[np.isfinite(values)])) > MOST_LEVELS
    if not limits and not many:
        found = sorted(set(texts), key=lambda cell: (_number(cell) or 0, cell) if is_number else (0, cell))
        return _Variable(name, [cell or None for cell in texts], np.array(texts), tuple(found))
    cuts = np.array([np.nan if (edge := _number(part)) is None else edge for part in limits.split(",")])
    if limits and not (is_number and np.isfinite(cuts).all() and (np.diff(cuts) > 0).all()):
        raise CohortFault([f"--subgroup {name}: expected a column of numbers, and increasing limits as {name}=60,75"])
    if not limits:
        cuts = np.unique(np.nanquantile(values, [1 / 3, 2 / 3]))
    order = (f"under {cuts[0]:g}", *(f"{a:g} to under {b:g}" for a, b in pairwise(cuts)), f"{cuts[-1]:g} and over", "")
    levels = [order[int(np.searchsorted(cuts, v, side="right"))] if np.isfinite(v) else "" for v in values]
    return _Variable(name, numbers, np.array(levels), order)


def _number(cell: str) -> float | None:
    try:
        return cells.parse_number(cell) if cell else None
    except ValueError:
        return None
