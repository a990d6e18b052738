"""The client on its own, in an empty environment, by the command that its README gives."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

SDK = Path(__file__).resolve().parents[2] / "app" / "sdk"

LOOK = """
import importlib.util, rlvo
assert rlvo.Client is not None and issubclass(rlvo.InvalidVolume, rlvo.RlvoError)
for name in rlvo.__all__:
    getattr(rlvo, name)
for name in ("torch", "numpy", "fastapi", "sqlalchemy", "app"):
    assert importlib.util.find_spec(name) is None, name
print(rlvo.__version__)
"""


def test_it_installs_alone(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    installed = subprocess.run([python, "-m", "pip", "install", "--quiet", SDK], capture_output=True, text=True)
    if "Failed to establish a new connection" in installed.stderr or "Temporary failure in name" in installed.stderr:
        pytest.skip("no package index can be reached from here")
    assert installed.returncode == 0, installed.stderr
    looked = subprocess.run([python, "-c", LOOK], capture_output=True, text=True, cwd=tmp_path)
    assert looked.returncode == 0, looked.stderr
    project = tomllib.loads((SDK.parents[1] / "pyproject.toml").read_text())["project"]
    assert looked.stdout.strip() == project["version"]  # client and service are released together
    assert not (SDK / "build").exists()
