"""Affine registration of a head CT to MNI152 space, and of two CTs of one patient, with a quality for each.

Steps of ``to_mni``: downsample and clamp the volume; find the intracranial space (``skull_strip``); fit a similarity
transform to it from 27 starting rotations; refine all twelve parameters on bone and CSF, on two grids.

Design notes:
- The cost is computed from bone and CSF, which every CT shows sharply; grey values differ with age and scanner.
- Each refinement grid covers only the brain and skull along MNI axes, without neck and table.
- There is no randomness: the same volume gives the same matrix.
- docs/experiments.md describes alternatives and gives the figures.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from app.imaging import resample
from app.imaging.io.nifti import Volume
from app.imaging.registration import gauss_newton, skull_strip, template
from app.imaging.registration.gauss_newton import Points
from app.imaging.registration.skull_strip import OUTSIDE

__all__ = ["POOR_QUALITY", "Alignment", "Coarse", "Coregistration", "RegistrationImage", "best_start", "coregister"]
__all__ += ["refine", "rotation", "to_mni", "warm_up"]

Floats = npt.NDArray[np.float32]
Matrix = npt.NDArray[Any]

POOR_QUALITY = 0.5  # quality below which an alignment is unreliable
CLAMP_HU = (-400.0, 400.0)
BODY_HU = -300.0
SMALL_MM, START_MM, FINE_MM = 1.9, 4.0, 3.0
MIN_BRAIN_ML = 250.0
MIN_BAND_SHARE = 0.4  # a quality needs at least this share of the skull around the brain in the field of view
LEVELS = ((8, 12.0), (4, 6.0))  # per refinement grid: spacing of the template points and blur of both images, mm
USUAL_SIZE, USUAL_PROPORTION = (0.8, 1.25), (0.87, 1.15)
"""Edge of the intracranial space relative to the template's, and of each axis relative to all three. Outside these
ranges the start search also tries the measured sizes, because a similarity fit cannot find them. The space of a scan
that ends below the vertex looks flat, too; so of the two starts the one that gives the better alignment is used.
"""
STIFFNESS = 0.2  # weight of the strain penalty, for heads that are hardly in view (cropped vertex, thick slices)


@dataclass(frozen=True)
class Alignment:
    """``mni_from_world`` (4, 4), the patient's RAS+ mm -> MNI152 mm; ``quality``, 0 to 1; ``poor`` if it is low."""

    mni_from_world: Matrix
    quality: float
    poor: bool


@dataclass(frozen=True, eq=False)
class Coarse:
    """The intracranial space of a head, on which every search for a start works.

    Attributes:
        image: (X, Y, Z, 3), blurred: mask, HU / 40 inside it, field of view.
        affine: (4, 4), voxel index -> RAS+ millimetres, along the world's axes.
        middle: (3,), centre of mass, RAS+ millimetres.
        size: (3,), extent along the world's axes relative to the template's.
    """

    image: Floats
    affine: Matrix
    middle: Matrix
    size: Matrix


class Coregistration(NamedTuple):
    """Map from RAS+ millimetres of ``moving`` to those of ``fixed``, (4, 4), and how well it fits.

    Attributes:
        quality: 0 to 1, correlation of bone; 0 if either has no intracranial space.
        mismatch_mm: mean distance of brain points between this rigid map and the best affine one; 0 if not ``rigid``.
    """

    fixed_from_moving: Matrix
    quality: float
    mismatch_mm: float


class RegistrationImage:
    """A head CT prepared for registration; one object serves several registrations.

    Attributes:
        hu: downsampled, clamped copy, Hounsfield units.
        affine: (4, 4), voxel index of ``hu`` -> RAS+ millimetres.
        coarse: its intracranial space; None without one.
        start: (4, 4), MNI152 -> patient millimetres, accurate to about 10 mm; None without an intracranial space.
        start_cost: cost of ``start``.
    """

    def __init__(self, volume: Volume) -> None:
        self.hu, self.affine = _downsampled(volume)
        self.coarse = _coarse(self)
        self.start: Matrix | None = None
        self.start_cost = np.inf
        if self.coarse is not None:
            self.start, self.start_cost = _start(self, self.coarse)

    def resampled(self, affine: Matrix, shape: tuple[int, ...]) -> Floats:
        """The volume on another grid, HU; ``OUTSIDE`` where it has no data. ``affine`` (4, 4): voxel -> RAS+ mm."""
        return resample.resample(self.hu, np.linalg.inv(self.affine) @ affine, shape, fill=OUTSIDE)


