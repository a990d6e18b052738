"""Variations of position, orientation, size and completeness, and of parts of two patients in one study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from scipy import ndimage

from app.imaging.io.nifti import Volume
from app.imaging.registration.align import rotation
from app.imaging.resample import resample
from app.sdk.types import Input

Study = dict[Input, Volume]
Random = np.random.Generator
Matrix = np.ndarray

CT = (Input.NCCT, Input.CTA)
MAPS = (Input.TMAX, Input.CBF, Input.CBV, Input.MTT)
BODY_HU, BONE_HU = -300, 200


def _centre(volume: Volume) -> Matrix:
    """Centre of the field of view, RAS+ mm."""
    centre: Matrix = (volume.affine @ [*((np.array(volume.shape) - 1) / 2), 1])[:3]
    return centre


def _about(linear: Matrix, centre: Matrix) -> Matrix:
    """World transform (4, 4) with a linear part (3, 3) that keeps ``centre``."""
    transform = np.eye(4)
    transform[:3, :3] = linear
    transform[:3, 3] = centre - linear @ centre
    return transform


def _moved(study: Study, transform: Matrix, names: tuple[Input, ...] = tuple(Input)) -> Study:
    """The study with the affines of these volumes moved in the world."""
    return study | {
        name: replace(volume, affine=transform @ volume.affine) for name, volume in study.items() if name in names
    }


def _shift(vector: Matrix) -> Matrix:
    transform = np.eye(4)
    transform[:3, 3] = vector
    return transform


def _direction(rng: Random) -> Matrix:
    vector = rng.normal(size=3)
    unit: Matrix = vector / np.linalg.norm(vector)
    return unit


def _resampled(volume: Volume, affine: Matrix, shape: tuple[int, ...]) -> Volume:
    """A CT on another grid, air outside."""
    values = resample(volume.data, np.linalg.inv(volume.affine) @ affine, shape, fill=-1000)
    return replace(volume, data=np.asfortranarray(np.rint(values), dtype=np.int16), affine=affine)


# Valid -------------------------------------------------------------------------------------------------------------


def head_turned(study: Study, rng: Random) -> Study:
    """A head turned by 40 degrees about the long axis of the body."""
    return _moved(study, _about(rotation((0, 0, rng.choice([-40, 40]))), _centre(study[Input.CTA])))


def head_rolled(study: Study, rng: Random) -> Study:
    """A head rolled or nodded by 20 to 30 degrees."""
    angles = np.zeros(3)
    angles[rng.integers(2)] = rng.choice([-1, 1]) * rng.uniform(20, 30)
    return _moved(study, _about(rotation(angles), _centre(study[Input.CTA])))


def stored_in_other_order(study: Study, rng: Random) -> Study:
    """Axes of the arrays in another order and direction (LAS, LPS, AIL ...), with affines that say so.

    The maps keep one grid, as the service requires.
    """
    stored, draws = {}, {}
    for name, volume in study.items():
        group = name if name in CT else "maps"
        order, flips = draws.setdefault(group, (rng.permutation(3), rng.random(3) < 0.5))
        data, affine = volume.data.transpose(order), volume.affine.copy()
        affine[:, :3] = affine[:, order]
        for axis in np.flatnonzero(flips):
            data = np.flip(data, axis)
            affine[:, 3] += affine[:, axis] * (data.shape[axis] - 1)
            affine[:, axis] *= -1
        stored[name] = replace(volume, data=np.asfortranarray(data), affine=affine)
    return stored


def gantry_tilt(study: Study, rng: Random) -> Study:
    """An NCCT in slices of 5 mm with a tilted gantry, which the affine describes as a shear."""
    ncct = study[Input.NCCT]
    affine = ncct.affine.copy()
    stretch = 5.0 / np.linalg.norm(affine[:3, 2])
    affine[:3, 2] *= stretch
    tilt = np.tan(np.radians(rng.choice([-1, 1]) * rng.uniform(8, 18))) * 5.0
    affine[:3, 2] += affine[:3, 1] / np.linalg.norm(affine[:3, 1]) * tilt
    shape = (*ncct.shape[:2], int(ncct.shape[2] / stretch))
    affine[:3, 3] -= (affine[:3, :3] @ (np.array(shape) - 1)) / 2 + affine[:3, 3] - _centre(ncct)
    return study | {Input.NCCT: _resampled(ncct, affine, shape)}


def thick_ncct(study: Study, rng: Random) -> Study:
    """An NCCT in slices of 4 to 6 mm."""
    ncct = study[Input.NCCT]
    factor = rng.uniform(4, 6) / np.linalg.norm(ncct.affine[:3, 2])
    affine = ncct.affine @ np.diag([1, 1, factor, 1])
    return study | {Input.NCCT: _resampled(ncct, affine, (*ncct.shape[:2], int(ncct.shape[2] / factor)))}


def arch_to_vertex(study: Study, rng: Random) -> Study:
    """A CTA from the aortic arch: 60 mm of neck, and 120 to 200 mm of thorax with lungs, ribs and spine."""
    cta = study[Input.CTA]
    step = float(np.linalg.norm(cta.affine[:3, 2]))
    neck, chest = int(60 / step), int(rng.uniform(120, 200) / step)
    x, y = (np.arange(n)[:, None] * cta.spacing_mm[axis] for axis, n in enumerate(cta.shape[:2]))
    across, along = x - x.mean(), y.T - y.mean()
    slab = np.full(cta.shape[:2], 45.0)
    for side in (-1, 1):
        lung = np.hypot((across - side * 55) / 38, (along + 5) / 55)
        slab[lung < 1.12] = 700
        slab[lung < 1] = -820
    spine = np.hypot(across / 20, (along + 75) / 16)
    slab[spine < 1] = 500
    slab[np.hypot((across - 12) / 12, (along - 10) / 12) < 1] = 350
    down = cta.affine[2, 2] > 0
    end = cta.data[:, :, :1] if down else cta.data[:, :, -1:]
    noise = rng.normal(0, 6, (*cta.shape[:2], chest))
    parts = [slab[..., None] + noise, np.repeat(end, neck, axis=2), cta.data]
    data = np.concatenate(parts if down else parts[::-1], axis=2)
    affine = cta.affine.copy()
    if down:
        affine[:3, 3] -= affine[:3, 2] * (neck + chest)
    return study | {Input.CTA: replace(cta, data=np.asfortranarray(np.rint(data), dtype=np.int16), affine=affine)}


def craniectomy(study: Study, rng: Random) -> Study:
    """A piece of 80 to 110 mm of the skull is missing on one side, in both CTs."""
    cta = study[Input.CTA]
    body = np.argwhere(cta.data[::4, ::4, ::4] > BODY_HU) * 4
    middle = (cta.affine @ [*body.mean(axis=0), 1])[:3]
    place = middle + np.array([rng.choice([-1, 1]) * 60, rng.uniform(-20, 30), 45])
    radius = rng.uniform(40, 55)
    changed = {}
    for name in CT:
        volume = study[name]
        index = np.argwhere(volume.data > BONE_HU)
        near = np.linalg.norm(index @ volume.affine[:3, :3].T + volume.affine[:3, 3] - place, axis=1) < radius
        data = np.array(volume.data)
        data[tuple(index[near].T)] = 40
        changed[name] = replace(volume, data=data)
    return study | changed


def vertex_cropped(study: Study, rng: Random) -> Study:
    """A CTA that ends 10 to 20 mm below the top of its field of view and of the head."""
    cta = study[Input.CTA]
    count = int(rng.uniform(30, 45) / np.linalg.norm(cta.affine[:3, 2]))
    if cta.affine[2, 2] > 0:
        return study | {Input.CTA: replace(cta, data=np.asfortranarray(cta.data[:, :, :-count]))}
    affine = cta.affine @ _shift(np.array([0, 0, count]))
    return study | {Input.CTA: replace(cta, data=np.asfortranarray(cta.data[:, :, count:]), affine=affine)}


def patient_moved(study: Study, rng: Random) -> Study:
    """The patient moved between NCCT and CTA by 15 mm and 12 degrees."""
    turn = _about(rotation(rng.uniform(-12, 12, 3)), _centre(study[Input.NCCT]))
    return _moved(study, _shift(15 * _direction(rng)) @ turn, (Input.NCCT,))


def maps_moved_2mm(study: Study, rng: Random) -> Study:
    """The patient moved by 2 mm before the perfusion scan."""
    return _moved(study, _shift(2 * _direction(rng)), MAPS)


def maps_slab(study: Study, rng: Random) -> Study:
    """Maps of a slab of 40 to 80 mm at the level of the basal ganglia."""
    names = [name for name in MAPS if name in study]
    first = study[names[0]]
    tissue = np.flatnonzero((first.data > 0).any(axis=(0, 1)))
    thick = int(rng.uniform(40, 80) / np.linalg.norm(first.affine[:3, 2]))
    low = int(np.median(tissue)) - thick // 2
    cut = {}
    for name in names:
        data = np.asfortranarray(study[name].data[:, :, low : low + thick])
        cut[name] = replace(study[name], data=data, affine=study[name].affine @ _shift(np.array([0, 0, low])))
    return study | cut


def maps_eroded(study: Study, rng: Random) -> Study:
    """Maps of software that leaves out 2 to 6 mm at the edge of the brain."""
    names = [name for name in MAPS if name in study]
    edge = float(min(study[names[0]].spacing_mm))
    inner = ndimage.binary_erosion(study[names[0]].data > 0, iterations=max(1, int(rng.uniform(2, 6) / edge)))
    return study | {name: replace(study[name], data=study[name].data * inner) for name in names}


def large_or_small_head(study: Study, rng: Random) -> Study:
    """A head of 0.92 to 1.04 times the size, in all volumes."""
    return _moved(study, _about(np.eye(3) * rng.uniform(0.92, 1.04), _centre(study[Input.CTA])))


def far_from_the_origin(study: Study, rng: Random) -> Study:
    """A table position of up to a metre."""
    return _moved(study, _shift(rng.uniform(-1000, 1000, 3)))


def noisy(study: Study, rng: Random) -> Study:
    """A scan with three times the noise."""
    return study | {
        name: replace(
            study[name], data=np.rint(study[name].data + rng.normal(0, 18, study[name].shape)).astype(np.int16)
        )
        for name in CT
    }


def ncct_only(study: Study, _rng: Random) -> Study:
    """A study without CTA."""
    return {name: volume for name, volume in study.items() if name is not Input.CTA}


def cta_only(study: Study, _rng: Random) -> Study:
    """A study without NCCT."""
    return {name: volume for name, volume in study.items() if name is not Input.NCCT}


# Wrong -------------------------------------------------------------------------------------------------------------


def slices_reversed(study: Study, rng: Random) -> Study:
    """Slices of one or both CTs in reverse order, with the old affine."""
    names = CT if rng.random() < 0.5 else (CT[rng.integers(2)],)
    return study | {name: replace(study[name], data=np.asfortranarray(study[name].data[:, :, ::-1])) for name in names}


def turned_180(study: Study, _rng: Random) -> Study:
    """LPS coordinates read as RAS."""
    return _moved(study, np.diag([-1.0, -1.0, 1.0, 1.0]))


def one_ct_turned_180(study: Study, rng: Random) -> Study:
    """LPS coordinates of one CT read as RAS."""
    return _moved(study, np.diag([-1.0, -1.0, 1.0, 1.0]), (CT[rng.integers(2)],))


def axes_exchanged(study: Study, rng: Random) -> Study:
    """Axes of the world exchanged or negated, except for none and for left and right alone."""
    while True:
        matrix = np.eye(3)[rng.permutation(3)] * rng.choice([-1.0, 1.0], 3)[:, None]
        if not np.array_equal(np.abs(matrix), np.eye(3)) or matrix[1, 1] < 0 or matrix[2, 2] < 0:
            return _moved(study, _about(matrix, np.zeros(3)))


def slices_lost(study: Study, rng: Random) -> Study:
    """21 mm of slices lost inside the head in one CT, and the rest stacked."""
    name = CT[rng.integers(2)]
    volume = study[name]
    lost = round(21 / float(np.linalg.norm(volume.affine[:3, 2])))
    start = int(volume.shape[2] * rng.uniform(0.3, 0.75))
    data = np.delete(volume.data, slice(start, start + lost), axis=2)
    return study | {name: replace(volume, data=np.asfortranarray(data))}


def slices_lost_thick(study: Study, rng: Random) -> Study:
    """20 mm of slices of 5 mm lost inside the head in the NCCT."""
    thick = thick_ncct(study, rng)
    volume = thick[Input.NCCT]
    start = int(volume.shape[2] * rng.uniform(0.3, 0.7))
    data = np.delete(volume.data, range(start, start + 4), 2)
    return thick | {Input.NCCT: replace(volume, data=np.asfortranarray(data))}


def slices_empty(study: Study, rng: Random) -> Study:
    """One to ten empty slices inside the head in one CT."""
    name = CT[rng.integers(2)]
    data = np.array(study[name].data)
    start = int(data.shape[2] * rng.uniform(0.35, 0.65))
    data[:, :, start : start + int(rng.integers(1, 11))] = -1024
    return study | {name: replace(study[name], data=data)}


def spacing_times(study: Study, _rng: Random, factor: float) -> Study:
    """Voxel size of all volumes times a factor."""
    return _moved(study, _about(np.eye(3) * factor, np.zeros(3)))


def slice_distance_wrong(study: Study, rng: Random) -> Study:
    """Distance of the slices of both CTs times 0.6 or 1.6."""
    scale = np.diag([1, 1, rng.choice([0.6, 1.6]), 1])
    return study | {name: replace(study[name], affine=study[name].affine @ scale) for name in CT}


def one_slice_distance_wrong(study: Study, rng: Random) -> Study:
    """Distance of the slices of one CT times 0.8 or 1.25, as of overlapping slices."""
    name = CT[rng.integers(2)]
    scale = np.diag([1, 1, rng.choice([0.8, 1.25]), 1])
    return study | {name: replace(study[name], affine=study[name].affine @ scale)}


def tilt_ignored(study: Study, rng: Random) -> Study:
    """A gantry tilt of 18 to 25 degrees that the affine of one CT leaves out."""
    name = CT[rng.integers(2)]
    volume = study[name]
    shear = np.eye(4)
    shear[1, 2] = rng.choice([-1, 1]) * np.tan(np.radians(rng.uniform(18, 25)))
    around = _shift(_centre(volume)) @ shear @ _shift(-_centre(volume))
    return _moved(study, around, (name,))


def identity_affine(study: Study, _rng: Random) -> Study:
    """The identity matrix as the affine of all volumes (its file is refused earlier)."""
    return {name: replace(volume, affine=np.eye(4)) for name, volume in study.items()}


def _other_head(volume: Volume, rng: Random) -> Volume:
    """A CT of another head: three sizes that differ by 3 % or more, and a smooth deformation of about 2 mm."""
    while True:
        sizes = 1 + rng.normal(0, 0.045, 3)
        if np.ptp(sizes) > 0.03 and np.abs(sizes - 1).max() < 0.11:
            break
    index = np.indices(volume.shape, np.float32)
    field = []
    for edge in volume.spacing_mm:
        waves = rng.normal(0, 2 * np.pi / 110, 3)
        phase = sum(wave * index[axis] * volume.spacing_mm[axis] for axis, wave in enumerate(waves))
        field.append(3 * np.sin(phase + rng.uniform(0, 2 * np.pi)) / edge)
    values = ndimage.map_coordinates(volume.data, index + np.array(field, np.float32), np.float32, order=1, cval=-1000)
    scaled = _about(rotation(rng.uniform(-5, 5, 3)) @ np.diag(sizes), _centre(volume)) @ volume.affine
    return replace(volume, data=np.asfortranarray(np.rint(values), dtype=np.int16), affine=scaled)


def other_patients_ncct(study: Study, rng: Random) -> Study:
    """The NCCT of another head."""
    return study | {Input.NCCT: _other_head(study[Input.NCCT], rng)}


def other_patients_cta(study: Study, rng: Random) -> Study:
    """The CTA of another head."""
    return study | {Input.CTA: _other_head(study[Input.CTA], rng)}


def other_ventricles(study: Study, rng: Random) -> Study:
    """An NCCT of another patient with the same skull: its ventricles are larger or smaller by a half."""
    ncct = study[Input.NCCT]
    body = np.argwhere(ncct.data[::4, ::4, ::4] > BONE_HU) * 4
    middle = (ncct.affine @ [*body.mean(axis=0), 1])[:3]
    voxels = np.indices(ncct.shape, np.float32).reshape(3, -1)
    away = ncct.affine[:3, :3] @ voxels + (ncct.affine[:3, 3] - middle)[:, None]
    grown = rng.choice([-1, 1]) * rng.uniform(0.4, 0.5)
    places = away * (1 - grown * np.exp(-(away**2).sum(axis=0) / 38**2)) + middle[:, None]
    back = np.linalg.inv(ncct.affine)
    at = (back[:3, :3] @ places + back[:3, 3:]).reshape(3, *ncct.shape)
    values = ndimage.map_coordinates(ncct.data.astype(np.float32), at, order=1, mode="nearest")
    return study | {Input.NCCT: replace(ncct, data=np.asfortranarray(np.rint(values), dtype=np.int16))}


def other_patients_maps(study: Study, rng: Random) -> Study:
    """Maps of a head that lies within 30 mm, is turned by up to 15 degrees, and has other sizes."""
    sizes = np.diag(1 + rng.normal(0, 0.045, 3))
    name = next(name for name in MAPS if name in study)
    turn = _about(rotation(rng.uniform(-15, 15, 3)) @ sizes, _centre(study[name]))
    return _moved(study, _shift(rng.uniform(-30, 30, 3)) @ turn, MAPS)


def maps_displaced(study: Study, rng: Random, mm: float) -> Study:
    """Maps displaced in any direction."""
    return _moved(study, _shift(mm * _direction(rng)), MAPS)


def maps_mirrored(study: Study, _rng: Random) -> Study:
    """Maps with their first axis reversed, and the old affine."""
    return study | {name: replace(study[name], data=study[name].data[::-1]) for name in MAPS if name in study}


def maps_upside_down(study: Study, _rng: Random) -> Study:
    """Maps with their slices in reverse order, and the old affine."""
    return study | {name: replace(study[name], data=study[name].data[:, :, ::-1]) for name in MAPS if name in study}


VALID: dict[str, Callable[[Study, Random], Study]] = {
    function.__name__: function
    for function in (
        head_turned,
        head_rolled,
        stored_in_other_order,
        gantry_tilt,
        thick_ncct,
        arch_to_vertex,
        craniectomy,
        vertex_cropped,
        patient_moved,
        maps_moved_2mm,
        maps_slab,
        maps_eroded,
        large_or_small_head,
        far_from_the_origin,
        noisy,
        ncct_only,
        cta_only,
    )
}

_REFUSED = {"refused"}
_SIZE = {"refused", "head-size-implausible"}
_PAIR = {"refused", "study-mismatch", "head-size-implausible", "alignment-poor"}
_SLICES = _PAIR | {"slices-missing"}
_MAPS = {"refused", "perfusion-misplaced"}

WRONG: dict[str, tuple[Callable[[Study, Random], Study], set[str]]] = {
    "slices_reversed": (slices_reversed, _REFUSED),
    "turned_180": (turned_180, _REFUSED),
    "one_ct_turned_180": (one_ct_turned_180, _REFUSED),
    "axes_exchanged": (axes_exchanged, _REFUSED),
    "slices_lost": (slices_lost, _SLICES),
    "slices_lost_thick": (slices_lost_thick, _SLICES),
    "slices_empty": (slices_empty, _SLICES),
    **{f"spacing_times_{factor}": (partial(spacing_times, factor=factor), _REFUSED) for factor in (0.7, 1.5, 2.0)},
    "slice_distance_wrong": (slice_distance_wrong, _SIZE),
    "one_slice_distance_wrong": (one_slice_distance_wrong, _PAIR),
    "tilt_ignored": (tilt_ignored, _PAIR),
    "identity_affine": (identity_affine, _PAIR | {"orientation-doubtful"}),
    "other_patients_ncct": (other_patients_ncct, _PAIR),
    "other_patients_cta": (other_patients_cta, _PAIR),
    "other_ventricles": (other_ventricles, _PAIR),
    "other_patients_maps": (other_patients_maps, _MAPS),
    **{f"maps_displaced_{mm}mm": (partial(maps_displaced, mm=mm), _MAPS) for mm in (10, 25)},
    "maps_mirrored": (maps_mirrored, _MAPS | {"side-contradiction"}),
    "maps_upside_down": (maps_upside_down, _MAPS),
}
