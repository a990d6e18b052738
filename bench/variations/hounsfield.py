"""Variations of Hounsfield units, contrast, vessel masks, and of volumes that were sent twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from scipy import ndimage

from app.imaging.io.nifti import Volume
from app.imaging.registration import align
from app.imaging.resample import resample
from app.sdk.types import Input

Study = dict[Input, Volume]
Random = np.random.Generator
Change = Callable[[np.ndarray, Random], np.ndarray]

CT = (Input.NCCT, Input.CTA)


def _stored(values: np.ndarray, like: Volume) -> Volume:
    """Values as int16, on the grid of another volume."""
    limits = np.iinfo(np.int16)
    return replace(like, data=np.asfortranarray(np.clip(np.rint(values), limits.min, limits.max), dtype=np.int16))


def _both(study: Study, rng: Random, change: Change) -> Study:
    """Change the values of both CTs."""
    return study | {name: _stored(change(study[name].data.astype(np.float32), rng), study[name]) for name in CT}


def _one(study: Study, rng: Random, change: Change) -> Study:
    """Change the values of one CT, drawn by chance."""
    name = CT[int(rng.integers(2))]
    return study | {name: _stored(change(study[name].data.astype(np.float32), rng), study[name])}


def _outside_circle(shape: tuple[int, ...], rng: Random) -> np.ndarray:
    """Mask of what lies outside a circular field of view that holds the head."""
    x, y = np.ogrid[: shape[0], : shape[1]]
    half = np.array(shape[:2]) / 2
    reach = rng.uniform(1.02, 1.15)
    outside: np.ndarray = np.hypot(x / half[0] - 1, y / half[1] - 1) > reach
    return np.broadcast_to(outside[..., None], shape)


def _padded(values: np.ndarray, rng: Random, levels: tuple[int, ...] = (-1500, -2000, -3024)) -> np.ndarray:
    return np.where(_outside_circle(values.shape, rng), np.float32(rng.choice(levels)), values)


# Vessels -----------------------------------------------------------------------------------------------------------


def _arteries(cta: Volume) -> np.ndarray:
    """Mask of the arteries of a phantom's CTA: bright and far from bone."""
    bone = ndimage.binary_opening(cta.data > 430, iterations=1)
    near_bone = ndimage.binary_dilation(bone, iterations=max(1, round(3 / min(cta.spacing_mm))))
    return (cta.data > 120) & (cta.data < 600) & ~near_bone & ~_surface(cta)


def _surface(cta: Volume) -> np.ndarray:
    """Mask of everything within 12 mm of air."""
    air = ndimage.binary_opening(cta.data < -300, iterations=2)
    near: np.ndarray = ndimage.distance_transform_edt(~air, sampling=cta.spacing_mm) < 12
    return near


def _masked(study: Study, mask: np.ndarray) -> Study:
    return study | {Input.VESSELS: replace(study[Input.CTA], data=np.asfortranarray(mask, dtype=np.uint8))}


def own_mask(study: Study, _rng: Random) -> Study:
    """The arteries, as a site's software marks them."""
    return _masked(study, _arteries(study[Input.CTA]))


def wide_mask(study: Study, _rng: Random) -> Study:
    """The arteries, one voxel too wide on all sides."""
    return _masked(study, ndimage.binary_dilation(_arteries(study[Input.CTA])))


def displaced_mask(study: Study, rng: Random) -> Study:
    """The arteries, 10 to 25 mm off."""
    cta = study[Input.CTA]
    step = rng.standard_normal(3)
    step *= rng.uniform(10, 25) / np.linalg.norm(step)
    shift = np.rint(step / np.array(cta.spacing_mm)).astype(int)
    return _masked(study, np.roll(_arteries(cta), tuple(shift), axis=(0, 1, 2)))


def mirrored_mask(study: Study, _rng: Random) -> Study:
    """The arteries, left and right exchanged."""
    return _masked(study, _arteries(study[Input.CTA])[::-1])


def brain_mask(study: Study, _rng: Random) -> Study:
    """A mask of the brain."""
    return _masked(study, ndimage.binary_opening(_inside(study[Input.CTA]), iterations=2))


def _inside(cta: Volume) -> np.ndarray:
    inside: np.ndarray = (np.abs(cta.data - 30) < 40) & ~_surface(cta)
    return inside


