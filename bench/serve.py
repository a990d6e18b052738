"""Prepared tensors served by rlvo and by its peers: the same model, the same tensors, side by side in one run.

``python -m bench.serve [--model default|demo] [--servers ...]``. Each server has the machine to itself while it is
asked; what it is asked, and in which order, is the same for all. Printed for concurrency 1, 4 and 16: predictions a
second, and the seconds of the median and of the slowest twentieth; beside the load, how long the server's liveness took
(p95); and the memory of all its processes at its peak (proportional set size, so that shared pages count once).

``default`` is the default network (96 x 112 x 96, five channels, 16 filters, four folds) with random weights; ``demo``
is the trained version. A peer that is not installed (`make bench` installs them) is named and left out.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from app.registry.model_store import ModelStore
from bench import serving

ROOT = Path(__file__).resolve().parents[1]
PEERS = ("fastapi", "litserve", "bentoml", "ray")
OURS = ("rlvo", "rlvo-bf16")
BOUNDARY = "bench"


@dataclass
class Figures:
    """What one server reached; ``rates`` and ``seconds`` by concurrency, the latter one per request."""

    answers: set[float] = field(default_factory=set)
    rates: dict[int, float] = field(default_factory=dict)
    seconds: dict[int, list[float]] = field(default_factory=dict)
    liveness: list[float] = field(default_factory=list)
    memory: int = 0


@dataclass(frozen=True)
class Ask:
    """One request, as a server wants it."""

    path: str
    body: bytes
    headers: dict[str, str]

    def send(self, port: int) -> float:
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        try:
            line.request("POST", self.path, self.body, self.headers)
            answer = line.getresponse()
            content = answer.read()
        finally:
            line.close()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {content[:300]!r}")
        found = json.loads(content)
        if "outputs" in found:
            found = {each["name"]: each["data"][0] for each in found["outputs"]}
        return float(found["probability"])


def question(server: str, image: np.ndarray, clinical: np.ndarray) -> Ask:
    """The same tensors in each server's own form."""
    raw = image.tobytes() + clinical.tobytes()
    if server in OURS:
        inputs = [
            {
                "name": name,
                "datatype": "FP32",
                "shape": list(array.shape),
                "parameters": {"binary_data_size": array.nbytes},
            }
            for name, array in (("image", image), ("clinical", clinical))
        ]
        head = json.dumps({"inputs": inputs}).encode()
        return Ask("/v2/models/bench/infer", head + raw, {"Inference-Header-Content-Length": str(len(head))})
    if server in ("litserve", "bentoml"):
        head = (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="content"; filename="content"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        body = head + raw + f"\r\n--{BOUNDARY}--\r\n".encode()
        return Ask("/predict", body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})
    return Ask("/predict", raw, {"Content-Type": "application/octet-stream"})


