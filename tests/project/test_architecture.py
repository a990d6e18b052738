"""The architecture holds: imports run one way, and each process loads only what it needs."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 420  # lines of one file; a longer file is usually two


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
    assert loaded("from app.core.config import Settings; import app.main", *heavy) == set()


def test_a_worker_has_no_compiler_before_its_first_volume() -> None:
    """LLVM is 50 MB that answers to prepared tensors do not need."""
    assert loaded("import app.worker.process, app.imaging.preprocess", "numba", "llvmlite") == set()


def test_the_command_line_starts_light() -> None:
    heavy = ("torch", "numpy", "fastapi", "sqlalchemy", "dbos", "httpx", "uvicorn", "pydantic")
    assert loaded("import app.cli.__main__", *heavy) == set()


def test_speaking_the_types_loads_no_http_client() -> None:
    assert loaded("from app.sdk import Prediction, InvalidVolume", "httpx", "app.sdk.client") == set()


@pytest.mark.parametrize("init", sorted(path for path in (ROOT / "app").rglob("__init__.py")), ids=str)
def test_a_package_says_what_belongs_in_it(init: Path) -> None:
    """Otherwise a package is empty, so that importing one module loads only that one. The SDK is the exception."""
    body = ast.parse(init.read_text()).body
    assert len(body) == 1 or init.parent.name == "sdk"
    assert isinstance(body[0], ast.Expr)
    assert ast.get_docstring(ast.parse(init.read_text()))


def test_app_has_packages_and_one_module() -> None:
    """At most 18 packages; `main.py` is the only module beside them."""
    app = ROOT / "app"
    assert [path.name for path in app.glob("*.py") if path.name != "__init__.py"] == ["main.py"]
    packages = [path for path in app.iterdir() if path.is_dir() and not path.name.startswith("__")]
    assert len(packages) <= 18


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
