"""The version that serves is promoted and rolled back under load: failed requests, and how much slower the slowest get.

``python -m bench.swap [--seconds 15] [--concurrency 4]``: prepared tensors of the trained version's own shape to
`rlvo serve`, without a swap and then with one after the other, there and back; requests, failures, p50 and p99 of each.
"""

from __future__ import annotations

import argparse
import json
import secrets
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from app.registry import Registry
from app.sdk import Client
from bench import serve


def load(ask: serve.Ask, port: int, concurrency: int, until: Callable[[], bool]) -> tuple[list[float], list[str]]:
    """Seconds of each request that so many askers made until it is over, and what failed."""
    seconds: list[float] = []
    failed: list[str] = []

    def go_on() -> None:
        while not until():
            try:
                seconds.append(serve.timed(ask, port))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what is counted
                failed.append(str(error)[:200])

    askers = [threading.Thread(target=go_on) for _ in range(concurrency)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    return sorted(seconds), failed


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=15)
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
        Registry(store).set_alias("bench", "champion", "1.0.0")
        port = serve.free_port()
        ask = serve.question("rlvo", *tensors)
        process = serve.start("rlvo", port, store, scratch, token)
        try:
            serve.first_answer(process, ask, port)
            found = {}
            end = time.monotonic() + given.seconds
            found["undisturbed"] = load(ask, port, given.concurrency, lambda: time.monotonic() > end)
            moves = 0
            over = threading.Event()

            def swap() -> None:
                nonlocal moves
                with Client(f"http://127.0.0.1:{port}") as client:
                    end = time.monotonic() + given.seconds
                    while time.monotonic() < end:
                        client.registry.promote("bench", "1.0.0" if moves % 2 else "1.1.0")
                        moves += 1
                over.set()

            mover = threading.Thread(target=swap)
            mover.start()
            found["while it is swapped"] = load(ask, port, given.concurrency, over.is_set)
            mover.join()
        finally:
            serve.end(process, token)
    print(f"{moves} swaps\n\n| | requests | failed | p50 ms | p99 ms |\n|---|---|---|---|---|")
    for name, (seconds, failed) in found.items():
        at = [1000 * seconds[int(share * (len(seconds) - 1))] for share in (0.5, 0.99)]
        print(f"| {name} | {len(seconds) + len(failed)} | {len(failed)} | {at[0]:.0f} | {at[1]:.0f} |")
        if failed:
            print(f"first failure: {failed[0]}")


if __name__ == "__main__":
    main()
