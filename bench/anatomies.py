"""Phantoms of several anatomies in both renderers and in the registration: ``python -m bench anatomies``.

For each variant, one patient with an own scanner is written as full-size volumes and rendered on the model's grid. It
prints the error of the registration of the CTA, the correlation of each channel with the resampled volume, and the CPU
time of a renderer.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np

from app.imaging import resample
from app.imaging.io.nifti import Volume
from app.imaging.registration import align
from app.inference.defaults import CHANNELS, GRID
from app.phantoms import biology, render, scene, volumes
from app.phantoms.scanner import USUAL
from app.phantoms.scene import Appearance
from app.phantoms.variant import draw_variant
from bench.align import Pose, error

SEED = 7
SPACING = {"ncct": (1.6, 1.6, 1.6), "cta": (1.6, 1.6, 1.6), "perfusion": (2.0, 2.0, 4.0)}
ROWS = {"ncct": 0, "cta": 1, "tmax": 3}


def measure(number: int, scanners: bool) -> str:
    """Return a row of the table for one variant."""
    patient = biology.draw(number + 1, SEED)[number]
    variation = scene.draw_variation(SEED, number, Appearance(scanners=scanners))
    scanner = replace(variation.scanner, missing=()) if scanners else USUAL
    variation = replace(variation, variant=draw_variant(number), scanner=scanner)
    started = time.process_time()
    renderer = render.Renderer(GRID, variant=variation.variant)
    cpu = time.process_time() - started
    drawn = scene.build(patient, variation)
    fast = render.normalise(renderer.render(drawn), CHANNELS)
    pose = volumes.draw_pose(np.random.default_rng([SEED, number]))
    cells = [str(number), f"{cpu:.1f}"]
    for one in volumes.series(drawn, pose, SPACING):
        if one.name not in ROWS:
            continue
        volume = Volume(np.asfortranarray(one.data), one.affine)
        moved = pose.ncct_movement if one.name == "ncct" else np.eye(4)
        spec, fill = CHANNELS[ROWS[one.name]], 0.0 if one.name == "tmax" else -1000.0
        values = resample.to_grid(volume, GRID, moved @ pose.world_from_mni, fill=fill)
        values = (np.clip(values, *spec.window) - spec.mean) / spec.std
        cells.append(f"{np.corrcoef(values.ravel(), fast[ROWS[one.name]].ravel())[0, 1]:.4f}")
        if one.name == "cta":
            found = align.to_mni(align.RegistrationImage(volume))
            mean, largest = error(found.mni_from_world, Pose(pose.world_from_mni, np.ones(3), 0.0, 0.0, 0.0))
            cells += [f"{mean:.2f}", f"{largest:.2f}", f"{found.quality:.2f}"]
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--numbers", type=int, nargs="*", default=list(range(1, 9)), help="variants of the list")
    parser.add_argument("--scanners", action="store_true", help="another scanner for each variant")
    options = parser.parse_args()
    print("variant | renderer, CPU s | NCCT | CTA | registration, mean mm | largest mm | quality | Tmax")
    for number in options.numbers:
        print(measure(number, options.scanners), flush=True)


if __name__ == "__main__":
    main()
