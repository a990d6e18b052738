"""`rlvo validate`: external validation of a version, or of any table of predicted probabilities and outcomes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def validate(
    predictions: Annotated[Path, typer.Argument(help="Table of predictions and outcomes (.csv, .xlsx, .parquet)")],
    out: Annotated[Path, typer.Option(help="New folder of the report, or that of an earlier one")],
    probability: Annotated[str, typer.Option(help="Column of the probability, 0 to 1")] = "probability",
    outcome: Annotated[str, typer.Option(help="Column of the outcome: 1, 0, or empty if unknown")] = "outcome",
    site: Annotated[
        str, typer.Option(help="Column of the site, over which the measures are pooled; default: site")
    ] = "",
    date: Annotated[str, typer.Option(help="Column of the date; default: date")] = "",
    subgroup: Annotated[
        list[str] | None, typer.Option(help="Column of a subgroup; NAME=60,75 divides a number there; repeatable")
    ] = None,
    conformal: Annotated[str, typer.Option(help="Column of the conformal set, as in evaluation.csv")] = "",
    level: Annotated[float | None, typer.Option(min=0.5, max=0.999, help="Nominal coverage of the sets")] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0.001, max=0.999, help="Probability from which the decision is positive")
    ] = None,
    only_site: Annotated[str, typer.Option(help="Only patients of this site")] = "",
    since: Annotated[str, typer.Option(help="Only patients of this date (ISO) or later")] = "",
    date_format: Annotated[str, typer.Option(help="Form of the dates, as dd/mm/yyyy, or excel; default: ISO")] = "",
    rounds: Annotated[int, typer.Option(min=100, max=20_000, help="Resamples of each bootstrap")] = 1000,
) -> None:
    """Validate predicted probabilities against outcomes: discrimination, calibration, decisions, subgroups and sites.

    rlvo validate predictions.csv --out validation
    rlvo validate predictions.csv --out validation --site hospital --date day --subgroup sex --subgroup age=60,75

    The predictor can be any one: the table needs its probabilities and the outcomes. The report is written as
    Markdown, as one HTML file, and as CSV files. TRIPOD+AI items that the data cannot fill are listed as blank.
    """
    from app.evaluation import validation, validation_report
    from app.training import prediction_table, report_folder
    from app.training.prediction_table import TableColumns

    report_folder.check(out, "--out")
    columns = TableColumns(probability, outcome, site, date, conformal, tuple(subgroup or ()))
    table = prediction_table.read(predictions, columns, since=since, only_site=only_site, date_format=date_format)
    result = validation.validate(table, threshold=threshold, level=level, rounds=rounds)
    text = validation_report.write(out, f"Validation on {predictions.name}", result, predictions.name)
    typer.echo(text)
    typer.echo(f"Report: {out / 'report.html'}")
