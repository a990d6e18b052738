"""Fixtures for the tests of real worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.database.session import Database
from tests.deployment import Deployment
from tests.factory import tiny_version
from tests.fork_server import ForkServer


@pytest.fixture(scope="session")
def model_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with one tiny version."""
    store = tmp_path_factory.mktemp("models")
    tiny_version(store)
    return store


@pytest.fixture
def deployment(
    tmp_path: Path, database_url: str, database: Database, model_store: Path, fork_server: ForkServer
) -> Iterator[Deployment]:
    """A deployment without processes; the test starts them."""
    with Deployment(tmp_path, database_url, database, model_store, fork_server) as deployment:
        yield deployment
