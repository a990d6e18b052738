"""Finds values of a table that are valid and probably wrong: codes, units, two sexes of one patient, two spellings.

Design notes:
- Each kind has a code. A suspicion stops a run until the table is corrected or the code is given to ``--accept``.
- A rule rests on what no real column shows, and not on one unusual value: a patient of 99 years among others of 95 is
  no code, and a column of short times is not in hours.
- Units are compared within each site, because the sites of a cohort can have different laboratories.
- Messages have row numbers and the form of a value (``cells.form_of``), never a value of a patient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

import numpy as np

from app.registry.manifest import ClinicalVariable
from app.training import row_rules, value_rules
from app.training.cells import form_of, parse_number, spelling
from app.training.columns import NAMES
from app.training.errors import CohortFault, rows_text
from app.training.repeated_files import repeated_files

if TYPE_CHECKING:
    from app.training.cohort import Cohort, CohortRow

MISSING_CODE, FRACTION, HOURS, UNIT = "missing-code", "fraction", "hours", "unit"
SAME_IMAGE, TWO_SEXES, TWO_AGES = "same-image", "two-sexes", "two-ages"
SPELLING, SAME_STUDY, CONTRADICTION, TELLS_OUTCOME = "spelling", "same-study", "contradiction", "tells-outcome"
CODES = (
    *(MISSING_CODE, FRACTION, HOURS, UNIT, SAME_IMAGE, TWO_SEXES, TWO_AGES),
    *(SPELLING, SAME_STUDY, CONTRADICTION, TELLS_OUTCOME),
)
ALL = "all"
STENOSIS = "final_stenosis_percent"
ENOUGH = 5
"""Fewest values from which the unit of a column is judged."""
YEARS_WITHOUT_DATES = 10
"""Years between two studies of one patient that are possible if the table has no dates."""

Numbers = Sequence[tuple[int, float]]
"""Row number and value of each filled cell of a column."""


@dataclass(frozen=True)
class Suspicion:
    """Rows of one column that look wrong in one way; ``found`` is the form of the first value."""

    code: str
    rows: tuple[int, ...]
    message: str
    column: str = ""
    found: str = ""

    @property
    def line(self) -> str:
        """The suspicion as one line."""
        column = f", column {self.column}" if self.column else ""
        found = f" (found: {self.found})" if self.found else ""
        return f"{self.code}: {rows_text(self.rows)}{column}: {self.message}{found}"


def find(
    studies: Sequence[CohortRow],
    cells: Mapping[int, Mapping[str, str]],
    mark: str = ".",
    own: Sequence[ClinicalVariable] = (),
) -> tuple[Suspicion, ...]:
    """Suspicions of the rows of a table.

    Args:
        studies: Rows without a fault.
        cells: Text by column of each row, by its row number.
        mark: Decimal mark of the stenosis, which is no field of the record.
        own: Own variables of the table.
    """
    found: list[Suspicion] = []
    for column, values in _columns(studies, cells, mark).items():
        sites = _by_site(values, studies)
        for code, rows, message in (
            *_codes(column, values),
            *_fractions(column, values),
            *_merged(_hours(column, own) for own in sites),
            *_merged(_units(column, own) for own in sites),
        ):
            found.append(Suspicion(code, rows, message, column, form_of(cells[rows[0]].get(column, ""))))
    for columns, rows in repeated_files([(study.row, study.patient, study.volumes) for study in studies]):
        message = "the same file for several patients; correct the file names, or give the rows one patient"
        found.append(Suspicion(SAME_IMAGE, rows, message, " and ".join(columns)))
    for code, findings in (
        (MISSING_CODE, row_rules.unnamed(studies, cells)),
        (SAME_STUDY, row_rules.repeated_studies(studies)),
        (CONTRADICTION, row_rules.contradictions(studies, cells, mark)),
        (TELLS_OUTCOME, row_rules.outcome_columns(studies, own)),
    ):
        found += [Suspicion(code, rows, message, column) for column, rows, message in findings]
    return (*found, *_patients(studies), *_spellings(studies))


def accepted(text: str) -> frozenset[str]:
    """Codes that ``--accept`` gives, separated by commas, or every code for ``all``.

    Raises:
        CohortFault: A code is unknown.
    """
    given = frozenset(part.strip() for part in text.split(",") if part.strip())
    if ALL in given:
        return frozenset(CODES)
    if given - set(CODES):
        raise CohortFault([f"--accept: give {ALL}, or codes separated by commas: {', '.join(CODES)}"])
    return given


def check(cohort: Cohort, accept: str, *, accept_images: bool = False) -> str:
    """Check the suspicions of the rows of ``cohort``; returns what was accepted for the report, as Markdown, or "".

    Args:
        cohort: Cohort, or the part of it that is used.
        accept: Value of ``--accept``.
        accept_images: Images of several patients are accepted by another option.

    Raises:
        CohortFault: With one line for each suspicion that is not accepted.
    """
    codes = accepted(accept) | ({SAME_IMAGE} if accept_images else frozenset())
    suspicions = _within(cohort)
    refused = [one for one in suspicions if one.code not in codes]
    if refused:
        raise CohortFault([*(one.line for one in refused), advice(refused)])
    if not suspicions:
        return ""
    lines = "\n".join(f"- {one.line}" for one in suspicions)
    return f"## Suspicious values\n\nAccepted with `--accept`:\n\n{lines}"


def advice(suspicions: Iterable[Suspicion]) -> str:
    """What to do about suspicions that stop a run."""
    codes = dict.fromkeys(one.code for one in suspicions)
    return f"correct the table or declare it in columns.toml; if the values are right, give --accept {','.join(codes)}"


def _within(cohort: Cohort) -> list[Suspicion]:
    """Suspicions with at least one row in the cohort, which can be a part of the table."""
    used = {study.row for study in cohort.studies}
    parts = [(one, tuple(row for row in one.rows if row in used)) for one in cohort.suspicions]
    return [Suspicion(one.code, rows, one.message, one.column, one.found) for one, rows in parts if rows]


def _columns(
    studies: Sequence[CohortRow], cells: Mapping[int, Mapping[str, str]], mark: str
) -> dict[str, list[tuple[int, float]]]:
    """Numbers of each column by its name; flags and categories are left out."""
    columns: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for study in studies:
        for column, cell in cells[study.row].items():
            if cell and column == STENOSIS:
                columns[column].append((study.row, parse_number(cell, mark)))
            elif cell and (value := value_rules.number(study.record, column)) is not None:
                columns[column].append((study.row, value))
    return columns


def _by_site(values: Numbers, studies: Sequence[CohortRow]) -> list[Numbers]:
    sites: dict[str, list[tuple[int, float]]] = defaultdict(list)
    names = {study.row: study.site for study in studies}
    for row, value in values:
        sites[names[row]].append((row, value))
    return list(sites.values())


Finding = tuple[str, tuple[int, ...], str]
"""Code, rows and message."""


def _merged(parts: Iterable[Iterable[Finding]]) -> Iterator[Finding]:
    """Findings of several sites, with equal ones as one."""
    rows: dict[tuple[str, str], list[int]] = defaultdict(list)
    for part in parts:
        for code, own, message in part:
            rows[code, message] += own
    for (code, message), where in rows.items():
        yield code, tuple(sorted(where)), message


def _codes(column: str, values: Numbers) -> Iterator[Finding]:
    """Numbers such as 999 or -1 that stand apart from the column, or are much more frequent than their neighbours."""
    for code in value_rules.MISSING_CODES:
        rows = tuple(row for row, value in values if value == code)
        others = np.array([value for _, value in values if value != code])
        if not rows or len(others) < ENOUGH or (column, code) in value_rules.READINGS:
            continue
        if value_rules.stands_apart(code, len(rows), others) or value_rules.too_frequent(code, len(rows), others):
            message = "it can be a code for a missing value; if it is one, declare it as missing in columns.toml"
            yield MISSING_CODE, rows, message


def _fractions(column: str, values: Numbers) -> Iterator[Finding]:
    """Percent between 0 and 1: no reader gives a stenosis below 1 %."""
    if column != STENOSIS:
        return
    rows = tuple(row for row, value in values if 0 < value < 1)
    if not rows and values and max(value for _, value in values) == 1:
        rows = tuple(row for row, value in values if value == 1)
    if rows:
        yield FRACTION, rows, "it is below 1 %, so it is probably a fraction; write percent, as 60 and not 0.6"


def _hours(column: str, values: Numbers) -> Iterator[Finding]:
    if column in value_rules.MINUTES and value_rules.look_like_hours(np.array([value for _, value in values])):
        rows = tuple(row for row, value in values if value > 0)
        yield HOURS, rows, "the values of the site are too short for minutes; write minutes, not hours or a clock time"


def _units(column: str, values: Numbers) -> Iterator[Finding]:
    rule = value_rules.UNITS.get(column)
    if rule is None:
        return
    positive = np.array([value for _, value in values if value > 0])
    if len(positive) >= ENOUGH and np.median(positive) < rule.least_median and positive.max() < rule.largest:
        yield UNIT, tuple(row for row, _ in values), f"the values are too low for {rule.unit}; {rule.advice}"
        return
    rows = tuple(row for row, value in values if value < rule.least)
    if rows:
        yield UNIT, rows, f"no patient has so low a value in {rule.unit}; {rule.advice}, or leave the cell empty"


def _patients(studies: Sequence[CohortRow]) -> Iterator[Suspicion]:
    """Patients with several rows that disagree on the sex, or on the age by more than their dates explain."""
    groups: dict[str, list[CohortRow]] = defaultdict(list)
    for study in studies:
        groups[study.patient].append(study)
    several = [group for group in groups.values() if len(group) > 1]
    sexes = [group for group in several if len({one.record.sex for one in group} - {None}) > 1]
    ages = [group for group in several if any(_ages_disagree(group[0], one) for one in group[1:])]
    advice = "give different patients different ids, or correct the value"
    for code, found, column, message in (
        (TWO_SEXES, sexes, "sex", f"the rows of one patient have two sexes; {advice}"),
        (TWO_AGES, ages, "age", f"the ages of one patient differ by more than the dates explain; {advice}"),
    ):
        if found:
            yield Suspicion(code, tuple(sorted(one.row for group in found for one in group)), message, column)


def _spellings(studies: Sequence[CohortRow]) -> Iterator[Suspicion]:
    """Names of patients, sites, scanners or folds that are one name in two spellings; rows of the rarer spellings."""
    for column in NAMES:
        rows: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for study in studies:
            name = getattr(study, column)
            rows[spelling(name)][name].append(study.row)
        groups = [sorted(own.values(), key=len) for key, own in rows.items() if key and len(own) > 1]
        if groups:
            rarer = sorted(row for own in groups for part in own[:-1] for row in part)
            message = "the name differs from another one in case, accents, spaces or zeros only, and counts as another"
            yield Suspicion(SPELLING, tuple(rarer), f"{message} {column}; write both alike", column)


def _ages_disagree(first: CohortRow, other: CohortRow) -> bool:
    if first.record.age is None or other.record.age is None:
        return False
    years = other.record.age - first.record.age
    if not first.date or not other.date:
        return abs(years) > YEARS_WITHOUT_DATES
    between = (date.fromisoformat(other.date) - date.fromisoformat(first.date)).days / 365.25
    return abs(years - between) > 1.1  # an age in completed years is up to one year too low