def to_mni(head: RegistrationImage) -> Alignment:
    """Register a head CT, with or without contrast, to MNI152.

    A volume without an intracranial space (also an empty one) is aligned by its centre, with quality 0 and ``poor``.
    """
    if head.start is None:
        return Alignment(_centre_alignment(head), 0.0, poor=True)
    return refine(head, head.start)


def refine(head: RegistrationImage, start: Matrix) -> Alignment:
    """Register a head CT to MNI152 from a start, (4, 4) MNI152 -> patient millimetres."""
    world_from_mni, quality = _refine(head, start)
    return Alignment(np.linalg.inv(world_from_mni), quality, poor=quality < POOR_QUALITY)


def coregister(moving: RegistrationImage, fixed: RegistrationImage, *, rigid: bool = False) -> Coregistration:
    """Register one head CT of a patient to another, usually an NCCT to a CTA; ``rigid`` keeps lengths."""
    if moving.start is None or fixed.start is None:
        return Coregistration(np.eye(4), 0.0, 0.0)
    moving_from_fixed = moving.start @ np.linalg.inv(fixed.start)
    if rigid:
        u, _, v = np.linalg.svd(moving_from_fixed[:3, :3])
        middle = fixed.start[:3, :3] @ template.CENTRE_MM + fixed.start[:3, 3]
        mapped_middle = moving_from_fixed[:3, :3] @ middle + moving_from_fixed[:3, 3]
        moving_from_fixed[:3, :3] = u @ v
        moving_from_fixed[:3, 3] = mapped_middle - u @ v @ middle
    grid, shape = _brain_grid(fixed.start)
    quality, mismatch = 0.0, 0.0
    for fwhm, step in ((10.0, 3), (5.0, 2)):
        target = _head_image(fixed, grid, shape, fwhm)
        image = _head_image(moving, moving_from_fixed @ grid, shape, fwhm)
        points = _sample_points(target, step, grid)
        start = points.voxel_from_unit(np.linalg.inv(grid))
        transform, _ = gauss_newton.fit(image, points, start, rigid=rigid, steps=20)
        if rigid and fwhm == 5.0:
            mismatch = _mismatch_mm(image, _sample_points(target, 3, grid), transform, points, grid)
        moving_from_fixed = moving_from_fixed @ grid @ points.voxel_from_mm(transform)
        quality = _bone_correlation(_head_image(moving, moving_from_fixed @ grid, shape, fwhm), target)
    return Coregistration(np.linalg.inv(moving_from_fixed), quality, mismatch)


def _mismatch_mm(image: Floats, points: Points, rigid: Matrix, rigid_points: Points, grid: Matrix) -> float:
    """Mean distance of brain points between the rigid fit of a pair and its best affine fit, mm.

    Heads of two patients differ in length, width and height; two scans of one head do not.
    """
    start = points.voxel_from_unit(rigid_points.voxel_from_mm(rigid))
    affine, _ = gauss_newton.fit(image, points, start, steps=12, tolerance=0.03)
    at = np.column_stack([points.coordinates, np.ones(len(points.coordinates))])
    moved = at @ (affine - start).T  # voxels of the grid, which has an isotropic edge
    return float(np.linalg.norm(moved, axis=1).mean() * np.cbrt(abs(np.linalg.det(grid[:3, :3]))))


@cache
def warm_up() -> None:
    """Load the template, and compile every kernel or load it from the cache; done once per process."""
    resample.warm_up()
    skull_strip.warm_up()
    ball = np.linalg.norm(np.indices((64, 64, 64)) - 31.5, axis=0)
    hu = np.where(ball < 22, 35, np.where(ball < 26, 800, -1000)).astype(np.int16)
    head = RegistrationImage(Volume(np.asfortranarray(hu), np.diag([3.0, 3.0, 3.0, 1.0])))
    to_mni(head)
    coregister(head, head)
    template.intracranial_points(16, 12.0)  # for the search of transform_check
    template.clear_maps()


def _downsampled(volume: Volume) -> tuple[Floats, Matrix]:
    data, slope, inter = volume.data, volume.slope, volume.inter
    if data.dtype.type not in resample.NATIVE_TYPES or data.dtype.kind == "f":
        data, slope, inter = volume.values(), 1.0, 0.0
    x, y, z = (max(1, int(SMALL_MM / edge)) for edge in volume.spacing_mm)
    stored = sorted((bound - inter) / slope for bound in CLAMP_HU)
    blocks, from_blocks = resample.shrink(data, (x, y, z), clamp=(stored[0], stored[1]))
    return blocks * np.float32(slope) + np.float32(inter), volume.affine @ from_blocks


