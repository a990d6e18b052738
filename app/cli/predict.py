"""`rlvo predict`: one study, sent to a service by the Python client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperCommand

from app.cli.common import ServiceOptions, clinical_document
from app.cli.option_groups import expand_option_groups
from app.core.display_names import flag_text, interval_name, rule_text, warnings_first
from app.core.explanation_text import BASE, contributions, grouped, outside_text, side_text, signed_points

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from app.sdk.client import OnProgress, Study
    from app.sdk.series import SeriesSummary
    from app.sdk.types import Attribution, Prediction

LONGEST_BAR = 20  # characters
WITHHELD = 3  # exit status if warnings withhold the decision
Nifti = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help=".nii or .nii.gz")]


@dataclass
class VolumeOptions:
    """The volumes of one study."""

    ncct: Nifti = None
    cta: Nifti = None
    vessels: Nifti = None
    tmax: Nifti = None
    cbf: Nifti = None
    cbv: Nifti = None
    mtt: Nifti = None
    ctp: Nifti = None


class PredictCommand(TyperCommand):
    """`rlvo predict`; refuses its former option --cohort and names the command that replaces it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line as usual, unless it holds --cohort."""
        if any(each.partition("=")[0] == "--cohort" for each in args):
            ctx.fail("--cohort is no option of `rlvo predict`. Use `rlvo predict-cohort TABLE --results FILE`.")
        return super().parse_args(ctx, args)


@expand_option_groups
def predict(
    volumes: VolumeOptions,
    study_folder: Annotated[
        Path | None, typer.Option("--study", exists=True, help="DICOM study: a folder or a ZIP archive")
    ] = None,
    series_role: Annotated[
        list[str] | None, typer.Option("--series-role", help="Role of a series by number or UID: 3=ncct; repeatable")
    ] = None,
    clinical: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="The clinical document, JSON")
    ] = None,
    model: Annotated[str | None, typer.Option(help="name, name@1.2.0 or name@champion")] = None,
    subject: Annotated[str | None, typer.Option(help="Your pseudonym for the patient")] = None,
    study_instance_uid: Annotated[str | None, typer.Option(help="DICOM Study Instance UID of the study")] = None,
    accession_number: Annotated[str | None, typer.Option(help="Accession number of the study")] = None,
    explain: Annotated[bool, typer.Option(help="Also explain the prediction")] = True,
    accept_warnings: Annotated[
        bool, typer.Option("--accept-warnings", help="Give a decision in spite of warnings")
    ] = False,
    ctp_interval_s: Annotated[
        float | None, typer.Option("--ctp-interval-s", min=0.2, max=6.0, help="Seconds between the frames of the CTP")
    ] = None,
    maps: Annotated[Path | None, typer.Option(file_okay=False, help="Folder to save the map volumes in")] = None,
    *,
    service: ServiceOptions,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the answer")] = 600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the prediction as JSON")] = False,
) -> None:
    """Predict one study and print the probability with its explanation. Research use only.

    rlvo predict --ncct ncct.nii.gz --cta cta.nii.gz --clinical clinical.json
    rlvo predict --cta cta.nii.gz --clinical clinical.json --url http://rlvo.local:8000 --json
    rlvo predict --cta cta.nii.gz --maps out/
    rlvo predict --study dicom_folder/ --clinical clinical.json

    Warnings withhold the decision: the first line says so, and the exit status is 3.

    Without --url, the command starts a service in the data folder (RLVO_DATA_DIR) and stops it at the end.
    """
    from rich.console import Console

    given = {
        **asdict(volumes),
        "study": study_folder,
        "series_roles": _series_roles(series_role or []),
        "clinical": clinical_document(clinical) if clinical else None,
        "model": model,
        "subject": subject,
        "study_instance_uid": study_instance_uid,
        "accession_number": accession_number,
        "explain": explain,
        "accept_warnings": accept_warnings,
        "ctp_interval_s": ctp_interval_s,
    }
    study = cast("Study", {name: value for name, value in given.items() if value not in (None, {})})

    console = Console(stderr=True)
    with service.client() as client:
        with progress(console) as on_progress:
            prediction = client.predict(wait=wait, on_progress=on_progress, **study)
        saved = []
        if maps and prediction.attribution:
            maps.mkdir(parents=True, exist_ok=True)
            saved = [client.map(prediction.id, name, to=maps) for name in prediction.attribution.maps]
    if as_json:
        typer.echo(json.dumps(prediction.members(), indent=2))
    else:
        show(prediction, Console())
        for path in saved:
            typer.echo(f"saved {path}")
    if prediction.withheld:
        raise typer.Exit(WITHHELD)


@contextmanager
def progress(console: Console) -> Iterator[OnProgress]:
    """Draw one progress bar, named after the current stage; yield the callback that updates it."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    from app.sdk.client import Progress

    columns = TextColumn("{task.description:<8}"), BarColumn(), TimeElapsedColumn()
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("start", total=1.0)

        def draw(step: Progress) -> None:
            bar.update(task, description=step.stage, completed=step.fraction)

        yield draw


