"""The start of the service: seconds until it is ready, and its first study against later ones.

``python -m bench start [--starts 5] [--studies 5] [--model demo|default]``. Each start has a new data folder. Printed
for each start: seconds from the command to a ready health check, the first explained study, the median of the next
ones, and first over median. Aims: ready within 4 s from a warm disk, the first study at most 1.3 times the median.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from app.phantoms.cohort import write_patient
from app.sdk import Client
from bench.model_stores import STORES
from bench.server_process import running_service


def seconds_of_a_study(client: Client, study: dict[str, Path]) -> float:
    """Send the NCCT and the CTA of one patient; return the seconds until the recorded answer."""
    clinical = json.loads(study["clinical"].read_text())
    start = time.perf_counter()
    client.predict(ncct=study["ncct"], cta=study["cta"], clinical=clinical)
    return time.perf_counter() - start


def main() -> None:
    """Print the table of all starts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--starts", type=int, default=5, help="starts of the service")
    parser.add_argument("--studies", type=int, default=5, help="studies after the first one of each start")
    parser.add_argument("--model", choices=STORES, default="demo")
    arguments = parser.parse_args()
    print("| start | ready, s | first study, s | median of the next, s | first over median |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        store = scratch / "store"
        STORES[arguments.model](store)
        study = write_patient(scratch / "patient", seed=1)
        for number in range(arguments.starts):
            began = time.perf_counter()
            with (
                running_service(store, scratch / str(number), "bench", precision="float32") as service,
                Client(service.url) as client,
            ):
                ready = time.perf_counter() - began
                first, *later = [seconds_of_a_study(client, study) for _ in range(1 + arguments.studies)]
                usual = statistics.median(later)
                print(f"| {number + 1} | {ready:.1f} | {first:.2f} | {usual:.2f} | {first / usual:.2f} |", flush=True)


if __name__ == "__main__":
    main()
