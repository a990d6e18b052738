"""Prepared tensors: throughput, latency and memory of rlvo and of other model servers, with the same model and tensors.

``python -m bench serve [--model default|demo] [--servers ...]``.

- Each server runs alone. The requests and their order are the same for all.
- Printed at concurrency 1, 4 and 16: requests per second, median and 95th percentile of the latency. Also printed: the
  95th percentile of the liveness check under load, and the peak memory of all processes (proportional set size).
- ``default`` is the default network (96 x 112 x 96, five channels, 16 filters, four folds) with random weights;
  ``demo`` is the trained version.
- A server that is not installed is named and left out (`make bench` installs them).
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.model_stores import STORES, Tensors
from bench.server_process import RLVO, ServerProcess, tensor_request
from bench.servers.catalog import PEERS

Load = dict[int, int]
"""Number of requests by concurrency."""


@dataclass
class Figures:
    """Measurements of one server.

    Attributes:
        probability: The response to every request.
        rates: Requests per second by concurrency.
        seconds: Latency of each request by concurrency.
        liveness: Latency of each liveness check, in seconds.
        memory: Peak memory in bytes.
    """

    probability: float = 0.0
    rates: dict[int, float] = field(default_factory=dict)
    seconds: dict[int, list[float]] = field(default_factory=dict)
    liveness: list[float] = field(default_factory=list)
    memory: int = 0


def measure(name: str, store: Path, scratch: Path, tensors: Tensors, load: Load) -> Figures:
    """Start a server, send the load to it, and stop it."""
    figures, request = Figures(), tensor_request(name, *tensors)
    liveness_path = "/livez" if name in RLVO else PEERS[name].liveness
    server = ServerProcess(name, store, scratch)
    try:
        figures.probability = round(server.first_response(request), 9)
        request.send(server.port)  # warm-up
        with _monitored(figures, server, liveness_path):
            for concurrency, count in load.items():
                start = time.perf_counter()
                with ThreadPoolExecutor(concurrency) as pool:
                    figures.seconds[concurrency] = list(pool.map(lambda _: request.seconds(server.port), range(count)))
                figures.rates[concurrency] = count / (time.perf_counter() - start)
    finally:
        server.stop()
    return figures


@contextmanager
def _monitored(figures: Figures, server: ServerProcess, liveness_path: str) -> Iterator[None]:
    """Measure memory and liveness in two threads while the block runs."""
    finished = threading.Event()

    def watch_memory() -> None:
        while not finished.wait(0.5):
            figures.memory = max(figures.memory, server.memory())

    def check_liveness() -> None:
        while not finished.wait(0.05):
            start = time.perf_counter()
            with suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
                connection.request("GET", liveness_path)
                connection.getresponse().read()
                connection.close()
            figures.liveness.append(time.perf_counter() - start)

    functions: list[Callable[[], None]] = [watch_memory, check_liveness]
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        finished.set()
        for thread in threads:
            thread.join()


def report(results: dict[str, Figures], load: Load) -> None:
    """Print the table and the ratios of rlvo to the peers."""
    columns = [f"{part} at {concurrency}" for concurrency in load for part in ("requests/s", "p50 s", "p95 s")]
    print(f"\n| server | {' | '.join(columns)} | liveness p95 ms | peak memory MB | probability |")
    print("|---" * (len(columns) + 4) + "|")
    for server, figures in results.items():
        cells = []
        for concurrency in load:
            times = sorted(figures.seconds[concurrency])
            cells += [f"{figures.rates[concurrency]:.2f}", f"{statistics.median(times):.2f}", f"{_p95(times):.2f}"]
        print(
            f"| {server} | {' | '.join(cells)} | {1000 * _p95(sorted(figures.liveness)):.1f} "
            f"| {figures.memory / 1e6:.0f} | {figures.probability:.6f} |"
        )
    peers = {name: figures for name, figures in results.items() if name in PEERS}
    for rlvo in (name for name in results if name in RLVO):
        for concurrency in load:
            best = max(peers, key=lambda name: peers[name].rates[concurrency], default=None)
            if best:
                ratio = results[rlvo].rates[concurrency] / peers[best].rates[concurrency]
                print(f"{rlvo} / best peer ({best}), requests/s at concurrency {concurrency}: {ratio:.1f}")
        if "fastapi" in peers:
            print(f"{rlvo} / FastAPI handler, peak memory: {results[rlvo].memory / peers['fastapi'].memory:.2f}")


def _p95(times: list[float]) -> float:
    return times[min(len(times) - 1, int(0.95 * len(times)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(STORES), default="default")
    parser.add_argument("--servers", nargs="*", choices=[*PEERS, *RLVO], default=[*PEERS, *RLVO])
    parser.add_argument("--requests", type=int, nargs=3, default=(4, 8, 24), help="at concurrency 1, 4 and 16")
    arguments = parser.parse_args()
    load = dict(zip((1, 4, 16), arguments.requests, strict=True))
    results: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as folder:
        store, scratch = Path(folder) / "store", Path(folder)
        tensors = STORES[arguments.model](store)
        for server in arguments.servers:
            if server in PEERS and not PEERS[server].installed():
                print(f"{server}: not installed, left out", flush=True)
                continue
            print(f"{server} ...", flush=True)
            try:
                results[server] = measure(server, store, scratch, tensors, load)
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                log = (scratch / f"{server}.log").read_text(errors="replace")
                print(f"{server}: could not be measured ({error}); {log[-1500:]}", flush=True)
                continue
            rates = ", ".join(f"{concurrency}: {rate:.2f}" for concurrency, rate in results[server].rates.items())
            print(f"  requests/s by concurrency: {rates}", flush=True)
    report(results, load)


if __name__ == "__main__":
    main()
