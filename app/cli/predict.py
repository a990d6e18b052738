"""`rlvo predict`: one study from the command line, through the client like every other caller's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from app.cli.common import own_service
from app.core.display_names import label, shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from app.sdk.client import OnProgress, Study
    from app.sdk.types import Attribution, Prediction

BAR = 20  # characters of the longest bar
Nifti = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help=".nii or .nii.gz")]


def predict(
    ncct: Nifti = None,
    cta: Nifti = None,
    vessels: Nifti = None,
    tmax: Nifti = None,
    cbf: Nifti = None,
    cbv: Nifti = None,
    mtt: Nifti = None,
    ctp: Nifti = None,
    clinical: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="The clinical document, JSON")
    ] = None,
    model: Annotated[str | None, typer.Option(help="name, name@1.2.0 or name@champion")] = None,
    subject: Annotated[str | None, typer.Option(help="Your pseudonym for the patient")] = None,
    explain: Annotated[bool, typer.Option(help="Also say why")] = True,
    maps: Annotated[Path | None, typer.Option(file_okay=False, help="Folder to save the map volumes in")] = None,
    cohort: Annotated[
        Path | None, typer.Option(exists=True, help="A whole cohort: its table (.csv, .parquet), or its folder")
    ] = None,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Where a cohort's results go, line by line")] = Path(
        "predictions.csv"
    ),
    url: Annotated[
        str | None, typer.Option(envvar="RLVO_URL", help="A running service; without it, one of its own")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="RLVO_API_KEY", help="Needed beyond your own machine")] = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the answer")] = 600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the prediction as JSON")] = False,
) -> None:
    """Predicts one study and prints the probability with its reasons. Research use only.

    rlvo predict --ncct ncct.nii.gz --cta cta.nii.gz --clinical clinical.json
    rlvo predict --cta cta.nii.gz --clinical clinical.json --url http://rlvo.local:8000 --json
    rlvo predict --cta cta.nii.gz --maps out/
    rlvo predict --cohort cohort.csv --out predictions.csv --no-explain

    A cohort's table has a line a patient: `patient`, the volumes' paths by the names above, clinical facts by theirs.
    It is served behind acute studies, by as many workers as there are; interrupted, the same command goes on where it
    was, and what stands in the results is not sent again.

    Without --url it starts a service of its own in the data folder (RLVO_DATA_DIR), and stops it again.
    """
    from rich.console import Console

    from app.sdk.client import Client

    if cohort:
        _predict_cohort(cohort, out, url, api_key, model, explain=explain)
        return
    given = {
        "ncct": ncct,
        "cta": cta,
        "vessels": vessels,
        "tmax": tmax,
        "cbf": cbf,
        "cbv": cbv,
        "mtt": mtt,
        "ctp": ctp,
        "clinical": _document(clinical) if clinical else None,
        "model": model,
        "subject": subject,
        "explain": explain,
    }
    study = cast("Study", {name: value for name, value in given.items() if value is not None})

    console = Console(stderr=True)
    with Client(url, api_key=api_key) if url else own_service() as client:
        with progress(console) as on_progress:
            prediction = client.predict(wait=wait, on_progress=on_progress, **study)
        saved = []
        if maps and prediction.attribution:
            maps.mkdir(parents=True, exist_ok=True)
            saved = [client.map(prediction.id, name, to=maps) for name in prediction.attribution.maps]
    if as_json:
        typer.echo(prediction.model_dump_json(indent=2, exclude_none=True))
    else:
        show(prediction, Console())
        for path in saved:
            typer.echo(f"saved {path}")


def _predict_cohort(
    table: Path, out: Path, url: str | None, api_key: str | None, model: str | None, *, explain: bool
) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from app.cli.predict_cohort import predict_cohort
    from app.sdk.client import Client
    from app.training.cohort import to_predict

    studies = to_predict(table)
    columns = TextColumn("predict"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    bar = Bar(*columns, console=Console(stderr=True))
    with Client(url, api_key=api_key) if url else own_service() as client, bar:
        task = bar.add_task("", total=len(studies))
        ended = predict_cohort(client, studies, out, model=model, explain=explain, done=lambda: bar.advance(task))
    told = ", ".join(f"{count} {status}" for status, count in sorted(ended.items())) or "nothing was left to do"
    typer.echo(f"{told}; {out}")
    if set(ended) - {"succeeded"}:
        raise typer.Exit(1)


@contextmanager
def progress(console: Console) -> Iterator[OnProgress]:
    """Draws what the client tells: one bar, named after what is going on."""
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
    """Prints a finished prediction for a person: the number, how sure, what follows, why, and what was amiss."""
    if prediction.probability is None:
        console.print(f"{prediction.id}: {prediction.status}")
        return
    interval, decision = prediction.interval, prediction.decision
    console.print(f"\n[bold]Probability of refractory LVO: {prediction.probability:.1%}[/bold]", end="")
    if interval:
        console.print(f"   ({interval.level:.0%} interval {interval.low:.1%} to {interval.high:.1%})", end="")
    console.print()
    if decision:
        verdict = "refractory" if decision.refractory else "not refractory"
        console.print(f"Decision: [bold]{verdict}[/bold] at a threshold of {decision.threshold:.1%} ({decision.rule})")
    console.print(f"Model: {prediction.model.name} {prediction.model.version}   Prediction: {prediction.id}")

    if prediction.attribution:
        console.print(_reasons(prediction.attribution))
    for flag in prediction.flags:
        console.print(f"[yellow]{flag.code}[/yellow]: {flag.detail}")
    console.print(f"[dim]{prediction.notice}[/dim]")


def _reasons(reasons: Attribution) -> Table:
    """The additive reasons, images first, then the clinical ones by weight, each with a bar."""
    from rich import box
    from rich.table import Table

    clinical = sorted(reasons.clinical, key=lambda part: -abs(part.contribution))
    rows = [(f"image: {part.modality}", "", part.contribution) for part in reasons.imaging]
    for part in clinical:
        rows.append((label(part.variable), "imputed" if part.imputed else shown(part.value), part.contribution))
    longest = max((abs(share) for _, _, share in rows), default=0.0) or 1.0
    drawn = Table("reason", "value", "log-odds", "", box=box.SIMPLE_HEAD, pad_edge=False)
    drawn.add_row("everyone (base)", "", f"{reasons.base:+.3f}", "")
    for name, value, share in rows:
        color = "red" if share > 0 else "blue"
        drawn.add_row(name, value, f"{share:+.3f}", f"[{color}]{'█' * round(BAR * abs(share) / longest)}[/{color}]")
    drawn.add_row("[bold]sum", "", f"[bold]{reasons.total:+.3f}", "")
    return drawn


def _document(path: Path) -> dict[str, Any]:
    """The clinical document of a file. Only that it is a JSON object is checked here; the service checks the rest."""
    import json

    from app.sdk.errors import MalformedJson

    try:
        document = json.loads(path.read_bytes())
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise MalformedJson('The clinical document must be one JSON object, such as {"age": 74}')
    return document
