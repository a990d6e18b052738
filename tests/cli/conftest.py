"""Fixtures of the command line tests."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.training_runs import write_cohort


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic cohort of the preset ``xor``; a test that changes it makes a copy."""
    return write_cohort(tmp_path_factory.mktemp("cohorts") / "small")


@pytest.fixture(autouse=True)
def process_settings() -> Iterator[None]:
    """Undo what a command that runs in this process sets: logging to its closed output, and the umask."""
    root = logging.getLogger()
    handlers, level, mask = list(root.handlers), root.level, os.umask(0o022)
    os.umask(mask)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    os.umask(mask)
