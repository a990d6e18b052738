"""A conversion in a process that was started before: the same answer, and no study is lost if it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.dicom import isolated
from app.dicom.isolated import SpareProcess, convert_isolated
from app.sdk.errors import InvalidDicom
from app.sdk.types import Input
from tests.dicom.studies import TILTED, contents, plan


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    for number, content in enumerate(contents(plan(TILTED))):
        (folder / str(number)).write_bytes(content)
    return folder


def waiting(spare: SpareProcess) -> subprocess.Popen[bytes]:
    spare.prepare()
    process = spare._process
    assert process is not None
    return process


def volumes(study: Path, target: Path, spare: SpareProcess | None) -> dict[Input, bytes]:
    target.mkdir()
    made = convert_isolated(study, target, spare=spare, timeout_s=60)
    return {name: path.read_bytes() for name, path in made.volumes.items()}


def test_a_spare_process_converts_one_study_and_ends(study: Path, tmp_path: Path) -> None:
    spare = SpareProcess()
    process = waiting(spare)
    assert waiting(spare) is process
    expected = volumes(study, tmp_path / "without", None)
    assert process.poll() is None
    assert volumes(study, tmp_path / "with", spare) == expected
    assert process.returncode == 0
    assert spare.take() is None


def test_a_spare_process_that_was_ended_is_replaced(study: Path, tmp_path: Path) -> None:
    spare = SpareProcess()
    process = waiting(spare)
    process.kill()
    process.wait(10)
    assert volumes(study, tmp_path / "1", spare)
    second = waiting(spare)
    assert second is not process
    spare.close()
    assert second.returncode is not None


def test_no_spare_process_is_started_after_the_end_of_the_service() -> None:
    spare = SpareProcess()
    spare.close()
    spare.prepare()  # a thread that was on its way to it when the service ended
    assert spare.take() is None


def test_a_spare_process_that_ends_by_itself_is_not_started_at_each_look(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def ending() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "pass"]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        return started[-1]

    monkeypatch.setattr(isolated, "_started", ending)
    spare = SpareProcess()
    for _ in range(5):
        spare.prepare()
        started[-1].wait(10)
    assert len(started) == 1
    monkeypatch.setattr(isolated, "SPARE_PAUSE", 0.0)
    spare = SpareProcess()
    spare.prepare()
    started[-1].wait(10)
    spare.prepare()
    spare.prepare()
    assert len(started) == 3
    spare.close()


def test_a_study_is_converted_if_the_spare_process_ends_with_its_job(study: Path, tmp_path: Path) -> None:
    class Ending(SpareProcess):
        def take(self) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    assert volumes(study, tmp_path / "1", Ending())


def test_a_spare_process_ends_with_its_service() -> None:
    process = waiting(SpareProcess())
    assert process.stdin is not None
    process.stdin.close()  # as the kernel does when the service is killed
    assert process.wait(60) != 0
    assert process.stdout is not None
    process.stdout.close()


def test_a_spare_process_keeps_the_limit_of_time(study: Path, tmp_path: Path) -> None:
    spare = SpareProcess()
    process = waiting(spare)
    with pytest.raises(InvalidDicom, match="could not be converted within"):
        convert_isolated(study, tmp_path, spare=spare, timeout_s=0.01)
    assert process.returncode is not None
