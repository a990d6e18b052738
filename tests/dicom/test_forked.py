"""Conversions in forks of a process with the libraries: the same answer, and nothing is lost if one ends or hangs."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from app.dicom import forked
from app.dicom.forked import Forked, is_ready
from app.dicom.isolated import convert_isolated
from app.dicom.spare import IDLE_S, SpareProcesses
from app.sdk.errors import InvalidDicom
from app.sdk.series import SeriesRole
from tests.dicom.test_isolated import STUDY, study, volumes, waiting

__all__ = ["study"]


def loaded(spare: SpareProcesses, study: str = STUDY) -> Forked:
    """A process of a study whose libraries were loaded before."""
    spare.keep([], ready=True)
    assert spare._server is not None
    assert spare._server._loaded or is_ready(spare._server._connection, wait_s=60)
    spare.keep([study], ready=True)
    process = spare._waiting[study].process
    assert isinstance(process, Forked)
    return process


def test_the_libraries_are_loaded_once_before_studies_arrive(study: Path, tmp_path: Path) -> None:
    spare = SpareProcesses()
    spare.keep([])
    assert spare._server is None
    process = loaded(spare)
    server = spare._server
    expected = volumes(study, tmp_path / "without", None)
    assert process.poll() is None
    assert volumes(study, tmp_path / "1", spare) == expected
    assert process.poll() is not None
    assert loaded(spare) is not process
    assert spare._server is server
    assert volumes(study, tmp_path / "2", spare) == expected
    spare.close()
    assert server is not None
    assert server.has_ended


def test_the_process_with_the_libraries_ends_when_no_study_has_come_for_hours(study: Path, tmp_path: Path) -> None:
    spare = SpareProcesses()
    loaded(spare)
    server = spare._server
    assert server is not None
    spare._last_use -= IDLE_S - 60
    spare.keep([], ready=True)
    assert spare._server is server
    spare._last_use -= 61
    spare.keep([], ready=True)
    assert spare._server is None
    assert server.has_ended
    spare.keep([], ready=True)
    assert spare._server is None
    assert volumes(study, tmp_path / "1", spare)  # one that comes now is converted, and others may follow
    spare.keep([])
    assert spare._server is not None
    spare.close()


def test_a_study_that_comes_before_the_libraries_are_loaded_waits_for_no_server(study: Path, tmp_path: Path) -> None:
    spare = SpareProcesses()
    spare.keep([], ready=True)
    assert spare._server is not None
    spare._server._process.send_signal(signal.SIGSTOP)
    waiting(spare)
    assert volumes(study, tmp_path / "1", spare)
    spare.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["has ended", "hangs"])
def test_a_server_that_has_ended_or_hangs_costs_no_study(number: signal.Signals, study: Path, tmp_path: Path) -> None:
    spare = SpareProcesses()
    process = loaded(spare)
    assert spare._server is not None
    spare._server._process.send_signal(number)
    if number == signal.SIGKILL:
        spare._server._process.wait(60)
    else:
        spare.keep([STUDY, "b"])
        assert isinstance(spare._waiting["b"].process, subprocess.Popen)
    spare.keep([STUDY], ready=True)
    spare.keep([STUDY], ready=True)
    assert spare._server is None  # and no other one is started for a while
    assert process.poll() is None
    assert volumes(study, tmp_path / "1", spare)
    spare.close()


def test_an_upload_lets_the_libraries_be_loaded_for_the_next_one(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare = SpareProcesses()
    spare.keep([])
    assert spare._server is None
    expected = volumes(study, tmp_path / "1", spare)
    spare.keep([])
    server = spare._server
    assert server is not None
    assert is_ready(server._connection, wait_s=60)
    forks = []

    def counted() -> Forked | None:
        forks.append(type(server).fork(server))
        return forks[-1]

    monkeypatch.setattr(server, "fork", counted)
    assert volumes(study, tmp_path / "2", spare) == expected
    assert len(list(filter(None, forks))) == 1
    spare.close()


def descriptors(process: str) -> set[str]:
    return {each.name for each in Path(f"/proc/{process}/fd").iterdir()}


def test_a_forked_process_shares_nothing_with_the_next_one(study: Path, tmp_path: Path) -> None:
    """It reads one study, has one thread at its start, and no descriptor but its pipes."""
    spare = SpareProcesses()
    first = loaded(spare)
    server = spare._server
    assert server is not None
    spare.keep([STUDY, "b"])
    children = Path(f"/proc/{server._process.pid}/task/{server._process.pid}/children").read_text().split()
    assert len(children) == 2
    assert [len(list(Path(f"/proc/{child}/task").iterdir())) for child in children] == [1, 1]
    end = time.monotonic() + 60
    while any(descriptors(child) != {"0", "1", "2"} for child in children) and time.monotonic() < end:
        time.sleep(0.01)  # it closes those of the server first
    assert [descriptors(child) for child in children] == [{"0", "1", "2"}] * 2
    first.kill()
    assert is_ready(first._descriptor, wait_s=60)
    second = spare._waiting["b"].process
    assert second.poll() is None
    spare.close()
    assert second.poll() is not None


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "its pipe closed"])
def test_a_forked_process_ends_with_its_service(kill: bool) -> None:
    spare = SpareProcesses()
    process = loaded(spare)
    process.kill() if kill else process.stdin.close()
    assert is_ready(process._descriptor, wait_s=60)
    spare.close()


def test_a_forked_process_keeps_the_limit_of_time(study: Path, tmp_path: Path) -> None:
    spare = SpareProcesses()
    process = loaded(spare)
    with pytest.raises(InvalidDicom, match="could not be converted within"):
        convert_isolated(study, tmp_path, spare=spare, study=STUDY, timeout_s=0.01)
    assert process.poll() is not None
    spare.close()


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """No free descriptor below 1024, as in a service with a thousand connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ExitStack() as stack:
        while stack.enter_context(Path(os.devnull).open()).fileno() < 1024:
            pass
        yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("before", [waiting, loaded])
