"""Tests of one group run in one process, so that their module's fixtures are made once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MODULE = """
import os, pathlib
import pytest
pytestmark = pytest.mark.xdist_group("one")

@pytest.mark.parametrize("number", range(4))
def test_it(number):
    (pathlib.Path(__file__).parent / f"{__name__}-{number}.ran").write_text(os.environ["PYTEST_XDIST_WORKER"])
"""


def test_tests_of_one_group_run_in_one_process(tmp_path: Path) -> None:
    for name in ("test_first", "test_second"):
        (tmp_path / f"{name}.py").write_text(MODULE)
    others = "import pytest\n\n@pytest.mark.parametrize('number', range(8))\ndef test_it(number):\n    pass\n"
    (tmp_path / "test_others.py").write_text(others)
    arguments = ["-q", "-n", "2", "--dist", "loadgroup", "-c", os.devnull, "--rootdir", tmp_path, tmp_path]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, arguments)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    workers = [path.read_text() for path in tmp_path.glob("*.ran")]
    assert len(workers) == 8
    assert len(set(workers)) == 1, workers
