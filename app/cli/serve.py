"""`rlvo serve` and `rlvo worker`: the processes of the service.

Design notes:
- `serve` runs the API and one worker in a child process, so the API process never loads torch.
- `serve --no-worker` and any number of `worker` processes run the same code on several machines.
- The supervisor restarts a worker that ends, and tries again if the system refuses a new process, with a growing pause.
  No job is lost, since jobs are durable. `/readyz` says that the worker does not start. After `worker_start_minutes`
  the service ends with an error, so that its process supervisor or its operator notices.
- The worker reads a pipe from its supervisor. If the supervisor is killed, the pipe closes and the worker drains.
- `serve` starts the worker's process first, because both load their libraries for seconds. The process then waits for
  one byte of the pipe, which it gets when the API accepts requests.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from app.core import garbage

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from app.core.config import Settings

log = logging.getLogger("rlvo.serve")

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
STABLE_AFTER = 60.0  # seconds; a worker that ran this long did not fail at its start
SPIN_COUNT = "1000"  # how long idle OpenMP threads spin: from one layer to the next, no longer (docs/experiments.md)
OTHER_FILES = 512  # open files of the API process besides its connections: uploads, downloads, database
PRIVATE = 0o077  # file mode mask: no other user of the machine reads what the service writes
RELEASE = b"\n"  # tells a child process that is held to begin
GRACE = 30.0  # seconds until a draining worker is killed; its job resumes at the next start


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (RLVO_HOST, 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on, 0 for any free one (RLVO_PORT, 8000).")] = None,
    worker: Annotated[bool, typer.Option(help="Also run and supervise one worker.")] = True,
) -> None:
    """Run the service: the HTTP API and one worker, by default on SQLite and a local folder.

    rlvo serve
    rlvo serve --host 0.0.0.0 --port 80        (API keys are then required: rlvo keys create)
    rlvo serve --no-worker                     (workers elsewhere: rlvo worker)

    The page is at /, the API description at /docs. Ctrl-C or SIGTERM finishes the current work, then stops.
    """
    garbage.begin_start()
    from app.cli.common import check_writable, settings
    from app.core import logging as app_logging
    from app.core.unknown_settings import remarks
    from app.dicom.callers import check_listener

    os.umask(PRIVATE)
    given = {name: value for name, value in {"host": host, "port": port}.items() if value is not None}
    config = settings(**given)
    app_logging.configure_logging(config.log_level, config.log_format)
    for remark in remarks(os.environ):
        log.warning("%s", remark)
    try:
        if worker:
            _check_heartbeat(config)
        check_writable(config)
        if config.dicom_port:
            check_listener(config)
    except ValueError as refusal:
        typer.echo(str(refusal), err=True)
        raise typer.Exit(2) from None
    supervisor = _start_worker(config) if worker else None
    try:
        service = _service(config)
        command = [sys.executable, "-m", "app.cli", "dicom", "listen", "--until-eof"]
        listener = ProcessSupervisor(command, name="DICOM listener") if config.dicom_port else None
        _listen(service, config, supervisor, listener)
    finally:
        if supervisor:
            supervisor.stop()


def _check_heartbeat(config: Settings) -> None:
    """Raises ValueError if other workers would take over the job of a worker that works."""
    if config.heartbeat >= config.lease:
        raise ValueError("RLVO_HEARTBEAT must be shorter than RLVO_LEASE, or a worker at work counts as lost")


def _start_worker(config: Settings) -> ProcessSupervisor:
    """Start the process of the worker; it loads its libraries, and waits until it is released."""
    command = [sys.executable, "-m", "app.cli", "worker", "--until-eof", "--held"]
    supervisor = ProcessSupervisor(command, give_up=60 * config.worker_start_minutes, held=True)
    supervisor.start()
    return supervisor


def _service(config: Settings) -> FastAPI:
    """The application on the newest schema of its database; a setting that it refuses ends the command."""
    from app.main import create_app

    try:
        service = create_app(config)
    except ValueError as refusal:
        typer.echo(str(refusal), err=True)
        raise typer.Exit(2) from None
    service.state.services.database.upgrade()  # here: an error of the start of uvicorn would be a traceback
    return service


def _listen(
    service: FastAPI, config: Settings, supervisor: ProcessSupervisor | None, dicom: ProcessSupervisor | None
) -> None:
    """Serve until a signal arrives; worker and DICOM listener run while the server accepts requests."""

    def started() -> None:
        if supervisor:
            supervisor.release()
        if dicom:
            dicom.start()
        garbage.end_start()

    server = _server(service, config, started)
    _allow_open_files(config.max_connections + OTHER_FILES)
    if supervisor:
        supervisor.on_give_up = partial(setattr, server, "should_exit", True)
        server.should_exit = supervisor.gave_up
        service.state.services.worker_fault = supervisor.fault
    # uvicorn raises the signal that stopped it again at its end; the worker must still be drained then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    listener = _listener(config)
    try:
        server.run(sockets=[listener])
    finally:
        for child in filter(None, (dicom, supervisor)):
            child.stop()
    if supervisor:
        _exit_if_given_up(supervisor, config)
    if not server.started:
        raise typer.Exit(1)


def _server(service: FastAPI, config: Settings, started: Callable[[], None]) -> uvicorn.Server:
    """A server that calls ``started`` when it accepts requests, and ends the long polls before it stops."""
    import uvicorn

    from app.api.http_protocol import protocol

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                address, port = self.servers[0].sockets[0].getsockname()[:2]
                typer.echo(f"rlvo is at http://{f'[{address}]' if ':' in address else address}:{port}")
                started()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            service.state.services.drain()  # end the long polls, else uvicorn waits for them
            await super().shutdown(sockets)

    return Server(
        uvicorn.Config(
            service,
            host=config.host,
            port=config.port,
            http=protocol(config),
            ws="none",
            log_config=None,
            access_log=False,  # the audit trail and the metrics cover it
            server_header=False,
            timeout_keep_alive=config.keep_alive_timeout,
            timeout_graceful_shutdown=round(GRACE),
        )
    )


def _listener(config: Settings) -> socket.socket:
    """A socket that is bound to the address of the service; ends the command if the system refuses it."""
    listener = socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        reason = error.strerror or "the name is unknown"
        typer.echo(f"The service cannot listen on {config.host}, port {config.port}: {reason}", err=True)
        raise typer.Exit(1) from None
    return listener


def _allow_open_files(wanted: int) -> None:
    """Raise the limit of open files of this process, because each connection needs one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    if possible < wanted:
        log.warning("the system allows %d open files, %d are needed; set RLVO_MAX_CONNECTIONS lower", possible, wanted)


