"""The command line without a service: help that teaches, exit statuses, and what each command prints."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main

from app.cli.__main__ import app, main
from app.cli.serve import Supervisor
from tests.factory import tiny_version

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = typer.main.get_command(app)
Rlvo = Any


@dataclass
class Run:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def rlvo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Rlvo:
    """Runs the command with a data folder of its own; ``env`` adds settings."""

    def run(*arguments: str, **env: str) -> Run:
        with monkeypatch.context() as here:
            for name, value in {"RLVO_DATA_DIR": str(tmp_path / "data"), "COLUMNS": "200", **env}.items():
                here.setenv(name, value)
            here.setattr(sys, "argv", ["rlvo", *arguments])
            with pytest.raises(SystemExit) as ended:
                main()
        printed = capfd.readouterr()
        return Run(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def rlvo_process(tmp_path: Path) -> Rlvo:
    """The same in a process of its own, for what sets up signals and logging."""

    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "app.cli.__main__", *arguments]
        environment = os.environ | {"RLVO_DATA_DIR": str(tmp_path / "data")} | env
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, timeout=120)

    return run


def everything(group: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        found += everything(command, (*path, name)) if hasattr(command, "commands") else [(*path, name)]
    return found


@pytest.mark.parametrize("path", everything(COMMANDS), ids=" ".join)
def test_every_command_says_what_it_does_and_shows_an_example(path: tuple[str, ...]) -> None:
    command = COMMANDS
    for name in path:
        command = command.commands[name]
    first, *rest = command.help.split("\n\n")
    assert first.endswith((".", "Research use only."))
    if path[0] not in ("synthesize", "train", "evaluate", "import"):  # these have their help in their own room
        assert any(f"rlvo {' '.join(path)}" in paragraph for paragraph in rest)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["serve", "--help"], ["train", "--help"], ["keys", "create", "--help"]]
)
def test_help(rlvo: Rlvo, arguments: list[str]) -> None:
    run = rlvo(*arguments)
    assert run.returncode == 0
    assert "Usage" in run.stdout


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["serve", "--port", "x"], ["predict", "--cta", "/not/there.nii"], ["models", "show", "unknown"]],
)
def test_a_wrong_command_exits_with_2(rlvo: Rlvo, arguments: list[str]) -> None:
    run = rlvo(*arguments)
    assert run.returncode == 2
    assert run.stderr
    assert "Traceback" not in run.stderr


def test_a_wrong_setting_is_named(rlvo: Rlvo) -> None:
    run = rlvo("db", "upgrade", RLVO_PORT="many")
    assert run.returncode == 2
    assert run.stderr.startswith("RLVO_PORT: ")


def test_a_failure_exits_with_1(rlvo: Rlvo) -> None:
    run = rlvo("db", "upgrade", RLVO_DATABASE_URL="postgresql://127.0.0.1:9/none")
    assert run.returncode == 1
    assert "database" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_clinical_file_that_is_no_object_is_refused_before_anything_starts(rlvo: Rlvo, tmp_path: Path) -> None:
    (tmp_path / "clinical.json").write_text("[1]")
    run = rlvo("predict", "--clinical", str(tmp_path / "clinical.json"))
    assert run.returncode == 2
    assert "JSON object" in run.stderr
    assert not (tmp_path / "data").exists()


def test_models(rlvo: Rlvo, tmp_path: Path) -> None:
    folder = tiny_version(tmp_path / "store")
    env = {"RLVO_MODEL_STORE": str(tmp_path / "store")}
    assert re.search(r"tiny +1\.0\.0 +champion +synthetic patients", rlvo("models", "list", **env).stdout)
    shown = rlvo("models", "show", "tiny@champion", **env).stdout
    assert "atrial_fibrillation" in shown
    assert "cta" in shown
    assert rlvo("models", "verify", **env).stdout == "tiny 1.0.0: intact\n"
    with (folder / "fold-0.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    broken = rlvo("models", "verify", **env)
    assert broken.returncode == 1
    assert "fold" in broken.stderr or "file" in broken.stderr


def test_keys(rlvo: Rlvo) -> None:
    made = rlvo("keys", "create", "pacs", "--scope", "read", "--tenant", "clinic", "--expires", "2030-01-01")
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    assert secret.startswith("rlvo_")
    listed = rlvo("keys", "list").stdout
    assert secret not in listed
    row = re.search(r"([0-9a-f]{8}) +pacs +clinic +read +\S+ +2030-01-01", listed)
    assert row
    assert rlvo("keys", "revoke", row[1]).returncode == 0
    assert rlvo("keys", "revoke", row[1]).returncode == 2
    assert rlvo("keys", "create", "x", "--scope", "everything").returncode == 2


def test_an_empty_house_is_sound(rlvo: Rlvo) -> None:
    assert rlvo("db", "upgrade").returncode == 0
    assert rlvo("fsck", "--deep").returncode == 0
    assert rlvo("audit", "verify").stdout.startswith("0 entries, intact")


def test_openapi_is_the_committed_one(rlvo: Rlvo, tmp_path: Path) -> None:
    assert rlvo("openapi", "--check").returncode == 0
    assert rlvo("openapi", str(tmp_path / "api.json")).returncode == 0
    document = json.loads((tmp_path / "api.json").read_text())
    assert document["openapi"].startswith("3.1")
    (tmp_path / "api.json").write_text(json.dumps(document | {"openapi": "3.0.0"}))
    assert rlvo("openapi", str(tmp_path / "api.json"), "--check").returncode == 1


def test_settings_hide_passwords(rlvo: Rlvo) -> None:
    shown = rlvo("settings", RLVO_DATABASE_URL="postgresql://rlvo:secret@db/rlvo").stdout
    assert "postgresql://rlvo:***@db/rlvo" in shown
    assert "secret" not in shown


def test_an_open_door_is_refused(rlvo_process: Rlvo) -> None:
    run = rlvo_process("serve", "--host", "0.0.0.0", "--port", "0", RLVO_AUTH="off")
    assert run.returncode == 2
    assert "RLVO_INSECURE" in run.stderr


def test_a_taken_port_is_a_failure(rlvo_process: Rlvo) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        run = rlvo_process("serve", "--port", str(taken.getsockname()[1]))
    assert run.returncode == 1
    assert "in use" in run.stderr


class TestSupervisor:
    """On a child that notes its start, then waits for what the test does to it."""

    @pytest.fixture
    def child(self, tmp_path: Path) -> list[str]:
        code = (
            "import os, sys, pathlib\n"
            f"with open({str(tmp_path / 'starts')!r}, 'a') as f: f.write(f'{{os.getpid()}}\\n')\n"
            "sys.stdin.buffer.read()\n"
            f"pathlib.Path({str(tmp_path / 'drained')!r}).touch()\n"
        )
        return [sys.executable, "-c", code]

    def starts(self, folder: Path, count: int) -> list[int]:
        """The ids of the first ``count`` children, once there are so many."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            noted = (folder / "starts").read_text().split() if (folder / "starts").exists() else []
            if len(noted) >= count:
                return [int(pid) for pid in noted]
            time.sleep(0.02)
        pytest.fail(f"not {count} starts")

    def test_a_killed_child_is_replaced_and_a_stopped_one_is_not(self, child: list[str], tmp_path: Path) -> None:
        supervisor = Supervisor(child)
        supervisor.start()
        os.kill(self.starts(tmp_path, 1)[0], signal.SIGKILL)
        second = self.starts(tmp_path, 2)[1]
        supervisor.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(second, 0)
        time.sleep(1.5)
        assert len(self.starts(tmp_path, 2)) == 2

    def test_a_child_that_will_not_end_is_killed(self, tmp_path: Path) -> None:
        code = (
            "import signal, pathlib, time\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            f"pathlib.Path({str(tmp_path / 'starts')!r}).write_text('1')\n"
            "time.sleep(60)\n"
        )
        supervisor = Supervisor([sys.executable, "-c", code])
        supervisor.start()
        self.starts(tmp_path, 1)
        begun = time.monotonic()
        supervisor.stop(grace=0.2)
        assert time.monotonic() - begun < 10

    def test_a_child_learns_that_its_supervisor_was_killed(self, child: list[str], tmp_path: Path) -> None:
        code = f"from app.commands.serve import Supervisor; import time; Supervisor({child!r}).start(); time.sleep(60)"
        supervisor = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        self.starts(tmp_path, 1)
        supervisor.kill()
        supervisor.wait()
        end = time.monotonic() + 10
        while not (tmp_path / "drained").exists():
            assert time.monotonic() < end
            time.sleep(0.02)

    def test_stopping_before_the_start_is_nothing(self, child: list[str]) -> None:
        Supervisor(child).stop()


