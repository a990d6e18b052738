"""The supervisor of the worker survives every failed start, says so, and gives up after a set time."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.cli import serve
from app.cli.serve import ProcessSupervisor
from tests.deployment import wait

CHILD = [sys.executable, "-c", "import sys; sys.stdin.read()"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(serve, "LONGEST_PAUSE", 0.2)


@pytest.mark.usefixtures("quick")
def test_start_that_the_system_refuses_is_tried_again() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    supervisor = ProcessSupervisor(CHILD)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # EMFILE for every new pipe
    try:
        supervisor.start()
        wait(lambda: supervisor.fault() is not None, 30)
        refused = supervisor.fault()
        time.sleep(0.5)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert refused == "the worker process cannot be started: EMFILE"
    wait(lambda: supervisor._process is not None and supervisor._process.poll() is None)
    supervisor.stop()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("command", [["/nowhere/python"], [sys.executable, "-c", "raise SystemExit(3)"]])
def test_supervisor_gives_up_after_the_set_time(command: list[str]) -> None:
    supervisor = ProcessSupervisor(command, give_up=1.0)
    ended: list[float] = []
    supervisor.on_give_up = lambda: ended.append(time.monotonic())
    started = time.monotonic()
    supervisor.start()
    wait(lambda: ended)
    assert ended[0] - started >= 1.0
    assert supervisor.gave_up
    assert supervisor.fault()
    supervisor.stop()


@pytest.mark.usefixtures("quick")
def test_worker_that_runs_stably_between_its_ends_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "STABLE_AFTER", 0.3)
    code = "import time; time.sleep(1.0)"
    supervisor = ProcessSupervisor([sys.executable, "-S", "-c", code], give_up=1.5)
    supervisor.start()
    time.sleep(5)
    assert not supervisor.gave_up
    supervisor.stop()


@pytest.mark.usefixtures("quick")
def test_held_process_begins_when_it_is_released_and_so_do_later_ones(tmp_path: Path) -> None:
    code = "import os, sys; sys.stdin.buffer.read(1) and open(os.path.join(sys.argv[1], str(os.getpid())), 'w')"
    supervisor = ProcessSupervisor([sys.executable, "-S", "-c", code, str(tmp_path)], held=True)
    supervisor.start()
    wait(lambda: supervisor._process is not None)
    time.sleep(0.5)
    assert not list(tmp_path.iterdir())
    supervisor.release()
    wait(lambda: len(list(tmp_path.iterdir())) >= 2)  # each process ends after its file, and a new one is started
    supervisor.stop()


def test_held_worker_ends_without_work_if_its_service_does_not_start(tmp_path: Path) -> None:
    environment = os.environ | {"RLVO_DATA_DIR": str(tmp_path / "data")}
    ended = subprocess.run(
        [sys.executable, "-m", "app.cli", "worker", "--until-eof", "--held"],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert not list((tmp_path / "data").glob("*.sqlite"))


def test_process_that_ended_before_its_release_does_not_stop_the_service() -> None:
    supervisor = ProcessSupervisor([sys.executable, "-c", "pass"], held=True)
    supervisor.start()
    try:
        wait(lambda: supervisor.fault() is not None)
        supervisor.release()
    finally:
        supervisor.stop()


@contextmanager
def service_without_a_worker(folder: Path, minutes: float) -> Iterator[subprocess.Popen[str]]:
    """A service whose workers end at their start, because they may use no memory; it gives up after some minutes."""
    code = "from app.cli import serve; from app.cli.__main__ import main; serve.FIRST_PAUSE = 0.2; main()"
    environment = os.environ | {
        "RLVO_DATA_DIR": str(folder / "data"),
        "RLVO_MEMORY_LIMIT_MB": "1",  # no worker can start
        "RLVO_WORKER_START_MINUTES": str(minutes),
    }
    with subprocess.Popen(
        [sys.executable, "-c", code, "serve", "--port", "0"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)


def test_service_without_a_worker_is_alive_and_not_ready(tmp_path: Path) -> None:
    with service_without_a_worker(tmp_path, minutes=60) as process:
        assert process.stdout
        url = next(line for line in process.stdout if "rlvo is at" in line).split()[-1]
        wait(lambda: "ended with status" in httpx.get(f"{url}/readyz", timeout=30).json()["checks"]["worker"])
        assert httpx.get(f"{url}/readyz", timeout=30).status_code == 503
        assert httpx.get(f"{url}/livez", timeout=30).status_code == 200


def test_service_without_a_worker_ends_with_an_error(tmp_path: Path) -> None:
    with service_without_a_worker(tmp_path, minutes=0.2) as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "The worker could not be started within 0.2 minutes" in errors
    assert "Traceback" not in errors.split("The worker could not be started")[-1]
