"""Commands of training: ``rlvo synthesize``, ``train``, ``train-segmenter``, ``evaluate`` and ``import``.

Each command imports its heavy modules when it runs. A cohort's faults are printed one per line, with exit status 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.cohort_options import (
    CONSENT,
    READING,
    TABLE_HELP,
    ConsentOptions,
    ReadingOptions,
    cohort_faults,
    console,
    cores,
    existing_device,
)
from app.cli.option_groups import expand_option_groups
from app.cli.recalibrate import recalibrate
from app.cli.validate import validate
from app.phantoms.biology import Preset
from app.training.options import PublishedModel, Validation
from app.training.progress import RichProgress

commands = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


LARGEST_SEED = 2**32 - 1
REPORT_HELP = "Folder of the report; default: a new one in `reports` beside the table"


class Workers(StrEnum):
    """Processes that prepare the studies."""

    LOCAL = "local"
    QUEUE = "queue"


class Layout(StrEnum):
    """Published data sets that can be imported."""

    ISLES24 = "isles24"


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
    device: Annotated[str, typer.Option(help="auto, cpu or cuda", callback=existing_device)] = "auto"


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
    jobs: Annotated[int, typer.Option(min=0, help="Patients drawn at the same time; 0: one per core")] = 0,
) -> None:
    """Make a cohort of synthetic patients, and a table of their true values.

    rlvo synthesize --patients 599 --seed 7 out
    rlvo synthesize --patients 1 --full-size out
    """
    from app.phantoms.scene import Appearance
    from app.training import synthesize as generator

    appearance = Appearance(variants, scanners)
    with cohort_faults(), _bar("patients", patients) as advance:
        generator.synthesize(
            out,
            patients,
            seed,
            preset,
            appearance=appearance,
            full_size=full_size,
            jobs=jobs or cores(),
            advance=advance,
        )


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
        str,
        typer.Option(
            help="Clinical variables, as age,sex,perfusion.core_ml; default: 19 of the record and the own ones"
        ),
    ] = "",
    quick: Annotated[bool, typer.Option(help="Only the published model and the baselines")] = False,
    compare: Annotated[
        list[PublishedModel] | None, typer.Option(help="Network to compare with, can be repeated; default: all")
    ] = None,
    reading: ReadingOptions = READING,
    publish_anyway: Annotated[
        bool, typer.Option(help="Write the version even with too few events or a ranking worse than chance")
    ] = False,
    consent: ConsentOptions = CONSENT,
) -> None:
    """Train by the paper's protocol, print the results table, and write a version that the service can load.

    rlvo train cohort.csv
    rlvo train cohort.csv --out model_store/mine/1.0.0
    rlvo train cohort.csv --out model_store/mine/1.0.0 --trunk model_store/rlvo-synthetic/2.3.0

    The same command resumes a killed run. Under torchrun, each fold uses all processes.
    """
    from app.training import pipeline
    from app.training import variables as clinical_variables
    from app.training.options import TrainConfig
    from app.training.own_variables import find as find_own

    fill = None
    if workers is Workers.QUEUE:
        from app.cli.queue_preprocessing import by_queue

        fill = by_queue
    with cohort_faults():
        own = find_own(reading.own_variables, cohort if cohort.is_dir() else cohort.parent)
        config = TrainConfig(
            cohort=cohort,
            out=out,
            quick=quick,
            compare=tuple(compare or ()),
            model=model,
            validation=validation,
            repeats=repeats,
            jobs=jobs or cores(),
            report=report,
            variables=clinical_variables.parse(variables, own),
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
    """Train the small U-Net that marks vessels, on phantoms.

    rlvo train-segmenter model_store/segmenters/vessels-unet/2.0.0

    The manifest of a model version names it as `segmenter`.
    """
    from app.training import segmenter

    with cohort_faults(), _bar("steps", steps) as advance:
        segmenter.train(out, steps=steps, seed=seed, name=out.parent.name, version=out.name, advance=advance)


@commands.command()
@expand_option_groups
def evaluate(
    versions: Annotated[list[Path], typer.Argument(help="Folders of versions: model_store/NAME/VERSION")],
    cohort: Annotated[Path, typer.Argument(help=TABLE_HELP)],
    device: Annotated[str, typer.Option(help="auto, cpu or cuda", callback=existing_device)] = "auto",
    since: Annotated[str, typer.Option(help="Only patients of this date (ISO) or later")] = "",
    site: Annotated[str, typer.Option(help="Only patients of this site")] = "",
    report: Annotated[Path | None, typer.Option(help=REPORT_HELP)] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Studies prepared at the same time; 0: one per core")] = 0,
    reading: ReadingOptions = READING,
    consent: ConsentOptions = CONSENT,
) -> None:
    """Score versions on a cohort (discrimination, calibration, decisions, subgroups) and compare them in pairs.

    rlvo evaluate model_store/mine/1.0.0 cohort.csv
    rlvo evaluate model_store/mine/1.0.0 model_store/mine/1.1.0 cohort.csv --site north
    """
    from app.training.score import EvalConfig, score

    with cohort_faults():
        config = EvalConfig(
            versions=versions,
            cohort=cohort,
            device=device,
            since=since,
            site=site,
            report=report,
            jobs=jobs or cores(),
            **asdict(reading),
            **asdict(consent),
        )
        text = score(config, RichProgress(console))
    typer.echo(text)


commands.command()(expand_option_groups(validate))
commands.command()(expand_option_groups(recalibrate))


@commands.command(name="import")
def import_(
    layout: Annotated[Layout, typer.Argument(help="Layout of the folder")],
    folder: Annotated[Path, typer.Argument(help="Folder of the unpacked data set")],
    table: Annotated[Path, typer.Argument(help="New table (.csv), which `rlvo train` reads")],
    columns: Annotated[
        Path | None, typer.Option(help="columns.toml with unknown headers; default: the one in the folder")
    ] = None,
) -> None:
    """Write the cohort table of a published data set; its volumes are not copied.

    rlvo import isles24 isles24-folder cohort.csv
    """
    from app.training import isles24
    from app.training.columns import find_rules

    del layout  # isles24 is the only layout
    with cohort_faults():
        typer.echo(isles24.write(folder, table, find_rules(columns, folder)))


@contextmanager
def _bar(name: str, total: int) -> Iterator[Any]:
    with RichProgress(console).stage(name, total) as advance:
        yield lambda: advance(1)
