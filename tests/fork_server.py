"""Real worker and API processes that die where they are told to.

`Nursery` is a process that does the heavy imports once and forks a worker, or an API, whenever one is asked for; one
that dies by SIGKILL is replaced, as a supervisor would. What is tested here is the life of a job, so that preparing
takes a ready case instead of registering a volume; the journeys run the real thing.

Faults: a file named by a prediction's id holds ``<stage> <before|after> <once|always|pause|spin>``. There the worker
kills itself, once or whenever it comes by, waits until the file is gone, or uses up CPU time without end. ``log`` gets
a line for each step that ran. ``clock`` holds the seconds by which the processes' wall clock is wrong.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.sdk.types import Stage

if TYPE_CHECKING:
    from app.worker.pipeline import PredictionPipeline, StepResult, StepResults


class Nursery:
    """The parent of the workers of a whole test session."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def start(self, faults: Path, settings: Mapping[str, str], kind: str = "worker") -> Keeper:
        """A ``worker`` or an ``api`` with these settings, kept alive until it is told to end."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([kind, str(faults), dict(settings)]) + "\n")
        self._process.stdin.flush()
        return Keeper(int(self._process.stdout.readline()), faults)

    def close(self) -> None:
        self._process.communicate()


class Keeper:
    """The process that keeps one worker, or one API, alive, seen from the test."""

    def __init__(self, pid: int, faults: Path) -> None:
        self.pid = pid
        self._faults = faults

    @property
    def worker(self) -> int:
        """The present worker's, or API's, process id."""
        return int((self._faults / f"worker-of-{self.pid}").read_text())

    @property
    def lives(self) -> int:
        """How many workers there were so far."""
        return (self._faults / "lives").read_text().count(f"{self.pid}\n")

    def end(self) -> str:
        """SIGTERM; how the worker ended, once it has."""
        os.kill(self.pid, signal.SIGTERM)
        ending = self._faults / f"end-of-{self.pid}"
        deadline = time.monotonic() + 60
        while not ending.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return ending.read_text()

    def kill(self) -> None:
        """SIGKILL to the keeper, and with it to its worker."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def serve() -> None:
    """The nursery's own process: one line in asks for a process, one line out is its keeper's process id.

    All that is heavy is imported before any fork.
    """
    for heavy in (
        "app.worker.process",
        "app.main",
        "app.cli.serve",
        "app.api.http_protocol",
        "tests.factory",
    ):  # before any fork
        importlib.import_module(heavy)

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        kind, faults, settings = json.loads(line)
        keeper = os.fork()
        if keeper == 0:
            _die_with_parent()
            os.environ |= settings
            _keep(Path(faults), {"worker": _work, "api": _answer}[kind])
            os._exit(0)
        print(keeper, flush=True)


def _keep(faults: Path, live: Callable[[Path], None]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda number, _: os.kill(worker, number))
    status = signal.SIGKILL
    while status in (signal.SIGKILL, signal.SIGPROF):
        worker = os.fork()
        if worker == 0:
            _die_with_parent()
            _wear_a_clock(faults)
            live(faults)
        _tell(faults / f"worker-of-{os.getpid()}", str(worker))
        with (faults / "lives").open("a") as lives:
            lives.write(f"{os.getpid()}\n")
        _, status = os.waitpid(worker, 0)
    _tell(faults / f"end-of-{os.getpid()}", f"exit {os.waitstatus_to_exitcode(status)}")


def _tell(place: Path, word: str) -> None:
    """Written whole or not at all: the test reads it at any moment."""
    draft = place.with_suffix(".part")
    draft.write_text(word)
    draft.replace(place)


def _work(faults: Path) -> None:
    from app.core.config import Settings
    from app.inference.model_version import ModelVersion
    from app.worker.pipeline import PredictionPipeline
    from app.worker.process import run
    from tests.factory import tiny_case

    original = PredictionPipeline.step

    def step(self: PredictionPipeline, stage: Stage, study: Any, done: StepResults) -> StepResult:
        _meet(faults / study.id, stage, "before")
        with (faults / "log").open("a") as log:
            log.write(f"{study.id} {stage}\n")
        result = original(self, stage, study, done)
        _meet(faults / study.id, stage, "after")
        return result

    PredictionPipeline.step = step  # type: ignore[method-assign]
    ModelVersion.prepare = lambda self, *_: tiny_case(self.manifest)  # type: ignore[method-assign]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        run(Settings())
    finally:
        os._exit(1)


def _answer(_faults: Path) -> None:
    from app.cli.serve import serve

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # that pipe is the nursery's own
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        serve(host=None, port=None, worker=False)
    finally:
        os._exit(1)


def _wear_a_clock(faults: Path) -> None:
    """Lets this process believe that its wall clock is off by what the file ``clock`` says at each moment."""
    from datetime import UTC, datetime, timedelta

    from app.database import session

    def off() -> float:
        try:
            return float((faults / "clock").read_text() or 0)
        except FileNotFoundError:
            return 0.0

    class Worn(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(seconds=off())

    real = time.time
    time.time = lambda: real() + off()
    session.datetime = Worn  # type: ignore[misc]
    assert abs((session.now() - datetime.now(UTC)).total_seconds() - off()) < 1


def _die_with_parent() -> None:
    """Asks the kernel for SIGKILL when the parent dies (PR_SET_PDEATHSIG, prctl(2)): no test leaves a worker behind."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _meet(fault: Path, stage: Stage, when: str) -> None:
    if not fault.exists() or fault.read_text().split()[:2] != [stage, when]:
        return
    how = fault.read_text().split()[2]
    if how == "pause":
        fault.with_suffix(".paused").touch()
        while fault.exists():
            time.sleep(0.01)
        return
    if how == "spin":
        while True:  # until the kernel ends it
            pass
    if how == "once":
        fault.unlink()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    serve()
