"""Is a volume what its field claims? A clear no is refused; a doubt is a flag; everything else passes in silence.

Notable choices:
- A real head CT must never be refused: each refusal needs a sign that no head CT has (no value like air's, values
  far beyond bone's, a trunk's fat or lungs and no skull), never the mere lack of a sign that most have.
- All of it is judged on means over about 3 mm, which takes most of the noise away, and little time.
- Padding below air (-1500, -2000, -3024 in real files), metal, a missing piece of skull, a skull-stripped brain in
  HU, a plastic phantom in HU and a volume of 16 voxels a side all pass.
- A detail says what was expected and what to do; it never repeats the values.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy import ndimage

from app.imaging import vessels
from app.imaging.io.nifti import Volume
from app.imaging.resample import shrink
from app.sdk.errors import FieldError, ImplausibleModality
from app.sdk.types import Flag, Input

__all__ = ["check"]

_WORKING_MM: Final = 3.0
_AIR_HU: Final = -300.0
_LEAST_AIR: Final = 0.005
"""Share of air below which a CT has had it removed, or never was in HU."""

_BEYOND_HU: Final = 4000.0
_BRAIN_HU: Final = (15.0, 60.0)
"""Where the median of a skull-stripped brain lies in HU, with or without contrast."""

_SKULL_HU: Final = 200.0
_SOFT_HU: Final = (-20.0, 100.0)
_FAT_HU: Final = (-150.0, -30.0)
_LUNG_HU: Final = (-920.0, -600.0)
_LUNG_ML: Final = 1000.0
_TRUNK_ML: Final = 5500.0
"""More than the largest head with its neck."""

_BRAIN_CM2: Final = 40.0
"""Area of soft tissue enclosed by bone, in one axial slice, that only a head has (a spinal canal has 3 cm2)."""

_CONTRAST_HU: Final = 110.0
_THICK_MM: Final = {Input.CTA: 1.5, Input.NCCT: 5.5, Input.CTP: 10.5, Input.TMAX: 10.5, Input.CBF: 10.5}
_LONGEST_S: Final = {Input.TMAX: 120.0, Input.MTT: 240.0}
_MASK_LEVELS: Final = 64


def check(volume: Volume, field: Input) -> tuple[Flag, ...]:
    """The doubts about a volume in its field.

    :raises ImplausibleModality: it certainly is not what the field takes
    """
    flags = _thickness(volume, field)
    if field in (Input.NCCT, Input.CTA, Input.CTP):
        return (*flags, *_head_ct(volume, field))
    if field is Input.VESSELS:
        return _mask(volume)
    return (*flags, *_map(volume, field))


def _refuse(field: Input, detail: str) -> ImplausibleModality:
    return ImplausibleModality(f"{field}: {detail}", errors=[FieldError(field, detail)])


def _flag(code: str, field: Input, detail: str) -> Flag:
    return Flag(code=code, detail=f"{field}: {detail}")


def _thickness(volume: Volume, field: Input) -> tuple[Flag, ...]:
    limit = _THICK_MM.get(field)
    if limit is None or max(volume.spacing_mm) <= limit:
        return ()
    return (
        _flag(
            "slice-thickness", field, f"slices of {max(volume.spacing_mm):.1f} mm; {limit:.1f} mm or less is expected"
        ),
    )


def _averaged(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Real-world values in blocks of about 3 mm, and the blocks' edges in mm. A series gives its first frame."""
    x, y, z = (max(1, round(_WORKING_MM / edge)) for edge in volume.spacing_mm)
    data = volume.data if volume.data.ndim == 3 else volume.data[..., 0]
    values = shrink(data, (x, y, z))[0] * np.float32(volume.slope) + np.float32(volume.inter)
    if not np.isfinite(values).all():
        values = np.nan_to_num(values, nan=float(np.nanmin(values)), posinf=0, neginf=0)
    return values, np.array(volume.spacing_mm) * (x, y, z)


