"""Full-size volumes of a phantom as a scanner would write them, in oblique patient space.

Design notes:
- The head is painted on the canvas and sampled once into the voxels of each series: tilted, flipped, far from the
  origin, with the spacing and noise of the series. NCCT and CTA differ by a small movement.
- Perfusion maps use the lattice and ranks of render.py, scaled to the volume of the patient's brain. Each voxel of a
  map has the value at its centre, reduced by the share of it that is not brain. Below a third of brain it has no data.
- ``draw_pose`` draws the random numbers; ``series`` is a pure function of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from app.imaging.registration.align import rotation
from app.phantoms import acquisition, anatomy, scene
from app.phantoms.scanner import THIN_MM, Scanner
from app.phantoms.scene import Scene
from app.sdk.types import Channel

Affine = NDArray[np.float64]
_Edge = Literal["constant", "nearest"]

FIELD_MM = (196.0, 236.0, 204.0)  # field of view: the head and a part of the neck, tilted by a few degrees
CENTRE_MM = np.array([0.0, -18.0, -4.0])  # centre of the head in MNI space
NECK_MM = 130.0  # that a CTA from the arch to the vertex shows further down
LEAST_BRAIN = 1 / 3  # share of a voxel of a perfusion map; below it, the map has no data
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


def _sample(
    canvas: NDArray[np.float32], to_canvas: Affine, shape: tuple[int, ...], fill: float, edge: _Edge = "constant"
) -> NDArray[np.float32]:
    sampled: NDArray[np.float32] = ndimage.affine_transform(
        canvas,
        to_canvas[:3, :3],
        to_canvas[:3, 3],
        output_shape=shape,
        order=1,
        mode=edge,
        cval=fill,
        output=np.float32,
    )
    return sampled


def paint(patient_scene: Scene, contrast: bool) -> NDArray[np.float32]:
    """The head on the canvas (X, Y, Z), HU, with or without contrast in the arteries."""
    head, tree = anatomy.head(patient_scene.variation.variant), patient_scene.tree
    blood = anatomy.BLOOD + patient_scene.density
    if contrast:
        blood = blood + patient_scene.enhancement * np.float32(patient_scene.variation.contrast_hu)
    painted = head.tissue.copy().reshape(-1)
    painted[tree.index] += tree.cover * (blood - painted[tree.index])
    return painted.reshape(anatomy.SHAPE)


def _marked(patient_scene: Scene, voxels: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Cover, on the canvas (X, Y, Z), of the vessel voxels that are True in ``voxels`` (n,)."""
    tree = patient_scene.tree
    canvas = np.zeros(anatomy.SHAPE, np.float32).reshape(-1)
    canvas[tree.index] = tree.cover * voxels
    return canvas.reshape(anatomy.SHAPE)


def series(
    patient_scene: Scene, pose: Pose, spacing_mm: dict[str, tuple[float, float, float]] | None = None
) -> Iterator[Series]:
    """Yield the volumes of one patient: images and ground-truth masks.

    Images: ncct and cta (int16, HU), tmax (float32, s), cbf (float32, mL/100 g/min); none that the protocol lacks.
    Masks (uint8): vessels and clot on the grid of the CTA, core and tmax6 on the grid of the perfusion maps.
    """
    spacing = SPACING_MM | (spacing_mm or {})
    scanner = patient_scene.variation.scanner
    rng = np.random.default_rng([patient_scene.variation.noise_seed, 4])
    for channel in (Channel.NCCT, Channel.CTA):
        name = channel.value
        grid = _planned(pose, channel, spacing[name], scanner)
        painted = paint(patient_scene, contrast=channel is Channel.CTA)
        values = _scanned(painted, grid, scanner)
        values += rng.standard_normal(values.shape, dtype=np.float32) * np.float32(NOISE_HU[name] * scanner.noise)
        if channel is Channel.NCCT:
            values += np.float32(patient_scene.variation.offset_hu)
        if channel not in scanner.missing:
            yield Series(name, np.clip(np.rint(values), -1024, 3071).astype(np.int16), grid.affine)
        if channel is Channel.CTA:
            for mask, voxels in (("vessels", patient_scene.patency), ("clot", patient_scene.clot)):
                covered = _sliced(_marked(patient_scene, voxels), grid, 0)
                yield Series(mask, (covered > 0.4).astype(np.uint8), grid.affine)
    yield from perfusion(patient_scene, pose, spacing["perfusion"])


def perfusion(
    patient_scene: Scene, pose: Pose, spacing_mm: tuple[float, float, float] = SPACING_MM["perfusion"]
) -> Iterator[Series]:
    """Yield the perfusion maps of ``series`` that the protocol has, and the masks of core and tmax6."""
    variation, patient = patient_scene.variation, patient_scene.patient
    brain = scene.lattice(variation.variant)
    grid = _planned(pose, Channel.TMAX, spacing_mm, variation.scanner)
    to_lattice = np.linalg.inv(brain.affine) @ grid.mni_from_world @ grid.affine

    def sampled(values: NDArray[np.float32]) -> NDArray[np.float32]:
        volume = np.zeros(brain.mask.shape, np.float32)
        volume[brain.mask] = values
        return _sample(volume, to_lattice, grid.shape, 0)

    share = sampled(np.ones(len(brain.xyz), np.float32))
    seen = share > LEAST_BRAIN
    brain_share = share[seen]
    # Times and flows bend at their limits, so their interpolation is biased there. The cube root of a rank, which grows
    # with the distance from the worst place, is smooth.
    ranks = scene.ranks_ml(patient_scene, pose.volume_scale)
    roots = np.cbrt(np.minimum(ranks, ranks[np.isfinite(ranks)].max()))
    root, normal = (sampled(values)[seen] / brain_share for values in (roots, brain.flow))
    at, mostly_brain = root**3, brain_share > 0.5
    maps = {
        "tmax": brain_share * scene.tmax_s(at, patient),
        "cbf": brain_share * MEAN_FLOW * scene.flow(at, patient, variation.variant, normal),
        "core": (mostly_brain & (at < patient.core_ml)).astype(np.uint8),
        "tmax6": (mostly_brain & (at < patient.tmax6_ml)).astype(np.uint8),
    }
    if Channel.TMAX in variation.scanner.missing:
        maps = {name: values for name, values in maps.items() if name in ("core", "tmax6")}
    for name, values in maps.items():
        volume = np.zeros(grid.shape, values.dtype)
        volume[seen] = values
        yield Series(name, volume, grid.affine)


