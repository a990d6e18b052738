"""Commands of training: ``rlvo synthesize``, ``train``, ``train-segmenter``, ``evaluate`` and ``import``.

Each command imports its heavy modules when it runs. A cohort's faults are printed one per line, with exit status 2.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from app.cli.failures import describe
from app.cli.option_groups import expand_option_groups
from app.phantoms.biology import Preset
from app.training.options import PublishedModel, Target, Validation
from app.training.progress import RichProgress

commands = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True)


LARGEST_SEED = 2**32 - 1
REPORT_HELP = "Folder of the report; default: a new one in `reports` beside the table"
TABLE_HELP = "Table (.csv, .xlsx, .parquet), or folder with cohort.csv, or ISLES'24"


@dataclass(frozen=True)
class ReadingOptions:
    """How the table of a cohort is read."""

    drop_unknown: Annotated[bool, typer.Option(help="Leave out rows of unknown outcome")] = False
    target: Annotated[
        Target | None, typer.Option(help="Outcome to predict; rlvo if the table has any of its components")
    ] = None
    columns: Annotated[Path | None, typer.Option(help="columns.toml; default: the one next to the table")] = None
    date_format: Annotated[str, typer.Option(help="Form of the dates, as dd/mm/yyyy, or excel; default: ISO")] = ""


@dataclass(frozen=True)
class ConsentOptions:
    """Objections to the data that the user accepts."""

    accept_flags: Annotated[
        bool, typer.Option("--accept-flags", help="Continue with doubtful images, or images of several patients")
    ] = False
    i_know: Annotated[
        bool, typer.Option("--i-know", help="Continue with patients that a given version was trained on")
    ] = False
    accept: Annotated[
        str, typer.Option(help="Codes of suspicious values to continue with, separated by commas, or all")
    ] = ""


class Workers(StrEnum):
    """Processes that prepare the studies."""

    LOCAL = "local"
    QUEUE = "queue"


class Layout(StrEnum):
    """Published data sets that can be imported."""

    ISLES24 = "isles24"


def _device(name: str) -> str:
    """Check that the device exists."""
    if name not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter("give auto, cpu or cuda")
    if name == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise typer.BadParameter("torch finds no CUDA device on this machine: give auto or cpu")
    return name


@dataclass(frozen=True)
class FitOptions:
    """How the networks are fitted."""

    trunk: Annotated[
        Path | None, typer.Option(help="Version whose image trunk is reused without training: fast, suits few patients")
    ] = None
    phantoms: Annotated[int, typer.Option(min=0, help="Pretrain a new trunk on this many phantoms")] = 0
    epochs: Annotated[int, typer.Option(min=1, help="Maximum of epochs per fold")] = 12
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="Same seed and data give the same weights on one kind of CPU")
    ] = 0
    device: Annotated[str, typer.Option(help="auto, cpu or cuda", callback=_device)] = "auto"


@commands.command()
def synthesize(
    out: Annotated[Path, typer.Argument(help="New folder of the cohort")],
    patients: Annotated[int, typer.Option(min=1, help="Number of patients")] = 599,
    preset: Annotated[
        Preset, typer.Option(help="Dependence of the outcome on the images and the record")
    ] = Preset.PAPER,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="The same seed gives the same patients")] = 7,
    full_size: Annotated[bool, typer.Option(help="Write full-size NIfTI volumes in oblique patient space")] = False,
    variants: Annotated[
        int, typer.Option(min=1, max=1024, help="Number of anatomies among the patients; 1: all have the template's")
    ] = 1,
    scanners: Annotated[
        bool, typer.Option(help="Vary scanner, protocol, coverage and missing series between the patients")
    ] = False,
) -> None:
    """Make a cohort of synthetic patients, and a table of their true values."""
    from app.phantoms.scene import Appearance
    from app.training import synthesize as generator

    appearance = Appearance(variants, scanners)
    with _faults(), _bar("patients", patients) as advance:
        generator.synthesize(out, patients, seed, preset, appearance=appearance, full_size=full_size, advance=advance)


@commands.command()
@expand_option_groups
def train(
    cohort: Annotated[Path, typer.Argument(help=TABLE_HELP)],
    out: Annotated[
        Path | None, typer.Option(help="New version, model_store/NAME/VERSION; without it, only the table is printed")
    ] = None,
    model: Annotated[
        PublishedModel, typer.Option(help="Model of the table that becomes the version")
    ] = PublishedModel.DAFT,
    validation: Annotated[
        Validation,
        typer.Option(
            help="Test patients. paper: a fifth; dates: the latest fifth; sites: each site; nested: repeated CV"
        ),
    ] = Validation.PAPER,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats of `nested`")] = 5,
    fitting: FitOptions = FitOptions(),
    jobs: Annotated[int, typer.Option(min=0, help="Folds, or studies, at the same time; 0: one per core")] = 0,
    workers: Annotated[
        Workers,
        typer.Option(help="Prepare the studies in local processes, or by the service's workers through its queue"),
    ] = Workers.LOCAL,
    report: Annotated[Path | None, typer.Option(help=REPORT_HELP)] = None,
    variables: Annotated[
        str, typer.Option(help="Clinical variables, as age,sex,perfusion.core_ml; default: 19 of the record")
    ] = "",
    quick: Annotated[bool, typer.Option(help="Only the published model and the baselines")] = False,
    reading: ReadingOptions = ReadingOptions(),
    publish_anyway: Annotated[
        bool, typer.Option(help="Write the version even with too few events or a ranking worse than chance")
    ] = False,
    consent: ConsentOptions = ConsentOptions(),
) -> None:
    """Train by the paper's protocol, print the results table, and write a version that the service can load.

    The same command resumes a killed run. Under torchrun, each fold uses all processes.
    """
    from app.training import pipeline
    from app.training import variables as clinical_variables
    from app.training.options import TrainConfig

    fill = None
    if workers is Workers.QUEUE:
        from app.cli.queue_preprocessing import by_queue

        fill = by_queue
    with _faults():
        config = TrainConfig(
            cohort=cohort,
            out=out,
            quick=quick,
            model=model,
            validation=validation,
            repeats=repeats,
            jobs=jobs or _cores(),
            report=report,
            variables=clinical_variables.parse(variables),
            publish_anyway=publish_anyway,
            **asdict(fitting),
            **asdict(reading),
            **asdict(consent),
        )
        summary = pipeline.run(config, RichProgress(console), fill)
    if summary:  # under torchrun, only the first process has one
        typer.echo(summary)


@commands.command("train-segmenter")
def train_segmenter(
    out: Annotated[Path, typer.Argument(help="New version: model_store/segmenters/NAME/VERSION")],
    steps: Annotated[int, typer.Option(min=1, help="Training steps, one batch of patches each")] = 400,
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="Same seed gives the same weights on one machine's CPU")
    ] = 0,
) -> None:
    """Train the small U-Net that marks vessels, on phantoms. A version's manifest names it in ``segmenter``."""
    from app.training import segmenter

    with _faults(), _bar("steps", steps) as advance:
        segmenter.train(out, steps=steps, seed=seed, name=out.parent.name, version=out.name, advance=advance)


