"""Commands of a cohort's table: ``rlvo table check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

table = typer.Typer(no_args_is_help=True, add_completion=False, help="Check the table of a cohort before training.")


@table.callback()
def _group() -> None:
    """Check the table of a cohort before training."""


@table.command()
def check(
    file: Annotated[Path, typer.Argument(help="Table (.csv, .xlsx, .parquet), or folder with cohort.csv")],
    target: Annotated[str, typer.Option(help="rlvo or unsuccessful-reperfusion")] = "",
    columns: Annotated[Path | None, typer.Option(help="columns.toml; default: the one next to the table")] = None,
    own_variables: Annotated[
        Path | None, typer.Option(help="variables.toml, the cohort's own variables; default: the one next to the table")
    ] = None,
    date_format: Annotated[str, typer.Option(help="Form of the dates, as dd/mm/yyyy, or excel; default: ISO")] = "",
    drop_unknown: Annotated[bool, typer.Option(help="Leave out rows of unknown outcome")] = False,
    accept: Annotated[
        str, typer.Option(help="Codes of suspicious values that are right, separated by commas, or all")
    ] = "",
) -> None:
    """Print one line for each column of a table and its faults, and write the template of columns.toml.

    rlvo table check cohort.xlsx
    rlvo table check cohort.csv --date-format dd/mm/yyyy
    rlvo table check cohort.csv --accept missing-code,unit

    The template is written next to the table, if there is no columns.toml. It may contain words of the table.
    Exit status 2 says that the table cannot be used yet.
    """
    from app.training import table_check
    from app.training.columns import FILE
    from app.training.options import Target

    if target and target not in list(Target):
        raise typer.BadParameter(f"give {' or '.join(Target)}", param_hint="--target")
    chosen = Target(target) if target else None
    result = table_check.check(
        file,
        drop_unknown=drop_unknown,
        target=chosen,
        rules=columns,
        date_format=date_format,
        accept=accept,
        own=own_variables,
    )
    typer.echo(result.text)
    rules = columns or (file if file.is_dir() else file.parent) / FILE
    if not rules.exists():
        rules.write_text(result.template, encoding="utf-8")
        typer.echo(f"\nWrote the template {rules}. Declare names, words and missing codes there; training reads it.")
    raise typer.Exit(0 if result.usable else 2)
