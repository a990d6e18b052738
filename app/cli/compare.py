"""`rlvo compare`: two versions on the patients whose outcome is on record."""

from __future__ import annotations

from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.common import Since, Until, naming_folders, open_database, open_model_store, settings, table

if TYPE_CHECKING:
    from app.operations.version_comparison import VersionComparison

Reference = Annotated[str, typer.Argument(help="NAME@VERSION, NAME@champion, NAME@challenger or NAME@shadow")]


def compare(
    first: Reference,
    second: Reference,
    since: Since = None,
    until: Until = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the table (CSV, JSON) and the figures")] = None,
) -> None:
    """Compare two versions on stored predictions whose outcome is on record: AUC, Brier score, calibration, DeLong.

    rlvo compare rlvo-synthetic@champion rlvo-synthetic@challenger
    rlvo compare mine@1.0.0 mine@1.1.0 --since 2026-01-01 --out comparison/

    A version takes part by its own answers and by its scores as a shadow. The same patients: same subject and day.
    Exit status 1 says that too few outcomes are on record for a comparison.
    """
    from contextlib import closing

    from app.database.followup import live_scores
    from app.operations import version_comparison

    config = settings()
    store = open_model_store(config)
    with naming_folders(config):
        entries = store.resolve(first), store.resolve(second)
    names = (f"{entries[0].name}@{entries[0].version}", f"{entries[1].name}@{entries[1].version}")
    if names[0] == names[1]:
        raise typer.BadParameter(f"both are {names[0]}: give two versions")
    version_comparison.check_targets(entry.manifest for entry in entries)
    days = [day and day.replace(tzinfo=UTC) for day in (since, until)]
    with closing(open_database(must_exist=True)) as database, database.reading() as session:
        scores = [live_scores(session, entry.name, entry.version, *days) for entry in entries]
    result = version_comparison.compare(names, scores[0], scores[1])
    heads, rows = version_comparison.table(result)
    table(heads, rows)
    for note in version_comparison.notes(result):
        typer.echo(note)
    if out is not None:
        _write(out, result)
        typer.echo(f"The table and the figures are in {out}.")
    if result.difference is None:
        raise typer.Exit(1)


def _write(folder: Path, result: VersionComparison) -> None:
    from app.core import csv_text, json_text
    from app.evaluation import figures
    from app.operations.version_comparison import csv_rows, document

    folder.mkdir(parents=True, exist_ok=True)
    csv_text.write(folder / "comparison.csv", *csv_rows(result))
    json_text.write(folder / "comparison.json", document(result))
    if result.difference is not None:
        names = [one.version for one in result.shared]
        figures.write(folder, result.labels, dict(zip(names, result.probabilities, strict=True)), names[0])