@commands.command()
@expand_option_groups
def evaluate(
    versions: Annotated[list[Path], typer.Argument(help="Folders of versions: model_store/NAME/VERSION")],
    cohort: Annotated[Path, typer.Argument(help=TABLE_HELP)],
    device: Annotated[str, typer.Option(help="auto, cpu or cuda", callback=_device)] = "auto",
    since: Annotated[str, typer.Option(help="Only patients of this date (ISO) or later")] = "",
    site: Annotated[str, typer.Option(help="Only patients of this site")] = "",
    report: Annotated[Path | None, typer.Option(help=REPORT_HELP)] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Studies prepared at the same time; 0: one per core")] = 0,
    reading: ReadingOptions = ReadingOptions(),
    consent: ConsentOptions = ConsentOptions(),
) -> None:
    """Score versions on a cohort (discrimination, calibration, decisions, subgroups) and compare them in pairs."""
    from app.training.score import EvalConfig, score

    with _faults():
        config = EvalConfig(
            versions=versions,
            cohort=cohort,
            device=device,
            since=since,
            site=site,
            report=report,
            jobs=jobs or _cores(),
            **asdict(reading),
            **asdict(consent),
        )
        text = score(config, RichProgress(console))
    typer.echo(text)


@commands.command(name="import")
def import_(
    layout: Annotated[Layout, typer.Argument(help="Layout of the folder")],
    folder: Annotated[Path, typer.Argument(help="Folder of the unpacked data set")],
    table: Annotated[Path, typer.Argument(help="New table (.csv), which `rlvo train` reads")],
    columns: Annotated[
        Path | None, typer.Option(help="columns.toml with unknown headers; default: the one in the folder")
    ] = None,
) -> None:
    """Write the cohort table of a published data set; its volumes are not copied."""
    from app.training import isles24
    from app.training.columns import find_rules

    del layout  # isles24 is the only layout
    with _faults():
        typer.echo(isles24.write(folder, table, find_rules(columns, folder)))


@contextmanager
def _faults() -> Iterator[None]:
    """Print the faults of a cohort, a version or a file, and exit with status 2, or 1 if the input is not the cause."""
    from app.sdk.errors import RlvoError
    from app.training.errors import CohortFault

    try:
        yield
    except CohortFault as error:
        lines, status = list(error.faults), 2
    except RlvoError as error:
        lines, status = [error.detail], 2 if 400 <= error.status < 500 else 1
    except OSError as error:
        lines, status = describe(error)
    else:
        return
    for line in lines:
        console.print(line, style="red", highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(status)


@contextmanager
def _bar(name: str, total: int) -> Iterator[Any]:
    with RichProgress(console).stage(name, total) as advance:
        yield lambda: advance(1)


def _cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
