"""Connection to the database: one engine per process, one transaction per `Database.session`.

Design notes:
- SQLite uses journal_mode=DELETE and synchronous=FULL; its WAL can lose committed writes (docs/decisions/0005).
- On SQLite a writing session takes the write lock at its begin (BEGIN IMMEDIATE). What it reads is then valid until its
  writes, like rows read ``with_for_update`` on PostgreSQL, and a second writer waits instead of failing.
- SQLite overwrites deleted data (secure_delete), so the free pages of the file hold no data of an erased patient.
- The job engine shares this engine and its transactions, so a prediction and its job are committed together.
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
_PRAGMAS = ("busy_timeout=30000", "journal_mode=DELETE", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON")
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
            options = f"-c idle_in_transaction_session_timeout={round(1000 * idle)}"
            self.engine = create_engine(
                self.url,
                pool_size=10,
                max_overflow=10,
                pool_pre_ping=True,
                connect_args={"connect_timeout": 5, "options": options},
            )

    @contextmanager
    def session(self) -> Iterator[Session]:
        """One transaction that may write: committed at the end of the block, rolled back by an exception.

        Raises DatabaseUnavailable, and StorageFull if the disk of the database is full.
        """
        with _rlvo_errors(), Session(self.engine, expire_on_commit=False) as session, session.begin():
            if self.sqlite:
                session.execute(text("BEGIN IMMEDIATE"))
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """One read-only transaction with one snapshot and without the write lock. Raises the errors of `session`."""
        with _rlvo_errors(), Session(self.engine, expire_on_commit=False) as session, session.begin():
            session.execute(
                text("BEGIN" if self.sqlite else "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            )
            yield session

    def ping(self) -> None:
        """Checks the connection and the tables. Raises DatabaseUnavailable."""
        with self.reading() as session:
            session.execute(text("SELECT seq FROM audit_head"))

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
        with _rlvo_errors(), self.engine.connect() as connection:
            if self.sqlite:
                connection.execute(text("BEGIN IMMEDIATE"))
            else:
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

    def close(self) -> None:
        """Closes all pooled connections."""
        self.engine.dispose()


def now() -> datetime:
    """The current time in UTC."""
    return datetime.now(UTC)


def retry_until_available(action: Callable[[], T]) -> T:
    """Repeats ``action`` while the database is unavailable or full; for work that must not be lost."""
    pause = 0.2
    while True:
        try:
            return action()
        except (DatabaseUnavailable, StorageFull) as error:
            state = "full" if error.status == 507 else "unavailable"
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


@contextmanager
def _rlvo_errors() -> Iterator[None]:
    """Translates errors of the connection into RlvoErrors."""
    try:
        yield
    except (sql_errors.OperationalError, sql_errors.InterfaceError, sql_errors.TimeoutError) as error:
        raise _translated(error) from error
    except sql_errors.DBAPIError as error:
        if error.connection_invalidated or _damaged(error):
            raise _translated(error) from error
        raise


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
    if "disk is full" in str(original) or getattr(original, "sqlstate", None) == "53100":
        return StorageFull("The disk of the database is full. Free space and send the study again")
    return DatabaseUnavailable("The database cannot be reached. Send the request again later", retry_after=5)
