"""Full-size volumes of a phantom as a scanner would write them, in oblique patient space.

Design notes:
- The head is painted on the canvas and sampled once into the voxels of each series: tilted, flipped, far from the
  origin, with the spacing and noise of the series. NCCT and CTA differ by a small movement.
- Perfusion maps use the lattice and ranks of render.py, scaled to the volume of the patient's brain. Each voxel of a
  map has the value at its centre, as in perfusion software, and not a mean with the 0 outside the brain.
- ``draw_pose`` draws the random numbers; ``series`` is a pure function of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from app.imaging.registration.align import rotation
from app.phantoms import anatomy, scene
from app.phantoms.scene import Scene

Affine = NDArray[np.float64]

FIELD_MM = (196.0, 236.0, 204.0)  # field of view: the head and a part of the neck, tilted by a few degrees
CENTRE_MM = np.array([0.0, -18.0, -4.0])  # centre of the head in MNI space
MEAN_FLOW = 40.0  # mean flow of the healthy brain, mL/100 g/min
NOISE_HU = {"ncct": 4.0, "cta": 6.0}  # at the voxel sizes below
SPACING_MM = {"ncct": (1.0, 1.0, 1.25), "cta": (0.9, 0.9, 1.0), "perfusion": (2.0, 2.0, 4.0)}


@dataclass(frozen=True)
class Pose:
    """Position of the patient (MNI -> RAS+ mm), movement before the NCCT, and tilt and axis signs of each series."""

    world_from_mni: Affine
    ncct_movement: Affine
    tilt: dict[str, Affine]
    flips: dict[str, tuple[int, int, int]]

    @property
    def volume_scale(self) -> float:
        """Millilitres of this patient's brain per millilitre of the MNI brain."""
        return float(np.linalg.det(self.world_from_mni[:3, :3]))


@dataclass(frozen=True)
class Series:
    """One volume: ``name``, ``data`` (X, Y, Z) and its voxel-to-world ``affine``."""

    name: str
    data: NDArray[np.generic]
    affine: Affine


def _about(linear: NDArray[np.float64], centre: NDArray[np.float64], target: NDArray[np.float64]) -> Affine:
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = target - linear @ centre
    return affine


def draw_pose(rng: np.random.Generator) -> Pose:
    """Draw a pose: size up to 7 % larger or smaller, rotation up to about 10 degrees, far from the origin."""
    size = np.diag(rng.uniform(0.94, 1.07, 3))
    shear = np.eye(3)
    shear[0, 1], shear[1, 2], shear[0, 2] = rng.uniform(-0.02, 0.02, 3)
    place = rng.uniform(-60, 60, 3)
    turned = rotation(rng.uniform(-9, 9, 3))
    movement = _about(rotation(rng.uniform(-1.5, 1.5, 3)), place, place + rng.uniform(-2, 2, 3))
    layouts = [(1, 1, 1), (-1, 1, 1), (-1, -1, 1)]  # RAS, LAS and LPS storage
    return Pose(
        world_from_mni=_about(turned @ size @ shear, CENTRE_MM, place),
        ncct_movement=movement,
        tilt={name: rotation(rng.uniform(-6, 6, 3)) for name in SPACING_MM},
        flips={name: layouts[rng.integers(3)] for name in SPACING_MM},
    )


def _grid(pose: Pose, name: str, spacing: tuple[float, ...]) -> tuple[tuple[int, ...], Affine]:
    """Shape and affine of a series: its field of view, centred on the head."""
    shape = tuple(int(np.ceil(length / step)) for length, step in zip(FIELD_MM, spacing, strict=True))
    linear = pose.tilt[name] @ np.diag(np.array(spacing) * pose.flips[name])
    centre = pose.world_from_mni[:3] @ [*CENTRE_MM, 1]
    return shape, _about(linear, (np.array(shape) - 1) / 2, centre)


def _sample(canvas: NDArray[np.float32], to_canvas: Affine, shape: tuple[int, ...], fill: float) -> NDArray[np.float32]:
    sampled: NDArray[np.float32] = ndimage.affine_transform(
        canvas, to_canvas[:3, :3], to_canvas[:3, 3], output_shape=shape, order=1, cval=fill, output=np.float32
    )
    return sampled


