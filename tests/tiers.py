"""Test tiers: every test is marked unit, integration or e2e, by where it stands and by the fixtures that it uses.

- e2e: tests of the whole service (tests/e2e).
- integration: tests that start a database server, an HTTP server, an object store or a worker process.
- unit: all others.
"""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
END_TO_END = ("e2e",)
INTEGRATION = ("api", "cli", "database", "hostile", "sdk", "training", "worker")
"""Folders whose tests start servers or processes, or train."""
NO_UNIT = END_TO_END + INTEGRATION
COMBINED = (
    "test_export",
    "test_model_cache",
    "test_planted_signal",
    "test_preprocess",
    "test_promotion",
    "test_versions",
)
"""Files elsewhere whose tests run several packages together."""
SERVERS = {
    "bucket",
    "database",
    "database_url",
    "empty_database_url",
    "fork_server",
    "own_server",
    "postgresql",
    "s3",
    "service",
}
"""Fixtures that start a server or a process."""


def tier(item: pytest.Item) -> str:
    """Return the tier of one test."""
    folder = item.path.relative_to(HERE).parts[0]
    if folder in END_TO_END:
        return "e2e"
    if folder in INTEGRATION or item.path.stem in COMBINED or SERVERS & set(getattr(item, "fixturenames", ())):
        return "integration"
    return "unit"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the folders without unit tests if only unit tests are selected: to import them takes seconds."""
    only_unit = config.option.markexpr.startswith("unit")
    return True if only_unit and collection_path.parent == HERE and collection_path.name in NO_UNIT else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test with its tier, before tests are selected by marker."""
    for item in items:
        item.add_marker(tier(item))
