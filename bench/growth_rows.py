"""Rows of many predictions for `bench.growth`, and their fast insertion into SQLite and PostgreSQL."""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, NamedTuple

from app.database.session import Database

TENANTS = 50
LARGEST_SHARE = 0.4  # of all predictions, of the first tenant
YEARS = 3.0
END = datetime(2026, 11, 28, tzinfo=UTC)  # of the generated rows; fixed, so that each call yields the same ones
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "1.0.0")
ARTIFACTS = ("inputs/cta.nii", "inputs/ncct.nii", "maps/attribution-cta.nii.gz")
DIGEST = "sha256:" + "0" * 64
GENESIS = "0" * 64
COMMIT_ROWS = 20_000


class Table(NamedTuple):
    """Name and columns of a table, in the order of the inserted values."""

    name: str
    columns: tuple[str, ...]


PREDICTIONS = Table(
    "predictions",
    (
        *("id", "caller", "status", "progress", "created", "started", "finished", "erased", "run", "attempts"),
        *("queue_position", "model_name", "model_version", "model_digest", "subject", "study_instance_uid"),
        *("accession_number", "explain", "exact", "accept_warnings", "clinical", "inputs", "probability"),
        *("interval", "folds", "decision", "withheld", "flags", "figures", "timings"),
    ),
)
ATTRIBUTIONS = Table(
    "attributions", ("prediction_id", "base", "total", "clinical", "imaging", "regions", "maps", "method")
)
BLOBS = Table("blobs", ("digest", "bytes"))
ARTIFACT_ROWS = Table("artifacts", ("prediction_id", "name", "digest", "media_type"))
REVIEWS = Table("reviews", ("id", "prediction_id", "reviewer", "verdict", "comment", "created"))
OUTCOMES = Table("outcomes", ("prediction_id", "etici", "rescue_treatment", "refractory", "recorded"))
AUDIT = Table("audit", ("seq", "at", "actor", "action", "target", "detail", "previous", "hash"))


class Generated(NamedTuple):
    """One generated prediction: its number, id, tenant, time, and whether it succeeded and is not erased."""

    number: int
    id: str
    caller: str
    created: datetime
    status: str
    erased: bool

    @property
    def has_result(self) -> bool:
        return self.status == "succeeded" and not self.erased


def generate(count: int, erased: int) -> Iterator[Generated]:
    """Yield ``count`` predictions, oldest first, over `YEARS`; the ``erased`` first ones are erased."""
    draw = random.Random(7)
    start, step = END - timedelta(days=365 * YEARS), timedelta(days=365 * YEARS) / count
    for number in range(count):
        created = start + number * step
        tenant = 0 if draw.random() < LARGEST_SHARE else draw.randrange(1, TENANTS)
        part = draw.random()
        status = "succeeded" if part < 0.97 else "failed" if part < 0.99 else "cancelled"
        value = int(created.timestamp() * 1000) << 80 | draw.getrandbits(80)
        value = value & ~(0xF << 76) | 0x7 << 76
        one = str(uuid.UUID(int=value & ~(0x3 << 62) | 0x2 << 62))
        yield Generated(number, one, f"tenant-{tenant:02d}", created, status, number < erased)


def digests(number: int) -> list[str]:
    """Digests of the blobs of a prediction."""
    return [hashlib.sha256(f"{number}-{name}".encode()).hexdigest() for name in ARTIFACTS]


def prediction_row(one: Generated) -> tuple[Any, ...]:
    """Values of `PREDICTIONS`."""
    number, done = one.number, one.has_result
    clinical = {"age": 45 + number % 50, "nihss": number % 42, "onset_minutes": 30 + number % 600, "sex": "female"}
    inputs = {
        name: {"sha256": digest, "bytes": 23_000_000, "shape": [512, 512, 320], "spacing_mm": [0.45, 0.45, 0.5]}
        for name, digest in zip(("cta", "ncct"), digests(number), strict=False)
    }
    folds = [(number * 7 + fold * 13) % 1000 / 1000 for fold in range(4)]
    flags = [{"code": "synthetic-training", "severity": "info", "detail": "Trained on synthetic patients only"}]
    decision = {"refractory": number % 6 == 0, "threshold": 0.31, "rule": "highest F1 of the folds"}
    timings = {"prepare": 0.63, "predict": 0.012, "explain": 0.4, "record": 0.1}
    kept = not one.erased
    return (
        *(one.id, one.caller, one.status, 1.0, one.created, one.created + timedelta(seconds=1)),
        *(one.created + timedelta(seconds=3), one.created + timedelta(days=365) if one.erased else None, 1, 1, 1),
        *("rlvo-synthetic", VERSIONS[min(3, number % 400)], DIGEST),
        *(f"S-{number // 2:07d}" if kept else None, f"1.2.826.0.1.{number}" if kept else None),
        *(f"A{number:09d}" if kept else None, True, False, False),
        *(_json(clinical if kept else None), _json(inputs if kept else None)),
        *(sum(folds) / 4 if done else None, _json({"low": 0.1, "high": 0.6, "level": 0.9} if done else None)),
        *(_json(folds if done else None), _json(decision if done else None), _json([] if done else None)),
        *(_json(flags if done else None), "ready" if done else None, _json(timings if done else None)),
    )


