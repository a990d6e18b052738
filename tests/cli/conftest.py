"""Fixtures of the command line tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.training_runs import write_cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic cohort of the preset ``xor``."""
    return write_cohort(tmp_path_factory.mktemp("cohorts") / "small")
