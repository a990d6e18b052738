"""Reads beside predictions: latency of 200 reads a second, and what they cost the predictions.

``python -m bench reads [--rate 200] [--seconds 30] [--rounds 4] [--waiting 3]``. One `rlvo serve` with one worker and
SQLite predicts NCCT and CTA of full-size phantoms. As soon as one has its answer, the next is sent, so ``--waiting``
are in progress. Periods with and without reads alternate. The reads have fixed times, and their latency counts from
these, so that a slow answer does not hide the next ones. Printed: predictions a second and their seconds in both kinds
of periods, their ratio, and p50, p95 and p99 of each kind of read.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.phantoms.cohort import write_patient
from app.sdk import Client
from bench.model_stores import DEMO, MODEL_STORE
from bench.server_process import running_service

PHANTOMS, STORED = 3, 7  # phantoms, and predictions of each one that can be read
READERS = 8
KINDS = {
    "the newest 20": "/v1/predictions?limit=20",
    "one prediction": "/v1/predictions/{id}",
    "/readyz": "/readyz",
    "/livez": "/livez",
}


class Readers:
    """Threads that read pages and predictions at fixed times, as a PACS and a dashboard do."""

    def __init__(self, url: str, rate: float, known: list[str]) -> None:
        self.late: dict[str, list[float]] = {name: [] for name in KINDS}
        self.failed = 0
        self._address, self._known = url.removeprefix("http://"), known
        self._pause = READERS / rate
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._read, args=(number,)) for number in range(READERS)]

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _read(self, number: int) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=60)
        due = time.perf_counter() + self._pause * number / READERS
        turn = number
        while not self._stop.wait(max(0.0, due - time.perf_counter())):
            name = list(KINDS)[turn % len(KINDS)]
            connection.request("GET", KINDS[name].format(id=self._known[turn % len(self._known)]))
            response = connection.getresponse()
            response.read()
            self.late[name].append(time.perf_counter() - due)
            self.failed += response.status != http.client.OK
            due += self._pause
            turn += 1
        connection.close()


def predict_for(seconds: float, url: str, patients: list[dict[str, Path]], waiting: int) -> tuple[float, list[float]]:
    """Predict one study after the other, ``waiting`` at once; return the answers a second, and the seconds of each."""
    taken: list[float] = []
    began = time.perf_counter()

    def send(number: int) -> None:
        with Client(url, timeout=600) as client:
            while time.perf_counter() < began + seconds:
                patient = patients[number % len(patients)]
                start = time.perf_counter()
                client.predict(ncct=patient["ncct"], cta=patient["cta"])
                taken.append(time.perf_counter() - start)
                number += waiting

    with ThreadPoolExecutor(waiting) as pool:
        list(pool.map(send, range(waiting)))
    return len(taken) / (time.perf_counter() - began), taken


def quantiles(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    found = (ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.95, 0.99))
    return " | ".join(f"{1000 * each:.0f} ms" for each in found)


def measure(url: str, folder: Path, arguments: argparse.Namespace) -> None:
    patients = [write_patient(folder / str(number), seed=3111, index=number) for number in range(PHANTOMS)]
    with Client(url, timeout=600) as client:
        known = [client.predict(ncct=each["ncct"], cta=each["cta"]).id for each in patients * STORED]
    rates: dict[str, list[float]] = {"alone": [], "beside reads": []}
    taken: dict[str, list[float]] = {"alone": [], "beside reads": []}
    readers = []
    for number in range(2 * arguments.rounds):
        name = list(rates)[number % 2]
        if name == "alone":
            rate, each = predict_for(arguments.seconds, url, patients, arguments.waiting)
        else:
            with Readers(url, arguments.rate, known) as reading:
                rate, each = predict_for(arguments.seconds, url, patients, arguments.waiting)
            readers.append(reading)
        rates[name].append(rate)
        taken[name] += each
        print(f"{number:2} {name:12} {rate:.2f} a second", file=sys.stderr, flush=True)
    for name, values in rates.items():
        print(f"predictions {name}: {statistics.mean(values):.2f} a second, p50 {statistics.median(taken[name]):.2f} s")
    print(f"ratio: {statistics.mean(rates['beside reads']) / statistics.mean(rates['alone']):.2f}\n")
    print("| read | number | p50 | p95 | p99 |\n|---|---|---|---|---|")
    for kind in KINDS:
        values = [value for reading in readers for value in reading.late[kind]]
        print(f"| {kind} | {len(values)} | {quantiles(values)} |")
    print(f"\n{sum(reading.failed for reading in readers)} reads failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=200.0, help="reads a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--waiting", type=int, default=3, help="predictions in progress")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, running_service(MODEL_STORE, Path(name) / "data", DEMO) as service:
        measure(service.url, Path(name), options)


if __name__ == "__main__":
    main()
