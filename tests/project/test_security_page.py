"""docs/security.md and docs/promises.md name an existing test for each promise."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
FAULTS = (ROOT / "docs" / "promises.md").read_text()
NAMED = re.findall(r"(\*soak\* )?`(tests/[a-z0-9_/]+\.py)::(test_[a-z0-9_]+)`", PAGE)
TABLES = re.findall(r"^\| promise \| .* \| test \|\n\|-.*\n((?:\|.*\n?)+)", PAGE, re.MULTILINE)
"""Rows of each table of promises."""


def functions(path: str) -> dict[str, bool]:
    """Return the tests of a file, each with whether it is a soak test."""
    tree = ast.parse((ROOT / path).read_text())
    return {
        node.name: any("soak" in ast.unparse(each) for each in node.decorator_list)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.parametrize(("soak", "path", "name"), NAMED)
def test_named_tests_exist_and_have_the_named_mark(soak: str, path: str, name: str) -> None:
    assert (ROOT / path).is_file()
    assert functions(path).get(name) == bool(soak)


@pytest.mark.parametrize(
    ("path", "name"), sorted(set(re.findall(r"`(tests/[a-z0-9_/]+\.py)::(test_[a-z0-9_]+)`", FAULTS)))
)
def test_tests_of_the_page_of_faults_exist(path: str, name: str) -> None:
    assert name in functions(path)


def test_each_promise_names_a_test() -> None:
    rows = [row for table in TABLES for row in table.splitlines()]
    assert len(rows) >= 40
    assert [row for row in rows if "tests/" not in row] == []
