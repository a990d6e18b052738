"""`rlvo dicom export`: the result objects of a prediction as a ZIP archive."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from app.cli.common import naming_folders, open_database, settings

__all__ = ["add_to"]


def add_to(group: typer.Typer) -> None:
    """Add the commands of this module to `rlvo dicom`."""
    group.command("export")(export)


def export(
    prediction_id: Annotated[str, typer.Argument(help="Id of a prediction that succeeded")],
    to: Annotated[Path | None, typer.Option(help="ZIP archive to write; default: ID-dicom.zip here")] = None,
) -> None:
    """Write the result of a prediction as DICOM objects, which name the patient.

    rlvo dicom export 0192f3a4-7c1e-7b7e-9d0a-3f5a1c2b4d6e --to result.zip

    The study must have been sent as DICOM while RLVO_DICOM_RETURN_KEY was set. The command needs the same key.
    """
    from app.dicom.objects.stored import ResultObjects
    from app.storage.factory import storage_of

    config, database = settings(), open_database(must_exist=True)
    objects = ResultObjects.of(config, database, storage_of(config))
    target = to or Path(f"{prediction_id}-dicom.zip")
    with naming_folders(config), objects.archive(prediction_id, None) as archive:
        shutil.copyfile(archive, target)
    target.chmod(0o600)
    typer.echo(str(target))
