"""A whole study, from the files to the recorded and explained answer, by the running service and by the usual pipeline.

``python -m bench.study [--rounds 5] [--model demo|default]``: a synthetic patient's NCCT and CTA (at the phantoms' own
voxel size), sent by the client to `rlvo serve` with its worker: received, registered, vessels segmented, predicted,
fully explained with maps, drawn, reported and recorded. The usual pipeline does less, on the same files, in one run:
nibabel, ANTs' Affine of each volume to the template (SimpleITK's where ANTs is not installed), MONAI's GaussianSmooth
and SpatialResample, torch eager over the folds, captum's integrated gradients of 32 steps a fold; it segments no
vessels, explains no clinical variable, draws and keeps nothing. Medians; the seconds of its stages are printed as well.

With ``--concurrency 4`` so many studies are sent at once, without asking for reasons, to rlvo and to a plain FastAPI
handler that runs the usual pipeline up to the prediction: studies a second of each.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import torch

from app.imaging.registration import template
from app.phantoms.cohort import write_patient
from app.registry.manifest import Manifest
from app.registry.model_store import ModelStore
from app.sdk import Client, Progress
from app.sdk.types import Channel, Prediction
from bench import peers, serve

STEPS = 32


Stage = Callable[[str, Callable[[], Any]], Any]


def unwatched(_name: str, work: Callable[[], Any]) -> Any:
    return work()


def usual_image(study: dict[str, Path], manifest: Manifest, stage: Stage = unwatched) -> np.ndarray:
    """The usual pipeline's tensor (c, x, y, z) of a patient."""
    read = stage("read", lambda: {name: peers.nibabel_read(study[name]) for name in ("ncct", "cta")})
    fixed = peers.Loaded(*(np.asarray(part, dtype=np.float64) for part in template.tissue()))
    stage("register", lambda: [_register(volume, fixed) for volume in read.values()])
    resampled = stage(
        "resample", lambda: {name: peers.monai_resample(read[name], manifest.grid, np.eye(4)) for name in read}
    )
    image = np.zeros((len(manifest.channels), *manifest.grid.shape), np.float32)
    for index, channel in enumerate(manifest.channels):
        if channel.name in (Channel.NCCT, Channel.CTA):
            low, high = channel.window
            image[index] = (np.clip(resampled[channel.name.value], low, high) - channel.mean) / channel.std
    return image


