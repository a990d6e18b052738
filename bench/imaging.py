"""Each stage of ``prepare`` and the whole of it, against the usual pipeline, on a study as large as real ones.

``python -m bench.imaging [--rounds N] [STAGE...]``. In each round every contender runs once, in turn, so that a busy
machine slows all of them; the figures are medians, and only the ratios are worth quoting. Memory is the peak of a fresh
process above what its imports and one small patient leave. The study: CTA 512x512x320, NCCT 512x512x32, four perfusion
maps 256x256x20, all .nii.gz. The usual pipeline reads by nibabel, aligns by ANTs or SimpleITK, and resamples by MONAI
or scipy with anti-aliasing; it finds no vessels, measures no perfusion and checks nothing.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage

from app.core.concurrency import submit
from app.imaging import plausibility, resample, vessels
from app.imaging.io import nifti
from app.imaging.io.nifti import Volume
from app.imaging.model_grid import ChannelSpec, Grid
from app.imaging.preprocess import prepare
from app.imaging.registration import align, brain_mask
from app.sdk.types import Channel, Input
from bench import peers
from tests.imaging import heads

GRID = Grid(shape=(96, 112, 96), affine=((2, 0, 0, -95), (0, 2, 0, -129), (0, 0, 2, -77), (0, 0, 0, 1)))
CHANNELS = (
    ChannelSpec(name=Channel.NCCT, window=(0, 80), mean=30, std=15),
    ChannelSpec(name=Channel.CTA, window=(0, 600), mean=60, std=90),
    ChannelSpec(name=Channel.VESSELS, window=(0, 1), mean=0.02, std=0.1),
    ChannelSpec(name=Channel.TMAX, window=(0, 12), mean=1.5, std=2),
    ChannelSpec(name=Channel.RCBF, window=(0, 2), mean=0.5, std=0.5),
)
MAPS = (Input.TMAX, Input.CBF, Input.CBV, Input.MTT)


def write_study(folder: Path) -> None:
    """Draws one patient and writes the six files."""
    drawn = heads.angiogram((256, 256, 160), (0.9, 0.9, 1.0), noise=0)
    rng = np.random.default_rng(0)
    fine = np.repeat(np.repeat(np.repeat(drawn.cta.data, 2, 0), 2, 1), 2, 2)
    for k in range(fine.shape[2]):
        fine[:, :, k] += np.rint(18 * rng.standard_normal(fine.shape[:2], dtype=np.float32)).astype(np.int16)
    thick = np.repeat(np.repeat(drawn.ncct.data[:, :, ::5], 2, 0), 2, 1)
    thick = thick + np.rint(5 * rng.standard_normal(thick.shape)).astype(np.int16)
    shift = np.eye(4)
    shift[:3, 3] = -0.25
    halves = np.diag([0.5, 0.5, 0.5, 1.0])
    nifti.write(folder / "cta.nii.gz", np.asfortranarray(fine), drawn.cta.affine @ shift @ halves)
    nifti.write(
        folder / "ncct.nii.gz", np.asfortranarray(thick), drawn.cta.affine @ shift @ np.diag([0.5, 0.5, 5.0, 1.0])
    )
    affine = heads.grid((256, 256, 20), (0.9, 0.9, 6.0))
    labels = heads.territories(affine, (256, 256, 20))
    levels = {Input.TMAX: (0, 2, 8, 12), Input.CBF: (0, 50, 20, 5), Input.CBV: (0, 4, 3, 1), Input.MTT: (0, 4, 9, 12)}
    for name, values in levels.items():
        nifti.write(folder / f"{name}.nii.gz", np.asfortranarray(np.array(values, np.float32)[labels]), affine)


def read_study(folder: Path) -> dict[Input, Volume]:
    names = (Input.CTA, Input.NCCT, *MAPS)
    begun = {name: submit(partial(nifti.read, folder / f"{name}.nii.gz", field=name)) for name in names}
    return {name: volume.result() for name, volume in begun.items()}


def ours_whole(folder: Path) -> None:
    prepare(read_study(folder), GRID, CHANNELS)


def usual_whole(folder: Path, aligner: str, resampler: str) -> None:
    align_it, place = peers.ALIGNERS[aligner][1], peers.RESAMPLERS[resampler][1]
    cta = peers.nibabel_read(folder / "cta.nii.gz")
    world_from_mni = align_it(cta, _template())
    place(cta, GRID, world_from_mni)
    for name in (Input.NCCT, *MAPS):
        place(peers.nibabel_read(folder / f"{name}.nii.gz"), GRID, world_from_mni)


def _template() -> peers.Loaded:
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=2)
    return peers.Loaded(np.asarray(image.get_fdata()), np.asarray(image.affine))


def stages(folder: Path) -> dict[str, dict[str, Callable[[], object]]]:
    """Every stage, with ours first among its contenders."""
    volume = nifti.read(folder / "cta.nii.gz", field=Input.CTA)
    usual = peers.nibabel_read(folder / "cta.nii.gz")
    template, mni = _template(), np.eye(4)
    resamplers = {name: way for name, (module, way) in peers.RESAMPLERS.items() if peers.installed(module)}
    aligners = {name: way for name, (module, way) in peers.ALIGNERS.items() if peers.installed(module)}
    found: dict[str, dict[str, Callable[[], object]]] = {
        "read": {
            "ours": lambda: nifti.read(folder / "cta.nii.gz", field=Input.CTA),
            "nibabel": lambda: peers.nibabel_read(folder / "cta.nii.gz"),
        },
        "plausibility": {"ours": lambda: plausibility.check(volume, Input.CTA)},
        "align": {
            "ours": lambda: align.to_mni(align.RegistrationImage(volume)),
            **{name: (lambda way=way: way(usual, template)) for name, way in aligners.items()},
        },
        "resample": {
            "ours": lambda: resample.to_grid(volume, GRID, mni, fill=-1000),
            **{name: (lambda way=way: way(usual, GRID, mni)) for name, way in resamplers.items()},
        },
        "vessels": {"ours": lambda: vessels.segment(volume, mni)},
        "prepare": {
            "ours": lambda: ours_whole(folder),
            **{
                f"{first} + {second}": (lambda one=first, two=second: usual_whole(folder, one, two))
                for first in aligners
                for second in resamplers
            },
        },
    }
    if peers.installed("skimage"):
        small = resample.shrink(volume.data, (2, 2, 2))[0]
        found["vessels"]["skimage"] = lambda: peers.skimage_vessels(small)
    return found


def resampling_error(folder: Path) -> float:
    """HU rms in the brain, against the same low-pass by exact Gaussians and a cubic spline."""
    volume = nifti.read(folder / "cta.nii.gz", field=Input.CTA)
    matrix = np.linalg.inv(volume.affine) @ np.asarray(GRID.affine)
    width = np.linalg.norm(matrix[:3, :3], axis=1) / np.sqrt(8 * np.log(2))
    smooth = ndimage.gaussian_filter(volume.values(), width, truncate=5)
    exact = ndimage.affine_transform(smooth, matrix[:3, :3], matrix[:3, 3], GRID.shape, order=3, cval=-1000)
    inside = brain_mask.distance(np.asarray(GRID.affine), GRID.shape, np.eye(4)) < -2
    return float(np.sqrt(np.mean((resample.to_grid(volume, GRID, np.eye(4), fill=-1000) - exact)[inside] ** 2)))


def peak_mb(folder: Path, what: str) -> float:
    """Megabytes by which the whole of ``what`` raises the peak of a fresh process, above its imports and warm-up."""
    command = [sys.executable, "-m", "bench.imaging", "--peak", what, str(folder)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def _peak_here(folder: Path, what: str) -> float:
    run = ours_whole if what == "ours" else lambda path: usual_whole(path, *what.split(" + "))
    volume = heads.ct(heads.grid((32, 36, 32), (6, 6, 6)), (32, 36, 32), noise=5)
    prepare({Input.CTA: volume, Input.NCCT: volume}, GRID, CHANNELS)
    before = _status_mb("VmRSS")
    run(folder)
    return _status_mb("VmHWM") - before


def _status_mb(line: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{line}:")[1].split()[0]) / 1024


def measure(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    contenders["ours"]()  # compiled kernels are loaded, and the template is
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("stages", nargs="*", help="only these: read, align, prepare, memory, error ...")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.peak:
        print(_peak_here(Path(chosen.peak[1]), chosen.peak[0]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_study(folder)
        print("| stage | | median | times ours |\n|---|---|---|---|")
        known = stages(folder)
        for stage, contenders in known.items():
            if not chosen.stages or stage in chosen.stages:
                medians = measure(contenders, chosen.rounds)
                for contender, seconds in medians.items():
                    print(f"| {stage} | {contender} | {seconds:.3f} s | {seconds / medians['ours']:.1f} |", flush=True)
        rivals = list(known["prepare"])
        known.clear()
        if not chosen.stages or "memory" in chosen.stages:
            for what in rivals:
                print(f"| memory at peak | {what} | {peak_mb(folder, what):.0f} MB | |", flush=True)
        if not chosen.stages or "error" in chosen.stages:
            print(f"| resampling error | ours | {resampling_error(folder):.2f} HU rms | |", flush=True)


if __name__ == "__main__":
    main()
