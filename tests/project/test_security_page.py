"""docs/security.md names a test for each promise: it is there, and runs where the page says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
NAMED = re.findall(r"(\*soak\* )?`(tests/[a-z_/]+\.py)::(test_[a-z0-9_]+)`", PAGE)
PROMISES = [line for line in PAGE.splitlines() if line.startswith("| ") and line.count("|") == 4]


def functions(path: str) -> dict[str, bool]:
    """The tests of a file, each with whether it is a soak."""
    tree = ast.parse((ROOT / path).read_text())
    return {
        node.name: any("soak" in ast.unparse(each) for each in node.decorator_list)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.parametrize(("soak", "path", "name"), NAMED)
def test_each_test_that_is_named_exists_and_runs_as_it_says(soak: str, path: str, name: str) -> None:
    assert (ROOT / path).is_file()
    assert functions(path).get(name) == bool(soak)


def test_each_promise_has_its_test() -> None:
    bodies = [line for line in PROMISES if not re.match(r"\| (promise|who|somebody|a |whoever)", line)]
    assert len(bodies) >= 40
    assert [line for line in bodies if "tests/" not in line] == []
