"""`rlvo monitor`: calibration, agreement and drift of one version over time."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.common import settings, table

if TYPE_CHECKING:
    from app.operations.monitor import MonitorReport, MonitorWindow
    from app.reporting.trends import Point

Day = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"])]


def monitor(
    model: Annotated[str, typer.Argument(help="NAME or NAME@VERSION; the default model if none")] = "",
    window: Annotated[str, typer.Option(help="day, week or month")] = "month",
    since: Day = None,
    until: Day = None,
    out: Annotated[Path | None, typer.Option(help="A folder for the table (CSV) and the figures (SVG, PNG)")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where something should be looked at")] = False,
) -> None:
    """Reports a version's calibration, its reviewers' agreement and the drift of its inputs over time windows.

    rlvo monitor
    rlvo monitor rlvo-synthetic@1.0.0 --window week --since 2026-01-01 --out monitor/

    Calibration needs outcomes (PUT /v1/predictions/{id}/outcome), agreement needs reviews; drift needs neither.
    """
    from contextlib import closing

    from app.cli.admin import open_database
    from app.database.followup import followed
    from app.operations.monitor import WindowLength, report
    from app.operations.monitor import table as rows_of
    from app.registry.model_store import ModelStore

    try:
        length = WindowLength(window)
    except ValueError:
        typer.echo("--window is day, week or month", err=True)
        raise typer.Exit(2) from None
    here = settings()
    entry = ModelStore(here.model_store).resolve(model or here.default_model)
    with closing(open_database()) as database, database.reading() as session:
        answered = followed(session, entry.name, entry.version, _utc(since), _utc(until))
    if not answered:
        typer.echo(f"{entry.name}@{entry.version} has answered nobody in this time.", err=True)
        raise typer.Exit(2)
    found = report(answered, entry.manifest, length)
    typer.echo(f"{entry.name}@{entry.version}, by {length}")
    heads, rows = rows_of(found)
    table(heads, rows)
    if found.slope is not None and found.intercept is not None:
        typer.echo(f"calibration slope {found.slope:.2f} (1 is right), intercept {found.intercept:+.2f} (0 is right)")
    for start, signals in found.signals.items():
        typer.echo(f"{start:%Y-%m-%d}: {'; '.join(signals)}")
    if not found.signals:
        typer.echo("nothing stands out")
    if out is not None:
        _write(out, found, heads, rows)
        typer.echo(f"table and figures are in {out}")
    if strict and found.signals:
        raise typer.Exit(1)


def _write(folder: Path, found: MonitorReport, heads: list[str], rows: list[list[str]]) -> None:
    import csv

    from app.evaluation.figures import calibration
    from app.operations.monitor import by_variable
    from app.reporting import trends

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "monitor.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([heads, *rows])
    days = [f"{window.start:%Y-%m-%d}" for window in found.windows]
    drawings = {
        "over-time": trends.over_time([_point(day, window) for day, window in zip(days, found.windows, strict=True)]),
        "shifts": trends.shifts(
            days,
            [
                trends.ShiftRow(
                    name,
                    [shift.deviations if shift.known else None for shift in shifts],
                    [shift.signal for shift in shifts],
                )
                for name, shifts in by_variable(found).items()
            ],
        ),
    }
    if len(found.labels):
        drawings["calibration"] = calibration(found.labels, found.chances, "the answers")
    for name, drawing in drawings.items():
        (folder / f"{name}.svg").write_bytes(drawing.svg())
        (folder / f"{name}.png").write_bytes(drawing.png())


def _point(day: str, window: MonitorWindow) -> Point:
    from app.reporting.trends import Point

    judged = window.calibration
    if judged is None:
        return Point(day, window.probability, agreement=window.agreement)
    return Point(day, judged.expected, judged.observed, judged.low, judged.high, window.agreement)


def _utc(day: datetime | None) -> datetime | None:
    return day and day.replace(tzinfo=UTC)
