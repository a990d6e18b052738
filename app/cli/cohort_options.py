"""Options and errors of the commands that read the table of a cohort."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from app.cli.failures import describe
from app.training.options import Target

console = Console(stderr=True)
TABLE_HELP = "Table (.csv, .xlsx, .parquet), or folder with cohort.csv, or ISLES'24"


@dataclass(frozen=True)
class ReadingOptions:
    """How the table of a cohort is read."""

    drop_unknown: Annotated[bool, typer.Option(help="Leave out rows of unknown outcome")] = False
    target: Annotated[
        Target | None, typer.Option(help="Outcome to predict; rlvo if the table has any of its components")
    ] = None
    columns: Annotated[Path | None, typer.Option(help="columns.toml; default: the one next to the table")] = None
    own_variables: Annotated[
        Path | None, typer.Option(help="variables.toml, the cohort's own variables; default: the one next to the table")
    ] = None
    date_format: Annotated[str, typer.Option(help="Form of the dates, as dd/mm/yyyy, or excel; default: ISO")] = ""
    dicom: Annotated[
        Path | None,
        typer.Option(help="Folder of DICOM studies that rows name by study_instance_uid or accession_number"),
    ] = None


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


READING, CONSENT = ReadingOptions(), ConsentOptions()


def existing_device(name: str) -> str:
    """Check that the device exists."""
    if name not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter("give auto, cpu or cuda")
    if name == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise typer.BadParameter("torch finds no CUDA device on this machine: give auto or cpu")
    return name


@contextmanager
def cohort_faults() -> Iterator[None]:
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


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
