"""Commands in another folder than the service: they say at once which folder they used, or what is missing."""

from __future__ import annotations

import shutil
import socket
import sys
import time
from pathlib import Path

import pytest

from app.cli.__main__ import main
from app.core.config import SHIPPED_VERSIONS, Settings
from app.registry import model_store
from app.registry.model_store import ModelStore
from app.sdk.errors import Conflict
from tests.factory import tiny_version

ID = "0192f3a4-7c1e-7b7e-9d0a-3f5a1c2b4d6e"
AT_ONCE = 20.0  # seconds; before, `rlvo predict` waited for two minutes


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with no setting in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("RLVO_MODEL_STORE", "RLVO_DATA_DIR", "RLVO_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def rlvo(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Runs the command in this process; returns its exit status."""
    monkeypatch.setattr(sys, "argv", ["rlvo", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        main()
    return int(exit_info.value.code or 0)


def test_predict_says_at_once_that_no_service_answers(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "cta.nii").write_bytes(b"x")
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    began = time.monotonic()
    assert rlvo(monkeypatch, "predict", "--cta", "cta.nii", "--url", url) == 1
    assert time.monotonic() - began < AT_ONCE
    assert f"No service answers at {url}." in capsys.readouterr().err


def test_predict_without_a_service_says_at_once_which_model_store_is_missing(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "cta.nii").write_bytes(b"x")
    monkeypatch.setenv("RLVO_MODEL_STORE", "wrong")
    began = time.monotonic()
    assert rlvo(monkeypatch, "predict", "--cta", "cta.nii") == 2
    (elsewhere / "wrong").mkdir()
    assert rlvo(monkeypatch, "predict", "--cta", "cta.nii") == 2
    assert time.monotonic() - began < AT_ONCE
    printed = capsys.readouterr().err
    assert f"There is no model store {elsewhere / 'wrong'}" in printed
    assert f"model store {elsewhere / 'wrong'}, set by RLVO_MODEL_STORE" in printed


@pytest.mark.parametrize("command", [["replay", ID], ["monitor"], ["subjects", "export", "S-1", "--to", "s.zip"]])
def test_reading_command_creates_no_database_and_names_the_missing_one(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert rlvo(monkeypatch, *command) == 2
    assert f"There is no database {elsewhere / 'data' / 'rlvo.sqlite'}" in capsys.readouterr().err
    assert not (elsewhere / "data").exists()


def test_replay_of_an_unknown_prediction_names_the_database(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rlvo(monkeypatch, "db", "upgrade") == 0
    assert rlvo(monkeypatch, "replay", ID) == 2
    assert f"database {elsewhere / 'data' / 'rlvo.sqlite'}" in capsys.readouterr().err


def test_unknown_version_is_reported_with_the_model_store(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rlvo(monkeypatch, "models", "show", "unknown") == 2
    assert f"model store {SHIPPED_VERSIONS}" in capsys.readouterr().err


def test_model_store_is_the_working_folder_the_setting_or_the_versions_of_the_software(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Settings().model_store == SHIPPED_VERSIONS
    assert "rlvo-synthetic" in ModelStore(Settings().model_store).names()
    (elsewhere / "model_store").mkdir()
    assert Settings().model_store == Path("model_store")
    monkeypatch.setenv("RLVO_MODEL_STORE", "elsewhere")
    assert Settings().model_store == Path("elsewhere")
    assert Settings(model_store=Path("given")).model_store == Path("given")


def test_versions_of_an_installed_package_are_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An update of the package would replace what was added to it."""
    tiny_version(tmp_path / "shipped")
    shutil.copytree(tmp_path / "shipped", tmp_path / "own")
    monkeypatch.setattr(model_store, "_SHIPPED", tmp_path / "shipped")
    with pytest.raises(Conflict, match="RLVO_MODEL_STORE"):
        ModelStore(tmp_path / "shipped").set_alias("tiny", "challenger", "1.0.0")
    with pytest.raises(Conflict, match="RLVO_MODEL_STORE"):
        ModelStore(tmp_path / "shipped").add(tmp_path / "own" / "tiny" / "1.0.0")
    assert ModelStore(tmp_path / "own").set_alias("tiny", "challenger", "1.0.0").version == "1.0.0"
