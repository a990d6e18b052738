"""A whole study, from the files to the recorded and explained result: rlvo and the usual pipeline.

``python -m bench study [--rounds 5] [--model demo|default]``. Printed: medians, and the seconds of each stage of the
usual pipeline.

- The study is the NCCT and the CTA of a synthetic patient, at the voxel size of the phantoms.
- rlvo: the client sends them to `rlvo serve` with its worker, which registers, segments vessels, predicts, explains
  with maps, draws, writes the report and records.
- The usual pipeline does less with the same files: nibabel, ANTs' Affine of each volume to the template (SimpleITK's if
  ANTs is not installed), MONAI's GaussianSmooth and SpatialResample, torch eager over the folds, captum's integrated
  gradients with 32 steps a fold. It segments no vessels, explains no clinical variable, draws and stores nothing.
- ``--concurrency 4`` sends four studies at once, without explanation, to rlvo and to a plain FastAPI handler that runs
  the usual pipeline up to the prediction. Printed: studies per second of both. With ``--alone``, rlvo alone; with
  ``--explain``, explained studies. Processor time depends less on other work on the machine than the rate.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import torch

from app.phantoms.cohort import write_patient
from app.registry.model_store import ModelStore
from app.sdk import Client, Progress
from app.sdk.types import Prediction
from bench.eager_model import EagerModel
from bench.model_stores import STORES
from bench.server_process import ServerProcess, running_service
from bench.usual_pipeline import usual_image

STEPS = 32


def usual(study: dict[str, Path], store: Path) -> dict[str, float]:
    """Run the usual pipeline once and return the seconds of each stage."""
    from captum.attr import IntegratedGradients

    model = EagerModel(ModelStore(store).resolve("bench").folder)
    seconds: dict[str, float] = {}

    def stage(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - start
        return result

    image = usual_image(study, model.manifest, stage)
    clinical = torch.zeros(1, model.manifest.architecture.clinical_size)
    batch = torch.from_numpy(image)[None]
    stage("predict", lambda: model.predict(image.tobytes() + clinical.numpy().tobytes()))
    for fold in model.folds:
        fold.requires_grad_(requires_grad=False)
    stage(
        "explain",
        lambda: [
            IntegratedGradients(lambda x, fold=fold: fold(x, clinical.expand(len(x), -1))[:, 0]).attribute(
                batch, n_steps=STEPS, internal_batch_size=1
            )
            for fold in model.folds
        ],
    )
    return seconds


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process and all its descendants, also of those that have ended."""
    ticks: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            ticks[int(path.parent.name)] = sum(map(int, fields[11:15]))
            children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    total, waiting = 0, [pid]
    while waiting:
        each = waiting.pop()
        total += ticks.get(each, 0)
        waiting += children.get(each, [])
    return total / os.sysconf("SC_CLK_TCK")


class Elapsed(NamedTuple):
    """Seconds of one study at the client: in total, and after the last byte was sent."""

    total: float
    after_upload: float


def predict(
    study: dict[str, Path], store: Path, scratch: Path, rounds: int, precision: str
) -> tuple[dict[bool, list[Elapsed]], Prediction]:
    """Send the study to rlvo, without and with explanation.

    Returns:
        Times of the rounds by ``explain``, without the two that warm the service up, and the last explained prediction.
    """
    clinical = json.loads(study["clinical"].read_text())
    times: dict[bool, list[Elapsed]] = {False: [], True: []}
    with (
        running_service(store, scratch / precision, "bench", precision=precision) as service,
        Client(service.url) as client,
    ):
        for explain, elapsed in times.items():
            for _ in range(rounds + 2):
                uploaded: list[float] = []

                def on_progress(progress: Progress, uploaded: list[float] = uploaded) -> None:
                    if progress.stage == "upload":
                        uploaded[:] = [time.perf_counter()]

                start = time.perf_counter()
                prediction = client.predict(
                    ncct=study["ncct"], cta=study["cta"], clinical=clinical, explain=explain, on_progress=on_progress
                )
                end = time.perf_counter()
                elapsed.append(Elapsed(end - start, end - uploaded[0]))
            print(f"seconds of the worker's steps: {prediction.timings}", flush=True)
    return {explain: elapsed[2:] for explain, elapsed in times.items()}, prediction