def test_a_version_from_its_folder_to_champion_and_back(rlvo: Rlvo, tmp_path: Path) -> None:
    store = {"RLVO_MODEL_STORE": str(tmp_path / "store")}
    tiny_version(tmp_path / "store")
    elsewhere = tiny_version(tmp_path / "made", version="1.1.0", seed=3)
    added = rlvo("models", "add", str(elsewhere), **store)
    assert added.returncode == 0, added.stderr
    assert rlvo("models", "add", str(elsewhere), **store).returncode == 2
    assert rlvo("models", "card", "tiny@1.1.0", **store).stdout.startswith("# A tiny version")
    promoted = rlvo("models", "promote", "tiny@1.1.0", **store)
    assert promoted.stdout == "tiny@champion: 1.0.0 -> 1.1.0\n", promoted.stderr
    assert rlvo("models", "rollback", "tiny", **store).stdout == "tiny@champion: 1.1.0 -> 1.0.0\n"
    assert rlvo("models", "history", "tiny", **store).stdout.count("operator") == 3
    (elsewhere / "fold-0.safetensors").write_bytes(b"x")
    (tmp_path / "store" / "tiny" / "1.1.0" / "fold-0.safetensors").write_bytes(b"x")
    refused = rlvo("models", "promote", "tiny@1.1.0", **store)
    assert refused.returncode == 1
    assert "missing or is not the one" in refused.stderr
    assert rlvo("audit", "verify").stdout.startswith("4 entries, intact")


def test_only_signed_versions_serve_where_keys_are_trusted(rlvo: Rlvo, tmp_path: Path) -> None:
    env = {"RLVO_MODEL_STORE": str(tmp_path / "store")}
    tiny_version(tmp_path / "store")
    key = str(tmp_path / "key")
    public = rlvo("models", "keygen", key).stdout.strip()
    strict = env | {"RLVO_TRUSTED_KEYS": public}
    assert "not signed" in rlvo("models", "show", "tiny@1.0.0", **strict).stderr
    assert public in rlvo("models", "sign", "tiny@1.0.0", "--key", key, **env).stdout
    assert rlvo("models", "verify", "tiny@1.0.0", **strict).stdout == "tiny 1.0.0: intact\n"
    assert rlvo("models", "keygen", key).returncode == 2
