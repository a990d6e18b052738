"""`rlvo validate`: external validation of a version, or of any table of predicted probabilities and outcomes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import export_options
from app.cli.cohort_options import CONSENT, READING, ConsentOptions, ReadingOptions, cohort_faults, console, cores
from app.cli.export_options import EXPORT, ExportOptions

if TYPE_CHECKING:
    from app.evaluation.validation import PredictionTable
    from app.registry.manifest import Manifest


@dataclass(frozen=True)
class PredictionColumns:
    """Columns of a table of predictions, and what is known of the predictor."""

    probability: Annotated[str, typer.Option(help="Column of the probability, 0 to 1")] = "probability"
    outcome: Annotated[str, typer.Option(help="Column of the outcome: 1, 0, or empty if unknown")] = "outcome"
    site_column: Annotated[str, typer.Option(help="Column of the site, over which is pooled; default: site")] = ""
    date_column: Annotated[str, typer.Option(help="Column of the date; default: date")] = ""
    subgroup: Annotated[
        list[str] | None, typer.Option(help="Column of a subgroup; NAME=60,75 divides a number there; repeatable")
    ] = None
    conformal: Annotated[str, typer.Option(help="Column of the conformal set, as in evaluation.csv")] = ""
    level: Annotated[float | None, typer.Option(min=0.5, max=0.999, help="Nominal coverage of the sets")] = None
    threshold: Annotated[
        float | None, typer.Option(min=0.001, max=0.999, help="Probability from which the decision is positive")
    ] = None


COLUMNS = PredictionColumns()


def validate(
    source: Annotated[
        str, typer.Argument(help="Table of predictions; or, with COHORT, a version: folder or NAME@1.0.0")
    ],
    cohort: Annotated[
        Path | None, typer.Argument(help="Table of a cohort, as for `rlvo train`, which the version predicts")
    ] = None,
    out: Annotated[Path, typer.Option(help="New folder of the report, or that of an earlier one")] = Path("validation"),
    table: PredictionColumns = COLUMNS,
    site: Annotated[str, typer.Option(help="Only patients of this site")] = "",
    since: Annotated[str, typer.Option(help="Only patients of this date (ISO) or later")] = "",
    from_outcomes: Annotated[
        bool, typer.Option(help="The version's recorded answers and outcomes; --site is then the sender")
    ] = False,
    rounds: Annotated[int, typer.Option(min=100, max=20_000, help="Resamples of each bootstrap")] = 1000,
    jobs: Annotated[int, typer.Option(min=0, help="Studies prepared at the same time; 0: one per core")] = 0,
    reading: ReadingOptions = READING,
    consent: ConsentOptions = CONSENT,
    export: ExportOptions = EXPORT,
) -> None:
    """Validate predicted probabilities against outcomes: discrimination, calibration, decisions, subgroups and sites.

    rlvo validate predictions.csv --site-column hospital --subgroup sex --subgroup age=60,75
    rlvo validate mine@1.0.0 cohort.csv --out validation
    rlvo validate mine@1.0.0 --from-outcomes --since 2026-01-01 --site north
    rlvo validate mine@1.0.0 cohort.csv --export-aggregate bundle.json --as-site north --key site.key

    The predictor can be any one: the table needs its probabilities and the outcomes. The report is written as
    Markdown, as one HTML file, and as CSV files. TRIPOD+AI items that the data cannot fill are listed as blank.
    """
    if from_outcomes and (cohort is not None or table != COLUMNS or reading != READING or consent != CONSENT):
        raise typer.BadParameter("a version's recorded outcomes need no COHORT and no options of a table")
    if cohort is None and (replace(reading, date_format="") != READING or consent != CONSENT):
        raise typer.BadParameter(
            "--drop-unknown, --target, --columns, --own-variables, --dicom, --accept, --accept-flags and --i-know are "
            "for a version and a COHORT"
        )
    if cohort is not None and table != COLUMNS:
        raise typer.BadParameter(
            "columns, --subgroup, --level and --threshold are for a table of predictions: a version has its own"
        )
    export_options.check(export, is_table=cohort is None and not from_outcomes)
    with cohort_faults():
        if from_outcomes:
            text, read, manifest, digest = _of_outcomes(source, out, site, since, rounds)
            shared = export_options.export(export, read, f"{manifest.name}@{manifest.version}", digest)
        elif cohort is None:
            text, read = _of_table(Path(source), out, table, site, since, rounds, reading.date_format)
            shared = export_options.export(export, read, export.predictor)
        else:
            from app.training.progress import RichProgress
            from app.training.score import EvalConfig
            from app.training.validate_version import validate_version

            folder = version_folder(source)
            config = EvalConfig(
                versions=[folder],
                cohort=cohort,
                since=since,
                site=site,
                jobs=jobs or cores(),
                **asdict(reading),
                **asdict(consent),
            )
            text, read, scored = validate_version(config, out, rounds=rounds, progress=RichProgress(console))
            shared = export_options.export_cohort(export, read, folder, scored)
    typer.echo(text)
    typer.echo(f"Report: {out / 'report.html'}")
    if shared:
        typer.echo(f"\n{shared}")


def _of_outcomes(
    reference: str, out: Path, site: str, since: str, rounds: int
) -> tuple[str, PredictionTable, Manifest, str]:
    """The report, the recorded predictions and outcomes, and the version's manifest and digest."""
    from contextlib import closing

    from app.cli.common import naming_folders, open_database, open_model_store, settings
    from app.evaluation import validation, validation_report
    from app.operations import recorded_outcomes
    from app.training import report_folder

    report_folder.check(out, "--out")
    try:
        day = datetime.fromisoformat(since).replace(tzinfo=UTC) if since else None
    except ValueError:
        raise typer.BadParameter("give an ISO date, such as 2026-01-31", param_hint="--since") from None
    config = settings()
    with naming_folders(config):
        entry = open_model_store(config).resolve(reference)
    manifest = entry.manifest
    with closing(open_database(must_exist=True)) as database, database.reading() as session:
        read = recorded_outcomes.table(session, manifest, since=day, caller=site)
    level = None if manifest.conformal is None else manifest.conformal.level
    result = validation.validate(read, threshold=manifest.threshold.value, level=level, rounds=rounds)
    name = f"{manifest.name}@{manifest.version}"
    items = {
        "8a": "The refractory outcome, as recorded with PUT /v1/predictions/{id}/outcome.",
        "12g": f"The probabilities are those that {name} answered in use.",
    }
    title = f"Validation of {name} on its recorded outcomes"
    text = validation_report.write(out, title, result, "recorded outcomes", items=items)
    return text, read, manifest, entry.digest


def version_folder(reference: str) -> Path:
    """Folder of a version: a folder with a manifest, or NAME, NAME@VERSION or NAME@ALIAS of the model store."""
    from app.cli.common import naming_folders, open_model_store, settings

    if (Path(reference) / "manifest.json").is_file():
        return Path(reference)
    config = settings()
    with naming_folders(config):
        return open_model_store(config).resolve(reference).folder


def _of_table(
    path: Path, out: Path, table: PredictionColumns, site: str, since: str, rounds: int, date_format: str
) -> tuple[str, PredictionTable]:
    from app.evaluation import validation, validation_report
    from app.training import prediction_table, report_folder
    from app.training.prediction_table import TableColumns

    report_folder.check(out, "--out")
    columns = TableColumns(
        probability=table.probability,
        outcome=table.outcome,
        site=table.site_column,
        date=table.date_column,
        conformal=table.conformal,
        subgroups=tuple(table.subgroup or ()),
    )
    read = prediction_table.read(path, columns, since=since, only_site=site, date_format=date_format)
    result = validation.validate(read, threshold=table.threshold, level=table.level, rounds=rounds)
    return validation_report.write(out, f"Validation on {path.name}", result, path.name), read
