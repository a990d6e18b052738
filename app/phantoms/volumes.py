"""A phantom as a scanner would have left it: full-size volumes in an oblique space of the patient's own.

Notable choices:
- The head is painted on the canvas, then sampled once into each series' own voxels: tilted, flipped, far from the
  origin, with that series' spacing and noise. NCCT and CTA differ by a small movement, as in real life.
- Perfusion maps come from the same lattice and ranks as in render.py, counted in the patient's own millilitres.
- ``draw_pose`` is the chance, ``series`` the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from app.phantoms import anatomy, scene
from app.phantoms.scene import Scene

Affine = NDArray[np.float64]

FIELD_MM = (196.0, 236.0, 204.0)  # of view: the head and some neck, tilted by a few degrees
CENTRE_MM = np.array([0.0, -18.0, -4.0])  # of the head, in MNI space
MEAN_FLOW = 40.0  # mL/100 g/min, of the healthy brain
NOISE_HU = {"ncct": 4.0, "cta": 6.0}  # at the voxel sizes below
SPACING_MM = {"ncct": (1.0, 1.0, 1.25), "cta": (0.9, 0.9, 1.0), "perfusion": (2.0, 2.0, 4.0)}


@dataclass(frozen=True)
class Pose:
    """Where the patient lay. Affines take voxels, or MNI millimetres, to the patient's RAS+ millimetres."""

    world_from_mni: Affine
    ncct_movement: Affine
    tilt: dict[str, Affine]
    flips: dict[str, tuple[int, int, int]]

    @property
    def volume_scale(self) -> float:
        """Millilitres of this patient's brain for one of the MNI brain."""
        return float(np.linalg.det(self.world_from_mni[:3, :3]))


@dataclass(frozen=True)
class Series:
    """One volume: ``name``, ``data`` (X, Y, Z) and its voxel-to-world ``affine``."""

    name: str
    data: NDArray[np.generic]
    affine: Affine


def _rotation(degrees: NDArray[np.float64]) -> NDArray[np.float64]:
    turned = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        single = np.eye(3)
        single[i, i] = single[j, j] = np.cos(angle)
        single[i, j], single[j, i] = -np.sin(angle), np.sin(angle)
        turned = single @ turned
    return turned


def _about(linear: NDArray[np.float64], centre: NDArray[np.float64], target: NDArray[np.float64]) -> Affine:
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = target - linear @ centre
    return affine


def draw_pose(rng: np.random.Generator) -> Pose:
    """A head up to 7 % larger or smaller, turned by up to some 10 degrees, far from the origin."""
    size = np.diag(rng.uniform(0.94, 1.07, 3))
    shear = np.eye(3)
    shear[0, 1], shear[1, 2], shear[0, 2] = rng.uniform(-0.02, 0.02, 3)
    place = rng.uniform(-60, 60, 3)
    turned = _rotation(rng.uniform(-9, 9, 3))
    movement = _about(_rotation(rng.uniform(-1.5, 1.5, 3)), place, place + rng.uniform(-2, 2, 3))
    layouts = [(1, 1, 1), (-1, 1, 1), (-1, -1, 1)]  # RAS, LAS and LPS storage
    return Pose(
        world_from_mni=_about(turned @ size @ shear, CENTRE_MM, place),
        ncct_movement=movement,
        tilt={name: _rotation(rng.uniform(-6, 6, 3)) for name in SPACING_MM},
        flips={name: layouts[rng.integers(3)] for name in SPACING_MM},
    )


def _grid(pose: Pose, name: str, spacing: tuple[float, ...]) -> tuple[tuple[int, ...], Affine]:
    """Shape and affine of a series: its field of view, centred on the head."""
    shape = tuple(int(np.ceil(length / step)) for length, step in zip(FIELD_MM, spacing, strict=True))
    linear = pose.tilt[name] @ np.diag(np.array(spacing) * pose.flips[name])
    centre = pose.world_from_mni[:3] @ [*CENTRE_MM, 1]
    return shape, _about(linear, (np.array(shape) - 1) / 2, centre)