# CT of a head ------------------------------------------------------------------------------------------------------


def _head_ct(volume: Volume, field: Input) -> tuple[Flag, ...]:
    values, edges = _averaged(volume)
    body = values > _AIR_HU
    if not body.any() or np.mean(values[body] > _BEYOND_HU) > 0.01:
        raise _refuse(
            field,
            "the values are not Hounsfield units (air -1000, water 0, bone up to 3000); export the CT "
            "with its rescale slope and intercept applied",
        )
    axis = int(np.argmax(np.abs(volume.affine[2, :3])))
    enclosed = _enclosed(values, edges, axis)
    brain = enclosed & _between(values, _SOFT_HU)
    seen = _widest(brain, edges, axis) >= _BRAIN_CM2
    if np.mean(~body) < _LEAST_AIR and not (seen and _dense(values) and _brain_like(values[brain])):
        return _stripped(values, edges, field)
    if seen:
        return _contrast(values, enclosed, edges, field)
    if _trunk(values, body, edges):
        raise _refuse(
            field,
            "this is not a CT of the head (no brain within a skull was found, but a trunk's fat or "
            "lungs); send the head series",
        )
    return (_flag("head-doubtful", field, "no brain within a closed skull was found"),)


def _trunk(values: np.ndarray, body: np.ndarray, edges: np.ndarray) -> bool:
    """Whether there is a trunk's fat, or lung. Thin layers are not lung: they are skin, hair, or a head-rest."""
    voxel_ml = float(np.prod(edges)) / 1000
    lung = ndimage.binary_opening(_between(values, _LUNG_HU), np.ones([3 if edge < 5 else 1 for edge in edges]))
    fat = body.sum() * voxel_ml > _TRUNK_ML and np.mean(_between(values[body], _FAT_HU)) > 0.2
    return bool(fat or lung.sum() * voxel_ml > _LUNG_ML)


def _stripped(values: np.ndarray, edges: np.ndarray, field: Input) -> tuple[Flag, ...]:
    """A volume without air: a skull-stripped brain in HU, or not a CT in HU at all."""
    shown = values[np.abs(values - values.min()) > 1] if values.min() >= -1 else values
    litres = shown.size * float(np.prod(edges)) / 1e6
    if shown.size and 0.1 < litres < 3 and _brain_like(shown):
        upper = float(np.percentile(shown, 90))
        if upper < 100 and np.percentile(shown, 10) < 0.85 * upper and _smooth(values):
            return (_flag("skull-stripped", field, "the skull and the air around it were removed before sending"),)
    raise _refuse(
        field,
        "no value is as low as air's: these are not Hounsfield units (display levels 0 to 255, a "
        "rescale intercept left out, a label map, an MR, or bone and air removed); send the CT in HU, air "
        "near -1000",
    )


def _dense(values: np.ndarray) -> bool:
    """Whether there is bone denser than any display level (0 to 255)."""
    return bool(values.max() > 400)


def _brain_like(values: np.ndarray) -> bool:
    return bool(_BRAIN_HU[0] < np.median(values) < _BRAIN_HU[1])


def _smooth(values: np.ndarray) -> bool:
    """Whether values vary as densities do, not as labels: most neighbours differ, by little."""
    steps = np.abs(np.diff(values, axis=0))
    both = (values[1:] > 1) & (values[:-1] > 1)
    return bool(np.mean(steps[both] > 0.01) > 0.5) if both.any() else False


def _enclosed(values: np.ndarray, edges: np.ndarray, axis: int) -> np.ndarray:
    """What bone surrounds in its own axial slice. Gaps of up to 6 mm are closed: sutures, thin bone, foramina."""
    bone = np.moveaxis(values > _SKULL_HU, axis, 0)
    edge = float(np.delete(edges, axis).mean())
    reach = round(3.0 / edge)
    within = slice(reach + 1, -reach - 1)
    in_slice = ndimage.generate_binary_structure(2, 1)[None]
    ring = np.pad(bone, ((0, 0), (reach + 1,) * 2, (reach + 1,) * 2))
    if reach:
        ring = ndimage.binary_closing(ring, in_slice, iterations=reach)
    inside = ndimage.binary_fill_holes(ring, in_slice)[:, within, within] & ~bone
    return np.moveaxis(inside, 0, axis)


