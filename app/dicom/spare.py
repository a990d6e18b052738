"""Processes of the next conversions, which read the files of their studies while these arrive.

Design notes:
- The libraries take most of a second to load, and the files another part of it; both comes before a study is complete.
- A study may arrive in less time than that. So one process loads them before any study arrives (`forked`), and the
  processes of the studies are forks of it.
- A process reads the files of one study, as without preparation. So no file reaches the conversion of another study.
- A process that has ended, or does not answer, costs nothing: the conversion takes another one.
- The service never waits for a process: what its pipe does not take is written later.
- This module needs no DICOM library.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.dicom.errors import DEFAULT, DicomLimits
from app.dicom.forked import ENVIRONMENT, Forked, ForkServer, can_fork, is_ready

__all__ = ["MOST", "Process", "SpareProcesses", "installed", "started"]

Process = subprocess.Popen[bytes] | Forked

MOST = 2  # processes that wait
SPARE_PAUSE = 30.0  # seconds without a new process after one that ended while it waited, for instance for its memory
IDLE_S = 6 * 3600.0  # without a study, after which the process with the libraries ends
ANSWER_S = 3.0  # in which a process ends its reading
_LIBRARY = "pydicom"
_WHOLE = 4096  # bytes that a pipe takes whole or not at all (PIPE_BUF)
_ROOM = 3584  # of them, for paths


def installed() -> bool:
    """Whether the libraries of ``rlvo-service[dicom]`` are installed."""
    return importlib.util.find_spec(_LIBRARY) is not None


def started() -> subprocess.Popen[bytes]:
    """A process that waits for a job."""
    command = [sys.executable, "-m", "app.dicom.convert_process"]
    return subprocess.Popen(  # noqa: S603 - the command is fixed; the job is data
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | ENVIRONMENT
    )


@dataclass
class _Waiting:
    """A process that waits; ``sent`` are the files that it was told, ``version`` what these were taken from."""

    process: Process
    sent: set[Path] = field(default_factory=set)
    version: object = None


class SpareProcesses:
    """At most ``MOST`` processes that wait, by the names of their studies; each converts one study and ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, _Waiting] = {}
        self._server: ForkServer | None = None
        self._closed = False
        self._used = False  # so the libraries are worth their memory
        self._last_use = time.monotonic()
        self._paused_until = -math.inf
        self._harmful: deque[str] = deque(maxlen=64)  # studies whose files have ended a process; not read again

    def keep(self, studies: Collection[str], *, ready: bool = False) -> None:
        """Let a process wait for each study; those of other studies end, with what they have read.

        Args:
            studies: names of the studies that arrive, those to prepare first.
            ready: load the libraries for later studies, if that has not been done; it begins when no study arrives,
                so that it takes no time from one. After a conversion they are loaded in any case.
        """
        with self._lock:
            for study in [each for each in self._waiting if each not in studies]:
                _end(self._waiting.pop(study).process)
            if not installed():
                return
            for study in [each for each, waiting in self._waiting.items() if _has_ended(waiting.process)]:
                self._pause()
                if self._waiting.pop(study).sent:
                    self._harmful.append(study)
            if self._server is not None and self._server.has_ended:
                self._close_server()
                self._pause()
            if self._closed or time.monotonic() < self._paused_until:
                return
            for study in list(studies)[:MOST]:
                if study not in self._waiting:
                    self._waiting[study] = _Waiting(self._start())
            self._keep_server(arriving=bool(studies), wanted=ready or self._used)

    def _keep_server(self, *, arriving: bool, wanted: bool) -> None:
        """Load the libraries if that is wanted and takes no time from a study; end their process after a long pause."""
        if arriving:
            self._last_use = time.monotonic()
        elif time.monotonic() - self._last_use > IDLE_S:
            self._close_server()
        elif wanted and self._server is None and can_fork():
            self._server = ForkServer()

    def _pause(self) -> None:
        self._paused_until = time.monotonic() + SPARE_PAUSE

    def start(self) -> Process:
        """A process of a conversion that was not prepared."""
        with self._lock:
            self._used, self._last_use = True, time.monotonic()
            return self._start()

    def _start(self) -> Process:
        return (self._server.fork() if self._server is not None else None) or started()

    def _close_server(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def lacks(self, study: str, version: object) -> bool:
        """Whether the process of a study has not been told all files of this version of the study."""
        with self._lock:
            waiting = self._waiting.get(study)
            return waiting is not None and study not in self._harmful and waiting.version != version

    def read(
        self, study: str, paths: Sequence[Path], version: object, *, limits: DicomLimits = DEFAULT, cpu_s: float = 120.0
    ) -> None:
        """Let the process of a study read those of its files that it was not told yet.

        Args:
            study: name of the study.
            paths: all its files.
            version: what ``lacks`` compares.
            limits: largest sizes, those of the conversion.
            cpu_s: processor time for all files, s.
        """
        shared = {"limits": vars(limits), "cpu_s": cpu_s}
        with self._lock:
            waiting = self._waiting.get(study)
            if waiting is None or study in self._harmful:
                return
            new = deque(path for path in paths if path not in waiting.sent)
            while new:
                told = _take_line(new)
                if not _write(waiting.process, _encoded(shared | {"read": [str(path) for path in told]})):
                    return
                waiting.sent.update(told)
            waiting.version = version

    def take(self, study: str) -> Process | None:
        """The process of a study, for its conversion; None if none waits."""
        with self._lock:
            waiting = self._waiting.pop(study, None)
        if waiting is None:
            return None
        if waiting.process.poll() is None and (not waiting.sent or self._stopped(waiting.process)):
            return waiting.process
        _end(waiting.process)
        return None

    def _stopped(self, process: Process) -> bool:
        """Whether a process has ended its reading, and answers."""
        assert process.stdout is not None
        end = time.monotonic() + ANSWER_S
        if not _write(process, _encoded({"stop": True}), ANSWER_S):
            return False
        return is_ready(process.stdout, wait_s=max(end - time.monotonic(), 0.0))

    def close(self) -> None:
        """End the processes that wait, and start no other ones."""
        with self._lock:  # a thread can be in ``keep``
            self._closed = True
        self.keep(())
        with self._lock:
            self._close_server()


def _take_line(new: deque[Path]) -> list[Path]:
    """Remove the first files, as many as fit into a line, and return them."""
    told = [new.popleft()]
    free = _ROOM - len(json.dumps(str(told[0])))
    while new and (free := free - len(json.dumps(str(new[0]))) - 2) >= 0:
        told.append(new.popleft())
    return told


def _encoded(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _write(process: Process, line: bytes, wait_s: float = 0.0) -> bool:
    """Write a line if the pipe takes it; whether it did. A line that fits no pipe whole is not written."""
    assert process.stdin is not None
    if len(line) > _WHOLE or not is_ready(process.stdin, select.POLLOUT, wait_s=wait_s):
        return False
    try:
        return os.write(process.stdin.fileno(), line) == len(line)
    except BrokenPipeError:
        return False


def _has_ended(process: Process) -> bool:
    """Whether a process that waits has ended; then its pipes are closed."""
    if process.poll() is None:
        return False
    with process:
        return True


def _end(process: Process) -> None:
    with process:
        process.kill()