def _sample(canvas: NDArray[np.float32], to_canvas: Affine, shape: tuple[int, ...], fill: float) -> NDArray[np.float32]:
    found: NDArray[np.float32] = ndimage.affine_transform(
        canvas, to_canvas[:3, :3], to_canvas[:3, 3], output_shape=shape, order=1, cval=fill, output=np.float32
    )
    return found


def paint(drawn: Scene, contrast: bool) -> NDArray[np.float32]:
    """The head on the canvas, HU, with or without the bolus in its arteries."""
    head, tree = anatomy.head(), anatomy.arteries()
    blood = anatomy.BLOOD + drawn.density
    if contrast:
        blood = blood + drawn.enhancement * np.float32(drawn.variation.bolus)
    painted = head.tissue.copy().reshape(-1)
    painted[tree.index] += tree.cover * (blood - painted[tree.index])
    return painted.reshape(anatomy.SHAPE)


def _marked(voxels: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A mask on the canvas of some artery voxels (n,)."""
    tree = anatomy.arteries()
    canvas = np.zeros(anatomy.SHAPE, np.float32).reshape(-1)
    canvas[tree.index] = tree.cover * voxels
    return canvas.reshape(anatomy.SHAPE)


def series(
    drawn: Scene, pose: Pose, spacing_mm: dict[str, tuple[float, float, float]] | None = None
) -> Iterator[Series]:
    """The volumes of one patient, one at a time: ncct, cta (int16 HU), tmax (s), cbf (mL/100 g/min) as float32, then
    the truth as uint8 masks: vessels and clot on the CTA's grid, core and tmax6 on the perfusion grid.
    """
    spacing = SPACING_MM | (spacing_mm or {})
    rng = np.random.default_rng([drawn.variation.noise_seed, 4])
    canvas_from_mni = np.linalg.inv(anatomy.CANVAS)
    for name in ("ncct", "cta"):
        shape, affine = _grid(pose, name, spacing[name])
        moved = pose.ncct_movement if name == "ncct" else np.eye(4)
        to_canvas = canvas_from_mni @ np.linalg.inv(moved @ pose.world_from_mni) @ affine
        values = _sample(paint(drawn, contrast=name == "cta"), to_canvas, shape, anatomy.AIR)
        values += rng.standard_normal(shape, dtype=np.float32) * np.float32(NOISE_HU[name])
        if name == "ncct":
            values += np.float32(drawn.variation.offset_hu)
        yield Series(name, np.clip(np.rint(values), -1024, 3071).astype(np.int16), affine)
        if name == "cta":
            for mask, voxels in (("vessels", drawn.patency), ("clot", drawn.clot)):
                covered = _sample(_marked(voxels), to_canvas, shape, 0)
                yield Series(mask, (covered > 0.4).astype(np.uint8), affine)

    brain = scene.lattice()
    shape, affine = _grid(pose, "perfusion", spacing["perfusion"])
    to_lattice = np.linalg.inv(brain.affine) @ np.linalg.inv(pose.world_from_mni) @ affine
    ranks = scene.ranks_ml(drawn, pose.volume_scale)
    found = {
        "tmax": scene.tmax_s(ranks, drawn.patient),
        "cbf": MEAN_FLOW * scene.flow(ranks, drawn.patient),
        "core": (ranks < drawn.patient.core_ml).astype(np.float32),
        "tmax6": (ranks < drawn.patient.tmax6_ml).astype(np.float32),
    }
    for name, values in found.items():
        volume = np.zeros(brain.mask.shape, np.float32)
        volume[brain.mask] = values
        sampled = _sample(volume, to_lattice, shape, 0)
        yield Series(name, (sampled > 0.5).astype(np.uint8) if name in ("core", "tmax6") else sampled, affine)
