"""A conversion in a process that was started before: the same answer, and no study is lost if it ends or hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.dicom import spare as spare_module
from app.dicom.conversion import Conversion
from app.dicom.isolated import convert_isolated
from app.dicom.spare import MOST, SpareProcesses
from app.sdk.errors import InvalidDicom
from app.sdk.types import Input
from tests.dicom.studies import TILTED, contents, plan

STUDY = "a"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    for number, content in enumerate(contents(plan(TILTED))):
        (folder / str(number)).write_bytes(content)
    return folder


def waiting(spare: SpareProcesses, study: str = STUDY) -> subprocess.Popen[bytes]:
    spare.keep([study])
    process = spare._waiting[study].process
    assert isinstance(process, subprocess.Popen)  # no libraries were loaded before
    return process


def cpu_s(process: subprocess.Popen[bytes]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle(process: subprocess.Popen[bytes]) -> None:
    """Return when the process has read what it was told: it sleeps in the read of its pipe."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        before = cpu_s(process)
        time.sleep(0.3)
        if 0.2 < before == cpu_s(process):
            return
    raise AssertionError("the process does not come to rest")


def converted(study: Path, target: Path, spare: SpareProcesses | None) -> tuple[Conversion, dict[Input, bytes]]:
    target.mkdir()
    made = convert_isolated(study, target, spare=spare, study=STUDY, timeout_s=60, addressed=True)
    return made, {name: path.read_bytes() for name, path in made.volumes.items()}


def volumes(study: Path, target: Path, spare: SpareProcesses | None) -> dict[Input, bytes]:
    return converted(study, target, spare)[1]


def test_a_spare_process_converts_one_study_and_ends(study: Path, tmp_path: Path) -> None:
    spare = SpareProcesses()
    process = waiting(spare)
    assert waiting(spare) is process
    expected = volumes(study, tmp_path / "without", None)
    assert process.poll() is None
    assert volumes(study, tmp_path / "with", spare) == expected
    assert process.returncode == 0
    assert spare.take(STUDY) is None


def test_a_process_that_has_read_the_files_gives_the_same_answer(study: Path, tmp_path: Path) -> None:
    spare = SpareProcesses()
    process = waiting(spare)
    files = sorted(study.iterdir())
    assert spare.lacks(STUDY, 1)
    spare.read(STUDY, files[:5], 1)
    assert not spare.lacks(STUDY, 1)
    spare.read(STUDY, files, 2)
    assert spare._waiting[STUDY].sent == set(files)
    idle(process)
    expected, without = converted(study, tmp_path / "without", None)
    found, data = converted(study, tmp_path / "with", spare)
    assert process.returncode == 0
    assert data == without
    assert found.to_json() | {"volumes": None} == expected.to_json() | {"volumes": None}


def test_a_process_converts_no_other_study_than_it_has_read(study: Path, tmp_path: Path) -> None:
    spare = SpareProcesses()
    process = waiting(spare, "b")
    spare.read("b", list(study.iterdir()), 1)
    assert volumes(study, tmp_path / "1", spare)
    assert process.poll() is None
    spare.close()
    assert process.returncode is not None


def test_few_processes_wait_and_those_of_other_studies_end() -> None:
    spare = SpareProcesses()
    spare.keep(["a", "b", "c", "d"])
    assert list(spare._waiting) == ["a", "b"]
    assert len(spare._waiting) == MOST
    first = spare._waiting["a"].process
    spare.keep(["b"])
    assert first.poll() is not None
    spare.close()


def test_a_spare_process_that_was_ended_is_replaced(study: Path, tmp_path: Path) -> None:
    spare = SpareProcesses()
    process = waiting(spare)
    process.kill()
    process.wait(10)
    assert volumes(study, tmp_path / "1", spare)
    second = waiting(spare)
    assert second is not process
    spare.close()
    assert second.returncode is not None


def test_no_spare_process_is_started_after_the_end_of_the_service() -> None:
    spare = SpareProcesses()
    spare.close()
    spare.keep([STUDY], ready=True)  # a thread that was on its way to it when the service ended
    spare.keep([], ready=True)
    assert spare.take(STUDY) is None
    assert spare._server is None


def test_a_spare_process_that_ends_by_itself_is_not_started_at_each_look(monkeypatch: pytest.MonkeyPatch) -> None:
    studies, started = [STUDY], []

    def ending() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "pass"]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        return started[-1]

    monkeypatch.setattr(spare_module, "started", ending)
    spare = SpareProcesses()
    for _ in range(5):
        spare.keep(studies)
        started[-1].wait(10)
    assert len(started) == 1
    monkeypatch.setattr(spare_module, "SPARE_PAUSE", 0.0)
    spare = SpareProcesses()
    spare.keep(studies)
    started[-1].wait(10)
    spare.keep(studies)
    started[-1].wait(10)
    spare.keep(studies)
    assert len(started) == 4
    spare.close()


def test_files_that_end_a_process_are_not_read_again_before_the_conversion(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spare_module, "SPARE_PAUSE", 0.0)
    spare = SpareProcesses()
    process = waiting(spare)
    spare.read(STUDY, list(study.iterdir()), 1)
    process.kill()
    process.wait(10)
    assert waiting(spare) is not process
    assert not spare.lacks(STUDY, 2)
    spare.read(STUDY, list(study.iterdir()), 2)
    assert not spare._waiting[STUDY].sent
    spare.close()


def test_a_process_that_hangs_while_it_reads_costs_no_study(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spare_module, "ANSWER_S", 0.5)
    spare = SpareProcesses()
    process = waiting(spare)
    spare.read(STUDY, list(study.iterdir()), 1)
    process.send_signal(signal.SIGSTOP)
    assert volumes(study, tmp_path / "1", spare)
    assert process.returncode == -signal.SIGKILL


def test_a_process_that_reads_nothing_never_stops_the_service(study: Path) -> None:
    spare = SpareProcesses()
    process = waiting(spare)
    process.send_signal(signal.SIGSTOP)
    many = [study / f"{number:0100d}" for number in range(2000)]
    spare.read(STUDY, many, 1)
    assert 0 < len(spare._waiting[STUDY].sent) < len(many)
    assert spare.lacks(STUDY, 1)
    spare.close()


def test_a_process_ends_its_reading_when_its_job_comes(study: Path, tmp_path: Path) -> None:
    spare = SpareProcesses()
    process = waiting(spare)
    spare.read(STUDY, sorted(study.iterdir()), 1)
    assert volumes(study, tmp_path / "1", spare) == volumes(study, tmp_path / "2", None)
    assert process.returncode == 0


def test_a_study_is_converted_if_the_spare_process_ends_with_its_job(study: Path, tmp_path: Path) -> None:
    class Ending(SpareProcesses):
        def take(self, study: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    assert volumes(study, tmp_path / "1", Ending())


def test_a_spare_process_ends_with_its_service() -> None:
    process = waiting(SpareProcesses())
    assert process.stdin is not None
    process.stdin.close()  # as the kernel does when the service is killed
    assert process.wait(60) != 0
    assert process.stdout is not None
    process.stdout.close()


def test_a_spare_process_keeps_the_limit_of_time(study: Path, tmp_path: Path) -> None:
    spare = SpareProcesses()
    process = waiting(spare)
    with pytest.raises(InvalidDicom, match="could not be converted within"):
        convert_isolated(study, tmp_path, spare=spare, study=STUDY, timeout_s=0.01)
    assert process.returncode is not None
