"""A head CT to MNI152 space, and one CT of a patient to another: twelve numbers each, with a judgement of the result.

Steps of ``to_mni``: a small copy of the volume, clamped so that bone is bone; the intracranial space (``strip``);
from it position, turn and size, tried from 27 directions; then all twelve numbers from the inner face of the skull, on
finer and finer grids.

Notable choices:
- The result is fitted to bone, which every CT shows sharply, and to CSF against the rest; not to grey values, which
  differ with age and scanner.
- Each grid of the refinement lies along MNI axes about the brain, so nothing of neck and table is in it.
- No chance anywhere: the same volume gives the same numbers.
- docs/experiments.md has what was tried, and the figures.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from app.imaging import resample
from app.imaging.io.nifti import Volume
from app.imaging.registration import gauss_newton, skull_strip, template
from app.imaging.registration.gauss_newton import Points
from app.imaging.registration.skull_strip import OUTSIDE

__all__ = ["POOR", "Alignment", "RegistrationImage", "between", "to_mni", "warm_up"]

Floats = npt.NDArray[np.float32]
Matrix = npt.NDArray[Any]

POOR = 0.5
"""Quality below which an alignment is not to be relied on."""

CLAMP_HU = (-400.0, 400.0)
BODY_HU = -300.0
SMALL_MM, START_MM, FINE_MM = 1.9, 4.0, 3.0
LEAST_BRAIN_ML = 250.0
LEAST_BAND = 0.4
"""Share of the skull about the brain that must be in view for a judgement."""
LEVELS = ((8, 12.0), (4, 6.0))
"""Distance of the template's points and blur of both sides, mm: the second grid stops moving, a third gains nothing."""
STIFFNESS = 0.2
"""What holds a head to the shape of the template where little of it is in view (a cropped vertex, thick slices)."""


@dataclass(frozen=True)
class Alignment:
    """``mni_from_world`` (4, 4): the patient's RAS+ millimetres to MNI152 millimetres. ``quality``: 0 to 1."""

    mni_from_world: Matrix
    quality: float
    poor: bool


class RegistrationImage:
    """A head CT as an alignment needs it; what is found out about it once serves every alignment that it takes part in.

    :ivar hu: a small clamped copy, Hounsfield units
    :ivar affine: (4, 4) its voxels to RAS+ millimetres
    :ivar start: (4, 4) MNI152 millimetres to the patient's, right to some ten of them; None: no intracranial space
    """

    def __init__(self, volume: Volume) -> None:
        self.hu, self.affine = _small(volume)
        self.start = _start(self)

    def on(self, affine: Matrix, shape: tuple[int, ...]) -> Floats:
        return resample.resample(self.hu, np.linalg.inv(self.affine) @ affine, shape, fill=OUTSIDE)


def to_mni(head: RegistrationImage) -> Alignment:
    """Align a head CT, with or without contrast, to MNI152.

    Anything that is not a head, down to an empty volume, gives an alignment by its centre alone, quality 0 and poor.
    """
    if head.start is None:
        return Alignment(_by_centre(head), 0.0, poor=True)
    world_from_mni, quality = _refine(head, head.start)
    return Alignment(np.linalg.inv(world_from_mni), quality, poor=quality < POOR)


def between(moving: RegistrationImage, fixed: RegistrationImage, *, rigid: bool = False) -> tuple[Matrix, float]:
    """Align one head CT of a patient to another, an NCCT to a CTA as a rule.

    Gives the (4, 4) map from world millimetres of ``moving`` to those of ``fixed``, and a quality of 0 to 1 (0 where
    either has no intracranial space). ``rigid`` keeps lengths; else all twelve numbers are free.
    """
    if moving.start is None or fixed.start is None:
        return np.eye(4), 0.0
    moving_from_fixed = moving.start @ np.linalg.inv(fixed.start)
    if rigid:
        u, _, v = np.linalg.svd(moving_from_fixed[:3, :3])
        middle = fixed.start[:3, :3] @ template.CENTRE_MM + fixed.start[:3, 3]
        there = moving_from_fixed[:3, :3] @ middle + moving_from_fixed[:3, 3]
        moving_from_fixed[:3, :3] = u @ v
        moving_from_fixed[:3, 3] = there - u @ v @ middle
    grid, shape = _about_brain(fixed.start)
    likeness = 0.0
    for fwhm, step in ((10.0, 3), (5.0, 2)):
        target = _head_image(fixed, grid, shape, fwhm)
        image = _head_image(moving, moving_from_fixed @ grid, shape, fwhm)
        points = _sampled(target, step, grid)
        start = points.into(np.linalg.inv(grid))
        found, _ = gauss_newton.fit(image, points, start, rigid=rigid, steps=20)
        moving_from_fixed = moving_from_fixed @ grid @ points.out_of(found)
        likeness = _likeness(_head_image(moving, moving_from_fixed @ grid, shape, fwhm), target)
    return np.linalg.inv(moving_from_fixed), likeness


