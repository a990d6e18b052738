"""Time and memory of ``prepare`` and of each stage on a study of clinical size, compared with the usual pipeline.

``python -m bench imaging`` or ``python -m bench.imaging [--rounds N] [STAGE...]``.

- The study: CTA 512x512x320, NCCT 512x512x32, four perfusion maps 256x256x20, all .nii.gz.
- In each round every candidate runs once, so that a busy machine slows all of them. The figures are medians; quote only
  their ratios. Memory is the peak of a new process minus its memory after the imports and one small patient.
- The usual pipeline reads with nibabel, aligns with ANTs or SimpleITK, and resamples with MONAI or scipy. It segments
  no vessels, measures no perfusion and checks nothing.
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
from bench import usual_pipeline
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
    """Draw one patient and write the six files."""
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
    futures = {name: submit(partial(nifti.read, folder / f"{name}.nii.gz", field=name)) for name in names}
    return {name: future.result() for name, future in futures.items()}


def prepare_with_rlvo(folder: Path) -> None:
    prepare(read_study(folder), GRID, CHANNELS)


def prepare_with_usual_pipeline(folder: Path, aligner: str, resampler: str) -> None:
    register, place = usual_pipeline.ALIGNERS[aligner][1], usual_pipeline.RESAMPLERS[resampler][1]
    cta = usual_pipeline.nibabel_read(folder / "cta.nii.gz")
    world_from_mni = register(cta, _template())
    place(cta, GRID, world_from_mni)
    for name in (Input.NCCT, *MAPS):
        place(usual_pipeline.nibabel_read(folder / f"{name}.nii.gz"), GRID, world_from_mni)


def _template() -> usual_pipeline.Loaded:
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=2)
    return usual_pipeline.Loaded(np.asarray(image.get_fdata()), np.asarray(image.affine))


def stages(folder: Path) -> dict[str, dict[str, Callable[[], object]]]:
    """Return the candidates of every stage, rlvo first."""
    volume = nifti.read(folder / "cta.nii.gz", field=Input.CTA)
    usual = usual_pipeline.nibabel_read(folder / "cta.nii.gz")
    template, mni = _template(), np.eye(4)
    resamplers = _installed(usual_pipeline.RESAMPLERS)
    aligners = _installed(usual_pipeline.ALIGNERS)
    candidates: dict[str, dict[str, Callable[[], object]]] = {
        "read": {
            "rlvo": lambda: nifti.read(folder / "cta.nii.gz", field=Input.CTA),
            "nibabel": lambda: usual_pipeline.nibabel_read(folder / "cta.nii.gz"),
        },
        "plausibility": {"rlvo": lambda: plausibility.check(volume, Input.CTA)},
        "align": {
            "rlvo": lambda: align.to_mni(align.RegistrationImage(volume)),
            **{name: (lambda run=run: run(usual, template)) for name, run in aligners.items()},
        },
        "resample": {
            "rlvo": lambda: resample.to_grid(volume, GRID, mni, fill=-1000),
            **{name: (lambda run=run: run(usual, GRID, mni)) for name, run in resamplers.items()},
        },
        "vessels": {"rlvo": lambda: vessels.segment(volume, mni)},
        "prepare": {
            "rlvo": lambda: prepare_with_rlvo(folder),
            **{
                f"{first} + {second}": (lambda one=first, two=second: prepare_with_usual_pipeline(folder, one, two))
                for first in aligners
                for second in resamplers
            },
        },
    }
    if usual_pipeline.installed("skimage"):
        small = resample.shrink(volume.data, (2, 2, 2))[0]
        candidates["vessels"]["skimage"] = lambda: usual_pipeline.skimage_vessels(small)
    return candidates


def _installed(functions: dict[str, tuple[str, Callable[..., object]]]) -> dict[str, Callable[..., object]]:
    return {name: function for name, (module, function) in functions.items() if usual_pipeline.installed(module)}


def resampling_error(folder: Path) -> float:
    """Return the rms difference in the brain, HU, from the same low-pass by exact Gaussians and a cubic spline."""
    volume = nifti.read(folder / "cta.nii.gz", field=Input.CTA)
    matrix = np.linalg.inv(volume.affine) @ np.asarray(GRID.affine)
    width = np.linalg.norm(matrix[:3, :3], axis=1) / np.sqrt(8 * np.log(2))
    smooth = ndimage.gaussian_filter(volume.values(), width, truncate=5)
    exact = ndimage.affine_transform(smooth, matrix[:3, :3], matrix[:3, 3], GRID.shape, order=3, cval=-1000)
    inside = brain_mask.distance(np.asarray(GRID.affine), GRID.shape, np.eye(4)) < -2
    return float(np.sqrt(np.mean((resample.to_grid(volume, GRID, np.eye(4), fill=-1000) - exact)[inside] ** 2)))


def peak_mb(folder: Path, candidate: str) -> float:
    """Return the megabytes by which a candidate raises the peak of a new process, after imports and warm-up."""
    command = [sys.executable, "-m", "bench.imaging", "--peak", candidate, str(folder)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def _peak_here(folder: Path, candidate: str) -> float:
    run = prepare_with_rlvo
    if candidate != "rlvo":
        aligner, resampler = candidate.split(" + ")
        run = partial(prepare_with_usual_pipeline, aligner=aligner, resampler=resampler)
    volume = heads.ct(heads.grid((32, 36, 32), (6, 6, 6)), (32, 36, 32), noise=5)
    prepare({Input.CTA: volume, Input.NCCT: volume}, GRID, CHANNELS)
    before = _status_mb("VmRSS")
    run(folder)
    return _status_mb("VmHWM") - before


def _status_mb(line: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{line}:")[1].split()[0]) / 1024


def measure(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    candidates["rlvo"]()  # loads the compiled kernels and the template
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", help="measure only these: read, align, prepare, memory, error ...")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(_peak_here(Path(arguments.peak[1]), arguments.peak[0]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_study(folder)
        print("| stage | candidate | median | relative to rlvo |\n|---|---|---|---|")
        by_stage = stages(folder)
        for stage, candidates in by_stage.items():
            if not arguments.stages or stage in arguments.stages:
                medians = measure(candidates, arguments.rounds)
                for candidate, seconds in medians.items():
                    print(f"| {stage} | {candidate} | {seconds:.3f} s | {seconds / medians['rlvo']:.1f} |", flush=True)
        names = list(by_stage["prepare"])
        by_stage.clear()  # frees the volumes that the stages hold
        if not arguments.stages or "memory" in arguments.stages:
            for candidate in names:
                print(f"| peak memory | {candidate} | {peak_mb(folder, candidate):.0f} MB | |", flush=True)
        if not arguments.stages or "error" in arguments.stages:
            print(f"| resampling error | rlvo | {resampling_error(folder):.2f} HU rms | |", flush=True)


if __name__ == "__main__":
    main()