def start(server: str, port: int, store: Path, scratch: Path, token: str) -> subprocess.Popen[bytes]:
    """The server's first process; all of its processes carry ``token`` in their environment."""
    environment = os.environ | {
        "BENCH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(scratch / "bentoml"),
        "PYTHONPATH": str(ROOT),
    }
    folder = ModelStore(store).resolve("bench").folder
    command = [sys.executable, "-m", "bench.serving", server, str(port), str(folder)]
    if server in OURS:
        command = [sys.executable, "-m", "app.cli.__main__", "serve", "--port", str(port)]
        environment |= {
            "RLVO_DATA_DIR": str(scratch / server),
            "RLVO_MODEL_STORE": str(store),
            "RLVO_DEFAULT_MODEL": "bench",
            "RLVO_PRECISION": "bfloat16" if server.endswith("bf16") else "float32",
            "RLVO_LOG_LEVEL": "warning",
            "RLVO_THREADS": str(len(os.sched_getaffinity(0))),
        }
    with (scratch / f"{server}.log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)


def family(token: str) -> list[int]:
    """The processes that carry the token."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"BENCH_TOKEN={token}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def memory(token: str) -> int:
    """Bytes of all processes of a server, shared pages shared out."""
    total = 0
    for process in family(token):
        with suppress(OSError):
            for line in (Path("/proc") / str(process) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += 1024 * int(line.split()[1])
    return total


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def end(process: subprocess.Popen[bytes], token: str) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(30)
    for _ in range(5):
        for left in family(token):
            with suppress(ProcessLookupError):
                os.kill(left, 9)
        time.sleep(0.2)
    process.wait(30)


def measure(server: str, store: Path, scratch: Path, tensors: tuple[np.ndarray, np.ndarray], load: Load) -> Figures:
    """Starts a server, asks it, and ends it."""
    token, found = secrets.token_hex(8), Figures()
    port = free_port()
    ask = question(server, *tensors)
    alive = serving.LIVENESS.get(server, "/livez")
    process = start(server, port, store, scratch, token)
    try:
        found.answers.add(round(first_answer(process, ask, port), 9))
        ask.send(port)  # warm
        with beside(found, token, port, alive):
            for concurrency, count in load.items():
                began = time.perf_counter()
                with ThreadPoolExecutor(concurrency) as pool:
                    found.seconds[concurrency] = list(pool.map(lambda _: timed(ask, port), range(count)))
                found.rates[concurrency] = count / (time.perf_counter() - began)
    finally:
        end(process, token)
    return found


def first_answer(process: subprocess.Popen[bytes], ask: Ask, port: int) -> float:
    """The first answer of a server that is starting. Raises what it last met once it is dead or late."""
    until = time.monotonic() + 150
    while True:
        try:
            return ask.send(port)
        except (OSError, RuntimeError, http.client.HTTPException):
            if time.monotonic() > until or process.poll() is not None:
                raise
            time.sleep(0.3)


def timed(ask: Ask, port: int) -> float:
    began = time.perf_counter()
    ask.send(port)
    return time.perf_counter() - began


@contextmanager
def beside(found: Figures, token: str, port: int, alive: str) -> Iterator[None]:
    """Watches memory and liveness while the block goes on."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            found.memory = max(found.memory, memory(token))

    def knock() -> None:
        while not over.wait(0.05):
            began = time.perf_counter()
            with suppress(OSError, http.client.HTTPException):
                line = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                line.request("GET", alive)
                line.getresponse().read()
                line.close()
            found.liveness.append(time.perf_counter() - began)

    watchers = [threading.Thread(target=watch), threading.Thread(target=knock)]
    for watcher in watchers:
        watcher.start()
    try:
        yield
    finally:
        over.set()
        for watcher in watchers:
            watcher.join()


Load = dict[int, int]
"""Requests by concurrency."""


def default_store(store: Path) -> tuple[np.ndarray, np.ndarray]:
    """The default network with random weights, published as ``bench``; a patient's tensors for it."""
    from app.imaging.model_grid import Grid
    from app.inference.model_version import save
    from app.network.architecture import Architecture
    from bench.backends import default_network

    demo = ModelStore(ROOT / "model_store").resolve("rlvo-synthetic").manifest
    networks, (image, clinical) = default_network()
    affine = ((1.7, 0, 0, -81), (0, 1.7, 0, -113), (0, 0, 1.7, -78), (0, 0, 0, 1))
    size = demo.architecture.clinical_size
    manifest = demo.model_copy(
        update={
            "name": "bench",
            "version": "1.0.0",
            "grid": Grid(shape=(96, 112, 96), affine=affine),
            "architecture": Architecture(in_channels=5, clinical_size=size, filters=16),
            "out_of_distribution": None,
        }
    )
    if size != clinical.shape[1]:
        raise SystemExit("the default network takes another clinical vector than the demo version")
    save(store / "bench" / "1.0.0", manifest, networks)
    return image.numpy(), clinical.numpy()


def demo_store(store: Path) -> tuple[np.ndarray, np.ndarray]:
    """The trained demo version under the name ``bench``, and its golden case."""
    from app.inference.model_version import golden_cases, save
    from bench.backends import demo_version

    entry = ModelStore(ROOT / "model_store").resolve("rlvo-synthetic")
    networks, _ = demo_version(ROOT / "model_store")
    case, _ = next(golden_cases(entry.manifest, entry.folder))
    manifest = entry.manifest.model_copy(update={"name": "bench", "version": "1.0.0", "out_of_distribution": None})
    save(store / "bench" / "1.0.0", manifest, networks, golden=[case])
    return case.image[None], case.clinical[None]


def report(found: dict[str, Figures], load: Load) -> None:
    """The table, and what the issue asks of it."""
    columns = [f"{part} at {concurrency}" for concurrency in load for part in ("a second", "p50 s", "p95 s")]
    print(f"\n| server | {' | '.join(columns)} | liveness p95 ms | memory MB | probability |")
    print("|---" * (len(columns) + 4) + "|")
    for server, figures in found.items():
        cells = []
        for concurrency in load:
            times = sorted(figures.seconds[concurrency])
            cells += [f"{figures.rates[concurrency]:.2f}", f"{statistics.median(times):.2f}", f"{_p95(times):.2f}"]
        print(
            f"| {server} | {' | '.join(cells)} | {1000 * _p95(sorted(figures.liveness)):.1f} "
            f"| {figures.memory / 1e6:.0f} | {min(figures.answers):.6f} |"
        )
    peers = {name: figures for name, figures in found.items() if name in PEERS}
    for ours in (name for name in found if name in OURS):
        for concurrency in load:
            best = max(peers, key=lambda name: peers[name].rates[concurrency], default=None)
            if best:
                ratio = found[ours].rates[concurrency] / peers[best].rates[concurrency]
                print(f"{ours} at {concurrency}: {ratio:.1f} times the best peer's ({best}) predictions a second")
        if "fastapi" in peers:
            print(f"{ours}: {found[ours].memory / peers['fastapi'].memory:.2f} times the FastAPI handler's memory")


def _p95(times: list[float]) -> float:
    return times[min(len(times) - 1, int(0.95 * len(times)))]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", choices=("default", "demo"), default="default")
    arguments.add_argument("--servers", nargs="*", default=[*PEERS, *OURS])
    arguments.add_argument("--requests", type=int, nargs=3, default=(4, 8, 24), help="at concurrency 1, 4 and 16")
    given = arguments.parse_args()
    load = dict(zip((1, 4, 16), given.requests, strict=True))
    found: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as folder:
        store, scratch = Path(folder) / "store", Path(folder)
        tensors: Any = (default_store if given.model == "default" else demo_store)(store)
        for server in given.servers:
            if server in PEERS and not serving.there(server):
                print(f"{server}: not installed, left out", flush=True)
                continue
            print(f"{server} ...", flush=True)
            try:
                found[server] = measure(server, store, scratch, tensors, load)
                print(
                    f"  { ({key: round(rate, 2) for key, rate in found[server].rates.items()}) } a second", flush=True
                )
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                log = (scratch / f"{server}.log").read_text(errors="replace")
                print(f"{server}: could not be measured ({error}); {log[-1500:]}", flush=True)
    report(found, load)


if __name__ == "__main__":
    main()
