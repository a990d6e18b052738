"""Real worker and API processes with faults at chosen points.

`ForkServer` is a process that imports the heavy modules once and forks a worker, or an API, on request. It also imports
what torch imports at the first gradient, so the first job of a new worker costs little more CPU time than the next one.
A process that ends by SIGKILL is replaced, as a process supervisor does. These tests are about the life of a job, so
`prepare` takes a ready model input instead of a registration; the end-to-end tests run the real one.

Faults: a file with the id of a prediction as its name contains ``<stage> <before|after> <once|always|pause|spin>``. At
this point the worker kills itself, once or each time, waits until the file is gone, or uses CPU time without end. The
file ``kernels`` with ``kernels before ...`` does this while the imaging kernels are loaded. The stage ``draw`` is the
drawing of the figures after the answer: ``before`` it, when they are ``drawn``, and ``after`` they are recorded. The
file ``log`` gets a line for each step that runs, ``drawings`` one for each start of a drawing; ``clock`` holds the
error of the wall clock in seconds.
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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from app.sdk.types import Stage

if TYPE_CHECKING:
    from app.database.predictions import Artifact
    from app.worker.drawing import FigureJobs
    from app.worker.pipeline import PredictionPipeline
    from app.worker.prediction_context import PredictionContext, StepResult


class ForkServer:
    """Starts the workers and APIs of a test session."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def start(self, faults: Path, settings: Mapping[str, str], kind: str = "worker") -> SupervisedProcess:
        """Starts a ``worker`` or an ``api`` with these settings and a supervisor that restarts it."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([kind, str(faults), dict(settings)]) + "\n")
        self._process.stdin.flush()
        return SupervisedProcess(int(self._process.stdout.readline()), faults)

    def close(self) -> None:
        self._process.communicate()


class SupervisedProcess:
    """The supervisor of one worker or one API."""

    def __init__(self, pid: int, faults: Path) -> None:
        self.pid = pid
        self._faults = faults

    @property
    def child(self) -> int:
        """Process id of the present worker or API."""
        return int((self._faults / f"child-of-{self.pid}").read_text())

    @property
    def starts(self) -> int:
        """Number of processes that were started so far."""
        starts = self._faults / "starts"
        return starts.read_text().count(f"{self.pid}\n") if starts.exists() else 0

    def end(self) -> str:
        """Sends SIGTERM, waits for the end of the process, and returns its exit code as text."""
        os.kill(self.pid, signal.SIGTERM)
        ending = self._faults / f"end-of-{self.pid}"
        deadline = time.monotonic() + 60
        while not ending.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return ending.read_text()

    def kill(self) -> None:
        """Sends SIGKILL to the supervisor; its child ends with it."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def serve() -> None:
    """Main loop of the fork server: each line on stdin requests a process; the reply is the pid of its supervisor."""
    for module in (
        "app.worker.process",
        "app.main",
        "app.cli.serve",
        "app.api.http_protocol",
        "tests.factory",
        "torch.fx.experimental.symbolic_shapes",  # torch.autograd.grad imports it, and sympy with it
    ):  # before any fork
        importlib.import_module(module)

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        kind, faults, settings = json.loads(line)
        supervisor = os.fork()
        if supervisor == 0:
            _die_with_parent()
            os.environ |= settings
            _supervise(Path(faults), {"worker": _run_worker, "api": _run_api}[kind])
            os._exit(0)
        print(supervisor, flush=True)


def _supervise(faults: Path, run: Callable[[Path], None]) -> None:
    from app.worker import lost_device

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda number, _: os.kill(child, number))
    status = signal.SIGKILL
    while status in (signal.SIGKILL, signal.SIGPROF, lost_device.EXIT_STATUS << 8):
        child = os.fork()
        if child == 0:
            _die_with_parent()
            _shift_clock(faults)
            run(faults)
        _write(faults / f"child-of-{os.getpid()}", str(child))
        with (faults / "starts").open("a") as starts:
            starts.write(f"{os.getpid()}\n")
        _, status = os.waitpid(child, 0)
    _write(faults / f"end-of-{os.getpid()}", f"exit {os.waitstatus_to_exitcode(status)}")


