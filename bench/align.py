"""How well, how surely and how fast a head CT is aligned to MNI space. ``python -m bench.align [--quick] [--times]``

Heads with a known answer: the synthetic head of ``app.phantoms`` and, where ../shared is, a whole-head CT template that
lies in MNI space; and a real NCCT whose answer is what the alignment itself gives for it as it was scanned, so that its
errors are of consistency. Each is turned, moved, grown, sheared and scanned anew on a scanner's grid, cropped or not,
with noise. The error is the distance by which points of the brain are off, in the template's millimetres.

``--times`` compares one alignment with SimpleITK, elastix and ANTs on the first of the same heads, each in its own
usual form and given the stripped 2 mm images for nothing: the phantom's brain is known, the template has a stripped
version of its own (``make bench`` installs them; those that are absent are left out).
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

REAL = Path(__file__).resolve().parents[2] / "shared/data/images"
CT_TEMPLATE, NCCT = REAL / "template_scct_wholehead_cormack.nii", REAL / "ncct_human_ge_deskewed.nii.gz"
CT_BRAIN = REAL / "template_scct_stripped_cormack.nii"
TABLE = {"degrees": 10, "mm": 30}
"""A head as it lies on a scanner's table; the default of ``draw`` is as far off as a scan may be."""
SEED = 0
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
        pose,
        np.array([across, across, rng.choice([1.0, 2.5, 5.0])]),
        float(rng.choice([0, 0, 15, 30])),
        float(rng.uniform(0, 15)),
        float(rng.choice([0, 0, 15])),
    )


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
    at = np.column_stack([brain_mask.points(), np.ones(len(brain_mask.points()))])
    off = np.linalg.norm((at @ (found @ pose.world_from_mni - np.eye(4)).T)[:, :3], axis=1)
    return float(off.mean()), float(off.max())


def phantom() -> Volume:
    from app.phantoms import anatomy

    return Volume(np.asfortranarray(anatomy.head().tissue, dtype=np.int16), anatomy.CANVAS)


def ct_template(path: Path = CT_TEMPLATE) -> Volume:
    """The template in Hounsfield units: its Cormack units stretch 0 to 100 HU elevenfold."""
    image = nib.Nifti1Image.from_filename(path)
    cormack = np.asarray(image.dataobj, np.float32)
    hu = np.select([cormack <= 900, cormack <= 3100], [cormack - 1000, (cormack - 900) / 11 - 100], cormack - 3000)
    return Volume(np.asfortranarray(hu, dtype=np.int16), np.asarray(image.affine, np.float64))


def brains() -> dict[str, Volume]:
    """Masks of the heads whose answer is known, uint8, where ``heads`` has the heads."""
    from app.phantoms import anatomy

    solid = ndimage.gaussian_filter(anatomy.head().brain, 3) > 0.3
    found = {"phantom": Volume(np.asfortranarray(solid, dtype=np.uint8), anatomy.CANVAS)}
    if CT_BRAIN.exists():
        bare = ct_template(CT_BRAIN)
        found["CT template"] = Volume(np.asfortranarray(bare.data > 0, dtype=np.uint8), bare.affine)
    return found


def real_ncct() -> Volume:
    """The real NCCT, moved to MNI space by its own alignment."""
    volume = nifti.read(NCCT, field=Input.NCCT)
    found = align.to_mni(align.RegistrationImage(volume)).mni_from_world
    return Volume(volume.data, found @ volume.affine, volume.slope, volume.inter)


def heads(real: bool = True) -> dict[str, Volume]:
    found = {"phantom": phantom()}
    if CT_TEMPLATE.exists():
        found["CT template"] = ct_template()
    if NCCT.exists() and real:
        found["real NCCT, consistency"] = real_ncct()
    return found