def _exit_if_given_up(supervisor: ProcessSupervisor, config: Settings) -> None:
    if supervisor.gave_up:
        typer.echo(
            f"The worker could not be started within {config.worker_start_minutes:g} minutes (worker_start_minutes). "
            "Accepted studies are kept. See the log for the reason, and start the service again.",
            err=True,
        )
        raise typer.Exit(1)


def worker(
    until_eof: Annotated[bool, typer.Option(hidden=True, help="Drain when standard input closes.")] = False,
    held: Annotated[bool, typer.Option(hidden=True, help="Wait for one byte of standard input.")] = False,
) -> None:
    """Run one worker: take predictions from the queue, one at a time, until a signal stops it.

    rlvo worker
    RLVO_DATABASE_URL=postgresql+psycopg://... RLVO_STORAGE_URL=/mnt/blobs rlvo worker

    Any number of workers may run, on all machines that reach the database and the blobs. Run one per GPU.
    """
    garbage.begin_start()
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    os.umask(PRIVATE)
    from app.cli.common import check_writable, settings
    from app.core import logging as app_logging
    from app.core.unknown_settings import remarks
    from app.worker import process

    config = settings()
    app_logging.configure_logging(config.log_level, config.log_format)
    for remark in remarks(() if held else os.environ):  # `rlvo serve` has logged them
        log.warning("%s", remark)
    try:
        _check_heartbeat(config)
    except ValueError as refusal:
        typer.echo(str(refusal), err=True)
        raise typer.Exit(2) from None
    check_writable(config)
    kernels = process.prepare(config)
    if held and not sys.stdin.buffer.read(len(RELEASE)):
        return  # the service ended before it accepted requests
    if until_eof:
        threading.Thread(target=_drain_at_eof, daemon=True).start()
    process.run(config, kernels)


