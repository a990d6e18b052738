"""The walks in docs/architecture.md name functions that exist, in files that exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text()
WALKS = dict(re.findall(r"<!-- walk: (.*?) -->\n(.*?)<!-- /walk -->", TEXT, re.DOTALL))
STEPS = [step for walk in WALKS.values() for step in re.findall(r"^\| `([^`]+)`", walk, re.MULTILINE)]


def test_both_walks_are_there() -> None:
    assert list(WALKS) == ["one prediction", "one training run"]
    assert len(STEPS) > 25


@pytest.mark.parametrize("step", STEPS)
def test_each_step_can_be_imported(step: str) -> None:
    file, _, name = step.partition(":")
    assert (ROOT / file).is_file()
    found: object = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    for part in name.split("."):
        found = getattr(found, part)
    assert callable(found)


def test_every_package_is_in_the_table() -> None:
    packages = {path.name for path in (ROOT / "app").iterdir() if path.is_dir() and not path.name.startswith("__")}
    listed = set(re.findall(r"^\| `([a-z_]+)` \|", TEXT, re.MULTILINE))
    assert packages == listed
