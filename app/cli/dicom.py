"""`rlvo dicom`: DICOM results."""

from __future__ import annotations

import typer

from app.cli import dicom_results

dicom = typer.Typer(help="DICOM: results as objects of the same study.", no_args_is_help=True)
dicom_results.add_to(dicom)


@dicom.callback()
def _group() -> None:
    """Keep `export` a subcommand while it is the only one."""
