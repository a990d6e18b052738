"""Start and stop a model server, measure its memory, and send prepared tensors to it."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from app.registry.model_store import ModelStore
from app.sdk import Client

ROOT = Path(__file__).resolve().parents[1]
RLVO = ("rlvo", "rlvo-bf16")
BOUNDARY = "bench"
START_TIMEOUT_S = 150


class ServerProcess:
    """A running server: rlvo or a peer. All of its processes carry ``token`` in their environment."""

    def __init__(self, server: str, store: Path, scratch: Path) -> None:
        """Start the server.

        Args:
            server: A name of ``RLVO`` or of the table of peers.
            store: Model store with the version ``bench``.
            scratch: Folder for data and logs.
        """
        self.token = secrets.token_hex(8)
        self.port = free_port()
        self.log = scratch / f"{server}.log"
        environment = os.environ | {
            "BENCH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_HOME": str(scratch / "bentoml"),
            "PYTHONPATH": str(ROOT),
        }
        folder = ModelStore(store).resolve("bench").folder
        command = [sys.executable, "-m", "bench.servers", server, str(self.port), str(folder)]
        if server in RLVO:
            command = [sys.executable, "-m", "app.cli", "serve", "--port", str(self.port)]
            environment |= {
                "RLVO_DATA_DIR": str(scratch / server),
                "RLVO_MODEL_STORE": str(store),
                "RLVO_DEFAULT_MODEL": "bench",
                "RLVO_PRECISION": "bfloat16" if server.endswith("bf16") else "float32",
                "RLVO_LOG_LEVEL": "warning",
                "RLVO_THREADS": str(len(os.sched_getaffinity(0))),
            }
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, cwd=ROOT, start_new_session=True
            )

    def pids(self) -> list[int]:
        """Return the processes that carry the token."""
        pids = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if f"BENCH_TOKEN={self.token}".encode() in path.read_bytes():
                    pids.append(int(path.parent.name))
        return pids

    def memory(self) -> int:
        """Return the bytes of all processes as proportional set size, so that shared pages count once."""
        total = 0
        for pid in self.pids():
            with suppress(OSError):
                for line in (Path("/proc") / str(pid) / "smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += 1024 * int(line.split()[1])
        return total

    def first_response(self, request: TensorRequest) -> float:
        """Repeat a request until the starting server answers; return the probability.

        Raises:
            OSError: The server has ended or is late, and refuses connections.
            RuntimeError: The server has ended or is late, and answers with an error.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                return request.send(self.port)
            except (OSError, RuntimeError, http.client.HTTPException):
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.3)

    def stop(self) -> None:
        """Terminate the server, and kill the processes that are left after 30 seconds."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        for _ in range(5):
            for pid in self.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)
            time.sleep(0.2)
        self._process.wait(30)


class Service(NamedTuple):
    """Address and process of a running `rlvo serve`."""

    url: str
    pid: int


@contextmanager
def running_service(store: Path, data: Path, model: str, **settings: str) -> Iterator[Service]:
    """Run `rlvo serve` with its worker; yield it as soon as it is ready.

    ``store``: its model store. ``data``: its folder. ``settings``: further ones, without ``RLVO_``, in lower case.
    """
    environment = {
        **os.environ,
        "RLVO_DATA_DIR": str(data),
        "RLVO_MODEL_STORE": str(store),
        "RLVO_DEFAULT_MODEL": model,
        "RLVO_LOG_LEVEL": "warning",
        **{f"RLVO_{name.upper()}": value for name, value in settings.items()},
    }
    command = [sys.executable, "-m", "app.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout
        try:
            url = next(line.split()[-1] for line in process.stdout if b"rlvo is at" in line).decode()
            with Client(url) as client:
                while not client.health().ready:
                    time.sleep(0.2)
            yield Service(url, process.pid)
        finally:
            process.terminate()


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class TensorRequest:
    """One request with prepared tensors, in the format of a server."""

    path: str
    body: bytes
    headers: dict[str, str]

    def send(self, port: int) -> float:
        """Send the request and return the probability."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        try:
            connection.request("POST", self.path, self.body, self.headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {content[:300]!r}")
        document = json.loads(content)
        if "outputs" in document:
            document = {output["name"]: output["data"][0] for output in document["outputs"]}
        return float(document["probability"])

    def seconds(self, port: int) -> float:
        """Send the request and return the elapsed time."""
        start = time.perf_counter()
        self.send(port)
        return time.perf_counter() - start


def tensor_request(server: str, image: np.ndarray, clinical: np.ndarray) -> TensorRequest:
    """Return the request of a server for an image (1, c, x, y, z) and a clinical vector (1, v), float32."""
    raw = image.tobytes() + clinical.tobytes()
    if server in RLVO:
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
        return TensorRequest("/v2/models/bench/infer", head + raw, {"Inference-Header-Content-Length": str(len(head))})
    if server in ("litserve", "bentoml"):
        head = (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="content"; filename="content"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        body = head + raw + f"\r\n--{BOUNDARY}--\r\n".encode()
        return TensorRequest("/predict", body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})
    return TensorRequest("/predict", raw, {"Content-Type": "application/octet-stream"})
