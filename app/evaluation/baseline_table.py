"""Table 1 of a study: characteristics of the patients by group, with missing values and standardised differences.

Design notes:
- A number is given as mean and SD, or as median and quartiles if the skewness of all known values exceeds 1. A flag and
  a category are given as count and percent of the known values.
- The standardised difference is (first - second) / pooled SD (Austin, Stat Med 2009;28:3083). For a category with more
  than two levels it is the multivariate distance of Yang and Dalton (SAS Global Forum 2012), which has no sign.
- ``least`` suppresses counts from 1 to ``least - 1``, their complements, and a second level if the rest of a category
  would reveal the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Value = float | bool | str | None
Mask = NDArray[np.bool_]
SKEWED = 1.0
SMALL = 5
"""Counts below this number are not shown in a document that leaves the hospital."""


@dataclass(frozen=True)
class Characteristic:
    """One variable: its name and the values (n,) of all patients, None if missing. All values have one type."""

    name: str
    values: Sequence[Value]

    @property
    def missing(self) -> tuple[int, int]:
        """Patients without a value, and all patients."""
        return sum(value is None for value in self.values), len(self.values)


@dataclass(frozen=True)
class GroupCell:
    """One statistic of one group.

    Attributes:
        patients: Patients of the group.
        known: Patients with a value.
        numbers: Mean and SD; or median and quartiles; or count.
    """

    patients: int
    known: int
    numbers: tuple[float, ...]

    @property
    def missing(self) -> int:
        """Patients without a value."""
        return self.patients - self.known


@dataclass(frozen=True)
class TableRow:
    """One line of the table: a variable, or one level of it.

    Attributes:
        missing: Patients of all groups without a value, and all patients.
        differences: Standardised difference of each compared pair, NaN if undefined.
    """

    variable: str
    level: str
    statistic: str
    missing: tuple[int, int]
    cells: Mapping[str, GroupCell]
    differences: tuple[float, ...]


def rows(
    characteristics: Sequence[Characteristic], groups: Mapping[str, Mask], pairs: Sequence[tuple[str, str]]
) -> list[TableRow]:
    """Lines of the table; ``groups``: patients (n,) of each column; ``pairs``: columns to compare."""
    lines = []
    for one in characteristics:
        known = [value for value in one.values if value is not None]
        if not known:
            continue
        if isinstance(known[0], str):
            lines += _category(one, groups, pairs)
        elif isinstance(known[0], bool):
            lines.append(_flag(one, groups, pairs))
        else:
            lines.append(_number(one, groups, pairs))
    return lines


def heads(groups: Mapping[str, Mask], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Heads of the columns of ``cells_of``."""
    columns = [f"{name} (n = {int(mask.sum())})" for name, mask in groups.items()]
    return ["characteristic", "statistic", "missing", *columns, *(f"std. difference, {a} - {b}" for a, b in pairs)]


def cells_of(lines: Sequence[TableRow], *, least: int = 0) -> list[list[str]]:
    """Text of each cell; with ``least``, small counts are suppressed (see the design notes)."""
    hidden = _hidden(lines, least)
    table = []
    for number, line in enumerate(lines):
        name = f"{line.variable}: {line.level}" if line.level else line.variable
        cells = [name, line.statistic, count_text(*line.missing, least)]
        for group, cell in line.cells.items():
            cells.append(f"<{least}" if (number, group) in hidden else _cell_text(line, cell))
        cells += ["" if np.isnan(value) else f"{value:+.2f}" for value in line.differences]
        table.append(cells)
    return table


def missing_cells(lines: Sequence[TableRow], *, least: int = 0) -> list[list[str]]:
    """Missing values of each variable, in every group: count and percent."""
    first_lines = {line.variable: line for line in reversed(lines)}
    return [
        [name, *(count_text(cell.missing, cell.patients, least) for cell in first_lines[name].cells.values())]
        for name in dict.fromkeys(line.variable for line in lines)
    ]


