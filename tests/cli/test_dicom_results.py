"""`rlvo dicom destinations`: a destination is added with sealed credentials, listed, tested and removed."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli.__main__ import app
from app.sdk.errors import InvalidRequest, PredictionNotFound

URL = "http://127.0.0.1:9/dicom-web/studies"
ADD = ["dicom", "destinations", "add"]


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLVO_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("RLVO_DICOM_RETURN_KEY", base64.b64encode(bytes(32)).decode())
    monkeypatch.setenv("RLVO_DICOM_HOSTS", "http://127.0.0.1:9, 127.0.0.1:9")


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_a_destination_is_added_listed_tested_and_removed(tmp_path: Path) -> None:
    secret = tmp_path / "credentials"
    secret.write_text("user:canary-secret\n")
    status, output = run(*ADD, URL, "--tenant", "pacs", "--name", "PACS", "--credentials", str(secret))
    assert status == 0
    destination_id = output.splitlines()[0]
    assert run(*ADD, "127.0.0.1:9", "--tenant", "pacs", "--name", "Archive", "--called", "ARCHIVE")[0] == 0
    status, output = run("dicom", "destinations", "list")
    assert destination_id in output
    assert "Archive" in output
    files = (tmp_path / "data").rglob("*")
    assert not [each for each in files if each.is_file() and b"canary-secret" in each.read_bytes()]
    assert run("dicom", "destinations", "test", destination_id) == (1, "no answer: unreachable\n")
    assert run("dicom", "destinations", "remove", destination_id) == (0, "removed\n")
    assert run("dicom", "destinations", "remove", destination_id)[0] == 2
    assert run("dicom", "destinations", "test", destination_id)[0] == 2


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["127.0.0.1:9", "--called", "A TITLE THAT IS TOO LONG"], "16 characters"),
        (["127.0.0.1:9"], "--called is required"),
        (["127.0.0.1"], "HOST:PORT"),
    ],
)
def test_a_wrong_address_or_title_is_named(words: list[str], named: str) -> None:
    status, output = run(*ADD, *words, "--tenant", "pacs", "--name", "PACS")
    assert status == 2
    assert named in output


def test_a_study_is_pulled_from_the_named_archive_and_its_failure_named() -> None:
    assert run("dicom", "pull") == (2, "Name the study with --study or --accession.\n")
    with pytest.raises(InvalidRequest, match="No archive"):
        run("dicom", "pull", "--study", "1.2.3")
    assert run(*ADD, URL, "--tenant", "pacs", "--name", "PACS", "--no-results")[0] == 0
    status, output = run("dicom", "pull", "--accession", "CANARY", "--source", "PACS")
    assert (status, output) == (1, "no answer: unreachable\n")


def test_a_host_that_is_not_listed_is_refused() -> None:
    for address in ("https://elsewhere.example/studies", "elsewhere.example:104"):
        with pytest.raises(InvalidRequest, match="RLVO_DICOM_HOSTS"):
            run(*ADD, address, "--tenant", "pacs", "--name", "PACS", "--called", "ARCHIVE")


def test_without_a_key_no_destination_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLVO_DICOM_RETURN_KEY", "")
    status, output = run(*ADD, URL, "--tenant", "pacs", "--name", "PACS")
    assert status == 2
    assert "RLVO_DICOM_RETURN_KEY" in output


def test_an_unknown_prediction_is_neither_exported_nor_sent_again() -> None:
    run("dicom", "destinations", "list")  # creates the database
    for command in ("export", "resend"):
        with pytest.raises(PredictionNotFound):
            run("dicom", command, "0192f3a4-7c1e-7b7e-9d0a-3f5a1c2b4d6e")