def scans(head: Volume, count: int, seed: int, **limits: float) -> Iterator[tuple[Pose, Volume]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        pose = draw(rng, **limits)
        yield pose, scan(head, pose, rng)


def accuracy(counts: dict[str, int], seed: int, **limits: float) -> None:
    """A line for each kind of head, and one for all of them together."""
    rows: dict[str, list[tuple[float, ...]]] = {}
    drawn = heads()
    with _progress() as progress:
        task = progress.add_task("heads", total=sum(counts.values()))
        for name in counts.keys() & drawn.keys():
            rows[name] = []
            for pose, volume in scans(drawn[name], counts[name], seed, **limits):
                start = time.process_time()
                found = align.to_mni(align.RegistrationImage(volume))
                spent = time.process_time() - start
                rows[name].append((*error(found.mni_from_world, pose), found.quality, spent))
                progress.advance(task)
    print("| head | poses | mean error: median | 95 % | worst | largest: median | worst | failed | quality | s CPU |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, found in (*sorted(rows.items()), ("all", [row for each in rows.values() for row in each])):
        mean, largest, quality, seconds = np.array(found).T
        print(
            f"| {name} | {len(mean)} | {np.median(mean):.2f} | {np.percentile(mean, 95):.2f} | {mean.max():.2f} | "
            f"{np.median(largest):.2f} | {largest.max():.2f} | {(mean > MOST_MM).sum()} | "
            f"{quality.min():.2f}-{quality.max():.2f} | {np.median(seconds):.2f} |",
            flush=True,
        )


def _progress() -> Progress:
    return Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def times(count: int) -> None:
    """Interleaved runs on the first heads of each kind: time, and how far each is off."""
    from bench import align_baselines, peers

    ways = {name: run for name, (module, run) in align_baselines.WAYS.items() if peers.installed(module)}
    spent: dict[str, list[float]] = {name: [] for name in ("rlvo", *ways)}
    off: dict[str, dict[str, list[float]]] = {}
    masks = brains()
    drawn = heads(real=False)  # the real head's answer is ours: no one else can be held to it
    with _progress() as progress:
        task = progress.add_task("registrations", total=len(drawn) * count * len(spent))
        for kind, head in drawn.items():
            off[kind] = {name: [] for name in spent}
            for pose, volume in scans(head, count, SEED, **TABLE):
                fixed, moving = align_baselines.stripped(volume, masks[kind], pose.world_from_mni)
                for name in spent:
                    start = time.perf_counter()
                    found = ways[name](fixed, moving) if name in ways else align.to_mni(align.RegistrationImage(volume))
                    spent[name].append(time.perf_counter() - start)
                    matrix = found.mni_from_world if isinstance(found, align.Alignment) else found
                    off[kind][name].append(error(matrix, pose)[0])
                    progress.advance(task)
    columns = "".join(f" {kind}: mean error, median | worst |" for kind in off)
    print(f"| {count} of each head | s, median | times rlvo |{columns}")
    print("|---|---|---|" + "---|---|" * len(off))
    ours = float(np.median(spent["rlvo"]))
    for name, seconds in spent.items():
        cells = "".join(f" {np.median(errors[name]):.2f} | {max(errors[name]):.2f} |" for errors in off.values())
        print(f"| {name} | {np.median(seconds):.2f} | {np.median(seconds) / ours:.1f} |{cells}", flush=True)


def absolute() -> None:
    """The whole-head CT template, whose answer is the identity."""
    if CT_TEMPLATE.exists():
        found = align.to_mni(align.RegistrationImage(ct_template())).mni_from_world
        mean, largest = error(found, Pose(np.eye(4), np.ones(3), 0, 0, 0))
        print(f"CT template as it lies: {mean:.2f} mm mean, {largest:.2f} mm at most from the identity")
    if NCCT.exists():
        print(f"real NCCT: Dice {overlap(nifti.read(NCCT, field=Input.NCCT)):.3f} with the MNI brain mask\n")


def overlap(volume: Volume) -> float:
    """Dice of the head's intracranial space (``strip``), brought to MNI space, with the MNI brain in its view."""
    grid = np.diag([2.0, 2.0, 2.0, 1.0])
    grid[:3, 3] = -90, -126, -72
    shape = (91, 109, 91)
    world_from_mni = np.linalg.inv(align.to_mni(align.RegistrationImage(volume)).mni_from_world)
    hu = resample(
        volume.values(), np.linalg.inv(volume.affine) @ world_from_mni @ grid, shape, fill=skull_strip.OUTSIDE
    )
    theirs = skull_strip.intracranial(hu, 2.0)
    ours = (brain_mask.distance(grid, shape, np.eye(4)) < 0) & (hu > skull_strip.OUTSIDE)
    return float(2 * (theirs & ours).sum() / (theirs.sum() + ours.sum()))


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--quick", action="store_true", help="a tenth of the poses")
    arguments.add_argument("--times", action="store_true", help="only against SimpleITK, elastix and ANTs")
    chosen = arguments.parse_args()
    align.warm_up()
    few = 10 if chosen.quick else 1
    if not chosen.times:
        absolute()
        print("50 heads in poses as on a scanner's table\n")
        mix = {"phantom": 20 // few, "CT template": 20 // few, "real NCCT, consistency": 10 // few}
        accuracy(mix, SEED, **TABLE)
        print("\n200 poses, as far off as a scan may be\n")
        accuracy({"phantom": 100 // few, "CT template": 100 // few}, SEED + 1)
        print()
    times(max(1, 3 // few))


if __name__ == "__main__":
    main()
