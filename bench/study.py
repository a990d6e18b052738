"""A whole study, from the files to the recorded and explained answer, by the running service and by the usual pipeline.

``python -m bench.study [--rounds 5] [--model demo|default]``: a synthetic patient's NCCT and CTA (at the phantoms' own
voxel size), sent by the client to `rlvo serve` with its worker: received, registered, vessels segmented, predicted,
fully explained with maps, drawn, reported and recorded. The usual pipeline does less, on the same files, in one run:
nibabel, ANTs' Affine of each volume to the template (SimpleITK's where ANTs is not installed), MONAI's GaussianSmooth
and SpatialResample, torch eager over the folds, captum's integrated gradients of 32 steps a fold; it segments no
vessels, explains no clinical variable, draws and keeps nothing. Medians; the seconds of its stages are printed as well.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from app.imaging import template
from app.phantoms.cohort import write_patient
from app.registry import Registry
from app.sdk import Client
from app.sdk.types import Channel
from bench import peers, serve

STEPS = 32


def usual(study: dict[str, Path], store: Path) -> dict[str, float]:
    """Seconds of each stage of the usual pipeline, once."""
    import torch
    from captum.attr import IntegratedGradients

    from bench.serving import Model

    model = Model(Registry(store).resolve("bench").folder)
    manifest, spent = model.manifest, {}

    def stage(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = work()
        spent[name] = time.perf_counter() - began
        return result

    read = stage("read", lambda: {name: peers.nibabel_read(study[name]) for name in ("ncct", "cta")})
    fixed = peers.Loaded(*(np.asarray(part, dtype=np.float64) for part in template.tissue()))
    stage("register", lambda: [_register(volume, fixed) for volume in read.values()])
    resampled = stage(
        "resample", lambda: {name: peers.monai_resample(read[name], manifest.grid, np.eye(4)) for name in read}
    )
    image = np.zeros(model.shape[1:], np.float32)
    for index, channel in enumerate(manifest.channels):
        if channel.name in (Channel.NCCT, Channel.CTA):
            low, high = channel.window
            image[index] = (np.clip(resampled[channel.name.value], low, high) - channel.mean) / channel.std
    clinical = torch.zeros(1, manifest.architecture.clinical_size)
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


def ours(study: dict[str, Path], store: Path, scratch: Path, rounds: int, precision: str) -> tuple[list[float], Any]:
    """Seconds of each round through the service, after one that warms it; the last prediction."""
    environment = os.environ | {
        "RLVO_DATA_DIR": str(scratch / precision), "RLVO_MODEL_STORE": str(store), "RLVO_DEFAULT_MODEL": "bench",
        "RLVO_PRECISION": precision, "RLVO_LOG_LEVEL": "warning",
    }  # fmt: skip
    command = [sys.executable, "-m", "app.cli", "serve", "--port", "0"]
    clinical = json.loads(study["clinical"].read_text())
    seconds = []
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True) as service:
        assert service.stdout
        try:
            url = next(line.split()[-1] for line in service.stdout if b"rlvo is at" in line).decode()
            with Client(url) as client:
                while not client.health().ready:
                    time.sleep(0.2)
                for _ in range(rounds + 1):
                    began = time.perf_counter()
                    prediction = client.predict(ncct=study["ncct"], cta=study["cta"], clinical=clinical)
                    seconds.append(time.perf_counter() - began)
        finally:
            service.terminate()
    return seconds[1:], prediction


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--model", choices=("default", "demo"), default="demo")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store, scratch = Path(folder) / "store", Path(folder)
        (serve.default_store if given.model == "default" else serve.demo_store)(store)
        print("drawing the patient ...", flush=True)
        study = write_patient(scratch / "patient", seed=1)
        found = {}
        for precision in ("float32", "bfloat16"):
            print(f"rlvo, {precision} ...", flush=True)
            found[precision], prediction = ours(study, store, scratch, given.rounds, precision)
        print(f"the worker's own timings: {prediction.timings}")
        for name, summary in prediction.inputs.items():
            print(f"{name}: {'x'.join(map(str, summary.shape))}, {summary.bytes / 1e6:.0f} MB")
        print("the usual pipeline ...", flush=True)
        spent = usual(study, store)
        whole = sum(spent.values())
        print(f"\nusual: {whole:.1f} s ({', '.join(f'{name} {seconds:.1f}' for name, seconds in spent.items())})")
        for precision, seconds in found.items():
            middle = statistics.median(seconds)
            print(f"rlvo, {precision}: p50 {middle:.2f} s of {len(seconds)}, {whole / middle:.0f} times as fast")


if __name__ == "__main__":
    main()
