"""``rlvo synthesize``, ``rlvo train``, ``rlvo train-segmenter``, ``rlvo evaluate``: the training room's doors.

Heavy imports wait until a command runs. Faults of a cohort are listed one a line, and the exit status is 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.phantoms.biology import Preset

commands = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True)


@commands.command()
def synthesize(
    out: Annotated[Path, typer.Argument(help="New folder of the cohort")],
    patients: Annotated[int, typer.Option(min=1, help="How many")] = 599,
    preset: Annotated[Preset, typer.Option(help="What the outcome depends on")] = Preset.PAPER,
    seed: Annotated[int, typer.Option(help="The same seed gives the same patients")] = 7,
    full_size: Annotated[bool, typer.Option(help="Write full-size NIfTI volumes in oblique patient spaces")] = False,
) -> None:
    """Make a cohort of synthetic patients, with the truth beside it."""
    from app.training.synthesize import synthesize as make

    with _faults(), _bar("patients", patients) as advance:
        make(out, patients, seed, preset, full_size=full_size, advance=advance)


@commands.command()
def train(
    cohort: Annotated[Path, typer.Argument(help="Table (.csv, .parquet), or folder with cohort.csv")],
    out: Annotated[
        Path | None, typer.Option(help="New version: model_store/NAME/VERSION; without it, only the table is printed")
    ] = None,
    trunk: Annotated[
        Path | None, typer.Option(help="Version whose image trunk is kept as it is: quick, and good for few patients")
    ] = None,
    phantoms: Annotated[int, typer.Option(min=0, help="Teach a new trunk on this many phantoms first")] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Most epochs of a fold")] = 12,
    seed: Annotated[int, typer.Option(help="Same seed, same data, same weights (on a CPU)")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    quick: Annotated[bool, typer.Option(help="Only DAFT and the baselines, not the whole table")] = False,
    drop_unknown: Annotated[bool, typer.Option(help="Leave out rows of unknown outcome")] = False,
) -> None:
    """Train by the paper's protocol, print its table, and write a version that the service can load.

    A killed run goes on where it stopped when it is started again with the same arguments.
    """
    from app.training.launch import Order
    from app.training.launch import train as launch

    with _faults():
        order = Order(
            cohort=cohort, out=out, trunk=trunk, phantoms=phantoms, epochs=epochs, seed=seed, device=device,
            quick=quick, drop_unknown=drop_unknown,
        )  # fmt: skip
        with console.status("starting") as status:
            typer.echo(launch(order, lambda words: status.update(words)))


@commands.command("train-segmenter")
def train_segmenter(
    out: Annotated[Path, typer.Argument(help="New version: model_store/segmenters/NAME/VERSION")],
    steps: Annotated[int, typer.Option(min=1, help="Batches of patches")] = 400,
    seed: Annotated[int, typer.Option(help="Same seed, same weights (on one machine's CPU)")] = 0,
) -> None:
    """Teach the small U-Net to mark vessels, on phantoms. A version names it in its manifest's ``segmenter``."""
    from app.training.segmenter import train as teach

    with _bar("steps", steps) as advance:
        teach(out, steps=steps, seed=seed, name=out.parent.name, version=out.name, advance=advance)


@commands.command()
def evaluate(
    version: Annotated[Path, typer.Argument(help="Folder of the version: model_store/NAME/VERSION")],
    cohort: Annotated[Path, typer.Argument(help="Table (.csv, .parquet), or folder with cohort.csv")],
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    drop_unknown: Annotated[bool, typer.Option(help="Leave out rows of unknown outcome")] = False,
) -> None:
    """Score a version on a cohort: discrimination, calibration, decisions, subgroups."""
    from app.training.evaluate import report

    with _faults():
        typer.echo(report(version, cohort, device, drop_unknown=drop_unknown))


@contextmanager
def _faults() -> Iterator[None]:
    """Lists a cohort's faults and leaves with status 2."""
    from app.training.errors import CohortFault

    try:
        yield
    except CohortFault as error:
        for fault in error.faults:
            console.print(fault, style="red", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None


@contextmanager
def _bar(what: str, total: int) -> Iterator[Any]:
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)
