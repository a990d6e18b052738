"""`rlvo recalibrate`: a version with a calibration of its own site, as a new version."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from app.cli.cohort_options import CONSENT, READING, ConsentOptions, ReadingOptions, cohort_faults, console, cores


def recalibrate(
    parent: Annotated[str, typer.Argument(help="Version in the model store: NAME, NAME@1.0.0 or NAME@ALIAS")],
    cohort: Annotated[Path, typer.Option(help="Table of a cohort of the site, as for `rlvo train`")],
    name: Annotated[str, typer.Option(help="Name of the new version")],
    version: Annotated[str, typer.Option(help="Number of the new version, such as 1.0.1")],
    key: Annotated[Path | None, typer.Option(help="Private key that signs the new version")] = None,
    site: Annotated[str, typer.Option(help="Only patients of this site")] = "",
    since: Annotated[str, typer.Option(help="Only patients of this date (ISO) or later")] = "",
    jobs: Annotated[int, typer.Option(min=0, help="Studies prepared at the same time; 0: one per core")] = 0,
    reading: ReadingOptions = READING,
    consent: ConsentOptions = CONSENT,
) -> None:
    """Recalibrate a version on a cohort of your site, and write the result as a new version of the model store.

    rlvo recalibrate rlvo@champion --cohort cohort.csv --name mine --version 1.0.1

    A closed test chooses among no update, intercept, and intercept and slope. Promote the new version with
    `rlvo models promote`, and go back with `rlvo models rollback`.
    """
    from app.cli.common import check_new_version, naming_folders, open_model_store, settings, sign_new_version
    from app.training.progress import RichProgress
    from app.training.recalibrate_version import recalibrate_version
    from app.training.score import EvalConfig

    check_new_version(name, version)
    config = settings()
    store = open_model_store(config)
    with naming_folders(config):
        entry = store.resolve(parent)
    with cohort_faults():
        store.verify(entry)
        options = EvalConfig(
            versions=[entry.folder],
            cohort=cohort,
            since=since,
            site=site,
            jobs=jobs or cores(),
            **asdict(reading),
            **asdict(consent),
        )
        result = recalibrate_version(options, entry, store.folder / name / version, RichProgress(console))
    typer.echo(result.text)
    if result.manifest is None:
        return
    sign_new_version(store.folder / name / version, key)
