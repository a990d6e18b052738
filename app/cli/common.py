"""Helpers of several commands: settings, tables on the terminal, and the service that a command talks to."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from app.core.config import Settings
    from app.database.session import Database
    from app.sdk.client import Client
    from app.worker.erasure import Eraser

READY_WITHIN = 120.0  # seconds; the first start on a machine compiles code


@dataclass
class ServiceOptions:
    """The service that a command talks to."""

    url: Annotated[str | None, typer.Option(envvar="RLVO_URL", help="Running service; default: a temporary one")] = None
    api_key: Annotated[str | None, typer.Option(envvar="RLVO_API_KEY", help="API key, if the service needs one")] = None

    def client(self) -> AbstractContextManager[Client]:
        """Client of the service at ``url``, or of a service that runs as long as the block."""
        from app.sdk.client import Client

        return Client(self.url, api_key=self.api_key) if self.url else temporary_service()


def settings(**given: Any) -> Settings:
    """Read the settings from the environment; ``given`` ones override it. A wrong setting exits with status 2."""
    from pydantic import ValidationError

    from app.core.config import Settings

    try:
        return Settings(**given)
    except ValidationError as error:
        for fault in error.errors():
            typer.echo(f"RLVO_{str(fault['loc'][0]).upper()}: {fault['msg']}", err=True)
        raise typer.Exit(2) from None


def check_writable(config: Settings) -> None:
    """Exit with status 2 if the data folder cannot be created or written; a full disk is accepted."""
    from app.core.environment import disk_is_full
    from app.core.filesystem import private_folder

    try:
        private_folder(config.data_dir)
        with tempfile.TemporaryFile(dir=config.data_dir):
            pass
    except OSError as error:
        if disk_is_full(error):  # an erasure must be able to free space
            return
        reason = error.strerror or type(error).__name__
        typer.echo(f"The data folder (RLVO_DATA_DIR) cannot be written: {reason}. Choose another folder.", err=True)
        raise typer.Exit(2) from None


def open_database() -> Database:
    """Open the database that the settings name, migrated to the schema of this release."""
    from app.database.session import Database
    from app.storage.factory import secure

    config = settings()
    secure(config)
    database = Database(config.database)
    database.upgrade()
    return database


def open_eraser() -> Eraser:
    """Open the database, the storage and the ledger of erasures that the settings name."""
    from app.storage.factory import storage_of
    from app.worker.erasure import Eraser

    config = settings()
    return Eraser.of(config, open_database(), storage_of(config))


def exit_unknown_id(what: str, group: str) -> NoReturn:
    """Print that no active ``what`` has the given id, and exit with status 2."""
    typer.echo(f"No active {what} has this id. `rlvo {group} list` shows all ids.", err=True)
    raise typer.Exit(2)


def day(when: datetime | None) -> str:
    """Write the date of a time for a table; empty for None."""
    return f"{when:%Y-%m-%d}" if when else ""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table as wide as the terminal. Without a terminal, no line is wrapped, so that `grep` finds it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 1000
    grid = Table(*columns, box=box.SIMPLE_HEAD, show_header=any(columns), pad_edge=False)
    for row in rows:
        grid.add_row(*row)
    console.print(grid)


@contextmanager
def temporary_service() -> Iterator[Client]:
    """Run a service on a free port during the block; yield its client once the service can predict.

    The predictions stay in the data folder, where a later service finds them. The log is ``rlvo.log`` there.
    """
    from rich.console import Console

    from app.sdk.client import Client

    config = settings()
    check_writable(config)
    folder = config.data_dir
    log = folder / "rlvo.log"
    command = [sys.executable, "-m", "app.cli", "serve", "--port", "0"]
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
    """Read the line in which the service prints its address."""
    assert service.stdout is not None
    for line in service.stdout:
        _, at, url = line.decode().strip().partition("rlvo is at ")
        if at:
            return url
    typer.echo(f"The service did not start. Its log is {log}.", err=True)
    raise typer.Exit(1)


def _wait_until_ready(client: Client, log: Path) -> None:
    end = time.monotonic() + READY_WITHIN
    while not (health := client.health()).ready:
        if time.monotonic() > end:
            failed = ", ".join(f"{part}: {verdict}" for part, verdict in health.checks.items() if verdict != "ok")
            typer.echo(f"The service is not ready after {READY_WITHIN:.0f} s ({failed}). Its log is {log}.", err=True)
            raise typer.Exit(1)
        time.sleep(0.1)
