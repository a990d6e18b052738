"""The version that serves is promoted and rolled back under load: failed requests, and how much slower the slowest get.

``python -m bench.swap [--seconds 10] [--rounds 4] [--concurrency 4]``: prepared tensors of the trained version's own
shape to `rlvo serve`, so many seconds without a swap and so many with one after the other, there and back, in turns, so
that a machine that gets slower is slower for both; requests, failures, p50 and p99 of each.
"""

from __future__ import annotations

import argparse
import json
import secrets
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from app.registry.model_store import ModelStore
from app.sdk import Client
from bench import serve


@dataclass
class Asked:
    """Seconds of each request that was answered, and what failed."""

    seconds: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def add(self, more: Asked) -> None:
        self.seconds += more.seconds
        self.failed += more.failed

    def at(self, share: float) -> float:
        """Milliseconds within which such a share was answered."""
        return 1000 * sorted(self.seconds)[int(share * (len(self.seconds) - 1))]


def load(ask: serve.Ask, port: int, concurrency: int, until: Callable[[], bool]) -> Asked:
    """What so many askers met until it was over."""
    asked = Asked()

    def go_on() -> None:
        while not until():
            try:
                asked.seconds.append(serve.timed(ask, port))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what is counted
                asked.failed.append(str(error)[:200])

    askers = [threading.Thread(target=go_on) for _ in range(concurrency)]
    for value_function in askers:
        value_function.start()
    for value_function in askers:
        value_function.join()
    return asked


def swap(port: int, seconds: float, moves: int, over: threading.Event) -> int:
    """Promotes one version after the other for so long; how many promotions there were in all."""
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                client.registry.promote("bench", "1.0.0" if moves % 2 else "1.1.0")
                moves += 1
    finally:
        over.set()
    return moves


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=10)
    arguments.add_argument("--rounds", type=int, default=4)
    arguments.add_argument("--concurrency", type=int, default=4)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store, scratch, token = Path(folder) / "store", Path(folder), secrets.token_hex(8)
        tensors = serve.demo_store(store)
        second = json.loads((store / "bench/1.0.0/manifest.json").read_text()) | {"version": "1.1.0"}
        (store / "bench/1.1.0").mkdir()
        for file in (store / "bench/1.0.0").iterdir():
            (store / "bench/1.1.0" / file.name).write_bytes(file.read_bytes())
        (store / "bench/1.1.0/manifest.json").write_text(json.dumps(second))
        ModelStore(store).set_alias("bench", "champion", "1.0.0")
        port = serve.free_port()
        ask = serve.question("rlvo", *tensors)
        quiet, swapped, moves = Asked(), Asked(), 0
        process = serve.start("rlvo", port, store, scratch, token)
        try:
            serve.first_answer(process, ask, port)
            for _ in range(given.rounds):
                end = time.monotonic() + given.seconds
                quiet.add(load(ask, port, given.concurrency, lambda end=end: time.monotonic() > end))
                over = threading.Event()
                with ThreadPoolExecutor(1) as mover:
                    moving = mover.submit(swap, port, given.seconds, moves, over)
                    swapped.add(load(ask, port, given.concurrency, over.is_set))
                moves = moving.result()
        finally:
            serve.end(process, token)
    print(f"{moves} swaps\n\n| | requests | failed | p50 ms | p99 ms |\n|---|---|---|---|---|")
    for name, asked in (("undisturbed", quiet), ("while it is swapped", swapped)):
        count = len(asked.seconds) + len(asked.failed)
        print(f"| {name} | {count} | {len(asked.failed)} | {asked.at(0.5):.0f} | {asked.at(0.99):.0f} |")
        if asked.failed:
            print(f"first failure: {asked.failed[0]}")
    print(f"\np99 of the swapped to that of the undisturbed: {swapped.at(0.99) / quiet.at(0.99):.2f}")


if __name__ == "__main__":
    main()
