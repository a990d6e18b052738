"""The interface for notebooks is documented, and shares the package ``rlvo`` with the client."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rlvo.evaluation as ev
from tools import python_api_page

ROOT = Path(__file__).resolve().parents[2]
FUNCTIONS = [name for name in ev.__all__ if inspect.isfunction(getattr(ev, name))]


def test_page_shows_the_docstrings() -> None:
    text = python_api_page.PAGE.read_text(encoding="utf-8")
    assert python_api_page.page(text) == text, "run: python tools/python_api_page.py"


def test_every_public_function_is_in_the_page_once() -> None:
    listed = [name for names in python_api_page.GROUPS.values() for name in names]
    assert sorted(listed) == sorted(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_docstring_has_all_arguments_and_errors(name: str) -> None:
    function = getattr(ev, name)
    text = inspect.getdoc(function) or ""
    arguments = text.partition("Args:")[2].partition("Returns:")[0]
    assert re.findall(r"^    (\w+): ", arguments, re.MULTILINE) == list(inspect.signature(function).parameters)
    assert "Raises:" in text


def test_no_file_of_the_client_and_of_the_interface_has_one_name() -> None:
    """Both are installed into one folder ``rlvo``."""
    client = {path.stem for path in (ROOT / "app" / "sdk").glob("*.py")}
    assert [path.name for path in (ROOT / "rlvo").iterdir() if path.name != "__pycache__"] == ["evaluation"]
    assert "evaluation" not in client


def test_client_and_interface_are_importable_together(tmp_path: Path) -> None:
    """The client in one folder, as it is installed, and the interface in another."""
    (tmp_path / "rlvo").symlink_to(ROOT / "app" / "sdk")
    code = "import rlvo, rlvo.evaluation as ev; print(rlvo.Client.__module__, ev.__name__)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin"},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["rlvo.client", "rlvo.evaluation"]
