"""Outcome of a study by the chosen target, and the counts of a cohort's outcomes for the model card.

Design notes:
- rLVO is 1 if any component is positive, else unknown if any is missing, else 0.
- Unsuccessful reperfusion is a grade of 0 to 2a, from ``mtici`` or else ``etici``. It is never called rLVO.
- A row with a missing component is known only if another one is positive. Leaving out unknown rows therefore leaves out
  rows without a positive component only, and raises the share of events. The counts say so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from app.sdk.etici import UNSUCCESSFUL, parse_etici
from app.sdk.followup import REFRACTORY_STENOSIS
from app.training.cells import form_of, parse_flag, parse_number
from app.training.columns import COMPONENTS, REPERFUSION
from app.training.errors import FaultList
from app.training.options import Target

Findings = Mapping[str, bool | None]
"""Whether each component is positive; None if it is missing."""


@dataclass(frozen=True)
class OutcomeCounts:
    """Counts of the outcomes of a table, before rows of unknown outcome are left out.

    Attributes:
        components: Columns that decide the outcome.
        known: Rows with a value, by component.
        positive: Positive rows, by component.
        alone: Rows that the component decides alone: it is positive and no other is, by component.
        sites: Rows by site and outcome (1, 0, None for unknown).
        missing: Rows of unknown outcome that lack the component, by component.
        dropped: Rows of unknown outcome that are left out.
    """

    target: str
    components: tuple[str, ...]
    known: Mapping[str, int]
    positive: Mapping[str, int]
    alone: Mapping[str, int]
    sites: Mapping[str, Mapping[int | None, int]]
    missing: Mapping[str, int]
    dropped: int = 0

    def lines(self, *, least: int = 0) -> list[str]:
        """The counts as Markdown, one table by component and one by site; counts below ``least`` are not shown."""

        def text(count: int) -> str:
            return _text(count, least)

        lines = [
            f"Outcome {self.target}, from {', '.join(self.components)}. A row has it if any component is positive.",
            "",
            "| component | rows with a value | positive | positive alone |",
            "|---|---|---|---|",
            *(
                f"| {c} | {text(self.known[c])} | {text(self.positive[c])} | {text(self.alone[c])} |"
                for c in self.components
            ),
            "",
            f"| site | with the outcome | without | unknown{', left out' if self.dropped else ''} |",
            "|---|---|---|---|",
            *(f"| {site} | {' | '.join(texts)} |" for site, texts in self._by_site(least)),
        ]
        if self.dropped:
            lines += ["", self.dropped_note(least=least)]
        return lines

    def dropped_note(self, *, least: int = 0) -> str:
        """Sentences on the rows of unknown outcome that are left out; "" without any."""
        if not self.dropped:
            return ""
        missing = ", ".join(f"{name} in {_text(count, least)}" for name, count in self.missing.items() if count)
        count = _text(self.dropped, least)
        return (
            f"{count} rows of unknown outcome were left out (`--drop-unknown`); missing: {missing}. "
            "None of them has a positive component, so the share with the outcome is higher than among all rows."
        )

    def _by_site(self, least: int) -> list[tuple[str, list[str]]]:
        """Site, and the texts of its counts; a second count of a column is hidden if its sum would show the first."""
        columns = []
        for outcome in (1, 0, None):
            counts = [own.get(outcome, 0) for own in self.sites.values()]
            texts = [_text(count, least) for count in counts]
            shown = [count for count in counts if count >= max(least, 1)]
            if sum(0 < count < least for count in counts) == 1 and shown:
                texts[counts.index(min(shown))] = "not shown"
            columns.append(texts)
        return [(site, list(texts)) for site, texts in zip(self.sites, zip(*columns, strict=True), strict=True)]


def _text(count: int, least: int) -> str:
    """Text of a count; one from 1 to ``least`` - 1 is not shown."""
    return f"<{least}" if 0 < count < least else str(count)


def choose(columns: Collection[str], target: Target | None, faults: FaultList) -> tuple[Target, tuple[str, ...]]:
    """Target, and the columns that decide it; without ``target``, rLVO if any component is in the table."""
    components = components_of(columns, Target.RLVO)
    if target is Target.UNSUCCESSFUL_REPERFUSION:
        grades = components_of(columns, target)
        if not grades:
            faults.add(f"--target {target} needs the column {REPERFUSION} or etici")
        return target, grades
    option = f"--target {Target.UNSUCCESSFUL_REPERFUSION}"
    if target is None and components and REPERFUSION in columns:
        faults.add(
            f"with {', '.join(components)} it is a second target; choose with --target {Target.RLVO} or {option}",
            column=REPERFUSION,
        )
    elif not components and REPERFUSION in columns:
        faults.add(
            f"rLVO needs at least one of {', '.join(COMPONENTS)}; to predict mTICI 0-2a instead, give {option}",
            column=REPERFUSION,
        )
    elif not components:
        faults.add(
            f"no outcome: give at least one of the columns {', '.join(COMPONENTS)}, or {REPERFUSION} with {option}"
        )
    return Target.RLVO, components


def components_of(columns: Collection[str], target: Target) -> tuple[str, ...]:
    """Columns of a table that decide the target; empty if it has none of them."""
    if target is Target.UNSUCCESSFUL_REPERFUSION:
        return tuple(name for name in (REPERFUSION, "etici") if name in columns)[:1]
    return tuple(name for name in COMPONENTS if name in columns)


def findings(
    row: int, cells: Mapping[str, str], components: Sequence[str], faults: FaultList, marks: Mapping[str, str]
) -> Findings:
    """Findings of one row; ``marks``: decimal mark of the columns of numbers."""
    positive: dict[str, bool | None] = {}
    for name in components:
        cell = cells.get(name, "")
        positive[name] = None
        try:
            positive[name] = _positive(name, cell, marks.get(name, ".")) if cell else None
        except ValueError as error:
            faults.add(f"{error}, or an empty cell", row=row, column=name, found=form_of(cell))
    return positive


def decide(findings: Findings) -> int | None:
    """1 if any component is positive, else None if any is missing, else 0."""
    if any(findings.values()):
        return 1
    return None if None in findings.values() or not findings else 0


def count(
    target: str, components: Sequence[str], rows: Sequence[tuple[str, Findings]], *, drop_unknown: bool
) -> OutcomeCounts:
    """Count the outcomes; ``rows``: site and findings of each row."""
    sites: dict[str, Counter[int | None]] = {}
    for site, found in rows:
        sites.setdefault(site, Counter())[decide(found)] += 1
    unknown = [found for _, found in rows if decide(found) is None]
    positives = [{name for name, positive in found.items() if positive} for _, found in rows]
    return OutcomeCounts(
        target=target,
        components=tuple(components),
        known={name: sum(found[name] is not None for _, found in rows) for name in components},
        positive={name: sum(name in names for names in positives) for name in components},
        alone={name: sum(names == {name} for names in positives) for name in components},
        sites=dict(sorted(sites.items())),
        missing={name: sum(found[name] is None for found in unknown) for name in components},
        dropped=len(unknown) if drop_unknown else 0,
    )


def _positive(name: str, cell: str, mark: str) -> bool:
    if name == "rescue_treatment":
        return parse_flag(cell)
    if name != "final_stenosis_percent":
        return parse_etici(cell) in UNSUCCESSFUL
    percent = parse_number(cell, mark)
    if not 0 <= percent <= 100:
        raise ValueError("expected 0 to 100")
    return percent > REFRACTORY_STENOSIS