def paint(patient_scene: Scene, contrast: bool) -> NDArray[np.float32]:
    """The head on the canvas (X, Y, Z), HU, with or without contrast in the arteries."""
    head, tree = anatomy.head(), anatomy.arteries()
    blood = anatomy.BLOOD + patient_scene.density
    if contrast:
        blood = blood + patient_scene.enhancement * np.float32(patient_scene.variation.bolus)
    painted = head.tissue.copy().reshape(-1)
    painted[tree.index] += tree.cover * (blood - painted[tree.index])
    return painted.reshape(anatomy.SHAPE)


def _marked(voxels: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Cover, on the canvas (X, Y, Z), of the artery voxels that are True in ``voxels`` (n,)."""
    tree = anatomy.arteries()
    canvas = np.zeros(anatomy.SHAPE, np.float32).reshape(-1)
    canvas[tree.index] = tree.cover * voxels
    return canvas.reshape(anatomy.SHAPE)


def series(
    patient_scene: Scene, pose: Pose, spacing_mm: dict[str, tuple[float, float, float]] | None = None
) -> Iterator[Series]:
    """Yield the volumes of one patient: images and ground-truth masks.

    Images: ncct and cta (int16, HU), tmax (float32, s), cbf (float32, mL/100 g/min). Masks (uint8): vessels and clot
    on the grid of the CTA, core and tmax6 on the grid of the perfusion maps.
    """
    spacing = SPACING_MM | (spacing_mm or {})
    rng = np.random.default_rng([patient_scene.variation.noise_seed, 4])
    canvas_from_mni = np.linalg.inv(anatomy.CANVAS)
    for name in ("ncct", "cta"):
        shape, affine = _grid(pose, name, spacing[name])
        moved = pose.ncct_movement if name == "ncct" else np.eye(4)
        to_canvas = canvas_from_mni @ np.linalg.inv(moved @ pose.world_from_mni) @ affine
        values = _sample(paint(patient_scene, contrast=name == "cta"), to_canvas, shape, anatomy.AIR)
        values += rng.standard_normal(shape, dtype=np.float32) * np.float32(NOISE_HU[name])
        if name == "ncct":
            values += np.float32(patient_scene.variation.offset_hu)
        yield Series(name, np.clip(np.rint(values), -1024, 3071).astype(np.int16), affine)
        if name == "cta":
            for mask, voxels in (("vessels", patient_scene.patency), ("clot", patient_scene.clot)):
                covered = _sample(_marked(voxels), to_canvas, shape, 0)
                yield Series(mask, (covered > 0.4).astype(np.uint8), affine)
    yield from perfusion(patient_scene, pose, spacing["perfusion"])


def perfusion(
    patient_scene: Scene, pose: Pose, spacing_mm: tuple[float, float, float] = SPACING_MM["perfusion"]
) -> Iterator[Series]:
    """Yield the perfusion maps of ``series``, and the masks of core and tmax6."""
    brain = scene.lattice()
    shape, affine = _grid(pose, "perfusion", spacing_mm)
    to_lattice = np.linalg.inv(brain.affine) @ np.linalg.inv(pose.world_from_mni) @ affine

    def sampled(values: NDArray[np.float32]) -> NDArray[np.float32]:
        volume = np.zeros(brain.mask.shape, np.float32)
        volume[brain.mask] = values
        return _sample(volume, to_lattice, shape, 0)

    share = sampled(np.ones(len(brain.xyz), np.float32))
    inside = share > 0.5
    # Times and flows bend at their limits, so their interpolation is biased there. The cube root of a rank, which grows
    # with the distance from the worst place, is smooth.
    ranks = scene.ranks_ml(patient_scene, pose.volume_scale)
    roots = np.cbrt(np.minimum(ranks, ranks[np.isfinite(ranks)].max()))
    root, normal = (sampled(values)[inside] / share[inside] for values in (roots, brain.flow))
    at = root**3
    patient = patient_scene.patient
    maps = {
        "tmax": scene.tmax_s(at, patient),
        "cbf": MEAN_FLOW * scene.flow(at, patient, normal),
        "core": (at < patient.core_ml).astype(np.uint8),
        "tmax6": (at < patient.tmax6_ml).astype(np.uint8),
    }
    for name, values in maps.items():
        volume = np.zeros(shape, values.dtype)
        volume[inside] = values
        yield Series(name, volume, affine)
