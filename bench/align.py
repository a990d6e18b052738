"""Accuracy and time of the alignment of a head CT to MNI space, compared with SimpleITK, elastix and ANTs.

``python -m bench align [--quick] [--times]``.

- Heads with a known pose: the synthetic head of ``app.phantoms`` and, if ../shared exists, a whole-head CT template in
  MNI space. For a real NCCT the alignment of the original scan is the reference, so its errors show consistency.
- Each head is rotated, moved, scaled, sheared and scanned on a scanner's grid, with noise and with or without a crop.
- The error is the distance of brain points from their true position, in mm of the template.
- ``--times`` compares the time with SimpleITK, elastix and ANTs on the first of the same heads. Each library has its
  usual settings and receives the stripped 2 mm images; the time of the stripping is not counted. A library that is not
  installed is left out (``make bench`` installs them).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from rich.console import Console
from rich.progress import Progress
from scipy import ndimage

from app.imaging.io import nifti
from app.imaging.io.nifti import Volume
from app.imaging.registration import align, brain_mask, skull_strip
from app.imaging.resample import resample
from app.sdk.types import Input
from bench import align_baselines
from bench.usual_pipeline import installed

REAL = Path(__file__).resolve().parents[2] / "shared/data/images"
CT_TEMPLATE, NCCT = REAL / "template_scct_wholehead_cormack.nii", REAL / "ncct_human_ge_deskewed.nii.gz"
CT_BRAIN = REAL / "template_scct_stripped_cormack.nii"
TABLE = {"degrees": 10, "mm": 30}
"""Limits of a pose on a scanner table. The defaults of ``draw`` are the widest poses that a scan may have."""
SEED = 0
FAILURE_MM = 10.0
"""An alignment with a larger mean error has failed."""


@dataclass(frozen=True)
class Pose:
    """Position of a head and settings of its scan.

    Attributes:
        world_from_mni: Affine (4, 4), mm.
        spacing: Voxel size (3,), mm.
        crop: Millimetres that the scan lacks at the vertex; 0 for a whole head.
        noise: Standard deviation, HU.
        tilt: Gantry tilt, degrees.
    """

    world_from_mni: np.ndarray
    spacing: np.ndarray
    crop: float
    noise: float
    tilt: float


def draw(rng: np.random.Generator, *, degrees: float = 30, mm: float = 60, growth: float = 0.1) -> Pose:
    rotation = align.rotation(tuple(rng.uniform(-degrees, degrees, 3)))
    stretch = np.diag(1 + rng.uniform(-growth, growth) + rng.uniform(-0.03, 0.03, 3))
    stretch[0, 1:] += rng.uniform(-0.02, 0.02, 2)
    pose = np.eye(4)
    pose[:3, :3] = rotation @ stretch
    pose[:3, 3] = rng.uniform(-mm, mm, 3) + (rng.choice([-1000, 0, 0, 1000], 3) if rng.random() < 0.3 else 0)
    in_plane = rng.uniform(0.8, 1.5)
    return Pose(
        pose,
        np.array([in_plane, in_plane, rng.choice([1.0, 2.5, 5.0])]),
        float(rng.choice([0, 0, 15, 30])),
        float(rng.uniform(0, 15)),
        float(rng.choice([0, 0, 15])),
    )


def scan(head: Volume, pose: Pose, rng: np.random.Generator) -> Volume:
    """Return the posed head on a scanner's grid along the world's axes (sheared by a gantry tilt), int16 HU."""
    world_from_head = pose.world_from_mni @ head.affine
    ends = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * [*np.subtract(head.shape, 1), 1]
    corners = (ends @ world_from_head.T)[:, :3]
    low, high = corners.min(axis=0), corners.max(axis=0)
    vertex = (pose.world_from_mni @ [0, -20, 80, 1])[2]
    high[2] = min(high[2], vertex + 25) - (pose.crop + 25 if pose.crop else 0)
    grid = np.diag([*pose.spacing, 1.0])
    grid[1, 2] = np.tan(np.deg2rad(pose.tilt)) * pose.spacing[2]
    grid[:3, 3] = low
    grid[1, 3] -= max(0.0, grid[1, 2] / pose.spacing[2] * (high[2] - low[2]))
    extent = high - grid[:3, 3]
    shape = tuple(int(n) for n in np.ceil(extent / pose.spacing))
    hu = resample(head.data, np.linalg.inv(world_from_head) @ grid, shape, fill=-1000)
    hu = hu + rng.normal(0, pose.noise, shape)
    return Volume(np.asfortranarray(np.clip(hu, -1024, 3071), dtype=np.int16), grid)


def error(mni_from_world: np.ndarray, pose: Pose) -> tuple[float, float]:
    """Return the mean and the largest error of an alignment over the points of the brain, mm."""
    points = np.column_stack([brain_mask.points(), np.ones(len(brain_mask.points()))])
    distances = np.linalg.norm((points @ (mni_from_world @ pose.world_from_mni - np.eye(4)).T)[:, :3], axis=1)
    return float(distances.mean()), float(distances.max())


def phantom() -> Volume:
    from app.phantoms import anatomy

    return Volume(np.asfortranarray(anatomy.head().tissue, dtype=np.int16), anatomy.CANVAS)


def ct_template(path: Path = CT_TEMPLATE) -> Volume:
    """Return the template in Hounsfield units. Its Cormack units stretch 0 to 100 HU by a factor of 11."""
    image = nib.Nifti1Image.from_filename(path)
    cormack = np.asarray(image.dataobj, np.float32)
    hu = np.select([cormack <= 900, cormack <= 3100], [cormack - 1000, (cormack - 900) / 11 - 100], cormack - 3000)
    return Volume(np.asfortranarray(hu, dtype=np.int16), np.asarray(image.affine, np.float64))


def brains() -> dict[str, Volume]:
    """Return the brain masks, uint8, of the heads in ``heads`` whose pose is known."""
    from app.phantoms import anatomy

    solid = ndimage.gaussian_filter(anatomy.head().brain, 3) > 0.3
    masks = {"phantom": Volume(np.asfortranarray(solid, dtype=np.uint8), anatomy.CANVAS)}
    if CT_BRAIN.exists():
        stripped = ct_template(CT_BRAIN)
        masks["CT template"] = Volume(np.asfortranarray(stripped.data > 0, dtype=np.uint8), stripped.affine)
    return masks


def real_ncct() -> Volume:
    """Return the real NCCT in MNI space, by the alignment itself."""
    volume = nifti.read(NCCT, field=Input.NCCT)
    mni_from_world = align.to_mni(align.RegistrationImage(volume)).mni_from_world
    return Volume(volume.data, mni_from_world @ volume.affine, volume.slope, volume.inter)


def heads(real: bool = True) -> dict[str, Volume]:
    """Return the heads by name; ``real`` adds the NCCT whose reference is the alignment itself."""
    volumes = {"phantom": phantom()}
    if CT_TEMPLATE.exists():
        volumes["CT template"] = ct_template()
    if NCCT.exists() and real:
        volumes["real NCCT, consistency"] = real_ncct()
    return volumes


def scans(head: Volume, count: int, seed: int, **limits: float) -> Iterator[tuple[Pose, Volume]]:
    """Yield random poses of a head and its scans; ``limits`` are those of ``draw``."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        pose = draw(rng, **limits)
        yield pose, scan(head, pose, rng)