@dataclass(frozen=True)
class _Grid:
    """Voxels of one series.

    Attributes:
        shape: number of voxels.
        affine: voxel -> RAS+ mm.
        mni_from_world: RAS+ mm -> MNI mm, where the patient lies.
        edge: what lies beyond the canvas, a mode of scipy: its edge planes for a neck, else a constant.
        parts: number of thin slices that a slice is the mean of.
    """

    shape: tuple[int, ...]
    affine: Affine
    mni_from_world: Affine
    edge: _Edge
    parts: int


def _planned(pose: Pose, channel: Channel, spacing: tuple[float, float, float], scanner: Scanner) -> _Grid:
    """Grid of the series of a channel, as far as the protocol covers the head.

    A limited field of view is planned along the axial planes of the head; another one is tilted at random.
    """
    name = "perfusion" if channel is Channel.TMAX else channel.value
    moved: Affine = pose.ncct_movement if channel is Channel.NCCT else np.eye(4)
    mni_from_world = np.asarray(np.linalg.inv(moved @ pose.world_from_mni), np.float64)
    parts = 1
    if channel is not Channel.TMAX and scanner.slice_mm(channel) > THIN_MM:
        spacing = (*spacing[:2], scanner.slice_mm(channel))
        parts = int(np.ceil(spacing[2] / THIN_MM))
    arch = scanner.arch and channel is Channel.CTA
    limited = acquisition.covered(channel, scanner, np.zeros(1)) is not None
    tilt = _axial(mni_from_world) if limited else pose.tilt[name]
    field = (*FIELD_MM[:2], FIELD_MM[2] + (NECK_MM if arch else 0))
    shape = tuple(int(np.ceil(length / step)) for length, step in zip(field, spacing, strict=True))
    linear = tilt @ np.diag(np.array(spacing) * pose.flips[name])
    centre = pose.world_from_mni[:3] @ [*CENTRE_MM, 1]
    if arch:
        centre -= tilt[:, 2] * (NECK_MM / 2)
    affine: Affine = _about(linear, (np.array(shape) - 1) / 2, centre)
    heights = (mni_from_world @ affine)[2, 2:] @ np.stack([np.arange(shape[2]), np.ones(shape[2])])
    shown = acquisition.covered(channel, scanner, heights)
    if shown is not None:
        kept = np.flatnonzero(shown)
        affine[:3, 3] += affine[:3, 2] * kept[0]
        shape = (*shape[:2], len(kept))
    return _Grid(shape, affine, mni_from_world, "nearest" if arch else "constant", parts)


def _axial(mni_from_world: Affine) -> NDArray[np.float64]:
    """Rotation whose third axis is perpendicular to the axial planes of MNI space."""
    normal = mni_from_world[2, :3] / np.linalg.norm(mni_from_world[2, :3])
    right = np.cross([0.0, 1.0, 0.0], normal)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(normal, right), normal], axis=1)


def _sliced(
    canvas: NDArray[np.float32], grid: _Grid, fill: float, shift_mm: Sequence[float] | Affine = (0, 0, 0)
) -> NDArray[np.float32]:
    """The canvas, moved by ``shift_mm``, in the voxels of a series; thick slices are means of thin ones."""
    parts = grid.parts
    thin = np.eye(4)
    thin[2, 2], thin[2, 3] = 1 / parts, -(parts - 1) / (2 * parts)
    to_canvas = np.linalg.inv(anatomy.CANVAS) @ grid.mni_from_world @ grid.affine @ thin
    to_canvas[:3, 3] += shift_mm
    shape = (*grid.shape[:2], grid.shape[2] * parts)
    sampled = _sample(canvas, to_canvas, shape, fill, grid.edge)
    return sampled.reshape(*grid.shape, parts).mean(-1) if parts > 1 else sampled


def _scanned(painted: NDArray[np.float32], grid: _Grid, scanner: Scanner) -> NDArray[np.float32]:
    """The head in the voxels of NCCT or CTA, HU, without noise."""
    if any(scanner.motion_mm):
        half = np.array(scanner.motion_mm) / 2
        values = _sliced(painted, grid, anatomy.AIR, half)
        values += _sliced(painted, grid, anatomy.AIR, -half)
        values /= 2
    else:
        values = _sliced(painted, grid, anatomy.AIR)
    values = acquisition.filtered(values, scanner, np.linalg.norm(grid.affine[:3, :3], axis=0))
    acquisition.add_artefacts(values, scanner, grid.mni_from_world @ grid.affine)
    return acquisition.shown_density(values, scanner)