def _write(path: Path, content: str) -> None:
    """Writes a file in one step, because a test may read it at any time."""
    draft = path.with_suffix(".part")
    draft.write_text(content)
    draft.replace(path)


def _run_worker(faults: Path) -> None:
    import torch

    from app.core.config import Settings
    from app.imaging.registration import align
    from app.inference.model_version import ModelVersion
    from app.worker.drawing import DrawingProcess, FigureJobs
    from app.worker.drawing_data import DATA
    from app.worker.pipeline import PredictionPipeline
    from app.worker.process import run
    from tests.factory import tiny_case

    original, run_step = PredictionPipeline.step, PredictionPipeline._run

    def step(self: PredictionPipeline, stage: Stage, context: PredictionContext) -> StepResult:
        _inject_fault(faults / context.study.id, stage, "before")
        with (faults / "log").open("a") as log:
            log.write(f"{context.study.id} {stage}\n")
        result = original(self, stage, context)
        _inject_fault(faults / context.study.id, stage, "after")
        return result

    def lose_device(self: PredictionPipeline, stage: Stage, context: PredictionContext) -> Any:
        fault = faults / context.study.id
        if fault.exists() and fault.read_text().split() == [stage, "inside", "device"]:
            fault.unlink()
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return run_step(self, stage, context)

    make, store = FigureJobs._draw, FigureJobs._record

    def draw(self: FigureJobs, prediction_id: str, sources: Mapping[str, str]) -> list[Artifact]:
        _inject_fault(faults / prediction_id, "draw", "before")
        with (faults / "drawings").open("a") as log:
            log.write(f"{prediction_id}\n")
        return make(self, prediction_id, sources)

    def record(self: FigureJobs, prediction_id: str, stored: list[Artifact]) -> None:
        _inject_fault(faults / prediction_id, "draw", "drawn")
        store(self, prediction_id, stored)
        _inject_fault(faults / prediction_id, "draw", "after")

    patch.multiple(FigureJobs, _draw=draw, _record=record).start()
    # Real figures take longer than all steps of a tiny study; tests/worker/test_drawing.py runs the real process.
    patch.object(DrawingProcess, "draw", lambda _, stored: {"report.html": stored[DATA]}).start()
    PredictionPipeline.step = step  # type: ignore[method-assign]
    PredictionPipeline._run = lose_device  # type: ignore[method-assign]
    ModelVersion.prepare = lambda self, *_: tiny_case(self.manifest)  # type: ignore[method-assign]
    # No test here prepares a study, so the kernels are not needed.
    align.warm_up = partial(_inject_fault, faults / "kernels", "kernels", "before")  # type: ignore[assignment]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        run(Settings())
    finally:
        os._exit(1)


def _run_api(_faults: Path) -> None:
    from app.cli.serve import serve

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the pipe belongs to the fork server
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        serve(host=None, port=None, worker=False)
    finally:
        os._exit(1)


def _shift_clock(faults: Path) -> None:
    """Shifts the wall clock of this process by the content of the file ``clock``, read at each use."""
    from datetime import UTC, datetime, timedelta

    from app.database import session

    def shift() -> float:
        try:
            return float((faults / "clock").read_text() or 0)
        except FileNotFoundError:
            return 0.0

    class ShiftedDatetime(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(seconds=shift())

    real = time.time
    time.time = lambda: real() + shift()
    session.datetime = ShiftedDatetime  # type: ignore[misc]
    assert abs((session.now() - datetime.now(UTC)).total_seconds() - shift()) < 1


def _die_with_parent() -> None:
    """Makes the kernel send SIGKILL when the parent ends (PR_SET_PDEATHSIG, prctl(2)), so no test leaves a process."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _inject_fault(fault: Path, stage: str, when: str) -> None:
    if not fault.exists() or fault.read_text().split()[:2] != [stage, when]:
        return
    kind = fault.read_text().split()[2]
    if kind == "pause":
        fault.with_suffix(".paused").touch()
        while fault.exists():
            time.sleep(0.01)
        return
    if kind == "spin":
        while True:  # until the kernel ends it
            pass
    if kind == "once":
        fault.unlink()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    serve()
