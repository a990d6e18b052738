"""The house's plan, held: imports run one way, and each process loads only what it needs."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 420  # lines of one file; beyond that it is two rooms


def python(code: str) -> str:
    """What ``code`` prints in a process of its own."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return run.stdout


def loaded(statement: str, *modules: str) -> set[str]:
    """Which of ``modules`` a fresh process has loaded after ``statement``."""
    return set(python(f"{statement}\nimport sys\nprint(*({set(modules)!r} & set(sys.modules)))").split())


def test_import_contracts() -> None:
    run = subprocess.run([Path(sys.executable).with_name("lint-imports")], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stdout


def test_the_api_process_never_loads_torch() -> None:
    heavy = ("torch", "nibabel", "scipy", "sklearn", "PIL", "nilearn", "numba", "pandas")
    assert loaded("from app.config import Settings; import app.main", *heavy) == set()


def test_a_worker_has_no_compiler_before_its_first_volume() -> None:
    """LLVM is 50 MB that answers to prepared tensors do not need."""
    assert loaded("import app.worker, app.imaging.preprocess", "numba", "llvmlite") == set()


def test_the_command_line_starts_light() -> None:
    heavy = ("torch", "numpy", "fastapi", "sqlalchemy", "dbos", "httpx", "uvicorn", "pydantic")
    assert loaded("import app.cli", *heavy) == set()


def test_speaking_the_types_loads_no_http_client() -> None:
    assert loaded("from app.sdk import Prediction, InvalidVolume", "httpx", "app.sdk.client") == set()


@pytest.mark.parametrize("room", sorted(path.parent.name for path in (ROOT / "app").glob("*/__init__.py")))
def test_rooms_are_entered_by_their_files(room: str) -> None:
    """Packages are empty, so that importing one file loads only that file. The client's public face is no such room."""
    text = (ROOT / "app" / room / "__init__.py").read_text()
    assert not text or room == "sdk"


def test_files_stay_readable() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in ("app", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > LONGEST
    }
    assert not long


def test_client_and_service_are_one_release() -> None:
    import app.sdk

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert app.sdk.__version__ == project["version"]


def test_the_client_needs_what_the_service_tests_it_with() -> None:
    """The client's own bounds on its dependencies are the service's."""
    service = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    client = set(tomllib.loads((ROOT / "app/sdk/pyproject.toml").read_text())["project"]["dependencies"])
    assert client - {"anyio>=4"} <= service
