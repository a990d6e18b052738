"""Installation of the client alone in an empty environment, with the command of its README."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

SDK = Path(__file__).resolve().parents[2] / "app" / "sdk"

CHECK_INSTALLATION = """
import importlib.util, rlvo
assert rlvo.Client is not None and issubclass(rlvo.InvalidVolume, rlvo.RlvoError)
for name in rlvo.__all__:
    getattr(rlvo, name)
for name in ("torch", "numpy", "fastapi", "sqlalchemy", "app"):
    assert importlib.util.find_spec(name) is None, name
print(rlvo.__version__)
"""


def test_client_installs_alone(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    installed = subprocess.run([python, "-m", "pip", "install", "--quiet", SDK], capture_output=True, text=True)
    if "Failed to establish a new connection" in installed.stderr or "Temporary failure in name" in installed.stderr:
        pytest.skip("no package index is reachable")
    assert installed.returncode == 0, installed.stderr
    checked = subprocess.run([python, "-c", CHECK_INSTALLATION], capture_output=True, text=True, cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    project = tomllib.loads((SDK.parents[1] / "pyproject.toml").read_text())["project"]
    assert checked.stdout.strip() == project["version"]  # client and service are released together
    assert not (SDK / "build").exists()
