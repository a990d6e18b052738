"""Starts processes of conversions as forks of one that has loaded the libraries, which takes milliseconds.

Design notes:
- The libraries take most of a second of processor time, which a worker needs for the prediction of the study before.
- The service keeps the descriptor of a process (``pidfd``), so it never ends another one that got the same number.
- A caller never waits for the libraries: ``fork`` gives none before they are loaded, or if the server has ended.
- Descriptors of a service with many connections are above 1023, which ``select`` cannot watch; ``poll`` can.
- This module needs no DICOM library.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import cache
from io import FileIO
from types import TracebackType
from typing import Protocol, Self

__all__ = ["ENVIRONMENT", "ForkServer", "Forked", "can_fork", "is_ready"]

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
FORK_S = 1.0  # in which the server starts a process
_CHUNK = 1 << 16
_MESSAGE = 1  # bytes of a message


class _File(Protocol):
    def fileno(self) -> int: ...


def is_ready(file: int | _File, event: int = select.POLLIN, *, wait_s: float | None = 0.0) -> bool:
    """Whether a file can be read (or written: ``POLLOUT``), or has ended; None waits without end."""
    poll = select.poll()
    poll.register(file, event)
    return bool(poll.poll(None if wait_s is None else 1000 * wait_s))


@cache
def can_fork() -> bool:
    """Whether the kernel gives descriptors of processes; a sandbox may refuse them."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def _pipe(reading: ExitStack, writing: ExitStack) -> tuple[FileIO, FileIO]:
    """Both ends of a new pipe, each closed by its stack."""
    reader, writer = os.pipe()
    return reading.enter_context(FileIO(reader)), writing.enter_context(FileIO(writer, "w"))


class Forked:
    """A process that a server has started, with the members of ``subprocess.Popen`` that a conversion uses."""

    def __init__(self, descriptor: int, stdin: FileIO, stdout: FileIO) -> None:
        self._descriptor = descriptor
        self.stdin, self.stdout = stdin, stdout

    def poll(self) -> int | None:
        """None while the process runs, else 0: its status is known to the server alone."""
        return 0 if self._descriptor < 0 or is_ready(self._descriptor) else None

    def kill(self) -> None:
        if self._descriptor >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def communicate(self, job: bytes, timeout: float) -> tuple[bytes, None]:
        """Send the job and return what the process writes until its end.

        Raises:
            subprocess.TimeoutExpired: it has not ended after ``timeout`` seconds.
        """
        end, out, rest = time.monotonic() + timeout, bytearray(), memoryview(job)
        stdin, stdout = self.stdin.fileno(), self.stdout.fileno()
        os.set_blocking(stdin, False)
        poll = select.poll()
        poll.register(stdin, select.POLLOUT)
        poll.register(stdout, select.POLLIN)
        while (left := end - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(1000 * left):
                if descriptor == stdin:
                    with suppress(BrokenPipeError):
                        rest = rest[os.write(stdin, rest) :]
                        if rest:
                            continue
                    poll.unregister(stdin)
                    self.stdin.close()
                elif part := os.read(stdout, _CHUNK):
                    out += part
                else:
                    return bytes(out), None
        raise subprocess.TimeoutExpired("conversion", timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Close the pipes, and wait for the end of the process."""
        self.stdin.close()
        self.stdout.close()
        if self._descriptor >= 0:
            is_ready(self._descriptor, wait_s=None)
            os.close(self._descriptor)
            self._descriptor = -1


class ForkServer:
    """A process that loads the libraries; see ``convert_server``."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair()
        self._loaded = False
        with theirs:
            command = [sys.executable, "-m", "app.dicom.convert_server"]
            self._process = subprocess.Popen(  # noqa: S603 - the command is fixed
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | ENVIRONMENT,
            )

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def fork(self) -> Forked | None:
        """A process that waits for a job; None if the libraries are not loaded, or the server does not answer."""
        if self._connection.fileno() < 0:
            return None
        if not self._loaded:
            if not is_ready(self._connection):
                return None
            self._loaded = bool(self._connection.recv(_MESSAGE))
        with ExitStack() as ours, ExitStack() as theirs:
            their_in, stdin = _pipe(theirs, ours)
            stdout, their_out = _pipe(ours, theirs)
            descriptor = self._asked([their_in.fileno(), their_out.fileno()])
            if descriptor is not None:
                ours.pop_all()
                return Forked(descriptor, stdin, stdout)
        self.close()
        return None

    def _asked(self, pipes: Sequence[int]) -> int | None:
        """Descriptor of a new process with these pipes; None if the server has ended, or does not answer."""
        with suppress(OSError):
            socket.send_fds(self._connection, [b"f"], pipes)
            if is_ready(self._connection, wait_s=FORK_S):
                return next(iter(socket.recv_fds(self._connection, _MESSAGE, 1)[1]), None)
        return None

    def close(self) -> None:
        """End the server; processes that it has started go on."""
        self._connection.close()
        with self._process as process:
            process.kill()