def _coarse(head: RegistrationImage) -> Coarse | None:
    """The intracranial space on a grid of ``START_MM``; None without one."""
    low, high = _body_box(head)
    shape = tuple(int(n) for n in np.ceil((high - low) / START_MM) + 1)
    grid = np.diag([START_MM, START_MM, START_MM, 1.0])
    grid[:3, 3] = low
    hu = head.resampled(grid, shape)
    inside = skull_strip.intracranial(hu, START_MM)
    if inside.sum() * START_MM**3 < MIN_BRAIN_ML * 1000:
        return None
    image = _channels(
        [inside.astype(np.float32), np.where(inside, np.clip(hu, 0, 80), 0) / 40], hu > OUTSIDE, 12 / START_MM
    )
    at = np.argwhere(inside) * START_MM
    return Coarse(image, grid, at.mean(axis=0) + low, at.std(axis=0) / template.spread_mm())


def _start(head: RegistrationImage, coarse: Coarse) -> tuple[Matrix, float]:
    """The start of a head, (4, 4) MNI152 -> patient millimetres, and its cost."""
    tilts = [rotation(angles) for angles in itertools.product((-25, 0, 25), (-20, 0, 20), (-25, 0, 25))]
    start, cost = best_start(coarse, tilts)
    sized = _unusual_sizes(coarse, tilts[1::3])
    if sized:
        other, other_cost = best_start(coarse, sized)
        if other_cost < cost and _refine(head, other)[1] > _refine(head, start)[1]:
            return other, other_cost
    return start, cost


def _unusual_sizes(coarse: Coarse, tilts: Sequence[Matrix]) -> list[Matrix]:
    """Linear parts, (3, 3) MNI152 -> patient, of starts with the measured size; none if it is usual."""
    guesses = []
    edge = float(np.prod(coarse.size)) ** (1 / 3)
    if not USUAL_SIZE[0] < edge < USUAL_SIZE[1]:
        guesses += [edge * tilt for tilt in tilts]
    if not all(USUAL_PROPORTION[0] < axis < USUAL_PROPORTION[1] for axis in coarse.size / edge):
        guesses.append(np.diag(coarse.size))
    return guesses


def best_start(coarse: Coarse, guesses: Sequence[Matrix], *, apart: int = 12, kept: int = 3) -> tuple[Matrix, float]:
    """The start, (4, 4) MNI152 -> patient millimetres, of the lowest cost that a guess leads to; and its cost.

    Args:
        coarse: the intracranial space.
        guesses: linear parts, (3, 3) MNI152 -> patient.
        apart: millimetres between the points of the first fits.
        kept: number of best guesses that are fitted further.
    """
    few, points = template.intracranial_points(apart, 12.0), template.intracranial_points(8, 12.0)
    from_world = np.linalg.inv(coarse.affine)
    attempts = []
    for linear in guesses:
        guess = np.eye(4)
        guess[:3, :3] = linear
        guess[:3, 3] = coarse.middle - linear @ template.CENTRE_MM
        start = few.voxel_from_unit(from_world @ guess)
        transform, cost = gauss_newton.fit(coarse.image, few, start, similarity=True, steps=4)
        attempts.append((cost, transform))
    attempts.sort(key=lambda attempt: attempt[0])
    best = [
        gauss_newton.fit(coarse.image, points, transform, similarity=True, steps=15) for _, transform in attempts[:kept]
    ]
    transform, cost = min(best, key=lambda attempt: attempt[1])
    return coarse.affine @ points.voxel_from_mm(transform), cost


def _refine(head: RegistrationImage, world_from_mni: Matrix) -> tuple[Matrix, float]:
    """World from MNI (4, 4), all twelve parameters refined on bone and CSF on two grids; and its quality."""
    grid, shape = _brain_grid(np.eye(4))
    quality, earlier_strain = 0.0, np.zeros(6)
    for step, fwhm in LEVELS:
        points = template.head_points(step, float(np.hypot(fwhm, FINE_MM)))
        image = _head_image(head, world_from_mni @ grid, shape, fwhm)
        start = points.voxel_from_unit(np.linalg.inv(grid))
        if step == LEVELS[0][0]:
            start, _ = gauss_newton.fit(image, points, start, similarity=True, steps=10)
        transform, _ = gauss_newton.fit(image, points, start, stiffness=STIFFNESS, earlier_strain=earlier_strain)
        earlier_strain = earlier_strain + gauss_newton.strain(start, transform)
        world_from_mni = world_from_mni @ grid @ points.voxel_from_mm(transform)
        quality = _band_correlation(image, points, transform)
    return world_from_mni, quality