def _drain_at_eof() -> None:
    wait_for_eof()
    os.kill(os.getpid(), signal.SIGTERM)


def wait_for_eof() -> None:
    """Wait until standard input closes.

    The descriptor is read, because a thread that waits in ``sys.stdin`` holds its lock: the interpreter would then end
    with a fatal error in place of its exit status.
    """
    while os.read(sys.stdin.fileno(), 4096):
        pass


class ProcessSupervisor:
    """Keep one child process running until `stop` is called.

    Args:
        command: Program and arguments of the child process.
        give_up: Seconds without a child process that runs stably, until ``on_give_up`` is called and no more are
            started; 0: never.
        name: What the process is, for messages.
        held: Whether each child process waits for one byte, which it gets when, or after, ``release`` is called.
    """

    def __init__(self, command: list[str], *, give_up: float = 0.0, name: str = "worker", held: bool = False) -> None:
        self._command = command
        self._waits = held
        self._released = False
        self._name = name
        self._give_up = give_up
        self._stopping = threading.Event()
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._fault: str | None = None
        self._thread = threading.Thread(target=self._supervise, daemon=True)
        self.gave_up = False
        self.on_give_up: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Start the child process, in a background thread."""
        self._thread.start()

    def release(self) -> None:
        """Let the child process, and those that are started later, do their work."""
        with self._starting:
            self._released = True
            if self._process is not None:
                self._send_release(self._process)

    def _send_release(self, process: subprocess.Popen[bytes]) -> None:
        if self._waits and self._released:
            assert process.stdin is not None
            with suppress(OSError):  # it has ended
                process.stdin.write(RELEASE)
                process.stdin.flush()

    def fault(self) -> str | None:
        """Return why there is no stable child process; None while one runs, or before the first one has ended."""
        return self._fault

    def stop(self, grace: float = GRACE) -> None:
        """Send SIGTERM, then SIGKILL to a child that still runs after ``grace`` seconds."""
        with self._starting:
            self._stopping.set()
            process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(grace)
            except subprocess.TimeoutExpired:
                log.warning("the %s did not drain in %.0f s; its work resumes at the next start", self._name, grace)
                process.kill()
        if self._thread.ident is not None:
            self._thread.join()

    def _supervise(self) -> None:
        pause, failing_since = FIRST_PAUSE, time.monotonic()
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                self._fault = self._run_once()
            except Exception as error:  # noqa: BLE001 - any error here would leave the service without a worker
                self._fault = f"the {self._name} process cannot be started: {_reason(error)}"
            if self._stopping.is_set():
                return
            stable = time.monotonic() - started > STABLE_AFTER
            if stable:
                pause, failing_since = FIRST_PAUSE, time.monotonic()
            else:
                pause = min(2 * pause, LONGEST_PAUSE)
            log.error("%s; a new one starts in %.1f s", self._fault, pause)
            if self._give_up and time.monotonic() - failing_since > self._give_up:
                self.gave_up = True
                self.on_give_up()
                return
            self._stopping.wait(pause)

    def _run_once(self) -> str:
        """Run the child process to its end, and return how it ended."""
        with self._starting:
            if self._stopping.is_set():
                return ""
            # New session: Ctrl-C in a terminal reaches only this process, which then drains the worker.
            process = subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603
            self._process = process
            self._send_release(process)
        while True:
            try:
                status = process.wait(STABLE_AFTER)
                break
            except subprocess.TimeoutExpired:
                self._fault = None  # it runs stably
        with self._starting:  # so that `release` does not write to a closed pipe
            self._process = None
            assert process.stdin is not None
            with suppress(OSError):  # the process did not read a byte that was sent to it
                process.stdin.close()
        return f"the {self._name} process ended with status {status}"


def _reason(error: Exception) -> str:
    """Name of a system error such as EAGAIN, or the type of any other error."""
    return errno.errorcode.get(error.errno or 0, "OSError") if isinstance(error, OSError) else type(error).__name__
