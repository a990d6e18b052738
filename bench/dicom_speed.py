"""Seconds to receive a study: rlvo by C-STORE and STOW-RS, DCMTK's storescp, and Orthanc by both, in one run.

``python -m bench dicom_speed [--slices 320] [--rounds 3] [--only STOW]``. Printed for each receiver: the median of the
seconds from the first byte to the last answer, and the CPU seconds of the receiving process. Each round asks all
receivers, in turn.
rlvo flushes each instance to the disk before it answers; DCMTK's storescp does not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np

from app.phantoms.dicom_series import SeriesPlan, files, planned_slices

BOUNDARY = "bench"
RELATED = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
SECONDS_A_TICK = 1 / os.sysconf("SC_CLK_TCK")


def write_study(folder: Path, slices: int, round_: int) -> list[Path]:
    """Files of a CT series of 512 x 512 voxels."""
    rng = np.random.default_rng(round_)
    data = rng.normal(40, 20, (512, 512, 1)).astype(np.int16) + np.zeros((1, 1, slices), np.int16)
    affine = np.diag([-0.45, -0.45, 0.6, 1.0])
    plan = SeriesPlan("cta", 2, "CTA head", kernel="H30s", thickness=0.6, **planned_slices(data, affine))
    folder.mkdir(parents=True)
    written = []
    for number, content in enumerate(files(plan, f"speed {round_} {time.time_ns()}")):
        path = folder / f"{number:04d}"
        path.write_bytes(content)
        written.append(path)
    return written


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and its children that still run."""
    children = [child for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) * SECONDS_A_TICK
    return own + sum(cpu_s(int(each)) for each in children)


@contextmanager
def started(command: list[str], port: int, environment: dict[str, str] | None = None) -> Iterator[int]:
    """Run a receiver until the end of the block; its process id."""
    kept = {"env": os.environ | (environment or {}), "stdin": subprocess.PIPE}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **kept) as process:  # type: ignore[call-overload]
        try:
            wait_for(port)
            yield process.pid
        finally:
            process.terminate()


def c_store(port: int, title: str) -> Callable[[list[Path]], None]:
    def send(paths: list[Path]) -> None:
        command = ["storescu", "-aec", title, "127.0.0.1", str(port), *map(str, paths)]
        subprocess.run(command, check=True, capture_output=True)

    return send


def stow(url: str) -> Callable[[list[Path]], None]:
    def body(paths: list[Path]) -> Iterator[bytes]:
        for path in paths:
            yield f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode() + path.read_bytes() + b"\r\n"
        yield f"--{BOUNDARY}--\r\n".encode()

    def send(paths: list[Path]) -> None:
        size = sum(map(len, body(paths)))
        headers = {"Content-Type": RELATED, "Accept": "application/dicom+json", "Content-Length": str(size)}
        httpx.post(url, content=body(paths), headers=headers, timeout=300).raise_for_status()

    return send


def receivers(folder: Path, stack: ExitStack) -> Iterator[tuple[str, int, Callable[[list[Path]], None]]]:
    """Name, process id and sender of each receiver that is installed."""
    dicom, http = free_port(), free_port()
    environment = {"RLVO_DATA_DIR": str(folder / "rlvo"), "RLVO_DICOM_QUIET": "36000", "RLVO_LOG_LEVEL": "warning"}
    listen = [sys.executable, "-m", "app.cli", "dicom", "listen", "--port", str(dicom)]
    yield "rlvo, C-STORE", stack.enter_context(started(listen, dicom, environment)), c_store(dicom, "RLVO")
    serve = [sys.executable, "-m", "app.cli", "serve", "--no-worker", "--port", str(http)]
    api = stack.enter_context(started(serve, http, environment | {"RLVO_DATA_DIR": str(folder / "rlvo-http")}))
    yield "rlvo, STOW-RS", api, stow(f"http://127.0.0.1:{http}/dicomweb/studies")
    if shutil.which("storescp"):
        port = free_port()
        (folder / "storescp").mkdir()
        command = ["storescp", "-od", str(folder / "storescp"), str(port)]
        yield "DCMTK storescp", stack.enter_context(started(command, port)), c_store(port, "ANY")
    if program := shutil.which("Orthanc", path=os.environ["PATH"] + ":/usr/sbin"):
        dicom, http = free_port(), free_port()
        storage = {"StorageDirectory": str(folder / "orthanc"), "IndexDirectory": str(folder / "orthanc")}
        ports = {"HttpPort": http, "DicomPort": dicom, "DicomAlwaysAllowStore": True, "AuthenticationEnabled": False}
        file = folder / "orthanc.json"
        file.write_text(json.dumps(storage | ports | {"Plugins": [PLUGIN], "DicomWeb": {"Enable": True}}))
        pid = stack.enter_context(started([program, str(file)], http))
        yield "Orthanc, C-STORE", pid, c_store(dicom, "ORTHANC")
        yield "Orthanc, STOW-RS", pid, stow(f"http://127.0.0.1:{http}/dicom-web/studies")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="only receivers with this word in their name")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        ready = [each for each in receivers(folder, stack) if options.only in each[0]]
        taken: dict[str, list[tuple[float, float]]] = {}
        for round_ in range(options.rounds):
            for number, (receiver, pid, send) in enumerate(ready):
                paths = write_study(folder / f"{round_}-{number}", options.slices, round_)
                began, used = time.monotonic(), cpu_s(pid)
                send(paths)
                taken.setdefault(receiver, []).append((time.monotonic() - began, cpu_s(pid) - used))
                print(f"{round_} {receiver} {taken[receiver][-1]}", file=sys.stderr, flush=True)
                shutil.rmtree(paths[0].parent)
        for receiver, rounds in taken.items():
            wall, cpu = (statistics.median(each[k] for each in rounds) for k in (0, 1))
            print(f"{receiver:18} {wall:6.2f} s   CPU {cpu:6.2f} s", flush=True)


if __name__ == "__main__":
    main()
