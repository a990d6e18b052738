"""`rlvo outcomes`: import the outcomes of a table for stored predictions.

Design notes:
- The whole table is resolved and compared before the first outcome is written.
- The outcome belongs to the thrombectomy: by subject, every prediction of that subject and day gets it.
- An outcome that is on record and equal is left as it is, so the same table can be imported again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.common import ServiceOptions
from app.cli.option_groups import expand_option_groups

if TYPE_CHECKING:
    from app.sdk.client import Client
    from app.sdk.followup import OutcomeDraft
    from app.sdk.types import Prediction
    from app.training.errors import FaultList
    from app.training.outcome_table import OutcomeEntry, OutcomeTable

outcomes = typer.Typer(no_args_is_help=True, add_completion=False, help="Outcomes of stored predictions.")


@outcomes.callback()
def _group() -> None:
    """Outcomes of stored predictions."""


@dataclass(frozen=True)
class Change:
    """One outcome to write; ``correct`` replaces another one that is on record."""

    prediction: str
    draft: OutcomeDraft
    correct: bool


@dataclass(frozen=True)
class Plan:
    """Outcomes to write, and the number of those that are on record already."""

    changes: tuple[Change, ...]
    unchanged: int


@outcomes.command("import")
@expand_option_groups
def import_(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Table (.csv, .xlsx, .parquet)")],
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; print the faults, or what would change")
    ] = False,
    correct: Annotated[bool, typer.Option("--correct", help="Replace outcomes on record that differ")] = False,
    columns: Annotated[Path | None, typer.Option(help="columns.toml; default: the one next to the table")] = None,
    date_format: Annotated[str, typer.Option(help="Form of the dates, as dd/mm/yyyy, or excel; default: ISO")] = "",
    *,
    service: ServiceOptions,
) -> None:
    """Record the outcomes of a table for predictions of the service.

    rlvo outcomes import outcomes.csv --check
    rlvo outcomes import outcomes.xlsx --url http://rlvo.local:8000 --date-format dd/mm/yyyy

    Columns: `prediction` (the id), or `subject` and perhaps `date` (the UTC day of the prediction); `etici`,
    `rescue_treatment`, and `final_stenosis_percent` if it was measured. All faults are printed before anything is
    written. The same table can be imported again: only differences are written, and corrections need --correct.
    """
    from app.training.errors import CohortFault, FaultList
    from app.training.outcome_table import read

    try:
        table = read(file, rules=columns, date_format=date_format)
        with service.client() as client:
            faults = FaultList()
            plan = plan_of(client, table, faults, correct=correct)
            faults.check()
            if not check:
                for change in plan.changes:
                    client.set_outcome(change.prediction, change.draft, correct=change.correct)
    except CohortFault as error:
        for fault in error.faults:
            typer.echo(fault, err=True)
        raise typer.Exit(2) from None
    typer.echo(_summary(plan, table, check=check))


def plan_of(client: Client, table: OutcomeTable, faults: FaultList, *, correct: bool) -> Plan:
    """Find the predictions of every row and compare the outcomes on record; faults are added to ``faults``."""
    from app.sdk.followup import fault_of

    drafts: dict[str, tuple[int, OutcomeDraft]] = {}
    for entry in table.entries:
        if (fault := fault_of(entry.draft)) is not None:
            faults.add(fault.detail, row=entry.row, column=fault.field)
            continue
        for prediction in _predictions_of(client, entry, faults):
            other = drafts.setdefault(prediction, (entry.row, entry.draft))
            if other[1] != entry.draft:
                faults.add("another row gives the same prediction another outcome", row=entry.row)
    changes, unchanged = [], 0
    for prediction, (row, draft) in drafts.items():
        present = client.outcome(prediction)
        if present is None:
            changes.append(Change(prediction, draft, correct=False))
        elif present.model_dump(include=set(type(draft).model_fields)) == draft.model_dump():
            unchanged += 1
        elif correct:
            changes.append(Change(prediction, draft, correct=True))
        else:
            faults.add("another outcome is on record; give --correct to replace it", row=row)
    return Plan(tuple(changes), unchanged)


def _predictions_of(client: Client, entry: OutcomeEntry, faults: FaultList) -> list[str]:
    """Ids of the predictions that a row names."""
    from app.sdk.errors import Erased, PredictionNotFound
    from app.sdk.types import Status

    if entry.prediction:
        try:
            found: list[Prediction] = [client.get(entry.prediction)]
        except PredictionNotFound:
            faults.add("there is no prediction with this id for this API key", row=entry.row)
            return []
        except Erased:
            faults.add("the prediction was erased", row=entry.row)
            return []
        if entry.subject and found[0].subject != entry.subject:
            faults.add("the prediction with this id is of another subject", row=entry.row)
        if found[0].status is not Status.SUCCEEDED:
            faults.add("the prediction has no result; only one that succeeded can have an outcome", row=entry.row)
        return [found[0].id]
    found = [each for each in client.list(subject=entry.subject) if each.status is Status.SUCCEEDED]
    days = {each.id: each.created.astimezone(UTC).date() for each in found}
    own = [each for each in found if entry.day in (None, days[each.id])]
    if not found:
        faults.add("the subject has no prediction with a result for this API key", row=entry.row)
    elif not own:
        faults.add("the subject has no prediction of this date (the UTC day of the prediction)", row=entry.row)
    elif len({days[each.id] for each in own}) > 1:
        faults.add("the subject has predictions of several days; give the date, or the prediction", row=entry.row)
    return [each.id for each in own]


def _summary(plan: Plan, table: OutcomeTable, *, check: bool) -> str:
    new = sum(not change.correct for change in plan.changes)
    verb = "to record" if check else "recorded"
    parts = [f"{new} {verb}", f"{len(plan.changes) - new} {'to correct' if check else 'corrected'}"]
    parts.append(f"{plan.unchanged} unchanged")
    if table.without:
        parts.append(f"{len(table.without)} rows without an outcome yet")
    text = ", ".join(parts)
    return f"{text}; not used: {', '.join(table.unused)}" if table.unused else text