def studies_per_second(send: Callable[[], object], count: int, concurrency: int) -> float:
    start = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        for future in [pool.submit(send) for _ in range(count)]:
            future.result()
    return count / (time.perf_counter() - start)


def concurrent_rate(
    study: dict[str, Path], store: Path, scratch: Path, concurrency: int, *, explain: bool
) -> tuple[float, float]:
    """Return studies per second of rlvo, up to the last answer, and processor seconds of one study."""
    clinical = json.loads(study["clinical"].read_text())
    with (
        running_service(store, scratch / "concurrent", "bench", precision="float32") as service,
        Client(service.url) as client,
    ):

        def send() -> object:
            return client.predict(ncct=study["ncct"], cta=study["cta"], clinical=clinical, explain=explain)

        send()
        before = cpu_seconds(service.pid)
        rate = studies_per_second(send, 4 * concurrency, concurrency)
        return rate, (cpu_seconds(service.pid) - before) / (4 * concurrency)


def compare_concurrent(study: dict[str, Path], store: Path, scratch: Path, concurrency: int) -> None:
    """Print studies per second, without explanation, of rlvo and of the plain handler."""
    rlvo_rate, _ = concurrent_rate(study, store, scratch, concurrency, explain=False)
    server = ServerProcess("fastapi", store, scratch)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=3600) as client:

            def send_plain() -> object:
                files = {name: study[name].read_bytes() for name in ("ncct", "cta")}
                return client.post("/study", files=files).raise_for_status()

            while True:
                try:
                    client.get("/livez").raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.3)
            plain_rate = studies_per_second(send_plain, concurrency, concurrency)
    finally:
        server.stop()
    print(
        f"concurrency {concurrency}, without explanation: rlvo {rlvo_rate:.2f} studies/s, "
        f"plain FastAPI handler {plain_rate:.4f} studies/s, ratio {rlvo_rate / plain_rate:.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", choices=tuple(STORES), default="demo")
    parser.add_argument("--concurrency", type=int, default=0, help="only measure this many studies at once")
    parser.add_argument("--explain", action="store_true", help="with --concurrency and --alone: explain the studies")
    parser.add_argument("--alone", action="store_true", help="leave out the usual pipeline")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store, scratch = Path(folder) / "store", Path(folder)
        STORES[arguments.model](store)
        print("drawing the synthetic patient ...", flush=True)
        study = write_patient(scratch / "patient", seed=1)
        if arguments.concurrency and arguments.alone:
            for number in range(arguments.rounds):
                rate, cpu = concurrent_rate(
                    study, store, scratch / str(number), arguments.concurrency, explain=arguments.explain
                )
                kind = "with" if arguments.explain else "without"
                each = f"{rate:.2f} studies/s, {cpu:.2f} CPU s each"
                print(f"concurrency {arguments.concurrency}, {kind} explanation: rlvo {each}", flush=True)
            return
        if arguments.concurrency:
            compare_concurrent(study, store, scratch, arguments.concurrency)
            return
        results = {}
        for precision in ("float32", "bfloat16"):
            print(f"rlvo, {precision} ...", flush=True)
            results[precision], prediction = predict(study, store, scratch, arguments.rounds, precision)
        for name, summary in prediction.inputs.items():
            print(f"{name}: {'x'.join(map(str, summary.shape))}, {summary.bytes / 1e6:.0f} MB")
        for precision, times in results.items():
            for explain, elapsed in times.items():
                total, after_upload = (statistics.median(column) for column in zip(*elapsed, strict=True))
                print(
                    f"rlvo, {precision}, {'with' if explain else 'without'} explanation: p50 of {len(elapsed)} "
                    f"{total:.2f} s, {after_upload:.3f} s after the last byte"
                )
        if arguments.alone:
            return
        print("usual pipeline ...", flush=True)
        stages = usual(study, store)
        usual_total = sum(stages.values())
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in stages.items())
        print(f"\nusual pipeline: {usual_total:.1f} s ({parts})")
        for precision, times in results.items():
            median = statistics.median(elapsed.total for elapsed in times[True])
            print(f"usual pipeline / rlvo, {precision}: {usual_total / median:.0f}")


if __name__ == "__main__":
    main()
