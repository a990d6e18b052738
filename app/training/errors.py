"""Errors of a training run that list every fault, and the list that collects the faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from app.sdk.errors import InvalidStudy

SHOWN_ROWS = 3


class CohortFault(InvalidStudy):
    """The cohort cannot be used for training or evaluation.

    Attributes:
        faults: One line for each kind of fault, with its rows where there are any.
    """

    code, title = "cohort-invalid", "The cohort cannot be used as it is"

    def __init__(self, faults: Sequence[str], **_: object) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(faults))


class PublicationRefused(CohortFault):
    """The trained model must not become a version unless the user accepts the objections."""

    code, title = "publication-refused", "The model version was not published"


@dataclass
class FaultList:
    """Faults of a table in the order of their first row; equal faults of one column are one line.

    No line contains a value of a patient: ``found`` is the form of a value (``cells.form_of``).
    """

    _rows: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    _examples: dict[tuple[str, str], str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self._rows)

    def __len__(self) -> int:
        return sum(max(len(rows), 1) for rows in self._rows.values())

    def add(
        self, message: str, *, row: int | None = None, column: str = "", example: str = "", found: str = ""
    ) -> None:
        """Add a fault of the table, of a column, of a row, or of a cell; only the first ``example`` is shown."""
        key = (column, message)
        rows = self._rows.setdefault(key, [])
        self._examples.setdefault(key, f" {example}" if example else f" (found: {found})" if found else "")
        if row is not None:
            rows.append(row)

    def columns(self) -> set[str]:
        """Names of the columns with a fault."""
        return {column for column, _ in self._rows if column}

    def lines(self, column: str | None = None) -> list[str]:
        """One line for each kind of fault: count, first rows, column, message, form of the first value."""
        lines = []
        for (name, message), rows in self._rows.items():
            if column is None or name == column:
                places = [rows_text(rows)] if rows else []
                places += [f"column {name}"] if name else []
                place = f"{', '.join(places)}: " if places else ""
                lines.append(f"{place}{message}{self._examples[name, message]}")
        return lines

    def check(self) -> None:
        """Raise the faults, if there are any.

        Raises:
            CohortFault: All faults.
        """
        if self:
            raise CohortFault(self.lines())


def rows_text(rows: Sequence[int]) -> str:
    """Row numbers as text: ``row 5``, or ``24 rows (2, 3, 4, ...)``."""
    if len(rows) == 1:
        return f"row {rows[0]}"
    return f"{len(rows)} rows ({', '.join(map(str, rows[:SHOWN_ROWS]))}{', ...' if len(rows) > SHOWN_ROWS else ''})"