def bone_mask(study: Study, rng: Random) -> Study:
    """A mask of bone."""
    return _masked(study, study[Input.CTA].data > rng.uniform(250, 450))


def lesion_mask(study: Study, rng: Random) -> Study:
    """A mask of a lesion of 5 to 150 mL."""
    cta = study[Input.CTA]
    brain = np.argwhere(ndimage.binary_erosion(_inside(cta), iterations=6))
    centre = brain[rng.integers(len(brain))]
    radius = np.cbrt(rng.uniform(5, 150) * 1000 * 3 / (4 * np.pi))
    axes = radius * np.array([rng.uniform(0.8, 1.2), rng.uniform(0.8, 1.2), 1.0])
    place = np.ogrid[tuple(slice(n) for n in cta.shape)]
    away = sum(((x - c) * edge / a) ** 2 for x, c, edge, a in zip(place, centre, cta.spacing_mm, axes, strict=True))
    return _masked(study, np.asarray(away < 1) & (np.abs(cta.data - 30) < 40))


def bright_arteries(study: Study, rng: Random) -> Study:
    """Arteries at 450 to 800 HU, as at 80 kV."""
    cta = study[Input.CTA]
    values = cta.data.astype(np.float32)
    tree = ndimage.binary_dilation(_arteries(cta)) & (values > 60)
    peak = np.percentile(values[tree], 95)
    brighter = 40 + (values - 40) * (rng.uniform(450, 800) - 40) / (peak - 40)
    return study | {Input.CTA: _stored(np.where(tree, brighter, values), cta)}


def one_sided_arteries(study: Study, rng: Random) -> Study:
    """Arteries with contrast in one half of the head only."""
    cta = study[Input.CTA]
    tree = ndimage.binary_dilation(_arteries(cta), iterations=2)
    half = np.arange(cta.shape[0]) < cta.shape[0] / 2
    tree &= (half if rng.random() < 0.5 else ~half)[:, None, None]
    return study | {Input.CTA: replace(cta, data=np.where(tree & (cta.data > 60), np.int16(40), cta.data))}


# Look-alikes ---------------------------------------------------------------------------------------------------------


def metal(values: np.ndarray, rng: Random) -> np.ndarray:
    """A coil at the scanner's highest value, with streaks."""
    changed = values.copy()
    x, y, z = (int(n * rng.uniform(0.42, 0.58)) for n in values.shape)
    streak = np.abs(np.arange(-30, 31))[:, None] * rng.choice([-1, 1], (61, 1)) * 2.0
    changed[x - 30 : x + 31, y : y + 2, z : z + 2] += (80 - np.abs(streak))[..., None]
    changed[x : x + 5, y : y + 5, z : z + 4] = 3071
    return changed


def low_dose(values: np.ndarray, rng: Random) -> np.ndarray:
    """Strong noise."""
    noise = ndimage.gaussian_filter(rng.standard_normal(values.shape, dtype=np.float32), 0.6)
    return np.clip(values + noise * np.float32(rng.uniform(15, 35) / noise.std()), -1024, 3071)