def usual(study: dict[str, Path], store: Path) -> dict[str, float]:
    """Seconds of each stage of the usual pipeline, once."""
    import torch
    from captum.attr import IntegratedGradients

    from bench.serving import Model

    model = Model(ModelStore(store).resolve("bench").folder)
    spent: dict[str, float] = {}

    def stage(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = work()
        spent[name] = time.perf_counter() - began
        return result

    image = usual_image(study, model.manifest, stage)
    clinical = torch.zeros(1, model.manifest.architecture.clinical_size)
    batch = torch.from_numpy(image)[None]
    stage("predict", lambda: model(image.tobytes() + clinical.numpy().tobytes()))
    for fold in model.folds:
        fold.requires_grad_(requires_grad=False)
    stage(
        "explain",
        lambda: [
            IntegratedGradients(lambda seen, fold=fold: fold(seen, clinical.expand(len(seen), -1))[:, 0]).attribute(
                batch, n_steps=STEPS, internal_batch_size=1
            )
            for fold in model.folds
        ],
    )
    return spent


def _register(volume: peers.Loaded, fixed: peers.Loaded) -> None:
    if not peers.installed("ants"):
        peers.simpleitk_align(volume, fixed)
        return
    import ants

    target, moving = (
        ants.from_numpy(
            np.ascontiguousarray(np.clip(each.data, 0, 100), dtype=np.float32),
            spacing=[float(edge) for edge in np.linalg.norm(each.affine[:3, :3], axis=0)],
        )
        for each in (fixed, volume)
    )
    ants.registration(target, moving, type_of_transform="Affine")


@contextmanager
def service(store: Path, scratch: Path, precision: str) -> Iterator[Client]:
    """`rlvo serve` with its worker, ready."""
    environment = os.environ | {
        "RLVO_DATA_DIR": str(scratch / precision),
        "RLVO_MODEL_STORE": str(store),
        "RLVO_DEFAULT_MODEL": "bench",
        "RLVO_PRECISION": precision,
        "RLVO_LOG_LEVEL": "warning",
    }
    command = [sys.executable, "-m", "app.cli.__main__", "serve", "--port", "0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout
        try:
            url = next(line.split()[-1] for line in process.stdout if b"rlvo is at" in line).decode()
            with Client(url) as client:
                while not client.health().ready:
                    time.sleep(0.2)
                yield client
        finally:
            process.terminate()


class Spent(NamedTuple):
    """Seconds of one study at its client: all of them, and those after the last byte was sent."""

    whole: float
    after: float


def ours(
    study: dict[str, Path], store: Path, scratch: Path, rounds: int, precision: str
) -> tuple[dict[bool, list[Spent]], Prediction]:
    """What each round took with reasons and without, after two that warm the service; the last prediction with them."""
    clinical = json.loads(study["clinical"].read_text())
    spent: dict[bool, list[Spent]] = {False: [], True: []}
    with service(store, scratch, precision) as client:
        for explain, kept in spent.items():
            for _ in range(rounds + 2):
                sent: list[float] = []

                def watch(progress: Progress, sent: list[float] = sent) -> None:
                    if progress.stage == "upload":
                        sent[:] = [time.perf_counter()]

                began = time.perf_counter()
                prediction = client.predict(
                    ncct=study["ncct"], cta=study["cta"], clinical=clinical, explain=explain, on_progress=watch
                )
                ended = time.perf_counter()
                kept.append(Spent(ended - began, ended - sent[0]))
            print(f"the worker's own timings: {prediction.timings}", flush=True)
    return {explain: kept[2:] for explain, kept in spent.items()}, prediction


def rate(ask: Callable[[], object], count: int, concurrency: int) -> float:
    """Studies a second of so many at once."""
    began = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        for done in [pool.submit(ask) for _ in range(count)]:
            done.result()
    return count / (time.perf_counter() - began)


def at_once(study: dict[str, Path], store: Path, scratch: Path, concurrency: int) -> None:
    """Studies a second, no reasons asked for, of rlvo and of the plain handler."""
    clinical = json.loads(study["clinical"].read_text())
    with service(store, scratch / "at-once", "float32") as client:

        def ask() -> object:
            return client.predict(ncct=study["ncct"], cta=study["cta"], clinical=clinical, explain=False)

        ask()
        ours_rate = rate(ask, 4 * concurrency, concurrency)
    token, port = secrets.token_hex(8), serve.free_port()
    process = serve.start("fastapi", port, store, scratch, token)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=3600) as line:

            def ask_plain() -> object:
                files = {name: study[name].read_bytes() for name in ("ncct", "cta")}
                return line.post("/study", files=files).raise_for_status()

            while True:
                try:
                    line.get("/livez").raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.3)
            plain_rate = rate(ask_plain, concurrency, concurrency)
    finally:
        serve.end(process, token)
    print(
        f"{concurrency} at once, no reasons: rlvo {ours_rate:.2f} a second, "
        f"the plain FastAPI handler {plain_rate:.4f}, {ours_rate / plain_rate:.0f} times less"
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--model", choices=("default", "demo"), default="demo")
    arguments.add_argument("--concurrency", type=int, default=0, help="only this: so many studies at once")
    arguments.add_argument("--alone", action="store_true", help="without the usual pipeline")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store, scratch = Path(folder) / "store", Path(folder)
        (serve.default_store if given.model == "default" else serve.demo_store)(store)
        print("drawing the patient ...", flush=True)
        study = write_patient(scratch / "patient", seed=1)
        if given.concurrency:
            at_once(study, store, scratch, given.concurrency)
            return
        found = {}
        for precision in ("bfloat16",) if torch.cuda.is_available() else ("float32", "bfloat16"):
            print(f"rlvo, {precision} ...", flush=True)
            found[precision], prediction = ours(study, store, scratch, given.rounds, precision)
        for name, summary in prediction.inputs.items():
            print(f"{name}: {'x'.join(map(str, summary.shape))}, {summary.bytes / 1e6:.0f} MB")
        for precision, spent in found.items():
            for explain, kept in spent.items():
                whole, after = (statistics.median(column) for column in zip(*kept, strict=True))
                reasons = "explained" if explain else "no reasons"
                print(
                    f"rlvo, {precision}, {reasons}: p50 {whole:.2f} s of {len(kept)}, {after:.3f} s after the last byte"
                )
        if given.alone:
            return
        print("the usual pipeline ...", flush=True)
        stages = usual(study, store)
        theirs = sum(stages.values())
        print(f"\nusual: {theirs:.1f} s ({', '.join(f'{name} {seconds:.1f}' for name, seconds in stages.items())})")
        for precision, spent in found.items():
            middle = statistics.median(one.whole for one in spent[True])
            print(f"rlvo, {precision}: {theirs / middle:.0f} times as fast")


if __name__ == "__main__":
    main()
