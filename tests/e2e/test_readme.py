"""The README: its examples run unchanged, its table of settings is current, its links and pictures exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .service_process import TIMEOUT_S, RunningService

pytestmark = pytest.mark.xdist_group("e2e")

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
# The client installed alone is named `rlvo`; in this checkout the same files are `app.sdk`.
AS_INSTALLED = "import sys, app.sdk, app.sdk.client; sys.modules['rlvo'] = app.sdk\n"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(patient: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ncct.nii.gz, cta.nii.gz and clinical.json."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("ncct", "cta", "clinical"):
        shutil.copy(patient[name], folder)
    return folder


def test_readme_has_three_examples() -> None:
    assert len(blocks("python")) == 1
    assert len(blocks("sh")) == 2


def test_python_example_runs(service: RunningService, folder: Path) -> None:
    code = AS_INSTALLED + blocks("python")[0].replace("http://127.0.0.1:8000", service.url)
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env=service.environment | {"PYTHONPATH": str(ROOT)},
        timeout=TIMEOUT_S,
    )
    assert run.returncode == 0, run.stderr
    assert re.match(r"\d+\.\d%: (refractory|not-refractory|undetermined)\n", run.stdout)
    assert "attribution-cta.nii.gz" in run.stdout
    assert (folder / "attribution-cta.nii.gz").is_file()


@pytest.mark.parametrize("number", [0, 1], ids=["curl", "rlvo"])
def test_shell_example_runs(service: RunningService, folder: Path, number: int) -> None:
    script = blocks("sh")[number].replace("http://127.0.0.1:8000", service.url)
    path = f"{Path(sys.executable).parent}:{service.environment['PATH']}"
    run = subprocess.run(
        ["bash", "-euc", script],
        capture_output=True,
        text=True,
        cwd=folder,
        env=service.environment | {"PATH": path, "RLVO_URL": service.url},
        timeout=TIMEOUT_S,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    if number == 0:
        answer: dict[str, Any] = json.loads(run.stdout)
        assert answer["id"]
    else:
        assert "Probability of refractory LVO" in run.stdout


def test_settings_table_is_current(service: RunningService) -> None:
    table = re.search(r"<!-- settings: .* -->\n(.*?)<!-- /settings -->", README, re.DOTALL)
    assert table
    assert table[1] == service.rlvo("settings", "--markdown").stdout


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_linked_file_exists(target: str) -> None:
    assert (ROOT / target).exists()
