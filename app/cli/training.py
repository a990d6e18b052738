"""``rlvo synthesize``, ``train``, ``train-segmenter``, ``evaluate`` and ``import``: the training room's doors.

Heavy imports wait until a command runs. Faults of a cohort are listed one a line, and the exit status is 2.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from app.phantoms.biology import Preset
from app.training.options import PublishedModel, Validation
from app.training.progress import RichProgress

commands = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True)


class Workers(StrEnum):
    """Who prepares studies."""

    LOCAL = "local"
    QUEUE = "queue"


class Layout(StrEnum):
    """Published data sets that can be imported."""

    ISLES24 = "isles24"


def _device(name: str) -> str:
    """A device that is there."""
    if name not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter("auto, cpu or cuda")
    if name == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise typer.BadParameter("torch finds no CUDA device on this machine")
    return name


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
    context: typer.Context,
    cohort: Annotated[Path, typer.Argument(help="Table (.csv, .parquet), or folder with cohort.csv, or ISLES'24")],
    out: Annotated[
        Path | None, typer.Option(help="New version: model_store/NAME/VERSION; without it, only the table is printed")
    ] = None,
    model: Annotated[
        PublishedModel, typer.Option(help="Which model of the table becomes the version")
    ] = PublishedModel.DAFT,
    validation: Annotated[
        Validation,
        typer.Option(help="paper: 80/20 and folds; dates: latest fifth; sites: each left out; nested: repeated CV"),
    ] = Validation.PAPER,
    repeats: Annotated[int, typer.Option(min=1, help="Of `nested`")] = 5,
    trunk: Annotated[
        Path | None, typer.Option(help="Version whose image trunk is kept as it is: quick, and good for few patients")
    ] = None,
    phantoms: Annotated[int, typer.Option(min=0, help="Teach a new trunk on this many phantoms first")] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Most epochs of a fold")] = 12,
    seed: Annotated[int, typer.Option(help="Same seed, same data, same weights (on one kind of CPU)")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda", callback=_device)] = "auto",
    jobs: Annotated[int, typer.Option(min=0, help="Folds and studies at once; 0: as many as cores")] = 0,
    workers: Annotated[
        Workers, typer.Option(help="Who prepares the studies: own processes, or the service's workers by its queue")
    ] = Workers.LOCAL,
    report: Annotated[Path | None, typer.Option(help="Folder of the report and its figures")] = None,
    quick: Annotated[bool, typer.Option(help="Only the published model and the baselines")] = False,
    drop_unknown: Annotated[bool, typer.Option(help="Leave out rows of unknown outcome")] = False,
) -> None:
    """Train by the paper's protocol, print its table, and write a version that the service can load.

    A killed run goes on where it stopped when it is started again with the same arguments. Under torchrun, each fold is
    spread over its processes.
    """
    from app.training.pipeline import TrainConfig
    from app.training.pipeline import train as launch

    fill = None
    if workers is Workers.QUEUE:
        if not callable(context.obj):
            raise typer.BadParameter("only the `rlvo` command knows the queue", param_hint="--workers")
        fill = context.obj
    with _faults():
        order = TrainConfig(
            cohort=cohort,
            out=out,
            trunk=trunk,
            phantoms=phantoms,
            epochs=epochs,
            seed=seed,
            device=device,
            quick=quick,
            drop_unknown=drop_unknown,
            model=model,
            validation=validation,
            repeats=repeats,
            jobs=jobs or _cores(),
            report=report,
        )
        if told := launch(
            order, RichProgress(console), fill
        ):  # of torchrun's processes, only the first has something to say
            typer.echo(told)


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
    versions: Annotated[list[Path], typer.Argument(help="Folders of versions: model_store/NAME/VERSION")],
    cohort: Annotated[Path, typer.Argument(help="Table (.csv, .parquet), or folder with cohort.csv, or ISLES'24")],
    device: Annotated[str, typer.Option(help="auto, cpu or cuda", callback=_device)] = "auto",
    since: Annotated[str, typer.Option(help="Only patients of this date (ISO) or later")] = "",
    site: Annotated[str, typer.Option(help="Only patients of this site")] = "",
    report: Annotated[Path | None, typer.Option(help="Folder for a report with figures")] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Studies prepared at once; 0: as many as cores")] = 0,
    drop_unknown: Annotated[bool, typer.Option(help="Leave out rows of unknown outcome")] = False,
) -> None:
    """Score versions on a cohort: discrimination, calibration, decisions, subgroups; several are compared in pairs."""
    from app.training.evaluate import EvalConfig
    from app.training.evaluate import evaluate as ask

    with _faults():
        inquiry = EvalConfig(
            versions=versions,
            cohort=cohort,
            device=device,
            drop_unknown=drop_unknown,
            since=since,
            site=site,
            report=report,
            jobs=jobs or _cores(),
        )
        typer.echo(ask(inquiry, RichProgress(console)))


@commands.command(name="import")
def import_(
    layout: Annotated[Layout, typer.Argument(help="How the folder is laid out")],
    folder: Annotated[Path, typer.Argument(help="The data set, unpacked")],
    table: Annotated[Path, typer.Argument(help="New table (.csv), which `rlvo train` reads")],
) -> None:
    """Write a published data set's table; its volumes stay where they are."""
    from app.training import isles24

    del layout  # there is one so far
    with _faults():
        typer.echo(isles24.write(folder, table))


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
    with RichProgress(console).stage(what, total) as advance:
        yield lambda: advance(1)


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