def _band_correlation(image: Floats, points: Points, transform: Matrix) -> float:
    """Correlation of bone with the template in the band around the brain; 0 if too little of it is in view."""
    band = points.weights[:, 0] > 0
    voxels = (points.coordinates[band] @ transform[:, :3].T + transform[:, 3]).T
    shown, view = (ndimage.map_coordinates(image[..., channel], voxels, order=1) for channel in (0, 2))
    seen = view > gauss_newton.MIN_VISIBLE
    if seen.mean() < MIN_BAND_SHARE:
        return 0.0
    return _correlation(shown[seen], points.values[band, 0][seen])


def _brain_grid(world_from_mni: Matrix) -> tuple[Matrix, tuple[int, ...]]:
    """Affine (voxel -> patient's millimetres) and shape of a grid along MNI axes over brain and skull."""
    low, high = np.array(template.BOX).T
    grid = np.diag([FINE_MM, FINE_MM, FINE_MM, 1.0])
    grid[:3, 3] = low
    return world_from_mni @ grid, tuple(int(n) for n in np.ceil((high - low) / FINE_MM) + 1)


def _head_image(head: RegistrationImage, affine: Matrix, shape: tuple[int, ...], fwhm: float) -> Floats:
    """Bone, non-CSF and field of view of a head on a grid, blurred by ``fwhm`` mm."""
    hu = head.resampled(affine, shape)
    images = [template.ramp(hu, template.BONE_HU), template.ramp(hu, template.NON_CSF_HU)]
    return _channels(images, hu > OUTSIDE, fwhm / FINE_MM)


def _sample_points(target: Floats, step: int, grid: Matrix) -> Points:
    """Every ``step``-th voxel in the field of view of an image, as points that another image is fitted to."""
    index = np.argwhere(target[::step, ::step, ::step, -1] > gauss_newton.MIN_VISIBLE) * step
    values = np.ascontiguousarray(target[tuple(index.T)][:, :-1])
    millimetres = index @ grid[:3, :3].T + grid[:3, 3]
    centre = millimetres.mean(axis=0) if len(millimetres) else np.zeros(3)
    return Points((millimetres - centre) / gauss_newton.UNIT_MM, values, np.ones_like(values), centre)


def _bone_correlation(one: Floats, other: Floats) -> float:
    """Correlation of bone where both images are in the field of view."""
    both = (one[..., -1] > gauss_newton.MIN_VISIBLE) & (other[..., -1] > gauss_newton.MIN_VISIBLE)
    return _correlation(one[..., 0][both], other[..., 0][both])


def _correlation(one: Floats, other: Floats) -> float:
    """Pearson's correlation; 0 if it is negative or if either array is constant."""
    if one.size < 2:
        return 0.0
    first, second = one - one.mean(dtype=np.float64), other - other.mean(dtype=np.float64)
    norm = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return max(0.0, float((first * second).sum()) / norm) if norm else 0.0


def _channels(values: list[npt.NDArray[Any]], seen: npt.NDArray[np.bool_], fwhm: float) -> Floats:
    """Stack and blur channels, and their field of view, as ``gauss_newton.fit`` takes them; ``fwhm`` in voxels."""
    sigma = template.sigma_of_fwhm(fwhm)
    view = ndimage.gaussian_filter(seen.astype(np.float32), sigma, truncate=3)
    blurred = [
        ndimage.gaussian_filter(np.where(seen, each, 0).astype(np.float32), sigma, truncate=3) / np.maximum(view, 0.1)
        for each in values
    ]
    return np.ascontiguousarray(np.stack([*blurred, view], axis=-1), np.float32)


def _body_box(head: RegistrationImage) -> tuple[Matrix, Matrix]:
    """World bounding box (low, high) of all voxels that are not air; of the whole volume if all are air."""
    solid = head.hu > BODY_HU
    ends = []
    for axis in range(3):
        planes = np.flatnonzero(solid.any(axis=tuple(other for other in range(3) if other != axis)))
        ends.append((planes[0], planes[-1]) if len(planes) else (0, head.hu.shape[axis] - 1))
    corners = np.array([[*corner, 1] for corner in itertools.product(*ends)]) @ head.affine.T
    return corners[:, :3].min(axis=0), corners[:, :3].max(axis=0)


def _centre_alignment(head: RegistrationImage) -> Matrix:
    low, high = _body_box(head)
    matrix = np.eye(4)
    matrix[:3, 3] = template.CENTRE_MM - (low + high) / 2
    return matrix


def rotation(degrees: Sequence[float] | Matrix) -> Matrix:
    """(3, 3): rotation by ``degrees`` (3,) about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        one = np.eye(3)
        first, second = (axis + 1) % 3, (axis + 2) % 3
        one[first, first] = one[second, second] = np.cos(angle)
        one[first, second], one[second, first] = -np.sin(angle), np.sin(angle)
        matrix = one @ matrix
    return matrix