def attribution_row(one: Generated) -> tuple[Any, ...]:
    """Values of `ATTRIBUTIONS`."""
    clinical = [{"variable": f"variable-{n}", "value": n, "contribution": 0.01 * n} for n in range(12)]
    imaging = [{"modality": name, "contribution": 0.2} for name in ("cta", "ncct")]
    regions = [{"modality": "cta", "region": f"M{n}", "contribution": 0.01} for n in range(6)]
    maps = [name.removeprefix("maps/").removesuffix(".nii.gz") for name in ARTIFACTS[2:]]
    return one.id, -1.2, 0.1, *map(_json, (clinical, imaging, regions, maps)), "exact"


def audit_rows(many: Iterable[Generated]) -> Iterator[tuple[Any, ...]]:
    """Values of `AUDIT`: a valid chain with one entry for each answer and one for each erasure."""
    previous, seq = GENESIS, 0
    for one in many:
        at = (one.created + timedelta(seconds=3)).astimezone(UTC)
        erasure = {"why": "retention", "blobs": digests(one.number), "shared": 0}
        entries: list[tuple[str, dict[str, Any]]] = [(f"prediction.{one.status}", {})]
        entries += [("prediction.erase", erasure)] if one.erased else []
        for action, detail in entries:
            seq += 1
            content = [seq, at.isoformat(), "worker", action, one.id, detail, previous]
            canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            digest = hashlib.sha256(canonical.encode()).hexdigest()
            yield seq, at, "worker", action, one.id, _json(detail), previous, digest
            previous = digest


def fill(database: Database, count: int, erased: int) -> None:
    """Insert ``count`` generated predictions with everything that belongs to them; the database is new."""

    def rows() -> Iterator[Generated]:
        return generate(count, erased)

    def kept() -> Iterator[Generated]:
        return (one for one in rows() if not one.erased)

    tables: list[tuple[Table, Iterator[tuple[Any, ...]]]] = [
        (PREDICTIONS, map(prediction_row, rows())),
        (ATTRIBUTIONS, (attribution_row(one) for one in rows() if one.has_result)),
        (BLOBS, ((digest, 23_000_000) for one in kept() for digest in digests(one.number))),
        (
            ARTIFACT_ROWS,
            (
                (one.id, name, digest, "application/gzip")
                for one in kept()
                for name, digest in zip(ARTIFACTS, digests(one.number), strict=True)
            ),
        ),
        (
            REVIEWS,
            (
                (f"r-{one.number}", one.id, "reader-1", "agree", "", one.created + timedelta(hours=2))
                for one in rows()
                if one.has_result and one.number % 50 == 0
            ),
        ),
        (
            OUTCOMES,
            (
                (one.id, "2b", False, one.number % 120 == 0, one.created + timedelta(days=1))
                for one in rows()
                if one.has_result and one.number % 20 == 0
            ),
        ),
    ]
    insert = _insert_sqlite if database.sqlite else _copy_postgresql
    for table, values in tables:
        insert(database, table, values)
    last: list[tuple[Any, ...]] = []

    def remembered() -> Iterator[tuple[Any, ...]]:
        for row in audit_rows(rows()):
            last[:] = [row]
            yield row

    insert(database, AUDIT, remembered())
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE audit_head SET seq = {last[0][0]}, hash = '{last[0][7]}'")
    if not database.sqlite:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")


def queue_up(database: Database, count: int) -> list[str]:
    """Insert ``count`` waiting predictions, as many of each tenant, and return their ids; they have no job."""
    columns = ("id", "caller", "status", "progress", "created", "run", "attempts", "queue_position", "model_name")
    table = Table("predictions", (*columns, "model_version", "model_digest", "explain", "exact", "accept_warnings"))
    ids = [f"00000000-0000-7000-8000-{number:012d}" for number in range(count)]
    rows = (
        (
            *(one, f"tenant-{number % TENANTS:02d}", "queued", 0.0, END, 0, 0, 1 + number // TENANTS, "rlvo-synthetic"),
            *(VERSIONS[-1], DIGEST, True, False, False),
        )
        for number, one in enumerate(ids)
    )
    (_insert_sqlite if database.sqlite else _copy_postgresql)(database, table, rows)
    return ids


def _insert_sqlite(database: Database, table: Table, values: Iterator[tuple[Any, ...]]) -> None:
    with sqlite3.connect(str(database.url.database)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA cache_size=-1000000")
        places = ", ".join("?" * len(table.columns))
        statement = f"INSERT INTO {table.name} ({_columns(table)}) VALUES ({places})"
        while part := [tuple(map(_sqlite_value, row)) for row in islice(values, COMMIT_ROWS)]:
            connection.executemany(statement, part)
            connection.commit()
    connection.close()


def _copy_postgresql(database: Database, table: Table, values: Iterator[tuple[Any, ...]]) -> None:
    with database.engine.begin() as connection:
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor:
            cursor.execute("SET LOCAL synchronous_commit TO OFF")
            while part := list(islice(values, COMMIT_ROWS)):
                with cursor.copy(f"COPY {table.name} ({_columns(table)}) FROM STDIN") as copy:
                    for row in part:
                        copy.write_row(row)


def _columns(table: Table) -> str:
    return ", ".join(f'"{column}"' for column in table.columns)


def _sqlite_value(value: Any) -> Any:
    return value.strftime("%Y-%m-%d %H:%M:%S.%f") if isinstance(value, datetime) else value


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, separators=(",", ":"))