def accuracy(counts: dict[str, int], seed: int, **limits: float) -> None:
    """Print the errors of each kind of head, and of all of them together."""
    rows: dict[str, list[tuple[float, ...]]] = {}
    volumes = heads()
    with _progress() as progress:
        task = progress.add_task("heads", total=sum(counts.values()))
        for name in counts.keys() & volumes.keys():
            rows[name] = []
            for pose, volume in scans(volumes[name], counts[name], seed, **limits):
                start = time.process_time()
                alignment = align.to_mni(align.RegistrationImage(volume))
                seconds = time.process_time() - start
                rows[name].append((*error(alignment.mni_from_world, pose), alignment.quality, seconds))
                progress.advance(task)
    print("| head | poses | mean error: median | 95 % | worst | largest: median | worst | failed | quality | s CPU |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, measured in (*sorted(rows.items()), ("all", [row for each in rows.values() for row in each])):
        mean, largest, quality, seconds = np.array(measured).T
        print(
            f"| {name} | {len(mean)} | {np.median(mean):.2f} | {np.percentile(mean, 95):.2f} | {mean.max():.2f} | "
            f"{np.median(largest):.2f} | {largest.max():.2f} | {(mean > FAILURE_MM).sum()} | "
            f"{quality.min():.2f}-{quality.max():.2f} | {np.median(seconds):.2f} |",
            flush=True,
        )


def _progress() -> Progress:
    return Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def compare_times(count: int) -> None:
    """Print time and error of rlvo and of each library on the first heads of each kind, in alternating runs."""
    libraries = {name: run for name, (module, run) in align_baselines.REGISTRATIONS.items() if installed(module)}
    seconds: dict[str, list[float]] = {name: [] for name in ("rlvo", *libraries)}
    errors: dict[str, dict[str, list[float]]] = {}
    masks = brains()
    volumes = heads(real=False)  # the reference of the real head is rlvo's result, so it cannot judge other libraries
    with _progress() as progress:
        task = progress.add_task("registrations", total=len(volumes) * count * len(seconds))
        for kind, head in volumes.items():
            errors[kind] = {name: [] for name in seconds}
            for pose, volume in scans(head, count, SEED, **TABLE):
                fixed, moving = align_baselines.stripped(volume, masks[kind], pose.world_from_mni)
                for name in seconds:
                    start = time.perf_counter()
                    if name in libraries:
                        mni_from_world = libraries[name](fixed, moving)
                    else:
                        mni_from_world = align.to_mni(align.RegistrationImage(volume)).mni_from_world
                    seconds[name].append(time.perf_counter() - start)
                    errors[kind][name].append(error(mni_from_world, pose)[0])
                    progress.advance(task)
    columns = "".join(f" {kind}: mean error, median | worst |" for kind in errors)
    print(f"| {count} of each head | s, median | relative to rlvo |{columns}")
    print("|---|---|---|" + "---|---|" * len(errors))
    rlvo = float(np.median(seconds["rlvo"]))
    for name, times in seconds.items():
        cells = "".join(f" {np.median(head[name]):.2f} | {max(head[name]):.2f} |" for head in errors.values())
        print(f"| {name} | {np.median(times):.2f} | {np.median(times) / rlvo:.1f} |{cells}", flush=True)


def absolute() -> None:
    """Print the error of the CT template, whose true alignment is the identity, and the overlap of the real NCCT."""
    if CT_TEMPLATE.exists():
        mni_from_world = align.to_mni(align.RegistrationImage(ct_template())).mni_from_world
        mean, largest = error(mni_from_world, Pose(np.eye(4), np.ones(3), 0, 0, 0))
        print(f"CT template, original pose: mean error {mean:.2f} mm, largest {largest:.2f} mm")
    if NCCT.exists():
        print(f"real NCCT: Dice {overlap(nifti.read(NCCT, field=Input.NCCT)):.3f} with the MNI brain mask\n")


def overlap(volume: Volume) -> float:
    """Return the Dice of the aligned intracranial space with the MNI brain in the field of view."""
    grid = np.diag([2.0, 2.0, 2.0, 1.0])
    grid[:3, 3] = -90, -126, -72
    shape = (91, 109, 91)
    world_from_mni = np.linalg.inv(align.to_mni(align.RegistrationImage(volume)).mni_from_world)
    hu = resample(
        volume.values(), np.linalg.inv(volume.affine) @ world_from_mni @ grid, shape, fill=skull_strip.OUTSIDE
    )
    stripped = skull_strip.intracranial(hu, 2.0)
    brain = (brain_mask.distance(grid, shape, np.eye(4)) < 0) & (hu > skull_strip.OUTSIDE)
    return float(2 * (stripped & brain).sum() / (stripped.sum() + brain.sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the poses")
    parser.add_argument("--times", action="store_true", help="only the comparison with SimpleITK, elastix and ANTs")
    arguments = parser.parse_args()
    align.warm_up()
    divisor = 10 if arguments.quick else 1
    if not arguments.times:
        absolute()
        print("50 heads in poses of a scanner table\n")
        counts = {"phantom": 20 // divisor, "CT template": 20 // divisor, "real NCCT, consistency": 10 // divisor}
        accuracy(counts, SEED, **TABLE)
        print("\n200 heads in the widest poses that a scan may have\n")
        accuracy({"phantom": 100 // divisor, "CT template": 100 // divisor}, SEED + 1)
        print()
    compare_times(max(1, 3 // divisor))


if __name__ == "__main__":
    main()