def _widest(mask: np.ndarray, edges: np.ndarray, axis: int) -> float:
    """The largest axial slice of a mask, cm2."""
    others = tuple(other for other in range(3) if other != axis)
    return float(mask.sum(axis=others).max() * np.prod(edges[list(others)]) / 100)


def _contrast(values: np.ndarray, enclosed: np.ndarray, edges: np.ndarray, field: Input) -> tuple[Flag, ...]:
    """Arteries stand out of the brain's middle in a CTA, and do not in an NCCT. Calcified plexus is under 1 mL."""
    if edges.max() > 1.2 * _WORKING_MM:  # slices too thick to tell an artery
        return ()
    bright = np.argwhere(enclosed & (values > _CONTRAST_HU))
    bright_ml = np.count_nonzero(_deeper(bright, enclosed, edges, 8)) * float(np.prod(edges)) / 1000
    if field is Input.CTA and bright_ml < 0.3:
        return (_flag("contrast-doubtful", field, "the arteries of the brain are hardly brighter than its tissue"),)
    if field is Input.NCCT and bright_ml > 5:
        return (_flag("contrast-doubtful", field, "the arteries of the brain are bright, as after contrast"),)
    return ()


def _deeper(voxels: np.ndarray, mask: np.ndarray, edges: np.ndarray, mm: float) -> np.ndarray:
    """(n,) whether all neighbours of a voxel (n, 3) within ``mm`` are in the mask: no map of distances for so few."""
    reach = np.ceil(mm / edges).astype(int)
    around = np.pad(mask, [(n, n) for n in reach], constant_values=True)
    steps = np.indices(tuple(2 * reach + 1)).reshape(3, -1).T
    near = steps[np.linalg.norm((steps - reach) * edges, axis=1) <= mm]
    deeper: np.ndarray = np.all([around[tuple((voxels + step).T)] for step in near], axis=0)
    return deeper


def _between(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    inside: np.ndarray = (values > limits[0]) & (values < limits[1])
    return inside


# Maps and masks ----------------------------------------------------------------------------------------------------


def _map(volume: Volume, field: Input) -> tuple[Flag, ...]:
    values, _ = _averaged(volume)
    positive = values[values > 0]
    if np.percentile(values, 1) < -50 or np.mean(values < -0.5) > 0.3 or not positive.size:
        raise _refuse(
            field,
            "a perfusion map has no negative values to speak of; send the map itself, not the CT or a "
            "colour picture of it",
        )
    longest = _LONGEST_S.get(field)
    if longest is not None and np.percentile(positive, 95) > longest:
        raise _refuse(
            field, "the values are too large for seconds; export the map in seconds, not in milliseconds or grey levels"
        )
    if field is Input.TMAX and np.percentile(positive, 99.5) < 3:
        return (_flag("tmax-doubtful", field, "no delay reaches 3 s; is the map in seconds?"),)
    return ()


def _mask(volume: Volume) -> tuple[Flag, ...]:
    inside = vessels.inside(volume)
    share = float(inside.mean())
    found = volume.data[inside] * volume.slope + volume.inter if share < 0.25 else np.empty(0)
    grey = found.size > 0 and np.unique(found[:: max(1, found.size // 100_000)]).size > _MASK_LEVELS
    if share >= 0.25 or (grey and np.mean(found > 0.99 * found.max()) < 0.5):
        raise _refuse(
            Input.VESSELS,
            "a vessel mask is expected: 0 outside the vessels and 1 (or labels) inside; "
            "threshold the angiogram before sending",
        )
    return () if share else (_flag("vessels-empty", Input.VESSELS, "the mask has no vessel in it"),)
