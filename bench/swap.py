"""Promotion and rollback under load: failed requests, and the change of the latency's 99th percentile.

``python -m bench swap [--seconds 10] [--rounds 4] [--concurrency 4]``. The bench sends prepared tensors of the trained
version to `rlvo serve`. Periods without a promotion and periods with one promotion after the other alternate, so that a
change of the machine's speed affects both. Printed: requests, failures, p50 and p99.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from app.registry.model_store import ModelStore
from app.sdk import Client
from bench.model_stores import demo_store
from bench.server_process import ServerProcess, TensorRequest, tensor_request


@dataclass
class Requests:
    """Latency in seconds of each answered request, and the messages of the failed ones."""

    seconds: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def extend(self, other: Requests) -> None:
        self.seconds += other.seconds
        self.failed += other.failed

    def quantile_ms(self, share: float) -> float:
        return 1000 * sorted(self.seconds)[int(share * (len(self.seconds) - 1))]


def send_until(finished: Callable[[], bool], request: TensorRequest, port: int, concurrency: int) -> Requests:
    """Send requests from several threads until ``finished`` returns true."""
    requests = Requests()

    def send() -> None:
        while not finished():
            try:
                requests.seconds.append(request.seconds(port))
            except Exception as error:  # noqa: BLE001 - every failure counts
                requests.failed.append(str(error)[:200])

    threads = [threading.Thread(target=send) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return requests


def promote_repeatedly(port: int, seconds: float, promotions: int, finished: threading.Event) -> int:
    """Promote the two versions in turn for so many seconds; return the total number of promotions."""
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                client.registry.promote("bench", "1.0.0" if promotions % 2 else "1.1.0")
                promotions += 1
    finally:
        finished.set()
    return promotions


def two_versions(store: Path) -> TensorRequest:
    """Fill the store with two equal versions, 1.0.0 as champion and 1.1.0; return a request for them."""
    tensors = demo_store(store)
    manifest = json.loads((store / "bench/1.0.0/manifest.json").read_text()) | {"version": "1.1.0"}
    (store / "bench/1.1.0").mkdir()
    for file in (store / "bench/1.0.0").iterdir():
        (store / "bench/1.1.0" / file.name).write_bytes(file.read_bytes())
    (store / "bench/1.1.0/manifest.json").write_text(json.dumps(manifest))
    ModelStore(store).set_alias("bench", "champion", "1.0.0")
    return tensor_request("rlvo", *tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--concurrency", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store, scratch = Path(folder) / "store", Path(folder)
        request = two_versions(store)
        without, with_promotions, promotions = Requests(), Requests(), 0
        server = ServerProcess("rlvo", store, scratch)
        try:
            server.first_response(request)
            for _ in range(arguments.rounds):
                end = time.monotonic() + arguments.seconds
                without.extend(
                    send_until(lambda end=end: time.monotonic() > end, request, server.port, arguments.concurrency)
                )
                finished = threading.Event()
                with ThreadPoolExecutor(1) as pool:
                    promoting = pool.submit(promote_repeatedly, server.port, arguments.seconds, promotions, finished)
                    with_promotions.extend(send_until(finished.is_set, request, server.port, arguments.concurrency))
                promotions = promoting.result()
        finally:
            server.stop()
    print(f"{promotions} promotions\n\n| | requests | failed | p50 ms | p99 ms |\n|---|---|---|---|---|")
    for name, requests in (("without promotions", without), ("with promotions", with_promotions)):
        count = len(requests.seconds) + len(requests.failed)
        p50, p99 = requests.quantile_ms(0.5), requests.quantile_ms(0.99)
        print(f"| {name} | {count} | {len(requests.failed)} | {p50:.0f} | {p99:.0f} |")
        if requests.failed:
            print(f"first failure: {requests.failed[0]}")
    print(f"\np99 with promotions / p99 without: {with_promotions.quantile_ms(0.99) / without.quantile_ms(0.99):.2f}")


if __name__ == "__main__":
    main()