def markdown(head: Sequence[str], table: Sequence[Sequence[str]]) -> str:
    """A table as Markdown."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in table)])


def count_text(count: int, total: int, least: int = 0) -> str:
    """Count and percent of a total; ``<5`` for a small count if ``least`` is 5."""
    if 0 < count < least:
        return f"<{least}"
    return f"{count} ({100 * count / total:.0f} %)" if total else "0"


def _number(one: Characteristic, groups: Mapping[str, Mask], pairs: Sequence[tuple[str, str]]) -> TableRow:
    values = np.array([np.nan if value is None else float(value) for value in one.values])
    known = values[np.isfinite(values)]
    skewed = len(known) > 2 and np.ptp(known) > 0 and abs(float(stats.skew(known))) > SKEWED
    cells = {}
    for name, mask in groups.items():
        own = values[mask]
        own = own[np.isfinite(own)]
        if skewed:
            numbers = tuple(map(float, np.quantile(own, [0.5, 0.25, 0.75]))) if len(own) else ()
        else:
            numbers = (float(own.mean()), float(own.std(ddof=1)) if len(own) > 1 else np.nan) if len(own) else ()
        cells[name] = GroupCell(int(mask.sum()), len(own), numbers)
    differences = []
    for pair in pairs:
        first, second = (values[groups[name]][np.isfinite(values[groups[name]])] for name in pair)
        spread = np.sqrt((first.var(ddof=1) + second.var(ddof=1)) / 2) if min(len(first), len(second)) > 1 else 0.0
        differences.append(float((first.mean() - second.mean()) / spread) if spread > 0 else np.nan)
    statistic = "median [IQR]" if skewed else "mean ± SD"
    return TableRow(one.name, "", statistic, one.missing, cells, tuple(differences))


def _flag(one: Characteristic, groups: Mapping[str, Mask], pairs: Sequence[tuple[str, str]]) -> TableRow:
    values = np.array([np.nan if value is None else float(value) for value in one.values])
    cells, shares = {}, {}
    for name, mask in groups.items():
        own = values[mask]
        own = own[np.isfinite(own)]
        cells[name] = GroupCell(int(mask.sum()), len(own), (float(own.sum()),))
        shares[name] = float(own.mean()) if len(own) else np.nan
    differences = tuple(_of_shares([shares[a]], [shares[b]]) for a, b in pairs)
    return TableRow(one.name, "", "n (%)", one.missing, cells, differences)


def _category(one: Characteristic, groups: Mapping[str, Mask], pairs: Sequence[tuple[str, str]]) -> list[TableRow]:
    values = np.array(["" if value is None else str(value) for value in one.values])
    levels = sorted(set(values.tolist()) - {""})
    counts = {name: np.array([(values[mask] == level).sum() for level in levels]) for name, mask in groups.items()}
    shares = {name: own / own.sum() if own.sum() else np.full(len(levels), np.nan) for name, own in counts.items()}
    differences = tuple(_of_shares(shares[a][:-1], shares[b][:-1]) for a, b in pairs)
    return [
        TableRow(
            one.name,
            level,
            "n (%)",
            one.missing,
            {
                name: GroupCell(int(mask.sum()), int(counts[name].sum()), (float(counts[name][number]),))
                for name, mask in groups.items()
            },
            differences if number == 0 else (np.nan,) * len(pairs),
        )
        for number, level in enumerate(levels)
    ]


def _of_shares(first: Sequence[float] | NDArray[np.float64], second: Sequence[float] | NDArray[np.float64]) -> float:
    """Standardised difference of two shares, or distance of two vectors of shares (k,) without the last level."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if not len(a) or not np.isfinite([*a, *b]).all():
        return np.nan
    covariance = sum(np.diag(p) - np.outer(p, p) for p in (a, b)) / 2
    if np.linalg.matrix_rank(covariance) < len(a):
        return 0.0 if np.array_equal(a, b) else np.nan
    distance = float(np.sqrt((a - b) @ np.linalg.solve(covariance, a - b)))
    return float(np.sign(a[0] - b[0])) * distance if len(a) == 1 else distance


def _cell_text(line: TableRow, cell: GroupCell) -> str:
    if line.statistic == "n (%)":
        return count_text(int(cell.numbers[0]), cell.known)
    if not cell.known:
        return ""
    if line.statistic == "mean ± SD":
        return f"{cell.numbers[0]:.3g}" + ("" if np.isnan(cell.numbers[1]) else f" ± {cell.numbers[1]:.3g}")
    middle, low, high = cell.numbers
    return f"{middle:.3g} [{low:.3g}-{high:.3g}]"


def _hidden(lines: Sequence[TableRow], least: int) -> set[tuple[int, str]]:
    """Line and group of each cell that is suppressed."""
    hidden: set[tuple[int, str]] = set()
    if not least:
        return hidden
    levels: dict[tuple[str, str], list[int]] = {}
    for number, line in enumerate(lines):
        for group, cell in line.cells.items():
            if line.statistic != "n (%)":
                small = 0 < cell.known < least
            else:
                count = int(cell.numbers[0])
                small = 0 < count < least or 0 < cell.known - count < least
            if small:
                hidden.add((number, group))
            if line.level:
                levels.setdefault((line.variable, group), []).append(number)
    for (_, group), numbers in levels.items():
        if sum((number, group) in hidden for number in numbers) == 1:
            shown = [n for n in numbers if (n, group) not in hidden and lines[n].cells[group].numbers[0]]
            hidden |= {(min(shown, key=lambda n: lines[n].cells[group].numbers[0]), group)} if shown else set()
    return hidden