def calcified(values: np.ndarray, rng: Random) -> np.ndarray:
    """Calcified choroid plexus and falx, and a bleeding of 70 HU."""
    changed = values.copy()
    x, y, z = (n // 2 for n in values.shape)
    for side in (-1, 1):
        at = x + side * int(rng.integers(12, 18))
        changed[at : at + 4, y - 12 : y - 7, z : z + 4] = rng.uniform(150, 500)
    changed[x : x + 2, y : y + 14, z + 14 : z + 18] = rng.uniform(200, 600)
    changed[x + 20 : x + 36, y : y + 18, z : z + 10] = 70
    return changed


def haemorrhage(study: Study, rng: Random) -> Study:
    """A bleeding of 40 to 80 mL in one hemisphere of the NCCT, 30 to 40 HU above the brain."""
    ncct = study[Input.NCCT]
    radius = (rng.uniform(40, 80) * 3000 / (4 * np.pi)) ** (1 / 3)
    centre = np.array(ncct.shape) / 2 + np.array([rng.choice([-30, 30]), 0, 15]) / ncct.spacing_mm
    at = np.indices(ncct.shape, sparse=True)
    away = [(at[axis] - centre[axis]) * ncct.spacing_mm[axis] for axis in range(3)]
    bleeding = (away[0] ** 2 + away[1] ** 2 + away[2] ** 2 < radius**2) & (ncct.data > -20) & (ncct.data < 90)
    return study | {Input.NCCT: _stored(ncct.data + rng.uniform(30, 40) * bleeding, ncct)}


def after_contrast(study: Study, rng: Random) -> Study:
    """An NCCT some minutes after contrast: blood 45 to 70 HU and brain 6 HU denser."""
    ncct, cta = study[Input.NCCT], study[Input.CTA]
    moved = align.coregister(align.RegistrationImage(ncct), align.RegistrationImage(cta), rigid=True).fixed_from_moving
    blood = ndimage.gaussian_filter(_arteries(cta).astype(np.float32), 0.5)
    share = resample(blood, np.linalg.inv(cta.affine) @ moved @ ncct.affine, ncct.shape)
    denser = ncct.data + rng.uniform(45, 70) * np.clip(1.3 * share, 0, 1) + 6 * ((ncct.data > 0) & (ncct.data < 90))
    return study | {Input.NCCT: _stored(denser, ncct)}


def thick_ncct(study: Study, rng: Random) -> Study:
    """An NCCT of 5 mm."""
    return study | {Input.NCCT: _thick(study[Input.NCCT], rng, 5.0)}


def _thick(volume: Volume, _rng: Random, mm: float) -> Volume:
    count = max(1, round(mm / volume.spacing_mm[2]))
    used = volume.shape[2] // count * count
    data = volume.data[..., :used].reshape(*volume.shape[:2], -1, count).mean(axis=-1)
    moved = np.diag([1.0, 1.0, float(count), 1.0])
    moved[2, 3] = (count - 1) / 2
    return _stored(data, replace(volume, affine=volume.affine @ moved))


def arch_to_vertex(study: Study, _rng: Random) -> Study:
    """A CTA that reaches down to the lungs."""
    cta = study[Input.CTA]
    up = cta.affine[2, 2] > 0
    count = round(130 / cta.spacing_mm[2])
    x, y = np.ogrid[: cta.shape[0], : cta.shape[1]]
    x, y = 2 * x / cta.shape[0] - 1, 2 * y / cta.shape[1] - 1
    below = np.full((*cta.shape[:2], count), 50, np.float32)
    below[np.hypot(x * 0.97, y * 0.8) > 0.95] = -90
    below[np.hypot(x, (y + 0.3) * 3) < 0.2] = 400
    lungs = np.minimum(np.hypot((x - 0.5) / 0.35, y / 0.6), np.hypot((x + 0.5) / 0.35, y / 0.6)) < 1
    below[lungs, : count // 2 if up else count] = -850
    if not up:
        below[lungs, : count // 2] = 50
    below += np.random.default_rng(0).normal(0, 10, below.shape)
    shift = np.eye(4)
    shift[2, 3] = -count if up else 0
    parts = [below, cta.data] if up else [cta.data, below]
    return study | {Input.CTA: _stored(np.concatenate(parts, axis=2), replace(cta, affine=cta.affine @ shift))}


# Wrong scales --------------------------------------------------------------------------------------------------------


def _ge_stored(values: np.ndarray, rng: Random) -> np.ndarray:
    return np.where(_outside_circle(values.shape, rng), np.float32(-2000), values + 1024)


def _wrong_slope(values: np.ndarray, rng: Random) -> np.ndarray:
    return values * np.float32(rng.choice([0.1, 0.5, 0.7, 1.5, 2.0, 10.0]))


def _wrong_slope_padded(values: np.ndarray, rng: Random) -> np.ndarray:
    return _wrong_slope(_padded(values, rng), rng)


def _window(values: np.ndarray, _rng: Random) -> np.ndarray:
    return np.minimum(values, 300)


def _brain_window(values: np.ndarray, rng: Random) -> np.ndarray:
    shown = np.clip(values, 0, 80)
    return np.where(_outside_circle(values.shape, rng), np.float32(-1024), shown) if rng.random() < 0.5 else shown


def _cta_cut(study: Study, rng: Random) -> Study:
    cut = np.minimum(study[Input.CTA].data, np.int16(rng.integers(420, 680)))
    return study | {Input.CTA: replace(study[Input.CTA], data=cut)}


# Wrong fields --------------------------------------------------------------------------------------------------------


def _exchanged(study: Study, _rng: Random) -> Study:
    return study | {Input.NCCT: study[Input.CTA], Input.CTA: study[Input.NCCT]}


def _moved_to(study: Study, rng: Random, *, sent: Input, field: Input, mm: float = 0.0) -> Study:
    """One CT is sent in the field of the other, which is left out."""
    volume = _thick(study[sent], rng, mm) if mm else study[sent]
    return {name: each for name, each in study.items() if name not in CT} | {field: volume}


def _ncct_twice(study: Study, _rng: Random) -> Study:
    return study | {Input.CTA: replace(study[Input.NCCT], data=study[Input.NCCT].data.copy())}


def _cta_twice_turned(study: Study, _rng: Random) -> Study:
    cta = study[Input.CTA]
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = cta.shape[0] - 1
    return study | {Input.NCCT: replace(cta, data=np.ascontiguousarray(cta.data[::-1]), affine=cta.affine @ flip)}


def _tmax_twice(study: Study, _rng: Random) -> Study:
    return study | {Input.CBF: study[Input.TMAX]}


VALID: dict[str, Callable[[Study, Random], Study]] = {
    "padding": partial(_both, change=_padded),
    "metal": partial(_both, change=metal),
    "low_dose": partial(_both, change=low_dose),
    "calcified": partial(_both, change=calcified),
    "thick_ncct": thick_ncct,
    "arch_to_vertex": arch_to_vertex,
    "bright_arteries": bright_arteries,
    "own_mask": own_mask,
    "wide_mask": wide_mask,
}
WRONG: dict[str, tuple[Callable[[Study, Random], Study], set[str]]] = {
    "ge_stored_values": (partial(_one, change=_ge_stored), {"refused"}),
    "stored_values": (partial(_one, change=lambda values, _: values + 1024), {"refused"}),
    "intercept_twice": (partial(_one, change=lambda values, _: values - 1024), {"refused"}),
    "intercept_twice_padded": (partial(_one, change=lambda values, rng: _padded(values, rng) - 1024), {"refused"}),
    "wrong_slope": (partial(_one, change=_wrong_slope), {"refused"}),
    "wrong_slope_padded": (partial(_one, change=_wrong_slope_padded), {"refused"}),
    "inverted_sign": (partial(_one, change=lambda values, _: -values), {"refused"}),
    "window_to_300": (partial(_one, change=_window), {"refused"}),
    "brain_window": (partial(_one, change=_brain_window), {"refused"}),
    "cta_cut": (_cta_cut, {"hu-cut"}),
    "haemorrhage": (haemorrhage, {"haemorrhage-possible"}),
    "after_contrast": (after_contrast, {"ncct-contrast", "contrast-doubtful"}),
    "cta_as_ncct": (partial(_moved_to, sent=Input.CTA, field=Input.NCCT), {"contrast-doubtful"}),
    "thick_cta_as_ncct": (partial(_moved_to, sent=Input.CTA, field=Input.NCCT, mm=5.0), {"contrast-doubtful"}),
    "ncct_as_cta": (partial(_moved_to, sent=Input.NCCT, field=Input.CTA), {"contrast-doubtful"}),
    "thick_ncct_as_cta": (partial(_moved_to, sent=Input.NCCT, field=Input.CTA, mm=5.0), {"contrast-doubtful"}),
    "exchanged": (_exchanged, {"refused"}),
    "ncct_twice": (_ncct_twice, {"refused"}),
    "cta_twice_turned": (_cta_twice_turned, {"refused"}),
    "tmax_twice": (_tmax_twice, {"refused"}),
    "brain_mask": (brain_mask, {"refused"}),
    "bone_mask": (bone_mask, {"refused"}),
    "lesion_mask": (lesion_mask, {"refused"}),
    "displaced_mask": (displaced_mask, {"vessels-misplaced"}),
    "mirrored_mask": (mirrored_mask, {"vessels-misplaced"}),
    "one_sided_arteries": (one_sided_arteries, {"vessels-one-sided"}),
}
