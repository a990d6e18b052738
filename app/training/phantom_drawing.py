"""Draws phantoms into files by several processes; their number changes no voxel.

Design notes:
- The patients of one anatomy are drawn by one process, because a head takes seconds to build. Large groups are divided.
- Every process maps the files that it writes to, so no image is pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.imaging.model_grid import ChannelSpec, Grid
from app.phantoms import cohort, scene
from app.phantoms.biology import Patient
from app.phantoms.scene import Appearance
from app.training.dataset import Drawn, keep
from app.training.process_pool import Tell, side_by_side

GROUP = 256
"""Most patients of one task."""


@dataclass(frozen=True)
class _Group:
    """Patients of one anatomy and their rows in the files ``images`` and ``clots``."""

    patients: tuple[Patient, ...]
    rows: tuple[int, ...]
    seed: int
    grid: Grid
    channels: tuple[ChannelSpec, ...]
    appearance: Appearance
    images: Path
    clots: Path | None


def draw(
    patients: Sequence[Patient],
    seed: int,
    grid: Grid,
    channels: Sequence[ChannelSpec],
    appearance: Appearance,
    images: Path,
    clots: Path | None = None,
    *,
    jobs: int = 1,
    advance: Callable[[], None] = lambda: None,
) -> NDArray[np.float64]:
    """Draw each patient on the grid into the new NumPy file ``images``, (n, C, X, Y, Z) float16.

    Args:
        patients: The cohort.
        seed: Its seed.
        grid: Grid of the model.
        channels: Channels of the model.
        appearance: What varies between the patients besides biology.
        images: New file of the images.
        clots: New file of the shares that clots fill, (n, X/2, Y/2, Z/2) float16; None: they are not kept.
        jobs: Number of processes.
        advance: Called after each patient.

    Returns:
        Protocols (n, C + 3) of ``dataset.Drawn``.
    """
    count, halved = len(patients), tuple(length // 2 for length in grid.shape)
    np.lib.format.open_memmap(images, "w+", np.float16, (count, len(channels), *grid.shape)).flush()
    if clots is not None:
        np.lib.format.open_memmap(clots, "w+", np.float16, (count, *halved)).flush()
    groups = [
        _Group(tuple(patients[row] for row in rows), rows, seed, grid, tuple(channels), appearance, images, clots)
        for rows in rows_by_anatomy(patients, seed, appearance, GROUP)
    ]
    protocols = np.empty((count, len(channels) + 3))
    drawn = side_by_side(_draw_group, groups, jobs, lambda _: advance())
    for group, part in zip(groups, drawn, strict=True):
        protocols[list(group.rows)] = part
    return protocols


def rows_by_anatomy(patients: Sequence[Patient], seed: int, appearance: Appearance, most: int) -> list[tuple[int, ...]]:
    """Rows of the patients of each anatomy, at most ``most`` in one part."""
    same: dict[int, list[int]] = {}
    for row, patient in enumerate(patients):
        same.setdefault(scene.draw_variation(seed, patient.index, appearance).variant.number, []).append(row)
    return [tuple(rows[at : at + most]) for rows in same.values() for at in range(0, len(rows), most)]


def _draw_group(group: _Group, tell: Tell) -> NDArray[np.float64]:
    """Draw the patients of a group; returns their protocols."""
    images = np.load(group.images, mmap_mode="r+")
    clots = None if group.clots is None else np.load(group.clots, mmap_mode="r+")
    drawn = Drawn(images, np.empty((len(images), len(group.channels) + 3)), clots)
    shown = cohort.grouped_images(group.patients, group.seed, group.grid, group.channels, appearance=group.appearance)
    for one in shown:
        keep(one, group.rows[one.row], drawn)
        tell(1)
    assert drawn.protocols is not None
    return drawn.protocols[list(group.rows)]
