"""How well, how surely and how fast a head CT is aligned to MNI space. ``python -m bench.align [--quick] [--times]``

Heads with a known answer: the synthetic head of ``app.phantoms`` and, where ../shared is, a whole-head CT template that
lies in MNI space. Each is turned, moved, grown, sheared and scanned anew on a scanner's grid, cropped or not, with
noise. The error is the distance by which points of the brain are off, in the template's millimetres.

``--times`` compares one alignment with SimpleITK, elastix and ANTs, each in its own usual form and given the stripped
2 mm images for nothing (``make bench`` installs them; those that are absent are left out).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from app.imaging import align, brain
from app.imaging.nifti import Volume
from app.imaging.resample import resample
from app.sdk.types import Input

CT_TEMPLATE = Path(__file__).resolve().parents[2] / "shared/data/images/template_scct_wholehead_cormack.nii"
MOST_MM = 10.0
"""Beyond this mean error an alignment has failed."""


@dataclass(frozen=True)
class Pose:
    """``world_from_mni`` (4, 4), and how the head is scanned: spacing (3,) mm, ``crop`` mm of vertex, noise in HU."""

    world_from_mni: np.ndarray
    spacing: np.ndarray
    crop: float
    noise: float
    tilt: float


def draw(rng: np.random.Generator, *, degrees: float = 30, mm: float = 60, growth: float = 0.1) -> Pose:
    turn = align._turn(tuple(rng.uniform(-degrees, degrees, 3)))  # noqa: SLF001
    stretch = np.diag(1 + rng.uniform(-growth, growth) + rng.uniform(-0.03, 0.03, 3))
    stretch[0, 1:] += rng.uniform(-0.02, 0.02, 2)
    pose = np.eye(4)
    pose[:3, :3] = turn @ stretch
    pose[:3, 3] = rng.uniform(-mm, mm, 3) + (rng.choice([-1000, 0, 0, 1000], 3) if rng.random() < 0.3 else 0)
    across = rng.uniform(0.8, 1.5)
    return Pose(
        pose, np.array([across, across, rng.choice([1.0, 2.5, 5.0])]), float(rng.choice([0, 0, 15, 30])),
        float(rng.uniform(0, 15)), float(rng.choice([0, 0, 15])),
    )  # fmt: skip


def scan(head: Volume, pose: Pose, rng: np.random.Generator) -> Volume:
    """The head in its pose, on a scanner's grid along the world's axes (the gantry tilted: sheared), int16 HU."""
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
    reach = high - grid[:3, 3]
    shape = tuple(int(n) for n in np.ceil(reach / pose.spacing))
    hu = resample(head.data, np.linalg.inv(world_from_head) @ grid, shape, fill=-1000)
    hu = hu + rng.normal(0, pose.noise, shape)
    return Volume(np.asfortranarray(np.clip(hu, -1024, 3071), dtype=np.int16), grid)


def error(found: np.ndarray, pose: Pose) -> tuple[float, float]:
    """Mean and largest distance in mm over the brain, of ``mni_from_world`` after ``pose``, from where it started."""
    at = np.column_stack([brain.points(), np.ones(len(brain.points()))])
    off = np.linalg.norm((at @ (found @ pose.world_from_mni - np.eye(4)).T)[:, :3], axis=1)
    return float(off.mean()), float(off.max())


def phantom() -> Volume:
    from app.phantoms import anatomy

    return Volume(np.asfortranarray(anatomy.head().tissue, dtype=np.int16), anatomy.CANVAS)


def ct_template() -> Volume:
    """The template in Hounsfield units: its Cormack units stretch 0 to 100 HU elevenfold."""
    image = nib.Nifti1Image.from_filename(CT_TEMPLATE)
    cormack = np.asarray(image.dataobj, np.float32)
    hu = np.select([cormack <= 900, cormack <= 3100], [cormack - 1000, (cormack - 900) / 11 - 100], cormack - 3000)
    return Volume(np.asfortranarray(hu, dtype=np.int16), np.asarray(image.affine, np.float64))


def heads() -> dict[str, Volume]:
    found = {"phantom": phantom()}
    if CT_TEMPLATE.exists():
        found["CT template"] = ct_template()
    return found


def poses(head: Volume, count: int, seed: int, **limits: float) -> Iterator[tuple[Pose, align.Alignment, float]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        pose = draw(rng, **limits)
        volume = scan(head, pose, rng)
        start = time.process_time()
        found = align.to_mni(volume, Input.NCCT)
        yield pose, found, time.process_time() - start


def accuracy(count: int, seed: int = 0, **limits: float) -> None:
    print("| head | poses | mean error, median | 95 % | worst | largest error, worst | failed | quality | s CPU |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, head in heads().items():
        rows = [(*error(a.mni_from_world, p), a.quality, t) for p, a, t in poses(head, count, seed, **limits)]
        mean, largest, quality, seconds = np.array(rows).T
        print(
            f"| {name} | {count} | {np.median(mean):.2f} | {np.percentile(mean, 95):.2f} | {mean.max():.2f} | "
            f"{largest.max():.2f} | {(mean > MOST_MM).sum()} | {quality.min():.2f}-{quality.max():.2f} | "
            f"{np.median(seconds):.2f} |", flush=True,
        )  # fmt: skip


def times(repeats: int = 3) -> None:
    """Interleaved runs on several heads in poses as on a scanner's table: time, and how far each is off."""
    from bench import align_baselines, peers

    rng = np.random.default_rng(1)
    ways = {name: run for name, (module, run) in align_baselines.WAYS.items() if peers.installed(module)}
    spent: dict[str, list[float]] = {name: [] for name in ("rlvo", *ways)}
    off: dict[str, list[tuple[float, float]]] = {name: [] for name in spent}
    for head in heads().values():
        for _ in range(repeats):
            pose = draw(rng, degrees=10, mm=30, growth=0.05)
            volume = scan(head, pose, rng)
            fixed, moving = align_baselines.stripped(volume, pose.world_from_mni)
            for name in spent:
                start = time.perf_counter()
                found = ways[name](fixed, moving) if name in ways else align.to_mni(volume, Input.NCCT).mni_from_world
                spent[name].append(time.perf_counter() - start)
                off[name].append(error(found, pose))
    ours = float(np.median(spent["rlvo"]))
    print(
        "\n| | s, median | times rlvo | mean error, median | worst | largest error, worst |\n|---|---|---|---|---|---|"
    )
    for name, seconds in spent.items():
        mean, largest = np.array(off[name]).T
        print(f"| {name} | {np.median(seconds):.2f} | {np.median(seconds) / ours:.1f} | {np.median(mean):.2f} | "
              f"{mean.max():.2f} | {largest.max():.2f} |")  # fmt: skip


def absolute() -> None:
    """The whole-head CT template, whose answer is the identity."""
    if CT_TEMPLATE.exists():
        found = align.to_mni(ct_template(), Input.NCCT).mni_from_world
        mean, largest = error(found, Pose(np.eye(4), np.ones(3), 0, 0, 0))
        print(f"CT template as it lies: {mean:.2f} mm mean, {largest:.2f} mm at most from the identity\n")


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--quick", action="store_true", help="a tenth of the poses")
    arguments.add_argument("--times", action="store_true", help="only against SimpleITK, elastix and ANTs")
    chosen = arguments.parse_args()
    align.warm_up()
    if chosen.times:
        times()
        return
    few = 10 if chosen.quick else 1
    absolute()
    print("50 heads in poses as on a scanner's table\n")
    accuracy(25 // few, degrees=10, mm=30)
    print("\n200 poses, as far off as a scan may be\n")
    accuracy(100 // few, seed=1)


if __name__ == "__main__":
    main()
