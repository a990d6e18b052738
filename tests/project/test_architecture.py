"""Architecture: direction of imports, modules that a process may load, layout of the packages."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 420  # lines of one file


def python(code: str) -> str:
    """Return the output of ``code`` in a new process."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return run.stdout


def loaded(statement: str, *modules: str) -> set[str]:
    """Return which of ``modules`` a new process has loaded after ``statement``."""
    output = python(f"{statement}\nimport sys\nprint('loaded:', *({set(modules)!r} & set(sys.modules)))")
    return set(output.rpartition("loaded:")[2].split())


def test_import_contracts() -> None:
    run = subprocess.run([Path(sys.executable).with_name("lint-imports")], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stdout


def test_the_api_process_never_loads_torch() -> None:
    heavy = ("torch", "nibabel", "scipy", "sklearn", "PIL", "nilearn", "numba", "pandas", "matplotlib")
    assert loaded("from app.core.config import Settings; import app.main", *heavy) == set()


def test_worker_loads_no_compiler_before_its_first_volume_and_never_a_plotting_library() -> None:
    """Answers to prepared tensors need no LLVM; figures are drawn by a process of their own."""
    assert loaded("import app.worker.process, app.imaging.preprocess", "numba", "llvmlite", "matplotlib") == set()


def test_nibabel_does_not_load_the_dicom_libraries_which_can_still_be_loaded() -> None:
    modules = ("app.worker.process", "app.worker.drawing_process", "app.imaging.preprocess", "nibabel")
    assert loaded(f"import {', '.join(modules)}", "nibabel", "pydicom", "gdcm") == {"nibabel"}
    later = "import app.imaging.preprocess, pydicom, nibabel"
    assert loaded(later, "pydicom", "nibabel") == {"pydicom", "nibabel"}
    assert loaded("import pydicom, app.imaging.preprocess", "pydicom", "nibabel") == {"pydicom", "nibabel"}


def test_command_line_loads_no_heavy_module() -> None:
    heavy = (
        "torch",
        "numpy",
        "fastapi",
        "sqlalchemy",
        "dbos",
        "httpx",
        "uvicorn",
        "pydantic",
        "app.cli.training",
        "matplotlib",
    )
    assert loaded("import app.cli.__main__", *heavy) == set()


@pytest.mark.parametrize("arguments", [["--help"], ["predict-cohort", "--help"], ["models", "--help"], ["unknown"]])
def test_help_loads_no_heavy_module(arguments: list[str]) -> None:
    """Typer itself loads pydantic for options."""
    heavy = ("torch", "numpy", "fastapi", "sqlalchemy", "dbos", "httpx", "uvicorn", "app.cli.training")
    run = f"""
import sys
from app.cli.__main__ import main
sys.argv = ["rlvo", *{arguments!r}]
try:
    main()
except SystemExit:
    pass
"""
    assert loaded(run, *heavy) == set()


def test_help_of_training_loads_no_torch() -> None:
    """The options of a training command need the training package, but not its heavy libraries."""
    statement = "from app.cli.training import commands"
    assert loaded(statement, "torch", "sqlalchemy", "fastapi", "dbos") == set()


def test_types_load_no_http_client() -> None:
    assert loaded("from app.sdk import Prediction, InvalidVolume", "httpx", "app.sdk.client") == set()


@pytest.mark.parametrize("init", sorted(path for path in (ROOT / "app").rglob("__init__.py")), ids=str)
def test_package_init_is_only_a_docstring(init: Path) -> None:
    """So the import of one module loads no other one. The SDK is the exception."""
    body = ast.parse(init.read_text()).body
    assert len(body) == 1 or init.parent.name == "sdk"
    assert isinstance(body[0], ast.Expr)
    assert ast.get_docstring(ast.parse(init.read_text()))


def test_app_has_packages_and_one_module() -> None:
    """At most 18 packages, and `main.py` as the only module."""
    app = ROOT / "app"
    assert [path.name for path in app.glob("*.py") if path.name != "__init__.py"] == ["main.py"]
    packages = [path for path in app.iterdir() if path.is_dir() and not path.name.startswith("__")]
    assert len(packages) <= 18


def test_no_file_is_too_long() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in ("app", "rlvo", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > LONGEST
    }
    assert not long


def test_client_and_service_have_one_version() -> None:
    import app.sdk

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert app.sdk.__version__ == project["version"]


def test_client_dependencies_have_the_bounds_of_the_service() -> None:
    service = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    client = set(tomllib.loads((ROOT / "app/sdk/pyproject.toml").read_text())["project"]["dependencies"])
    assert client - {"anyio>=4"} <= service
