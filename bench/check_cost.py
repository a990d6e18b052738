"""Share of the preprocessing that the input checks take: ``python -m bench.check_cost``.

One full-size phantom (NCCT, CTA, Tmax, CBF) is prepared with and without the checks, in turns in one process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
from rich.progress import track

from app.imaging import mask_check, plausibility, preprocess, slices_check, study_check
from app.imaging.io import duplicates
from app.imaging.io.nifti import Volume
from app.imaging.perfusion import map_check
from app.imaging.registration import align, transform_check
from app.inference import defaults
from app.phantoms import biology, scene, volumes
from app.phantoms.biology import Preset
from app.sdk.types import Input

CHECKS: list[tuple[Any, str, Any]] = [
    (duplicates, "check_voxels", None),
    (plausibility, "check", ()),
    (slices_check, "check", ()),
    (transform_check, "check", ()),
    (align, "_mismatch_mm", 0.0),
    (study_check, "check_inside", ()),
    (study_check, "check_maps", ()),
    (mask_check, "content", ()),
    (mask_check, "amount", ()),
    (map_check, "check", map_check.MapFindings((), frozenset())),
]


@contextmanager
def without_checks() -> Iterator[None]:
    """Replace every check by its answer to a valid study."""
    with ExitStack() as stack:
        for module, name, answer in CHECKS:
            stack.enter_context(mock.patch.object(module, name, lambda *_, _answer=answer, **__: _answer))
        yield


def study() -> dict[Input, Volume]:
    """A phantom on the grids of a scanner."""
    patient = biology.draw(3, 5, Preset.INTERACTION)[2]
    drawn = scene.build(patient, scene.draw_variation(5, 2))
    names = {"ncct": Input.NCCT, "cta": Input.CTA, "tmax": Input.TMAX, "cbf": Input.CBF}
    pose = volumes.draw_pose(np.random.default_rng([5, 5, 2]))
    return {names[one.name]: Volume(one.data, one.affine) for one in volumes.series(drawn, pose) if one.name in names}


def timed(patient: dict[Input, Volume]) -> tuple[float, float]:
    """Wall clock and CPU time of one preparation, seconds."""
    start = time.perf_counter(), time.process_time()
    preprocess.prepare(patient, defaults.GRID, defaults.CHANNELS)
    return time.perf_counter() - start[0], time.process_time() - start[1]


def main() -> None:
    """Print the median time with and without the checks, and the median of the ratios of the pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    pairs = parser.parse_args().pairs
    patient = study()
    timed(patient)
    runs = np.zeros((pairs, 2, 2))
    for pair in track(range(pairs), "pairs"):
        runs[pair, 1] = timed(patient)
        with without_checks():
            runs[pair, 0] = timed(patient)
    print("| time of prepare | without checks | with checks | more |\n|---|---|---|---|")
    for column, name in enumerate(("wall clock, s", "CPU, s")):
        without, complete = np.median(runs[:, :, column], axis=0)
        more = np.median(runs[:, 1, column] / runs[:, 0, column]) - 1
        print(f"| {name} | {without:.3f} | {complete:.3f} | {more:+.1%} |")


if __name__ == "__main__":
    main()
