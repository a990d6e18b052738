"""`rlvo dicom`: the DICOM listener, and results as DICOM."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from typing import Annotated

import typer

from app.cli import dicom_results
from app.cli.serve import PRIVATE, wait_for_eof

dicom = typer.Typer(help="DICOM: receive studies, send results.", no_args_is_help=True)
dicom_results.add_to(dicom)

log = logging.getLogger("rlvo.dicom")

USUAL_PORT = 11112


@dicom.command("listen")
def listen(
    port: Annotated[
        int | None, typer.Option(help=f"Port to listen on, 0 for any free one (RLVO_DICOM_PORT, {USUAL_PORT}).")
    ] = None,
    until_eof: Annotated[bool, typer.Option(hidden=True, help="End when standard input closes.")] = False,
) -> None:
    """Run the DICOM listener (C-STORE, C-ECHO), without the service, until a signal stops it.

    rlvo dicom listen
    RLVO_DICOM_CALLERS='CT1@10.0.0.5' RLVO_DICOM_HOST=0.0.0.0 rlvo dicom listen --port 104

    A service with the same data folder makes predictions of what arrives. `rlvo serve` starts a listener itself when
    RLVO_DICOM_PORT is set.
    """
    from app.cli.common import check_writable, settings
    from app.core import logging as app_logging
    from app.database.session import Database, retry_until_available
    from app.dicom.callers import check_listener
    from app.dicom.reception import Reception
    from app.storage.factory import secure, storage_of

    os.umask(PRIVATE)
    config = settings()
    config = settings(dicom_port=port if port is not None else config.dicom_port or USUAL_PORT)
    app_logging.configure_logging(config.log_level, config.log_format)
    warnings.simplefilter("ignore")  # pydicom's show values
    threading.excepthook = _log_type
    try:
        check_listener(config)
        from app.dicom.listener import Listener

        check_writable(config)
        secure(config)
        database = Database(config.database)
        retry_until_available(database.upgrade)
        listener = Listener(config, Reception.of(config, database, storage_of(config)))
        at = listener.start()
    except ValueError as refusal:
        typer.echo(str(refusal), err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        reason = error.strerror or "the name is unknown"
        typer.echo(f"DICOM cannot listen on {config.dicom_host}, port {config.dicom_port}: {reason}", err=True)
        raise typer.Exit(1) from None
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if until_eof:
        threading.Thread(target=_end_at_eof, args=(stop,), daemon=True).start()
    typer.echo(f"rlvo listens for DICOM at {config.dicom_host}:{at} as {config.dicom_ae_title}")
    sys.stdout.flush()
    stop.wait()
    listener.stop()
    database.close()


def _end_at_eof(stop: threading.Event) -> None:
    wait_for_eof()
    stop.set()


def _log_type(raised: threading.ExceptHookArgs) -> None:
    """Log the type of an error that ends a thread; its message may show values."""
    log.error("a thread ended: %s", raised.exc_type.__name__)
