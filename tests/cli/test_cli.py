"""Commands that need no service: help texts, exit statuses and output."""

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

from app.cli.__main__ import TRAINING_COMMANDS, app, main
from app.cli.serve import ProcessSupervisor
from app.registry.aliases import alias_of_tenant
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
    """Run the command in this process with a temporary data folder; ``env`` adds settings."""

    def run(*arguments: str, **env: str) -> Run:
        with monkeypatch.context() as patch:
            for name, value in {"RLVO_DATA_DIR": str(tmp_path / "data"), "COLUMNS": "200", **env}.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["rlvo", *arguments])
            with pytest.raises(SystemExit) as exit_info:
                main()
        printed = capfd.readouterr()
        return Run(int(exit_info.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def rlvo_process(tmp_path: Path) -> Rlvo:
    """Run the command in a new process, since it sets up signals and logging."""

    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "app.cli", *arguments]
        environment = os.environ | {"RLVO_DATA_DIR": str(tmp_path / "data")} | env
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, timeout=120)

    return run


def leaf_commands(group: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Path of every command that is not a group."""
    paths = []
    for name, command in group.commands.items():
        paths += leaf_commands(command, (*path, name)) if hasattr(command, "commands") else [(*path, name)]
    return paths


@pytest.mark.parametrize("path", leaf_commands(COMMANDS), ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...]) -> None:
    command = COMMANDS
    for name in path:
        command = command.commands[name]
    summary, *rest = command.help.split("\n\n")
    assert summary.endswith(".")
    if path[0] not in TRAINING_COMMANDS:  # their help is loaded with the command, see below
        assert any(f"rlvo {' '.join(path)}" in paragraph for paragraph in rest)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--help"], "train-segmenter"),
        (["serve", "--help"], "--no-worker"),
        (["keys", "create", "--help"], "--per-minute"),
        (["synthesize", "--help"], "--patients"),
        (["train", "--help"], "--validation"),
        (["train-segmenter", "--help"], "--steps"),
        (["train", "--help"], "--target"),
        (["evaluate", "--help"], "--since"),
        (["evaluate", "--help"], "--date-format"),
        (["table", "check", "--help"], "columns.toml"),
        (["import", "--help"], "isles24"),
    ],
)
def test_help_shows_the_options(rlvo: Rlvo, arguments: list[str], text: str) -> None:
    run = rlvo(*arguments)
    assert run.returncode == 0
    assert "Usage: rlvo" in run.stdout.replace("  ", " ")
    assert text in run.stdout


def test_training_commands_are_registered_with_their_summaries() -> None:
    from app.cli.training import commands

    registered = typer.main.get_group(commands).commands
    assert set(TRAINING_COMMANDS) == set(registered)
    for name, summary in TRAINING_COMMANDS.items():
        assert registered[name].help.startswith(summary)
        assert f"\nrlvo {name} " in registered[name].help, "no example"


@pytest.mark.parametrize("option", [["--cohort", "cohort.csv", "--out", "x.csv"], ["--cohort=cohort.csv"]])
def test_predict_cohort_option_names_the_new_command(rlvo: Rlvo, option: list[str]) -> None:
    run = rlvo("predict", *option)
    assert run.returncode == 2
    assert "rlvo predict-cohort TABLE --results FILE" in run.stderr


@pytest.mark.parametrize("option", ["--cta", "--maps", "--json", "--subject", "--wait"])
def test_predict_cohort_refuses_options_of_one_study(rlvo: Rlvo, tmp_path: Path, option: str) -> None:
    (tmp_path / "cohort.csv").write_text("patient\n")
    run = rlvo("predict-cohort", str(tmp_path / "cohort.csv"), option)
    assert run.returncode == 2
    assert f"No such option: {option}" in run.stderr


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["serve", "--port", "x"], ["predict", "--cta", "/not/there.nii"], ["models", "show", "unknown"]],
)
def test_wrong_command_exits_with_2(rlvo: Rlvo, arguments: list[str]) -> None:
    run = rlvo(*arguments)
    assert run.returncode == 2
    assert run.stderr
    assert "Traceback" not in run.stderr


def test_wrong_setting_is_named(rlvo: Rlvo) -> None:
    run = rlvo("db", "upgrade", RLVO_PORT="many")
    assert run.returncode == 2
    assert run.stderr.startswith("RLVO_PORT: ")


def test_failure_exits_with_1(rlvo: Rlvo) -> None:
    run = rlvo("db", "upgrade", RLVO_DATABASE_URL="postgresql://127.0.0.1:9/none")
    assert run.returncode == 1
    assert "database" in run.stderr
    assert "Traceback" not in run.stderr


def test_clinical_file_without_object_is_refused_before_a_service_starts(rlvo: Rlvo, tmp_path: Path) -> None:
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
    created = rlvo("keys", "create", "pacs", "--scope", "read", "--tenant", "clinic", "--expires", "2030-01-01")
    assert created.returncode == 0, created.stderr
    secret = created.stdout.strip()
    assert secret.startswith("rlvo_")
    listed = rlvo("keys", "list").stdout
    assert secret not in listed
    row = re.search(r"([0-9a-f]{8}) +pacs +clinic +read +\S+ +2030-01-01", listed)
    assert row
    assert rlvo("keys", "revoke", row[1]).returncode == 0
    assert rlvo("keys", "revoke", row[1]).returncode == 2
    assert rlvo("keys", "create", "x", "--scope", "everything").returncode == 2


def test_empty_database_and_storage_are_sound(rlvo: Rlvo) -> None:
    assert rlvo("db", "upgrade").returncode == 0
    assert rlvo("fsck", "--deep").returncode == 0
    assert rlvo("fsck").stdout.endswith("no data is lost; with --deep, the content of every file is checked too\n")
    assert rlvo("audit", "verify").stdout.startswith("0 entries, intact")


def test_openapi_description_is_up_to_date(rlvo: Rlvo, tmp_path: Path) -> None:
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


def test_settings_name_their_possible_values(rlvo: Rlvo) -> None:
    lines = {line.split()[0]: line for line in rlvo("settings").stdout.splitlines() if "RLVO_" in line}
    assert "one of `auto`, `cpu`, `cuda`" in lines["RLVO_DEVICE"]
    assert "one of" not in lines["RLVO_DICOM_STORAGE_COMMITMENT"]  # its text names both
    assert "one of" not in lines["RLVO_PORT"]
    assert "rlvo-service[otel]" in lines["RLVO_OTLP_ENDPOINT"]


@pytest.mark.parametrize("password", ["se:cr/e@t", "secret"])
def test_settings_hide_whole_passwords_and_the_return_key(rlvo: Rlvo, password: str) -> None:
    key = "S2V5S2V5S2V5S2V5S2V5S2V5S2V5S2V5S2V5S2V5S2U="
    for url in (f"postgresql://rlvo:{password}@db/rlvo", f"postgresql://db/rlvo?user=rlvo&password={password}"):
        shown = rlvo("settings", RLVO_DATABASE_URL=url, RLVO_DICOM_RETURN_KEY=key).stdout
        assert "postgresql://" in shown
        assert not [part for part in ("se:", "cr/e", "secret", key[:8]) if part in shown]


def test_a_misspelt_setting_is_named_without_its_value(rlvo: Rlvo, rlvo_process: Rlvo) -> None:
    wrong = {"RLVO_RETENTION_DAY": "30.25"}
    remark = "RLVO_RETENTION_DAY is no setting of rlvo and is not used. Is RLVO_RETENTION_DAYS meant?"
    run = rlvo("settings", **wrong)
    assert run.returncode == 0
    assert remark in run.stderr
    served = rlvo_process("serve", "--host", "0.0.0.0", "--port", "0", RLVO_AUTH="off", **wrong)
    assert remark in served.stderr
    assert "30.25" not in run.stderr + served.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("webhooks", "add", "https://pacs.example/rlvo"),
        ("dicom", "destinations", "add", "https://pacs.example/rlvo", "--name", "PACS"),
    ],
)
def test_a_tenant_that_nothing_has_is_remarked(rlvo: Rlvo, command: tuple[str, ...]) -> None:
    given = {
        "RLVO_WEBHOOK_HOSTS": "pacs.example",
        "RLVO_DICOM_HOSTS": "pacs.example",
        "RLVO_DICOM_RETURN_KEY": "S2V5S2V5S2V5S2V5S2V5S2V5S2V5S2V5S2V5S2V5S2U=",
        "RLVO_DICOM_CALLERS": "CT1=scanners",
    }
    assert rlvo("keys", "create", "gateway", "--tenant", "stroke").returncode == 0
    for tenant, known in {"stroke": True, "scanners": True, "local": True, "strok": False}.items():
        run = rlvo(*command, "--tenant", tenant, **given)
        assert run.returncode == 0, run.stderr
        assert (f"No key has the tenant {tenant} yet." in run.stderr) is not known


def test_public_address_without_auth_is_refused(rlvo_process: Rlvo) -> None:
    run = rlvo_process("serve", "--host", "0.0.0.0", "--port", "0", RLVO_AUTH="off")
    assert run.returncode == 2
    assert "RLVO_INSECURE" in run.stderr


def test_used_port_is_a_failure(rlvo_process: Rlvo) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        run = rlvo_process("serve", "--port", str(other.getsockname()[1]))
    assert run.returncode == 1
    assert "in use" in run.stderr


class TestSupervisor:
    """Tests with a child that records its start and runs until its standard input closes."""

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
        """Wait for ``count`` starts; return the process ids."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            started = (folder / "starts").read_text().split() if (folder / "starts").exists() else []
            if len(started) >= count:
                return [int(pid) for pid in started]
            time.sleep(0.02)
        pytest.fail(f"fewer than {count} starts")

    def test_killed_child_is_replaced_and_stopped_child_is_not(self, child: list[str], tmp_path: Path) -> None:
        supervisor = ProcessSupervisor(child)
        supervisor.start()
        os.kill(self.starts(tmp_path, 1)[0], signal.SIGKILL)
        second = self.starts(tmp_path, 2)[1]
        supervisor.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(second, 0)
        time.sleep(1.5)
        assert len(self.starts(tmp_path, 2)) == 2

    def test_child_that_ignores_sigterm_is_killed(self, tmp_path: Path) -> None:
        code = (
            "import signal, pathlib, time\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            f"pathlib.Path({str(tmp_path / 'starts')!r}).write_text('1')\n"
            "time.sleep(60)\n"
        )
        supervisor = ProcessSupervisor([sys.executable, "-c", code])
        supervisor.start()
        self.starts(tmp_path, 1)
        start = time.monotonic()
        supervisor.stop(grace=0.2)
        assert time.monotonic() - start < 10

    def test_child_ends_after_its_supervisor_was_killed(self, child: list[str], tmp_path: Path) -> None:
        code = "import time; from app.cli.serve import ProcessSupervisor\n"
        code += f"ProcessSupervisor({child!r}).start(); time.sleep(60)"
        supervisor = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        self.starts(tmp_path, 1)
        supervisor.kill()
        supervisor.wait()
        end = time.monotonic() + 10
        while not (tmp_path / "drained").exists():
            assert time.monotonic() < end
            time.sleep(0.02)

    def test_stop_before_start_does_nothing(self, child: list[str]) -> None:
        ProcessSupervisor(child).stop()


def test_version_is_added_promoted_and_rolled_back(rlvo: Rlvo, tmp_path: Path) -> None:
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
    of_tenant = rlvo("models", "promote", "tiny@1.0.0", "--tenant", "North", **store)
    assert of_tenant.stdout == f"tiny@{alias_of_tenant('North')}: new -> 1.0.0\n", of_tenant.stderr
    assert rlvo("models", "history", "tiny", **store).stdout.count("operator") == 3  # those of the champion
    assert rlvo("models", "promote", "tiny@1.1.0", "--tenant", "North", **store).returncode == 0
    back = rlvo("models", "rollback", "tiny", "--tenant", "North", **store)
    assert back.stdout == f"tiny@{alias_of_tenant('North')}: 1.1.0 -> 1.0.0\n", back.stderr
    assert rlvo("models", "history", "tiny", "--tenant", "North", **store).stdout.count("operator") == 3
    for command in (("promote", "tiny@1.1.0"), ("rollback", "tiny"), ("history", "tiny")):
        both = rlvo("models", *command, "--tenant", "North", "--alias", "shadow", **store)
        assert both.returncode == 2
        assert "Use --tenant or --alias, not both." in both.stderr
    (elsewhere / "fold-0.safetensors").write_bytes(b"x")
    (tmp_path / "store" / "tiny" / "1.1.0" / "fold-0.safetensors").write_bytes(b"x")
    refused = rlvo("models", "promote", "tiny@1.1.0", **store)
    assert refused.returncode == 1
    assert "missing or differs from its manifest" in refused.stderr
    assert rlvo("audit", "verify").stdout.startswith("10 entries, intact")


def test_only_signed_versions_are_served_with_trusted_keys(rlvo: Rlvo, tmp_path: Path) -> None:
    env = {"RLVO_MODEL_STORE": str(tmp_path / "store")}
    tiny_version(tmp_path / "store")
    key = str(tmp_path / "key")
    public = rlvo("models", "keygen", key).stdout.strip()
    strict = env | {"RLVO_TRUSTED_KEYS": public}
    assert "not signed" in rlvo("models", "show", "tiny@1.0.0", **strict).stderr
    assert public in rlvo("models", "sign", "tiny@1.0.0", "--key", key, **env).stdout
    assert rlvo("models", "verify", "tiny@1.0.0", **strict).stdout == "tiny 1.0.0: intact\n"
    assert rlvo("models", "keygen", key).returncode == 2