@cache
def warm_up() -> None:
    """Load the template, and compile, or load from the cache, every kernel: once a process."""
    resample.warm_up()
    skull_strip.warm_up()
    ball = np.linalg.norm(np.indices((64, 64, 64)) - 31.5, axis=0)
    hu = np.where(ball < 22, 35, np.where(ball < 26, 800, -1000)).astype(np.int16)
    head = RegistrationImage(Volume(np.asfortranarray(hu), np.diag([3.0, 3.0, 3.0, 1.0])))
    to_mni(head)
    between(head, head)
    template.forget_maps()


def _small(volume: Volume) -> tuple[Floats, Matrix]:
    data, slope, inter = volume.data, volume.slope, volume.inter
    if data.dtype.type not in resample.NATIVE or data.dtype.kind == "f":
        data, slope, inter = volume.values(), 1.0, 0.0
    x, y, z = (max(1, int(SMALL_MM / edge)) for edge in volume.spacing_mm)
    stored = sorted((bound - inter) / slope for bound in CLAMP_HU)
    blocks, from_blocks = resample.shrink(data, (x, y, z), clamp=(stored[0], stored[1]))
    return blocks * np.float32(slope) + np.float32(inter), volume.affine @ from_blocks


def _start(head: RegistrationImage) -> Matrix | None:
    """(4, 4) MNI to world, right to some ten millimetres; None where there is no intracranial space."""
    low, high = _body(head)
    shape = tuple(int(n) for n in np.ceil((high - low) / START_MM) + 1)
    grid = np.diag([START_MM, START_MM, START_MM, 1.0])
    grid[:3, 3] = low
    hu = head.on(grid, shape)
    inside = skull_strip.intracranial(hu, START_MM)
    if inside.sum() * START_MM**3 < LEAST_BRAIN_ML * 1000:
        return None
    image = _channels(
        [inside.astype(np.float32), np.where(inside, np.clip(hu, 0, 80), 0) / 40], hu > OUTSIDE, 12 / START_MM
    )
    coarse, points = template.intracranial(12, 12.0), template.intracranial(8, 12.0)
    middle = grid[:3, :3] @ np.argwhere(inside).mean(axis=0) + grid[:3, 3]
    tried = []
    for angles in itertools.product((-25, 0, 25), (-20, 0, 20), (-25, 0, 25)):
        guess = np.eye(4)
        guess[:3, :3] = _turn(angles)
        guess[:3, 3] = middle - guess[:3, :3] @ template.CENTRE_MM
        begin = points.into(np.linalg.inv(grid) @ guess)
        found, cost = gauss_newton.fit(image, coarse, begin, similarity=True, steps=4)
        tried.append((cost, found))
    tried.sort(key=lambda attempt: attempt[0])
    best = [gauss_newton.fit(image, points, found, similarity=True, steps=15) for _, found in tried[:3]]
    found, _ = min(best, key=lambda attempt: attempt[1])
    return grid @ points.out_of(found)


def _refine(head: RegistrationImage, world_from_mni: Matrix) -> tuple[Matrix, float]:
    """All twelve numbers, from the skull's inner face and the CSF within, on two grids; and their quality."""
    grid, shape = _about_brain(np.eye(4))
    quality, strained = 0.0, np.zeros(6)
    for step, fwhm in LEVELS:
        points = template.head(step, float(np.hypot(fwhm, FINE_MM)))
        image = _head_image(head, world_from_mni @ grid, shape, fwhm)
        start = points.into(np.linalg.inv(grid))
        if step == LEVELS[0][0]:
            start, _ = gauss_newton.fit(image, points, start, similarity=True, steps=10)
        found, _ = gauss_newton.fit(image, points, start, stiffness=STIFFNESS, strained=strained)
        strained = strained + gauss_newton.strain(start, found)
        world_from_mni = world_from_mni @ grid @ points.out_of(found)
        quality = _agreement(image, points, found)
    return world_from_mni, quality


