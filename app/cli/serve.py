"""`rlvo serve` and `rlvo worker`: the processes of the service.

Notable choices:
- `serve` is the API plus one worker as a child process, so that one command is a whole service and the API still
  never loads torch. `serve --no-worker` with any number of `worker` is the same code spread over machines.
- The worker is restarted whenever it ends, with a growing pause. Nothing is lost by that: its jobs are durable.
- The worker holds one end of a pipe whose other end is ours. If this process is killed outright, the pipe closes, and
  the worker takes that as its sign to drain and end: nothing is left behind that nobody supervises.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fastapi import FastAPI

    from app.core.config import Settings

log = logging.getLogger("rlvo.serve")

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
SETTLED = 60.0  # a worker that lived this long did not fail at its start
SPINS = "1000"  # some 10 us for which torch's idle threads stand by: from one layer to the next, not into others' work
GRACE = 30.0  # seconds that a draining worker gets before it is killed; its job resumes at the next start


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (RLVO_HOST, 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on, 0 for any free one (RLVO_PORT, 8000).")] = None,
    worker: Annotated[bool, typer.Option(help="Also run one worker, supervised.")] = True,
) -> None:
    """Runs the service: the HTTP API and one worker, on SQLite and a local folder unless set otherwise.

    rlvo serve
    rlvo serve --host 0.0.0.0 --port 80        (API keys are then required: rlvo keys create)
    rlvo serve --no-worker                     (workers elsewhere: rlvo worker)

    The page is at /, the API's description at /docs. Ctrl-C or SIGTERM finishes what is in hand, then ends.
    """
    from app.cli.common import settings
    from app.core import logging as logs
    from app.core.egress import EgressClient
    from app.main import create_app

    given = {name: value for name, value in {"host": host, "port": port}.items() if value is not None}
    config = settings(**given)
    logs.configure_logging(config.log_level, config.log_format)
    try:
        EgressClient(config.webhook_hosts)  # the worker would end on it, again and again
        service = create_app(config)
    except ValueError as refusal:
        typer.echo(str(refusal), err=True)
        raise typer.Exit(2) from None
    supervisor = Supervisor([sys.executable, "-m", "app.cli.__main__", "worker", "--until-eof"]) if worker else None
    _listen(service, config, supervisor)


def _listen(service: FastAPI, config: Settings, supervisor: Supervisor | None) -> None:
    """Serves until a signal comes; the worker lives from the first moment the tables are there to the last answer."""
    import uvicorn

    from app.api.http_protocol import protocol

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                address, port = self.servers[0].sockets[0].getsockname()[:2]
                typer.echo(f"rlvo is at http://{f'[{address}]' if ':' in address else address}:{port}")
                if supervisor:
                    supervisor.start()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            service.state.services.drain()  # sends home who waits for an answer: uvicorn would wait for them
            await super().shutdown(sockets)

    server = Server(
        uvicorn.Config(
            service,
            host=config.host,
            port=config.port,
            http=protocol(config),
            ws="none",
            log_config=None,
            access_log=False,  # who asked for what stands in the audit, how often and how fast in the metrics
            server_header=False,
            timeout_graceful_shutdown=round(GRACE),
        )
    )
    # uvicorn raises the signal that stopped it once more when it is done; the worker must still be drained then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        listener = server.config.bind_socket()
    except SystemExit:  # uvicorn has said why: the port is taken, or not ours to take
        raise typer.Exit(1) from None
    try:
        server.run(sockets=[listener])
    finally:
        if supervisor:
            supervisor.stop()
    if not server.started:
        raise typer.Exit(1)


def worker(
    until_eof: Annotated[bool, typer.Option(hidden=True, help="Drain once standard input closes.")] = False,
) -> None:
    """Runs one worker: takes predictions from the queue, one at a time, until it is told to stop.

    rlvo worker
    RLVO_DATABASE_URL=postgresql+psycopg://... RLVO_STORAGE_URL=/mnt/blobs rlvo worker

    Any number may run, on any machines that reach the database and the blobs. One per GPU.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    from app.cli.common import settings
    from app.core import logging as logs
    from app.core.egress import EgressClient
    from app.worker.process import run

    config = settings()
    logs.configure_logging(config.log_level, config.log_format)
    try:
        EgressClient(config.webhook_hosts)
    except ValueError as refusal:
        typer.echo(str(refusal), err=True)
        raise typer.Exit(2) from None
    if until_eof:
        threading.Thread(target=_drain_at_eof, daemon=True).start()
    run(config)


def _drain_at_eof() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


class Supervisor:
    """Keeps one child process alive until told to stop it."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._stopping = threading.Event()
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, grace: float = GRACE) -> None:
        """SIGTERM, then SIGKILL to a child that has not ended after ``grace`` seconds."""
        with self._starting:
            self._stopping.set()
            process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(grace)
            except subprocess.TimeoutExpired:
                log.warning("the worker did not drain in %.0f s; its job resumes at the next start", grace)
                process.kill()
        if self._thread.ident is not None:
            self._thread.join()

    def _keep(self) -> None:
        pause = FIRST_PAUSE
        while True:
            with self._starting:
                if self._stopping.is_set():
                    return
                # A session of its own: Ctrl-C in a terminal reaches us alone, and we then ask the worker to drain.
                self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603
            started = time.monotonic()
            with self._process as process:
                status = process.wait()
            if self._stopping.is_set():
                return
            pause = FIRST_PAUSE if time.monotonic() - started > SETTLED else min(2 * pause, LONGEST_PAUSE)
            log.error("the worker ended with status %d; starting another in %.1f s", status, pause)
            self._stopping.wait(pause)
