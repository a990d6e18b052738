"""`rlvo monitor`: calibration, agreement and drift of one version over time."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.common import Since, Until, naming_folders, open_database, open_model_store, settings, table

if TYPE_CHECKING:
    from app.operations.monitor import MonitorReport, MonitorWindow
    from app.reporting.trends import Point


def monitor(
    model: Annotated[str, typer.Argument(help="NAME or NAME@VERSION; default: the default model")] = "",
    window: Annotated[str, typer.Option(help="day, week or month")] = "month",
    since: Since = None,
    until: Until = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the table (CSV, JSON) and the figures (SVG, PNG)")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 at any signal, or if the calibration has changed")
    ] = False,
) -> None:
    """Report the calibration, the reviewer agreement and the input drift of a version over time windows.

    rlvo monitor
    rlvo monitor mine@1.0.0 --window week --since 2026-01-01 --out monitor/

    The signal of a window is a share of outcomes outside of its control limits. Over all windows, a test that may be
    looked at at any time says whether the calibration has changed, or what the outcomes can show so far.
    Calibration needs outcomes (PUT /v1/predictions/{id}/outcome), agreement needs reviews; drift needs neither.
    """
    from contextlib import closing

    from app.database.followup import followed
    from app.operations.monitor import WindowLength, proposal, report
    from app.operations.monitor import table as rows_of

    try:
        length = WindowLength(window)
    except ValueError:
        typer.echo("--window must be day, week or month.", err=True)
        raise typer.Exit(2) from None
    config = settings()
    with naming_folders(config):
        entry = open_model_store(config).resolve(model or config.default_model)
    with closing(open_database(must_exist=True)) as database, database.reading() as session:
        answered = followed(session, entry.name, entry.version, _utc(since), _utc(until))
        result = report(answered, entry.manifest, length)
    if not result.windows:
        typer.echo(f"{entry.name}@{entry.version} has no prediction in this period.", err=True)
        raise typer.Exit(2)
    typer.echo(f"{entry.name}@{entry.version}, by {length}")
    heads, rows = rows_of(result)
    table(heads, rows)
    if result.slope is not None and result.in_the_large is not None:
        typer.echo(
            f"calibration slope {result.slope}, ideal: 1; calibration in the large {result.in_the_large}, ideal: 0"
        )
    typer.echo(result.drift.text)
    if advice := proposal(result, f"{entry.name}@{entry.version}"):
        typer.echo(advice)
    for start, signals in result.signals.items():
        typer.echo(f"{start:%Y-%m-%d}: {'; '.join(signals)}")
    if not result.signals and not result.drift.changed:
        typer.echo("no signals")
    if out is not None:
        _write(out, result, heads, rows)
        typer.echo(f"The table and the figures are in {out}.")
    if strict and (result.signals or result.drift.changed):
        raise typer.Exit(1)


def _write(folder: Path, result: MonitorReport, heads: list[str], rows: list[list[str]]) -> None:
    from app.core import csv_text, json_text
    from app.evaluation.figures import calibration
    from app.operations.monitor import by_variable, document
    from app.reporting import trends

    folder.mkdir(parents=True, exist_ok=True)
    csv_text.write(folder / "monitor.csv", heads, rows)
    json_text.write(folder / "monitor.json", document(result))
    days = [f"{window.start:%Y-%m-%d}" for window in result.windows]
    figures = {
        "over-time": trends.over_time([_point(day, window) for day, window in zip(days, result.windows, strict=True)]),
        "shifts": trends.shifts(
            days,
            [
                trends.ShiftRow(
                    name,
                    [shift.deviations if shift.known else None for shift in shifts],
                    [shift.signal for shift in shifts],
                )
                for name, shifts in by_variable(result).items()
            ],
        ),
    }
    if len(result.labels):
        figures["calibration"] = calibration(result.labels, result.probabilities, "predictions")
    for name, figure in figures.items():
        (folder / f"{name}.svg").write_bytes(figure.svg())
        (folder / f"{name}.png").write_bytes(figure.png())


def _point(day: str, window: MonitorWindow) -> Point:
    from app.reporting.trends import Point

    judged = window.calibration
    if judged is None:
        return Point(day, window.probability, agreement=window.agreement)
    return Point(day, judged.expected, judged.observed, judged.low, judged.high, judged.limits, window.agreement)


def _utc(day: datetime | None) -> datetime | None:
    return day and day.replace(tzinfo=UTC)