def _agreement(image: Floats, points: Points, found: Matrix) -> float:
    """Correlation of bone with the template's along the band about the brain; 0 where too little of it is in view."""
    band = points.weights[:, 0] > 0
    at = (points.at[band] @ found[:, :3].T + found[:, 3]).T
    shown, view = (ndimage.map_coordinates(image[..., channel], at, order=1) for channel in (0, 2))
    seen = view > gauss_newton.ENOUGH
    if seen.mean() < LEAST_BAND:
        return 0.0
    return _correlation(shown[seen], points.values[band, 0][seen])


def _about_brain(world_from_mni: Matrix) -> tuple[Matrix, tuple[int, ...]]:
    """A grid along MNI axes over the brain and the skull about it, as an affine to the patient's millimetres."""
    low, high = np.array(template.BOX).T
    grid = np.diag([FINE_MM, FINE_MM, FINE_MM, 1.0])
    grid[:3, 3] = low
    return world_from_mni @ grid, tuple(int(n) for n in np.ceil((high - low) / FINE_MM) + 1)


def _head_image(head: RegistrationImage, affine: Matrix, shape: tuple[int, ...], fwhm: float) -> Floats:
    """Bone, matter and field of view of a head on a grid, blurred by ``fwhm`` mm."""
    hu = head.on(affine, shape)
    images = [template.ramp(hu, template.BONE_HU), template.ramp(hu, template.MATTER_HU)]
    return _channels(images, hu > OUTSIDE, fwhm / FINE_MM)


def _sampled(target: Floats, step: int, grid: Matrix) -> Points:
    """Every ``step``-th voxel of an image that is in its field of view, as points to fit another image to."""
    index = np.argwhere(target[::step, ::step, ::step, -1] > gauss_newton.ENOUGH) * step
    values = np.ascontiguousarray(target[tuple(index.T)][:, :-1])
    at = index @ grid[:3, :3].T + grid[:3, 3]
    centre = at.mean(axis=0) if len(at) else np.zeros(3)
    return Points((at - centre) / gauss_newton.UNIT_MM, values, np.ones_like(values), centre)


def _likeness(one: Floats, other: Floats) -> float:
    """Correlation of bone where both are in the field of view."""
    both = (one[..., -1] > gauss_newton.ENOUGH) & (other[..., -1] > gauss_newton.ENOUGH)
    return _correlation(one[..., 0][both], other[..., 0][both])


def _correlation(one: Floats, other: Floats) -> float:
    """Pearson's, negative ones as 0; 0 too where either is constant."""
    if one.size < 2:
        return 0.0
    first, second = one - one.mean(dtype=np.float64), other - other.mean(dtype=np.float64)
    norm = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return max(0.0, float((first * second).sum()) / norm) if norm else 0.0


def _channels(values: list[npt.NDArray[Any]], seen: npt.NDArray[np.bool_], fwhm: float) -> Floats:
    """Stack and blur channels, and where they are seen, as ``fitting.fit`` takes them; ``fwhm`` in voxels."""
    sigma = template.sigma(fwhm)
    view = ndimage.gaussian_filter(seen.astype(np.float32), sigma, truncate=3)
    blurred = [
        ndimage.gaussian_filter(np.where(seen, each, 0).astype(np.float32), sigma, truncate=3) / np.maximum(view, 0.1)
        for each in values
    ]
    return np.ascontiguousarray(np.stack([*blurred, view], axis=-1), np.float32)


def _body(head: RegistrationImage) -> tuple[Matrix, Matrix]:
    """World bounding box, low and high, of what is not air; of everything where all is."""
    solid = head.hu > BODY_HU
    ends = []
    for axis in range(3):
        there = np.flatnonzero(solid.any(axis=tuple(other for other in range(3) if other != axis)))
        ends.append((there[0], there[-1]) if len(there) else (0, head.hu.shape[axis] - 1))
    corners = np.array([[*corner, 1] for corner in itertools.product(*ends)]) @ head.affine.T
    return corners[:, :3].min(axis=0), corners[:, :3].max(axis=0)


def _by_centre(head: RegistrationImage) -> Matrix:
    low, high = _body(head)
    matrix = np.eye(4)
    matrix[:3, 3] = template.CENTRE_MM - (low + high) / 2
    return matrix


def _turn(degrees: tuple[float, ...]) -> Matrix:
    """Rotation about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        one = np.eye(3)
        first, second = (axis + 1) % 3, (axis + 2) % 3
        one[first, first] = one[second, second] = np.cos(angle)
        one[first, second], one[second, first] = -np.sin(angle), np.sin(angle)
        matrix = one @ matrix
    return matrix
