"""What several commands share: settings with readable faults, tables on the terminal, a service of one's own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

if TYPE_CHECKING:
    from app.core.config import Settings
    from app.sdk.client import Client

READY_WITHIN = 120.0  # seconds: the first start on a machine compiles and caches


def settings(**given: Any) -> Settings:
    """The settings from the environment, with ``given`` ones on top; exits with 2 and their names if any is wrong."""
    from pydantic import ValidationError

    from app.core.config import Settings

    try:
        return Settings(**given)
    except ValidationError as error:
        for fault in error.errors():
            typer.echo(f"RLVO_{str(fault['loc'][0]).upper()}: {fault['msg']}", err=True)
        raise typer.Exit(2) from None


def none_in_use(what: str, group: str) -> NoReturn:
    """Says that no ``what`` of the id given is still in use, and where all are listed; exits with 2."""
    typer.echo(f"There is no {what} of that id that is still in use; `rlvo {group} list` shows all.", err=True)
    raise typer.Exit(2)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table as wide as the terminal; where that is none, as wide as it needs to be, so that `grep` sees it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 1000
    drawn = Table(*columns, box=box.SIMPLE_HEAD, show_header=any(columns), pad_edge=False)
    for row in rows:
        drawn.add_row(*row)
    console.print(drawn)


@contextmanager
def own_service() -> Iterator[Client]:
    """A service on a free port for as long as the block runs; yields its client once it can predict.

    It keeps what it does in the data folder like any other, so a later one answers for the same predictions.
    Its log goes to ``rlvo.log`` there.
    """
    from rich.console import Console

    from app.sdk.client import Client

    folder = settings().data_dir
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "rlvo.log"
    command = [sys.executable, "-m", "app.cli.__main__", "serve", "--port", "0"]
    with (
        log.open("ab") as to_log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=to_log, start_new_session=True) as service,  # noqa: S603
    ):
        try:
            with Console(stderr=True).status("Starting the service"):
                client = Client(_address(service, log))
                _wait_until_ready(client, log)
            with client:
                yield client
        finally:
            service.terminate()


def _address(service: subprocess.Popen[bytes], log: Path) -> str:
    """Reads the line with which a service says where it listens."""
    assert service.stdout is not None
    for line in service.stdout:
        _, at, url = line.decode().strip().partition("rlvo is at ")
        if at:
            return url
    typer.echo(f"The service did not start; {log} says why.", err=True)
    raise typer.Exit(1)


def _wait_until_ready(client: Client, log: Path) -> None:
    end = time.monotonic() + READY_WITHIN
    while not (health := client.health()).ready:
        if time.monotonic() > end:
            amiss = ", ".join(f"{part}: {verdict}" for part, verdict in health.checks.items() if verdict != "ok")
            typer.echo(f"The service did not get ready ({amiss}); {log} says why.", err=True)
            raise typer.Exit(1)
        time.sleep(0.1)
