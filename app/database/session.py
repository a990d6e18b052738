"""Connection to the database: one engine per process, one transaction per `Database.session`.

Design notes:
- SQLite uses journal_mode=DELETE and synchronous=FULL; its WAL can lose committed writes (docs/decisions/0005).
- On SQLite a writing session takes the write lock at its begin (BEGIN IMMEDIATE). What it reads is then valid until its
  writes, like rows read ``with_for_update`` on PostgreSQL, and a second writer waits instead of failing.
- SQLite overwrites deleted data (secure_delete), so the free pages of the file hold no data of an erased patient.
- The job engine shares this engine and its transactions, so a prediction and its job are committed together.
- PostgreSQL waits as long for a lock as SQLite does. TCP notices after some seconds that a server has disappeared.
- After a failover a server may refuse writes. Its connections are then closed, so new ones reach the new primary.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, create_engine, event, make_url, text
from sqlalchemy import exc as sql_errors
from sqlalchemy.orm import Session

from app.sdk.errors import DatabaseUnavailable, InvalidRequest, RlvoError, StorageFull

T = TypeVar("T")

log = logging.getLogger("rlvo.database")

# Next to this file in an installed package; at the root of a checkout.
_HERE = Path(__file__).parent
_MIGRATIONS = next(folder for folder in (_HERE / "migrations", _HERE.parents[1] / "migrations") if folder.is_dir())
_LOCK_MILLISECONDS = 30_000
_PRAGMAS = (
    f"busy_timeout={_LOCK_MILLISECONDS}",
    *("journal_mode=DELETE", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"),
)
# libpq: a peer that does not answer for about 20 s is gone.
_TCP = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
_READ_ONLY = "25006"  # SQLSTATE of a write to a replica
_REFUSES_WRITES = "SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool"
_ABORTED = "25P02"  # SQLSTATE of a statement after one that failed in the same transaction: a fault of the program
_MIGRATION_LOCK = 0x726C766F  # "rlvo" in hexadecimal; any number without another use


class Database:
    """A SQLite file or a PostgreSQL database, by its SQLAlchemy URL; connects at first use.

    PostgreSQL ends the transaction of a suspended process after ``idle`` seconds, because others wait for its locks. On
    SQLite only the end of the process releases the lock.
    """

    def __init__(self, url: str, *, idle: float = 60.0) -> None:
        self.url = _parsed(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        if self.sqlite:
            self.engine = create_engine(self.url)
            event.listen(self.engine, "connect", _set_up_sqlite)
        else:
            options = (
                f"-c idle_in_transaction_session_timeout={round(1000 * idle)} -c lock_timeout={_LOCK_MILLISECONDS}"
            )
            self.engine = create_engine(
                self.url, pool_size=10, max_overflow=10, pool_pre_ping=True, connect_args={**_TCP, "options": options}
            )

    @contextmanager
    def session(self) -> Iterator[Session]:
        """One transaction that may write: committed at the end of the block, rolled back by an exception.

        Raises DatabaseUnavailable, and StorageFull if the disk of the database is full.
        """
        with self.errors(), Session(self.engine, expire_on_commit=False) as session, session.begin():
            if self.sqlite:
                session.execute(text("BEGIN IMMEDIATE"))
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """One read-only transaction with one snapshot and without the write lock. Raises the errors of `session`."""
        with self.errors(writes=False), Session(self.engine, expire_on_commit=False) as session, session.begin():
            session.execute(
                text("BEGIN" if self.sqlite else "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            )
            yield session

    def ping(self) -> None:
        """Checks the connection, the tables, and that the server accepts writes. Raises DatabaseUnavailable."""
        with self.reading() as session:
            session.execute(text("SELECT seq FROM audit_head"))
            refuses_writes = not self.sqlite and session.scalar(text(_REFUSES_WRITES))
        if refuses_writes:
            self.engine.dispose()  # the other connections of the pool lead to the same server
            raise DatabaseUnavailable("The database is read-only. Send the request again later", retry_after=5)

    def upgrade(self) -> None:
        """Migrates the tables to this release. Several processes may call it at the same time."""
        if self._version() == max(path.name for path in (_MIGRATIONS / "versions").glob("0*.py"))[:4]:
            return
        from alembic import command
        from alembic.config import Config

        if self.sqlite and self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        with self.errors(), self.engine.connect() as connection:
            if self.sqlite:
                connection.execute(text("BEGIN IMMEDIATE"))
            else:
                connection.execute(text("SET LOCAL lock_timeout = 0"))  # another process may migrate for minutes
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()

    def _version(self) -> str:
        """Number of the last migration; empty for a new database."""
        try:
            with self.engine.connect() as connection:
                return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar())
        except (sql_errors.OperationalError, sql_errors.ProgrammingError):
            return ""
        except sql_errors.DatabaseError as error:
            raise _translated(error) from error

    @contextmanager
    def errors(self, *, writes: bool = True) -> Iterator[None]:
        """Translates errors of the connection and of the server into RlvoErrors; errors of a statement stay.

        Without ``writes``, the block reads only, so a refused write is an error of its statement.
        """
        try:
            yield
        except sql_errors.SQLAlchemyError as error:
            read_only = _sqlstate(error) == _READ_ONLY
            if not _is_outage(error) or (read_only and not writes):
                raise
            if read_only:
                self.engine.dispose()
            raise _translated(error) from error

    def close(self) -> None:
        """Closes all pooled connections."""
        self.engine.dispose()


def now() -> datetime:
    """The current time in UTC."""
    return datetime.now(UTC)


def retry_until_available(action: Callable[[], T], *, also_full: bool = True) -> T:
    """Repeats ``action`` while the database is unavailable or full; for work that must not be lost.

    Without ``also_full``, StorageFull is raised, because the caller can free space.
    """
    pause = 0.2
    while True:
        try:
            return action()
        except (DatabaseUnavailable, StorageFull) as error:
            full = isinstance(error, StorageFull)
            if full and not also_full:
                raise
            state = "full" if full else "unavailable"
            log.warning("the database is %s; the next try is in %.1f s", state, pause)
            time.sleep(pause)
            pause = min(2 * pause, 5.0)


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise sql_errors.ArgumentError
        parsed.get_dialect()
    except (sql_errors.ArgumentError, ValueError):
        raise InvalidRequest(
            "RLVO_DATABASE_URL must be a URL of SQLite or PostgreSQL, such as sqlite:////data/rlvo.sqlite or "
            "postgresql://user@host/rlvo"
        ) from None
    return parsed


def _set_up_sqlite(connection: Any, _record: object) -> None:
    # The driver begins a transaction before a write. IMMEDIATE takes the lock at once, so a second writer waits.
    connection.isolation_level = "IMMEDIATE"
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def _is_outage(error: sql_errors.SQLAlchemyError) -> bool:
    """Whether an error comes from the connection or the server: it is away, full, locked, read-only or damaged."""
    if isinstance(error, sql_errors.TimeoutError):  # of the connection pool
        return True
    if not isinstance(error, sql_errors.DBAPIError):
        return False
    if error.connection_invalidated or isinstance(error, sql_errors.OperationalError | sql_errors.InterfaceError):
        return True
    if isinstance(error, sql_errors.InternalError):
        return _sqlstate(error) != _ABORTED
    # sqlite3 raises the base class itself for a file that is damaged or is no database.
    return type(error) is sql_errors.DatabaseError


def _sqlstate(error: Exception) -> str | None:
    """SQLSTATE of an error of PostgreSQL, and None on SQLite."""
    return getattr(getattr(error, "orig", None), "sqlstate", None)


def _damaged(error: Exception) -> bool:
    text = str(getattr(error, "orig", ""))
    return "not a database" in text or "malformed" in text


def _translated(error: Exception) -> RlvoError:
    original = getattr(error, "orig", None)
    if _damaged(error):
        return DatabaseUnavailable(
            "The file of the database is damaged or no SQLite database. Restore it from a backup"
        )
    if "readonly" in str(original):
        return DatabaseUnavailable("The database is read-only. Check the permissions and the mount of its folder")
    if "disk is full" in str(original) or _sqlstate(error) == "53100":
        return StorageFull("The disk of the database is full. Free space and send the study again")
    return DatabaseUnavailable("The database cannot be reached. Send the request again later", retry_after=5)
