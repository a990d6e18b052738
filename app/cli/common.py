"""Helpers of several commands: settings, tables on the terminal, and the service that a command talks to."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from app.core.config import Settings
    from app.database.session import Database
    from app.registry.model_store import ModelStore
    from app.sdk.client import Client
    from app.worker.erasure import Eraser

READY_WITHIN = 240.0  # seconds; the first start on a machine compiles code

Since = Annotated[
    datetime | None,
    typer.Option(formats=["%Y-%m-%d"], metavar="YYYY-MM-DD", help="Only predictions of this day (UTC) or later"),
]
Until = Annotated[
    datetime | None,
    typer.Option(formats=["%Y-%m-%d"], metavar="YYYY-MM-DD", help="Only predictions before this day (UTC)"),
]


@dataclass
class ServiceOptions:
    """The service that a command talks to."""

    url: Annotated[str | None, typer.Option(envvar="RLVO_URL", help="Running service; default: a temporary one")] = None
    api_key: Annotated[str | None, typer.Option(envvar="RLVO_API_KEY", help="API key, if the service needs one")] = None

    def client(self) -> AbstractContextManager[Client]:
        """Client of the service at ``url``, or of a service that runs as long as the block.

        Exits with status 1 if nothing answers at ``url``, before anything is sent.
        """
        from app.sdk.client import Client

        if not self.url:
            return temporary_service()
        _check_connection(self.url)
        return Client(self.url, api_key=self.api_key)


def settings(**given: Any) -> Settings:
    """Read the settings from the environment; ``given`` ones override it. A wrong setting exits with status 2."""
    from pydantic import ValidationError

    from app.core.config import Settings

    try:
        return Settings(**given)
    except ValidationError as error:
        for fault in error.errors(include_input=False, include_context=False):
            name, message = f"RLVO_{str(fault['loc'][0]).upper()}", fault["msg"].removeprefix("Value error, ")
            typer.echo(message if message.startswith(name) else f"{name}: {message}", err=True)
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


def open_database(*, must_exist: bool = False) -> Database:
    """Open the database that the settings name, migrated to the schema of this release.

    With ``must_exist``, a SQLite file that does not exist is not created; the command exits with status 2.
    """
    from app.database.session import Database
    from app.storage.factory import secure

    config = settings()
    if must_exist and config.sqlite_file is not None and not config.sqlite_file.exists():
        expected = "Set RLVO_DATA_DIR or RLVO_DATABASE_URL as for the service, or work in the folder where it runs."
        typer.echo(f"There is no database {config.sqlite_file}. {expected}", err=True)
        raise typer.Exit(2)
    secure(config)
    database = Database(config.database)
    database.upgrade()
    return database


def remark_unknown_tenant(database: Database, config: Settings, tenant: str) -> None:
    """Say on standard error that nothing has this tenant yet; it may be misspelt, and then nothing would ever be sent.

    Identity providers name tenants that the service does not know, so with one nothing is said.
    """
    from app.database import api_keys
    from app.dicom.callers import LOCAL_TENANT, callers_of

    with database.reading() as session:
        known = {LOCAL_TENANT, *(key.tenant for key in api_keys.listed(session) if not key.revoked)}
    with suppress(ValueError):  # `rlvo serve` names a wrong setting
        known |= {caller.tenant for caller in callers_of(config.dicom_callers)}
    if tenant not in known and not config.oidc_issuer:
        typer.echo(f"No key has the tenant {tenant} yet. `rlvo keys list` shows the tenants.", err=True)


def open_model_store(config: Settings) -> ModelStore:
    """Open the model store that the settings name; exit with status 2 if there is no such folder."""
    from app.registry.model_store import ModelStore

    if not config.model_store.is_dir():
        expected = "Set RLVO_MODEL_STORE to the folder that the service uses."
        typer.echo(f"There is no model store {config.model_store.absolute()}. {expected}", err=True)
        raise typer.Exit(2)
    return ModelStore(config.model_store, config.trusted)


@contextmanager
def naming_folders(config: Settings) -> Iterator[None]:
    """Add the model store or the database to the error if a version or a prediction is not found there."""
    from app.sdk.errors import ModelNotFound, ModelNotReady, PredictionNotFound

    try:
        yield
    except (ModelNotFound, ModelNotReady) as error:
        error.add_note(f"model store {config.model_store.absolute()}, set by RLVO_MODEL_STORE")
        raise
    except PredictionNotFound as error:
        database = config.sqlite_file or "of RLVO_DATABASE_URL"
        error.add_note(f"database {database}, set by RLVO_DATA_DIR or RLVO_DATABASE_URL")
        raise


def check_new_version(name: str, version: str) -> None:
    """Refuse a --name or a --version that a new version of the model store cannot have."""
    from app.registry.manifest import NAME_PATTERN, VERSION_PATTERN

    if not re.fullmatch(NAME_PATTERN, name):
        raise typer.BadParameter("give small letters, digits and hyphens", param_hint="--name")
    if not re.fullmatch(VERSION_PATTERN, version):
        raise typer.BadParameter("give three numbers, such as 1.0.1", param_hint="--version")


def sign_new_version(folder: Path, key: Path | None) -> None:
    """Sign the new version in ``folder`` if there is a key, and print how the version is promoted."""
    if key is not None:
        from app.registry.signatures import sign

        typer.echo(f"Signed; its public key is {sign(folder, key)}")
    reference = f"{folder.parent.name}@{folder.name}"
    typer.echo(f"Wrote {reference}. `rlvo models promote {reference}` makes it answer.")


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


def clinical_document(path: Path) -> dict[str, Any]:
    """Read a clinical document and check that it is a JSON object; the service checks its members."""
    from app.sdk.errors import MalformedJson

    try:
        document = json.loads(path.read_bytes())
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise MalformedJson('The clinical document must be one JSON object, such as {"age": 74}')
    return document


def day(when: datetime | None) -> str:
    """Write the date of a time for a table; empty for None."""
    return f"{when:%Y-%m-%d}" if when else ""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table as wide as the terminal. Without a terminal, no line is wrapped, so that `grep` finds it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = 1000
    grid = Table(*columns, box=box.SIMPLE_HEAD, show_header=any(columns), pad_edge=False)
    for row in rows:
        grid.add_row(*map(Text, row))  # a plain str is read as markup, so `[dicom]` would not be shown
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
    with naming_folders(config):
        open_model_store(config).resolve(config.default_model)  # without it, the service would never be ready
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


def _check_connection(url: str) -> None:
    """Exit with status 1 if nothing accepts a connection at ``url``; any answer is left to the client."""
    import httpx

    try:
        httpx.get(f"{url.rstrip('/')}/livez", timeout=10)
    except (httpx.UnsupportedProtocol, httpx.InvalidURL):
        typer.echo("Give --url (RLVO_URL) as http://HOST:PORT or https://HOST.", err=True)
        raise typer.Exit(1) from None
    except (httpx.ConnectError, httpx.ConnectTimeout):
        expected = "Start it with `rlvo serve`, or correct --url (RLVO_URL)."
        typer.echo(f"No service answers at {url}. {expected}", err=True)
        raise typer.Exit(1) from None
    except httpx.TransportError:
        return


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