@pytest.mark.usefixtures("many_descriptors")
def test_a_service_with_many_connections_converts(
    before: Callable[[SpareProcesses], object], study: Path, tmp_path: Path
) -> None:
    spare = SpareProcesses()
    before(spare)
    spare.read(STUDY, sorted(study.iterdir()), 1)
    assert volumes(study, tmp_path / "1", spare)
    spare.close()


def test_a_study_is_converted_if_the_forked_process_ends_before_its_job(study: Path, tmp_path: Path) -> None:
    spare = SpareProcesses()
    process = loaded(spare)
    process.kill()
    assert is_ready(process._descriptor, wait_s=60)
    assert volumes(study, tmp_path / "1", spare)
    spare.close()


def test_a_job_that_fills_its_pipe_reaches_a_forked_process(tmp_path: Path) -> None:
    spare = SpareProcesses()
    loaded(spare)
    overrides = {f"{number:0100d}": SeriesRole.NCCT for number in range(5000)}
    with pytest.raises(InvalidDicom):
        convert_isolated(tmp_path, tmp_path, overrides=overrides, spare=spare, study=STUDY)
    spare.close()


def test_no_server_is_started_where_the_kernel_gives_no_descriptor_of_a_process(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: int) -> int:
        raise PermissionError("as in a sandbox")

    monkeypatch.setattr(os, "pidfd_open", refused)
    forked.can_fork.cache_clear()
    spare = SpareProcesses()
    spare.keep([], ready=True)
    assert spare._server is None
    assert volumes(study, tmp_path / "1", spare)
    forked.can_fork.cache_clear()


def test_a_service_without_free_descriptors_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    spare = SpareProcesses()
    loaded(spare)
    assert spare._server is not None
    made: list[tuple[int, int]] = []
    pipe = os.pipe

    def scarce() -> tuple[int, int]:
        if made:
            raise OSError(24, "Too many open files")
        made.append(pipe())
        return made[0]

    monkeypatch.setattr(os, "pipe", scarce)
    with pytest.raises(OSError, match="Too many"):
        spare._server.fork()
    for each in made[0]:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(each)
    monkeypatch.undo()
    spare.close()