def show(prediction: Prediction, console: Console) -> None:
    """Print a finished prediction: summary, warnings, probability with its spread, model, explanation, flags."""
    from rich.markup import escape

    if prediction.probability is None:
        told = prediction.summary if prediction.sealed else prediction.status
        console.print(f"{prediction.id}: {told}", soft_wrap=True)
        return
    console.print(f"[bold]{escape(prediction.summary)}[/bold]", soft_wrap=True)
    flags = warnings_first(prediction.flags)
    for flag in prediction.warnings:
        console.print(f"[bold yellow]! warning[/bold yellow] {flag.name}: {escape(flag_text(flag))}")
    console.print(f"\n{_answer(prediction)}")
    console.print(f"Model: {prediction.model.name} {prediction.model.version}   Prediction: {prediction.id}")

    if prediction.attribution:
        for line in (outside_text(prediction.attribution), side_text(prediction.attribution.affected, flags)):
            if line:
                console.print(line, markup=False)
        console.print(_contribution_table(prediction.attribution))
    if prediction.series:
        console.print(_series_table(prediction.series))
    for flag in flags[len(prediction.warnings) :]:
        console.print(f"i info {flag.name}: {flag_text(flag)}", markup=False)
    console.print(f"[dim]{prediction.notice}[/dim]")


def _answer(prediction: Prediction) -> str:
    """Lines with the probability, its spread, the origin of the model, the headline and the side of the threshold."""
    from app.sdk.summary import SYNTHETIC_NOTICE, is_synthetic

    interval, decision = prediction.interval, prediction.decision
    first = f"[bold]Probability of refractory LVO: {prediction.probability:.1%}[/bold]"
    if interval:
        first += f"   ({interval_name(interval, prediction.folds)} {interval.low:.1%} to {interval.high:.1%})"
    lines = [first]
    if is_synthetic(prediction.flags):
        lines.append(f"[bold]{SYNTHETIC_NOTICE}[/bold]")
    if prediction.headline:
        lines.append(f"Answer: [bold]{prediction.headline.text}[/bold]")
    if decision:
        side = "above" if decision.refractory else "below"
        lines.append(f"Threshold: {side} {decision.threshold:.1%} ({rule_text(decision.rule)})")
    elif prediction.withheld:
        lines.append("Check the study, or send it again with --accept-warnings.")
    return "\n".join(lines)


def _contribution_table(attribution: Attribution) -> Table:
    """Table of the additive contributions, the largest first; values that were not given are one row."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    rows = grouped(contributions(attribution))
    longest = max((abs(row.log_odds) for row in rows), default=0.0) or 1.0
    table = Table("reason", "value", "points", "log-odds", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", min_width=LONGEST_BAR)  # a bar that is cut off would look as long as another one
    table.add_row(f"{BASE} (base)", "", "", f"{attribution.base:+.3f}", "")
    for row in rows:
        color, bar = "red" if row.log_odds > 0 else "blue", "█" * round(LONGEST_BAR * abs(row.log_odds) / longest)
        change = signed_points(attribution.total, row.log_odds)
        table.add_row(escape(row.name), escape(row.value), change, f"{row.log_odds:+.3f}", f"[{color}]{bar}[/{color}]")
    table.add_row("[bold]sum", "", "", f"[bold]{attribution.total:+.3f}", "")
    return table


def _series_roles(entries: list[str]) -> dict[str, str]:
    """Read entries such as ``3=ncct``; the service checks series and role."""
    pairs = [entry.partition("=") for entry in entries]
    if not all(name and role for name, _, role in pairs):
        raise typer.BadParameter("expected SERIES=ROLE, such as 3=ncct", param_hint="--series-role")
    return {name: role for name, _, role in pairs}


def _series_table(series: list[SeriesSummary]) -> Table:
    """Table of the series of a DICOM study: what each was taken for, and why."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table("series", "images", "taken for", "used", "reason", box=box.SIMPLE_HEAD, pad_edge=False)
    for each in series:
        part = f".{each.part}" if each.part else ""
        number = "-" if each.number is None else f"{each.number}{part}"
        table.add_row(number, str(each.images), each.role.value, "yes" if each.used else "", escape(each.reason))
    return table
