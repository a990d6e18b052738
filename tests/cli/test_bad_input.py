"""Every command answers bad input and bad settings with a few lines and a status, and never with a traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main

from app.cli.__main__ import TRAINING_COMMANDS, app, main
from tests.evaluation.test_trial_protocol import EXAMPLE
from tests.registry.publish import publish

ROOT = Path(__file__).resolve().parents[2]
NOWHERE = "http://127.0.0.1:9"
MOST_LINES = 12

ARGUMENTS: dict[str, list[str]] = {
    "serve": ["--port many", "--port 70000", "--host not-an-address", "--nonsense", "extra"],
    "worker": ["--nonsense", "extra"],
    "predict": [
        "--cta gone.nii",
        "--cta . --clinical text",
        f"--cta text --url {NOWHERE}",
        f"--cta text --clinical text --url {NOWHERE}",
        f"--cta text --clinical binary --url {NOWHERE}",
        "--cta text --url nonsense",
        "--cta text --url http://",
        "--cta text --url ftp://host/x",
        "--ctp-interval-s 0 --ctp text",
        f"--ctp-interval-s nan --ctp text --url {NOWHERE}",
        "--wait soon --cta text",
    ],
    "predict-cohort": ["gone.csv", "text", "binary", f"binary.csv --url {NOWHERE}", f"header.csv --url {NOWHERE}"],
    "demo": ["--study gone.nii", "--study .", "extra"],
    "table check": ["gone.csv", ".", "text", "binary.csv", "header.csv --target none", "header.csv --columns gone"],
    "models list": ["extra"],
    "models show": ["unknown", "UNKNOWN", "", "tiny@9.9.9", "tiny@champion", "../tiny", "tiny@" + "9" * 300 + ".0.0"],
    "models card": ["unknown", "tiny"],
    "models verify": ["unknown", "damaged"],
    "models add": ["gone", "text", ".", "store/tiny/1.0.0", "linked", "unusable"],
    "models promote": ["unknown", "unreadable", "damaged", "tiny", "tiny@1.0.0 --alias ../x", "tiny@1.0.0 --alias X"],
    "models rollback": ["unknown", "tiny", "tiny --alias ../x", ""],
    "models history": ["unknown", "../x"],
    "models shadow": ["unknown", "../x"],
    "models keygen": ["text", "gone/key", "text/key"],
    "models sign": ["tiny --key gone", "tiny --key .", "tiny --key text", "tiny --key binary", "unknown --key text"],
    "models export": ["tiny --format nonsense", "unknown", "tiny", "tiny --to text", "tiny --to text/x"],
    "keys create": ["", "x" * 65, "a --scope nonsense", "a --expires tomorrow", "a --per-minute 0", "a --max-body -1"],
    "keys list": ["extra"],
    "keys revoke": ["unknown", "", "x" * 1000],
    "subjects export": ["unknown", "S --to text", "S --to gone/x.zip", "S --to text/x.zip", "S --to ."],
    "subjects erase": ["unknown --yes", "S --tenant " + "x" * 1000 + " --yes", " --yes"],
    "subjects certificate": ["unknown", "x" * 1000],
    "erasures replay": ["--from gone", "--from text", "extra"],
    "webhooks add": ["nonsense --tenant a", f"{NOWHERE} --tenant a", "https://a.example --tenant " + "x" * 65],
    "webhooks list": ["extra"],
    "webhooks remove": ["unknown"],
    "webhooks test": ["unknown"],
    "db upgrade": ["extra"],
    "audit verify": ["extra"],
    "outcomes import": ["gone.csv", "binary", "binary.csv", "header.csv", f"good.csv --url {NOWHERE}"],
    "monitor": ["unknown", "tiny@9.9.9", "--window year", "--since yesterday", "tiny", "tiny --out text"],
    "compare": ["unknown tiny", "tiny tiny", "tiny", "tiny tiny@9.9.9", "tiny tiny --since 1/2/2024"],
    "replay": ["unknown", "x" * 1000],
    "fsck": ["extra", "--nonsense"],
    "settings": ["extra"],
    "openapi": ["text/x.json", ".", "gone/x.json --check", "binary --check"],
    "synthesize": ["text", "text/x --patients 1", "new --patients none"],
    "train": ["gone.csv", "binary.csv", "header.csv", "text"],
    "train-segmenter": [".", "x --steps none", "text/v/1.0.0 --steps 1"],
    "evaluate": ["gone header.csv", "text header.csv", "store/tiny/1.0.0 binary.csv"],
    "validate": [
        "gone.csv",
        "text",
        "binary.csv",
        "header.csv",
        "good.csv --probability none",
        "good.csv --out text",
        "good.csv --drop-unknown",
        "unknown header.csv",
        "tiny header.csv --threshold 0.2",
        "tiny header.csv --subgroup sex",
        "tiny binary.csv",
        "../tiny header.csv",
        "good.csv --export-aggregate new.json",
        "good.csv --export-aggregate new.json --as-site a/b --predictor p",
        "good.csv --export-aggregate text --as-site a --predictor p",
        "good.csv --site-file new.npz",
        "good.csv --as-site a",
        "tiny header.csv --predictor p --site-file new.npz",
        "tiny --from-outcomes",
        "unknown --from-outcomes",
        "tiny header.csv --from-outcomes",
        "tiny --from-outcomes --since yesterday",
        "tiny --from-outcomes --site-file new.npz --predictor p",
    ],
    "recalibrate": [
        "unknown --cohort header.csv --name a --version 1.0.0",
        "tiny --cohort gone.csv --name a --version 1.0.0",
        "tiny --cohort header.csv --name A --version 1.0.0",
        "tiny --cohort header.csv --name a --version 1",
        "tiny --cohort header.csv --name tiny --version 1.0.0",
        "damaged --cohort header.csv --name a --version 1.0.0",
    ],
    "trial key": ["text", "gone/key", "text/key", ""],
    "trial create": ["gone", "text", "binary", "header.csv", "protocol.toml", "protocol.toml --check", "."],
    "trial status": ["unknown", "x" * 1000, "unknown extra"],
    "trial stop": ["unknown", "unknown --reason x", "unknown --reason " + "x" * 501],
    "trial report": [
        "unknown",
        "unknown --key gone",
        "unknown --key .",
        "unknown --key text --key text",
        "unknown --key binary",
        "unknown --key text --rounds 1",
    ],
    "plan": ["--prevalence 0.2", "--prevalence 2 --auc 0.7", "--prevalence 0.2 --auc 0.7 --mean 1", "extra"],
    "pool": [
        "gone.json",
        "text",
        "binary",
        "header.csv",
        ".",
        "list.json",
        "empty.json",
        "signed.json",
        "empty.json --trust nonsense",
        "text --out text",
    ],
    "federate start": [
        "new",
        "new --site a",
        "new --site a --site b",
        "new --site a --predictor p",
        "new --site a --site A --predictor p",
        "new --site a/b --site c --predictor p",
        "new --site a --site b --predictor p --quorum 3",
        "new --site a --site b --predictor p --kind heads",
        "new --site a --site b --predictor p --kind none",
        "new --site a --site b --predictor p --version tiny",
        "new --site a --site b --version unknown",
        "new --site a --site b --predictor p --rounds 0",
        "text --site a --site b --predictor p",
        "text/x --site a --site b --predictor p",
        "new2 --site a --site b --predictor p --key text",
    ],
    "federate answer": [
        "gone text --site a",
        ". text --site a",
        "text text --site a",
        "empty.json text --site a",
        "binary binary --site a",
        "round.json gone.npz --site a",
        "round.json text --site a",
        "round.json binary --site a",
        "round.json empty.npz --site a",
        "round.json text --site a --follow 1",
        "round.json text --site a --trust nonsense",
    ],
    "federate combine": ["gone", "text", ".", "binary --wait soon"],
    "federate apply": [
        "gone tiny --name a --version 1.0.0",
        "text unknown --name a --version 1.0.0",
        "text tiny --name A --version 1.0.0",
        "text tiny --name a --version 1",
        "empty.json tiny --name a --version 1.0.0",
        "round.json tiny --name a --version 1.0.0",
    ],
    "dicom listen": ["--port many", "--port 70000", "extra"],
    "dicom export": ["unknown", "x" + "x" * 999, "unknown --to text/x.zip"],
    "dicom resend": ["unknown"],
    "dicom pull": ["", "--study 1.2.3", "--study text", "--accession A1", "--accession A1 --study 1.2", "extra"],
    "dicom destinations add": [
        "nonsense --tenant a --name pacs",
        "host:99999 --tenant a --name pacs",
        f"{NOWHERE}/studies --tenant a --name pacs --credentials gone",
        "",
    ],
    "dicom destinations list": ["extra"],
    "dicom destinations remove": ["unknown"],
    "dicom destinations test": ["unknown"],
    "studies list": [f"--url {NOWHERE}", "--url nonsense", "extra"],
    "studies show": [f"1.2.3 --url {NOWHERE}", "1.2.3 --url nonsense"],
    "studies complete": [f"1.2.3 --url {NOWHERE}"],
    "studies roles": [f"1.2.3 1.2=cta --url {NOWHERE}", f"1.2.3 nonsense --url {NOWHERE}"],
    "studies clinical": [f"1.2.3 text --url {NOWHERE}", f"1.2.3 gone --url {NOWHERE}", f"1.2.3 binary --url {NOWHERE}"],
    "studies clinical-by-accession": [f"A1 text --url {NOWHERE}", f"A1 gone --url {NOWHERE}"],
    "studies withdraw-clinical": [f"A1 --url {NOWHERE}"],
    "studies cancel": [f"1.2.3 --url {NOWHERE}"],
    "studies erase": [f"1.2.3 --url {NOWHERE}"],
    "import": ["isles24 gone t.csv", "nonsense . t.csv", "isles24 text t.csv"],
}
"""Bad arguments of each command; the files are those of the fixture ``folder``."""

SETTINGS = {
    "a data folder inside a file": {"RLVO_DATA_DIR": "text/data"},
    "a data folder that is a file": {"RLVO_DATA_DIR": "text"},
    "a data folder that cannot be created": {"RLVO_DATA_DIR": "/proc/rlvo"},
    "a database URL that is no URL": {"RLVO_DATABASE_URL": "nonsense"},
    "a database of another kind": {"RLVO_DATABASE_URL": "mysql://host/rlvo"},
    "a database that does not answer": {"RLVO_DATABASE_URL": "postgresql://127.0.0.1:9/rlvo"},
    "a file that is no database": {"RLVO_DATABASE_URL": "sqlite:///text"},
    "a folder as database": {"RLVO_DATABASE_URL": "sqlite:///store"},
    "a database in a missing folder": {"RLVO_DATABASE_URL": "sqlite:////proc/gone/rlvo.sqlite"},
    "a storage inside a file": {"RLVO_STORAGE_URL": "text/blobs"},
    "a bucket without a name": {"RLVO_STORAGE_URL": "s3://"},
    "a wrong S3 endpoint": {"RLVO_STORAGE_URL": "s3://a/b", "RLVO_S3_ENDPOINT": "not a url"},
    "a storage of another kind": {"RLVO_STORAGE_URL": "https://objects.clinic.example/rlvo"},
    "a bucket with one slash": {"RLVO_STORAGE_URL": "s3:/rlvo/blobs"},
    "a ledger of another kind": {"RLVO_ERASURE_LEDGER": "gs://rlvo/ledger"},
    "an endless retention": {"RLVO_RETENTION_DAYS": "inf"},
    "a retention before the first year": {"RLVO_RETENTION_DAYS": "1e7"},
    "an origin without its scheme": {"RLVO_CDS_ORIGINS": "records.clinic.example"},
    "a login without its provider": {"RLVO_OIDC_CLIENT_ID": "rlvo-page"},
    "a heartbeat as long as the lease": {"RLVO_HEARTBEAT": "15"},
    "a ledger inside a file": {"RLVO_ERASURE_LEDGER": "text/ledger"},
    "a model store that is a file": {"RLVO_MODEL_STORE": "text"},
    "trusted keys that are no keys": {"RLVO_TRUSTED_KEYS": "nonsense"},
    "a port that is no number": {"RLVO_PORT": "many"},
    "an unknown device": {"RLVO_DEVICE": "tpu"},
    "DICOM hosts that are no hosts": {"RLVO_DICOM_HOSTS": "http://a_b/c/d"},
    "a return key that is no key": {"RLVO_DICOM_RETURN_KEY": "c2VjcmV0"},
    "webhook hosts that are no hosts": {"RLVO_WEBHOOK_HOSTS": "http://a_b/c/d"},
}
SERVES_WITH_FAULT = (
    "a model store that is a file",
    "trusted keys that are no keys",
    "a ledger inside a file",
    "a port that is no number",
)
"""Faults with which `rlvo serve --port 0` runs: `/readyz` and requests name them; the option replaces the port."""
READERS = {
    "db upgrade": "",
    "keys list": "",
    "keys create": "pacs",
    "keys revoke": "3f9a1c04",
    "webhooks list": "",
    "subjects erase": "S-1 --yes",
    "subjects export": "S-1 --to new.zip",
    "subjects certificate": "unknown",
    "audit verify": "",
    "erasures replay": "",
    "fsck": "",
    "models list": "",
    "models show": "tiny@1.0.0",
    "models promote": "tiny@1.0.0",
    "models history": "tiny",
    "monitor": "tiny",
    "compare": "tiny tiny@1.0.0",
    "replay": "unknown",
    "settings": "",
    "dicom pull": "--study 1.2.3",
    "trial status": "",
    "trial stop": "unknown --reason x",
}
"""Commands that read settings, with valid arguments."""


def leaf_commands(group: Any, path: tuple[str, ...] = ()) -> list[str]:
    found = []
    for name, command in group.commands.items():
        below = (*path, name)
        found += leaf_commands(command, below) if hasattr(command, "commands") else [" ".join(below)]
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    (folder / "text").write_text("no table, no volume, no key\n")
    (folder / "binary").write_bytes(bytes(range(256)))
    (folder / "binary.csv").write_bytes(bytes(range(256)))
    (folder / "header.csv").write_text("patient,age,etici\n")
    (folder / "good.csv").write_text("prediction,etici,rescue_treatment\n0192f3a4-7c1e-7b7e-9d0a-3f5a1c2b4d6e,3,0\n")
    (folder / "list.json").write_text("[1, 2]\n")
    (folder / "empty.json").write_text('{"document": {}, "signatures": []}\n')
    (folder / "signed.json").write_text('{"document": {}, "signatures": [{"public_key": "x", "signature": "y"}]}\n')
    plan = {
        "kind": "recalibration",
        "predictor": "p",
        "sites": ["a", "b"],
        "quorum": 2,
        "columns": [1, 2],
        "nonce": "x",
    }
    first = {"plan": plan, "number": 1, "parameters": [[0.0], [0.0, 1.0]]}
    (folder / "round.json").write_text(json.dumps({"document": first, "signatures": []}))
    np.savez(
        folder / "empty.npz", predictor=np.array("p"), digest=np.array(""), labels=np.zeros(3), log_odds=np.zeros(2)
    )
    (folder / "protocol.toml").write_bytes(EXAMPLE.read_bytes())  # without keys
    publish(folder / "store", "1.0.0")  # its weights are no weights
    publish(folder / "store", "1.0.0", name="damaged").joinpath("fold-0.safetensors").unlink()
    publish(folder / "store", "1.0.0", name="unreadable").joinpath("manifest.json").write_text("{}")
    publish(folder, "1.0.0", name="linked").joinpath("card.md").symlink_to("/proc/self/environ")
    (folder / "linked").rename(folder / "parent")
    (folder / "parent" / "1.0.0").rename(folder / "linked")
    publish(folder, "1.0.0", name="other").joinpath("manifest.json").write_text('{"folds": 1e999}')
    (folder / "other" / "1.0.0").rename(folder / "unusable")
    return folder


@pytest.fixture
def folder(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files as the current folder, with a new data folder."""
    target = tmp_path / "here"
    shutil.copytree(files, target, symlinks=True)
    monkeypatch.chdir(target)
    monkeypatch.setenv("RLVO_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("RLVO_MODEL_STORE", str(target / "store"))
    monkeypatch.setenv("RLVO_DEFAULT_MODEL", "tiny")
    monkeypatch.setenv("COLUMNS", "200")
    return target


def run(words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Status and output of a command in this process; another exception than the exit is a traceback."""
    monkeypatch.setattr(sys, "argv", ["rlvo", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    said = capfd.readouterr()
    return int(caught.value.code or 0), said.out + said.err


def check(text: str, context: object) -> None:
    assert "Traceback" not in text, context
    assert "failed unexpectedly" not in text, (context, text)
    assert len(text.splitlines()) <= MOST_LINES, (context, text)
    assert text.strip(), context


def test_every_command_is_tried() -> None:
    assert set(leaf_commands(typer.main.get_command(app))) == set(ARGUMENTS)
    assert set(TRAINING_COMMANDS) <= set(ARGUMENTS)
    assert set(READERS) <= set(ARGUMENTS)


@pytest.mark.parametrize("command", ARGUMENTS)
def test_bad_arguments_give_a_short_message(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for arguments in ARGUMENTS[command]:
        words = [*command.split(), *(arguments.split(" ") if arguments.strip() else arguments.split() or [""])]
        status, text = run(words, monkeypatch, capfd)
        assert status in (1, 2), (words, text)
        check(text, words)


@pytest.mark.parametrize("fault", SETTINGS)
def test_bad_settings_give_a_short_message(
    fault: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in SETTINGS[fault].items():
        monkeypatch.setenv(name, value)
    for command, arguments in READERS.items():
        status, text = run([*command.split(), *arguments.split()], monkeypatch, capfd)
        if status:
            check(text, (fault, command))
        else:  # the command does not use this setting
            assert "Traceback" not in text, (fault, command)


PROCESSES = [
    *(("serve --port 0", fault) for fault in SETTINGS if fault not in SERVES_WITH_FAULT),
    ("worker", "a data folder inside a file"),
    ("worker", "a database of another kind"),
    ("worker", "a bucket without a name"),
    ("worker", "a heartbeat as long as the lease"),
    ("worker", "DICOM hosts that are no hosts"),
    ("worker", "a return key that is no key"),
    ("demo --once", "a data folder inside a file"),
]


@pytest.mark.parametrize(("command", "fault"), PROCESSES)
def test_process_with_bad_settings_ends_with_a_short_message(command: str, fault: str, folder: Path) -> None:
    environment = {**os.environ, **SETTINGS[fault], "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-m", "app.cli", *command.split()],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
    )
    assert result.returncode in (1, 2), result.stderr
    check(result.stdout + result.stderr, (fault, command))


def test_read_only_data_folder_gives_one_line(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,ro", "rlvo-test", str(data)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root and the right to mount a tmpfs")
    try:
        for command in ("serve --port 0", "worker", "keys create pacs", "fsck", "db upgrade", "audit verify"):
            result = subprocess.run(
                [sys.executable, "-m", "app.cli", *command.split()],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=60,
                cwd=folder,
            )
            assert result.returncode in (1, 2), (command, result.stderr)
            check(result.stdout + result.stderr, command)
            assert len(result.stderr.splitlines()) == 1, result.stderr
    finally:
        subprocess.run(["umount", "--lazy", str(data)], check=True)
