"""The connection to the database: one engine per process, one transaction per `session`.

Notable choices:
- SQLite runs with journal_mode=DELETE and synchronous=FULL. Its WAL can lose committed writes before 3.51.3 when two
  connections write and checkpoint (sqlite.org/wal.html, "the WAL-reset bug"), and this house may run on an older one.
- On SQLite a writing session takes the write lock when it begins (BEGIN IMMEDIATE). What it reads is then still true
  when it writes, as rows read ``with_for_update`` are on PostgreSQL, and two writers queue instead of failing.
- SQLite overwrites what it deletes (secure_delete), so that nothing of an erased patient lies in the file's free pages.
- The job engine shares this engine and these transactions, so a prediction and its job are committed together.
- Migrations belong to the package: `upgrade` finds them wherever it is installed.
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

from app.sdk.errors import DatabaseUnavailable, RlvoError, StorageFull

T = TypeVar("T")

log = logging.getLogger("rlvo.database")

# Beside this file where the package is installed; at the root of a checkout.
_HERE = Path(__file__).parent
_MIGRATIONS = next(folder for folder in (_HERE / "migrations", _HERE.parents[1] / "migrations") if folder.is_dir())
_PRAGMAS = ("busy_timeout=30000", "journal_mode=DELETE", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON")
_MIGRATION_LOCK = 0x726C766F  # "rlvo"; any number does that nobody else uses


class Database:
    """A SQLite file or a PostgreSQL database, by its SQLAlchemy URL. Connects when first used.

    :param idle: seconds after which PostgreSQL ends a transaction whose process stands still in the middle of it: what
        it has locked, all others wait for. SQLite's lock is the process's own, and only its end lets go of it.
    """

    def __init__(self, url: str, *, idle: float = 60.0) -> None:
        self.url = _with_driver(make_url(url))
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

        Raises DatabaseUnavailable where the database cannot be reached, StorageFull where its disk is full.
        """
        with _spoken(), Session(self.engine, expire_on_commit=False) as session, session.begin():
            if self.sqlite:
                session.execute(text("BEGIN IMMEDIATE"))
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """One transaction that only reads, from one snapshot, without the write lock. Errors as `session`."""
        with _spoken(), Session(self.engine, expire_on_commit=False) as session, session.begin():
            session.execute(
                text("BEGIN" if self.sqlite else "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            )
            yield session

    def ping(self) -> None:
        """Raises DatabaseUnavailable unless the database answers and its tables are there."""
        with self.reading() as session:
            session.execute(text("SELECT seq FROM audit_head"))

    def upgrade(self) -> None:
        """Brings the tables to this release's shape. Safe to call from many processes at once."""
        if self._version() == max(path.name for path in (_MIGRATIONS / "versions").glob("0*.py"))[:4]:
            return
        from alembic import command
        from alembic.config import Config

        if self.sqlite and self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        with _spoken(), self.engine.connect() as connection:
            if self.sqlite:
                connection.execute(text("BEGIN IMMEDIATE"))
            else:
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()

    def _version(self) -> str:
        """The number of the last migration that was run; nothing where there is no database yet."""
        try:
            with self.engine.connect() as connection:
                return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar())
        except (sql_errors.OperationalError, sql_errors.ProgrammingError):
            return ""

    def close(self) -> None:
        """Closes every pooled connection."""
        self.engine.dispose()


def now() -> datetime:
    return datetime.now(UTC)


def retry_until_available(action: Callable[[], T]) -> T:
    """Does ``action``, however long the database is away or full; for what nobody waits for and must not be dropped."""
    pause = 0.2
    while True:
        try:
            return action()
        except (DatabaseUnavailable, StorageFull) as error:
            log.warning("the database is %s; trying again in %.1f s", "full" if error.status == 507 else "away", pause)
            time.sleep(pause)
            pause = min(2 * pause, 5.0)


def _with_driver(url: URL) -> URL:
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgres", "postgresql") else url


def _set_up_sqlite(connection: Any, _record: object) -> None:
    # The driver itself begins a transaction before a write; it shall take the lock at once, and so queue for it.
    connection.isolation_level = "IMMEDIATE"
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


@contextmanager
def _spoken() -> Iterator[None]:
    """Turns the loss of the database into the error that callers know."""
    try:
        yield
    except (sql_errors.OperationalError, sql_errors.InterfaceError, sql_errors.TimeoutError) as error:
        raise _translated(error) from error
    except sql_errors.DBAPIError as error:
        if error.connection_invalidated:
            raise _translated(error) from error
        raise


def _translated(error: Exception) -> RlvoError:
    original = getattr(error, "orig", None)
    if "disk is full" in str(original) or getattr(original, "sqlstate", None) == "53100":
        return StorageFull("The database has no room left; free some and send the study again")
    return DatabaseUnavailable(
        "The database cannot be reached just now; the same request may succeed later", retry_after=5
    )
