"""Clients that tools generate from the OpenAPI document, by the commands of examples/generated/README.md."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .service_process import TIMEOUT_S, RunningService

pytestmark = pytest.mark.xdist_group("e2e")

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "generated"
BIN = ROOT / ".venv" / "bin"
COMMANDS = re.findall(r"^```sh\n(.*?)^```$", (EXAMPLE / "README.md").read_text(), re.DOTALL | re.MULTILINE)
PRINTED = r"^[0-9a-f-]{36} succeeded (.*)\nFHIR: 5 resources\ncard: .*Research use only\.\n"


@pytest.fixture(scope="module")
def key(service: RunningService) -> str:
    return service.rlvo("keys", "create", "generated").stdout.strip()


def printed(commands: str, folder: Path, service: RunningService, key: str, cta: Path) -> str:
    """Run the commands in a copy of the example, and return what they print; skip if no package can be had."""
    copy = folder / "examples" / "generated"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("node_modules", "schema.d.ts", "*.js", "rlvo_client"))
    (folder / "openapi").symlink_to(ROOT / "openapi")
    script = commands.replace("http://127.0.0.1:8000", service.url).replace("rlvo_the_key_that_was_printed", key)
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace(" cta.nii.gz", f" {cta}")],
        capture_output=True,
        text=True,
        cwd=copy,
        env=os.environ | {"PATH": path, "NPM_CONFIG_UPDATE_NOTIFIER": "false", "NPM_CONFIG_AUDIT": "false"},
        timeout=5 * TIMEOUT_S,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "WARNING" not in run.stdout + run.stderr  # the generator understands every call
    return run.stdout


@pytest.mark.timeout(1000)  # downloads both generators
def test_generated_clients_get_the_same_answer(
    service: RunningService, key: str, patient: dict[str, Path], tmp_path: Path
) -> None:
    """Both send the same study, each with its own Idempotency-Key, because the forms differ in their optional parts."""
    for name in ("uvx", "npm"):
        if shutil.which(name, path=os.pathsep.join([str(BIN), os.environ["PATH"]])) is None:
            pytest.skip(f"needs {name}")
    summaries: list[str] = []
    for commands in COMMANDS:
        folder = tmp_path / str(len(summaries))
        folder.mkdir()
        found = re.search(PRINTED, printed(commands, folder, service, key, patient["cta"]), re.MULTILINE)
        assert found is not None
        summaries.append(found[1])
    assert summaries == summaries[:1] * 2
