"""The README's promises: its examples run as they stand there, its table is the settings, its pictures exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .house import PATIENCE, House

pytestmark = pytest.mark.xdist_group("journeys")

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
# Installed alone the client is `rlvo`; here it is the same files under the service's name for them.
AS_INSTALLED = "import sys, app.sdk, app.sdk.client; sys.modules['rlvo'] = app.sdk\n"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(patient: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder: ncct.nii.gz, cta.nii.gz and clinical.json."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("ncct", "cta", "clinical"):
        shutil.copy(patient[name], folder)
    return folder


def test_there_are_examples() -> None:
    assert len(blocks("python")) == 1
    assert len(blocks("sh")) == 2


def test_the_python_example(house: House, folder: Path) -> None:
    code = AS_INSTALLED + blocks("python")[0].replace("http://127.0.0.1:8000", house.url)
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env=house.environment | {"PYTHONPATH": str(ROOT)},
        timeout=PATIENCE,
    )
    assert run.returncode == 0, run.stderr
    assert re.match(r"\d+\.\d%, refractory: (True|False)\n", run.stdout)
    assert "attribution-cta.nii.gz" in run.stdout
    assert (folder / "attribution-cta.nii.gz").is_file()


@pytest.mark.parametrize("number", [0, 1], ids=["curl", "rlvo"])
def test_the_shell_examples(house: House, folder: Path, number: int) -> None:
    script = blocks("sh")[number].replace("http://127.0.0.1:8000", house.url)
    path = f"{Path(sys.executable).parent}:{house.environment['PATH']}"
    run = subprocess.run(
        ["bash", "-euc", script],
        capture_output=True,
        text=True,
        cwd=folder,
        env=house.environment | {"PATH": path, "RLVO_URL": house.url},
        timeout=PATIENCE,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    if number == 0:
        answer: dict[str, Any] = json.loads(run.stdout)
        assert answer["id"]
    else:
        assert "Probability of refractory LVO" in run.stdout


def test_the_table_is_the_settings(house: House) -> None:
    stands = re.search(r"<!-- settings: .* -->\n(.*?)<!-- /settings -->", README, re.DOTALL)
    assert stands
    assert stands[1] == house.rlvo("settings", "--markdown").stdout


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_what_it_points_to_is_there(target: str) -> None:
    assert (ROOT / target).exists()
