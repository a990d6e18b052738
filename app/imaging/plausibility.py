"""Check that a volume shows what its field claims: refuse it if it certainly does not, flag it if that is doubtful.

Design notes:
- A real head CT must never be refused. A refusal needs a sign that no head CT has: no value as low as air, values far
  above bone, or the fat or lungs of a trunk without a skull.
- All checks use block means over about 3 mm, which removes most of the noise.
- These pass: padding below air (-1500, -2000, -3024), metal, a missing piece of skull, a skull-stripped brain in HU, a
  plastic phantom in HU, a volume of 16 voxels a side.
- Intercept, slope, sign and display windows are checked by hounsfield_check.py, contents of a mask by mask_check.py,
  a haemorrhage by haemorrhage_check.py.
- A message says what is expected and what to do; it does not repeat voxel values.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from scipy import ndimage

from app.imaging import enclosure, haemorrhage_check, hounsfield_check, vessels
from app.imaging.enclosure import Enclosure, between
from app.imaging.hounsfield_check import MIN_BRAIN_CM2
from app.imaging.io.nifti import Volume
from app.imaging.resample import shrink
from app.sdk.errors import FieldError, ImplausibleModality
from app.sdk.types import Flag, Input

__all__ = ["check", "check_exchange"]

_WORKING_MM: Final = 3.0
_AIR_HU: Final = -300.0
_MIN_AIR: Final = 0.005  # with a smaller share of air, the air was removed or the values are not HU
_BEYOND_HU: Final = 4000.0
_BRAIN_HU: Final = (15.0, 60.0)  # range of the median of a skull-stripped brain, HU, with or without contrast
_FAT_HU: Final = (-150.0, -30.0)
_LUNG_HU: Final = (-920.0, -600.0)
_LUNG_ML: Final = 1000.0
_TRUNK_ML: Final = 5500.0  # more than the largest head with its neck
_USUAL_BRAIN_HU: Final = (5.0, 70.0)
_WINDOW_HU: Final = 400.0  # a display window ends below; bone and contrast are lost
_BONE_HU: Final = 700.0  # the segmentation of vessels takes higher values for bone
_CONTRAST_HU: Final = 110.0
_MAX_BLOCK_MM: Final = 6.0
_CELL_MM: Final = 12.0
_CONTRAST_PLACES: Final = {Input.CTA: 12, Input.NCCT: 24}  # cells with bright blocks; docs/input-checks.md
_NEIGHBOURS: Final = np.delete(np.indices((3, 3, 3)).reshape(3, -1).T, 13, axis=0)  # in an array padded by 1
_WHOLE_TREE_MM: Final = 100.0  # a shorter scan shows fewer places
_METAL_HU: Final = 2000.0
_METAL_BLOCK_HU: Final = 1200.0  # mean of a block of about 3 mm; no plaque and no contrast is so dense
_METAL_DEPTH_MM: Final = 4.0  # from bone
_HAEMORRHAGE_ML: Final = 20.0  # dense clots, calcium and small bleedings are smaller
_MAX_SLICE_MM: Final = {Input.CTA: 1.5, Input.NCCT: 5.5, Input.CTP: 10.5, Input.TMAX: 10.5, Input.CBF: 10.5}
_MAX_S: Final = {Input.TMAX: 120.0, Input.MTT: 240.0}
_SHORTEST_S: Final = 1.5  # the noise of every Tmax map in seconds exceeds it
_NO_DELAY_S: Final = 3.0
_MASK_LEVELS: Final = 64


def check(volume: Volume, field: Input) -> tuple[Flag, ...]:
    """Flags for a volume that was sent as ``field``.

    Args:
        volume: (X, Y, Z), or a series (X, Y, Z, T); a perfusion map as ``background.clean`` returns it.
        field: the upload field.

    Raises:
        ImplausibleModality: the volume certainly does not show what the field takes.
    """
    flags = _thickness(volume, field)
    if field in (Input.NCCT, Input.CTA, Input.CTP):
        return (*flags, *_head_ct(volume, field))
    if field is Input.VESSELS:
        return _mask(volume)
    return (*flags, *_map(volume, field))


def check_exchange(flags: Iterable[Flag]) -> None:
    """Refuse a pair of an NCCT with contrast and a CTA without; ``flags``: those of both volumes.

    Raises:
        ImplausibleModality: NCCT and CTA are certainly exchanged.
    """
    doubtful = {flag.detail.partition(":")[0] for flag in flags if flag.code == "contrast-doubtful"}
    if doubtful >= {Input.NCCT, Input.CTA}:
        detail = "the ncct shows contrast and the cta shows none: exchange the two files"
        raise ImplausibleModality(detail, errors=[FieldError(field, detail) for field in (Input.NCCT, Input.CTA)])


def _refuse(field: Input, detail: str) -> ImplausibleModality:
    return ImplausibleModality(f"{field}: {detail}", errors=[FieldError(field, detail)])


def _flag(code: str, field: Input, detail: str) -> Flag:
    return Flag(code=code, detail=f"{field}: {detail}")


def _thickness(volume: Volume, field: Input) -> tuple[Flag, ...]:
    limit = _MAX_SLICE_MM.get(field)
    if limit is None or max(volume.spacing_mm) <= limit:
        return ()
    detail = f"slices of {max(volume.spacing_mm):.1f} mm; {limit:.1f} mm or less is expected"
    return (_flag("slice-thickness", field, detail),)


def _averaged(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Real-world block means over about 3 mm, and the edges of a block, mm; of a series, the first frame."""
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
            "the values are not Hounsfield units (air -1000, water 0, bone up to 3000): export the CT "
            "with its rescale slope and intercept applied",
        )
    space = enclosure.find(values, edges, int(np.argmax(np.abs(volume.affine[2, :3]))))
    seen = space.brain_cm2.max() >= MIN_BRAIN_CM2
    if np.mean(~body) < _MIN_AIR and not (seen and _has_dense_bone(values) and _in_brain_range(space.brain_hu)):
        return _stripped(values, edges, field)
    if (scale := hounsfield_check.fault(values, space)) is not None:
        raise _refuse(field, f"the values are not Hounsfield units: {scale.reason}")
    if seen:
        flags = _window(values, edges, field)
        flags = (*flags, *_brain_level(space, field), *_contrast(values, space, field), *_metal(values, space, field))
        return (*flags, *_haemorrhage(values, space)) if field is Input.NCCT else flags
    if _shows_trunk(values, body, edges):
        raise _refuse(
            field,
            "this is not a CT of the head (it shows no brain within a skull, but the fat or the lungs of "
            "a trunk): send the head series",
        )
    return (*_window(values, edges, field), _flag("head-doubtful", field, "no brain within a closed skull was found"))


def _window(values: np.ndarray, edges: np.ndarray, field: Input) -> tuple[Flag, ...]:
    """Refuse a display window, and flag values that were cut off higher up."""
    highest = hounsfield_check.cut_level(values, edges)
    if highest is None:
        return ()
    if highest < _WINDOW_HU:
        raise _refuse(
            field,
            "all values above a display window were cut off, so bone and contrast cannot be told apart: export the CT "
            "in HU without a window",
        )
    if field is Input.NCCT or highest >= _BONE_HU:
        return ()
    return (_flag("hu-cut", field, "high values were cut off, so bone cannot be told from contrast"),)


def _brain_level(space: Enclosure, field: Input) -> tuple[Flag, ...]:
    low, high = _USUAL_BRAIN_HU
    if low < space.brain_hu < high:
        return ()
    return (
        _flag("hu-doubtful", field, "the soft tissue inside the skull does not have the values of brain (20 to 50 HU)"),
    )


def _shows_trunk(values: np.ndarray, body: np.ndarray, edges: np.ndarray) -> bool:
    """Whether the volume shows the fat or the lungs of a trunk; thin layers (skin, hair, head-rest) are not lung."""
    voxel_ml = float(np.prod(edges)) / 1000
    lung = ndimage.binary_opening(between(values, _LUNG_HU), np.ones([3 if edge < 5 else 1 for edge in edges]))
    fat = body.sum() * voxel_ml > _TRUNK_ML and np.mean(between(values[body], _FAT_HU)) > 0.2
    return bool(fat or lung.sum() * voxel_ml > _LUNG_ML)


def _stripped(values: np.ndarray, edges: np.ndarray, field: Input) -> tuple[Flag, ...]:
    """Check a volume without air: a skull-stripped brain in HU is flagged, anything else is refused."""
    shown = values[np.abs(values - values.min()) > 1] if values.min() >= -1 else values
    litres = shown.size * float(np.prod(edges)) / 1e6
    if shown.size and 0.1 < litres < 3 and _in_brain_range(float(np.median(shown))):
        upper = float(np.percentile(shown, 90))
        if upper < 100 and np.percentile(shown, 10) < 0.85 * upper and _varies_smoothly(values):
            detail = "the skull and the air around it were removed before upload"
            return (*_window(values, edges, field), _flag("skull-stripped", field, detail))
    raise _refuse(
        field,
        "no value is as low as air: these are not Hounsfield units (display levels 0 to 255, a missing "
        "rescale intercept, a label map, an MR, or bone and air removed). Send the CT in HU, with air "
        "near -1000",
    )


def _has_dense_bone(values: np.ndarray) -> bool:
    """Whether there is bone denser than every display level (0 to 255)."""
    return bool(values.max() > 400)


def _in_brain_range(hu: float) -> bool:
    return _BRAIN_HU[0] < hu < _BRAIN_HU[1]


def _varies_smoothly(values: np.ndarray) -> bool:
    """Whether most neighbouring voxels differ, as densities do and labels do not."""
    steps = np.abs(np.diff(values, axis=0))
    both = (values[1:] > 1) & (values[:-1] > 1)
    return bool(np.mean(steps[both] > 0.01) > 0.5) if both.any() else False


def _contrast(values: np.ndarray, space: Enclosure, field: Input) -> tuple[Flag, ...]:
    """Flag a CTA without bright arteries inside the skull, and an NCCT with them.

    Arteries with contrast are bright in many places. Calcifications and clots are bright in a few.
    """
    if space.edges.max() > _MAX_BLOCK_MM:  # arteries are not visible in slices this thick
        return ()
    is_bright = space.inside & (values > _CONTRAST_HU)
    bright = _with_neighbours(is_bright)  # single blocks are noise
    deep = _deep_in(bright, space.inside, space.edges, 8)
    if deep.size and values[tuple(deep.T)].max() > _METAL_HU:  # its streaks are bright, too
        return ()
    places = len(np.unique((deep * space.edges // _CELL_MM).astype(int), axis=0))
    shown_mm = np.count_nonzero(space.brain_cm2 >= MIN_BRAIN_CM2) * space.edges[space.axis]
    if field is Input.CTA and places <= _CONTRAST_PLACES[field] * min(1.0, shown_mm / _WHOLE_TREE_MM):
        return (_flag("contrast-doubtful", field, "the arteries of the brain are hardly brighter than brain tissue"),)
    if field is Input.NCCT and places > _CONTRAST_PLACES[field]:
        return (_flag("contrast-doubtful", field, "the arteries of the brain are bright, as after contrast"),)
    return ()


def _metal(values: np.ndarray, space: Enclosure, field: Input) -> tuple[Flag, ...]:
    """Say that there is metal within the skull: blocks brighter than plaques and contrast, away from bone."""
    bright = np.argwhere(space.inside & (values > _METAL_BLOCK_HU))
    if not len(_deep_in(bright, space.inside, space.edges, _METAL_DEPTH_MM)):
        return ()
    return (_flag("metal", field, "there is metal within the skull; its streaks can look like calcium or contrast"),)


def _haemorrhage(values: np.ndarray, space: Enclosure) -> tuple[Flag, ...]:
    """Flag a large dense region in the brain of an NCCT."""
    if (volume_ml := haemorrhage_check.dense_ml(values, space)) < _HAEMORRHAGE_ML:
        return ()
    detail = f"a dense region of about {volume_ml:.0f} mL lies in the brain, as of a haemorrhage"
    return (_flag("haemorrhage-possible", Input.NCCT, detail),)


def _with_neighbours(mask: np.ndarray) -> np.ndarray:
    """(n, 3): set voxels with a set voxel among the 26 around them."""
    voxels, around = np.argwhere(mask), np.pad(mask, 1)
    found: np.ndarray = voxels[np.any([around[tuple((voxels + step).T)] for step in _NEIGHBOURS], axis=0)]
    return found


def _deep_in(voxels: np.ndarray, mask: np.ndarray, edges: np.ndarray, mm: float) -> np.ndarray:
    """The voxels (n, 3) all of whose neighbours within ``mm`` are in the mask."""
    reach = np.ceil(mm / edges).astype(int)
    around = np.pad(mask, [(n, n) for n in reach], constant_values=True)
    steps = np.indices(tuple(2 * reach + 1)).reshape(3, -1).T
    far = np.linalg.norm((steps - reach) * edges, axis=1)
    near = steps[np.argsort(-far)[np.count_nonzero(far > mm) :]]  # the farthest first: most voxels fail there
    for step in near:
        voxels = voxels[around[tuple((voxels + step).T)]]
    return voxels


# Maps and masks ----------------------------------------------------------------------------------------------------


def _map(volume: Volume, field: Input) -> tuple[Flag, ...]:
    values, _ = _averaged(volume)
    positive = values[values > 0]
    if np.percentile(values, 1) < -50 or np.mean(values < -0.5) > 0.3 or not positive.size:
        raise _refuse(
            field,
            "this is not a perfusion map (it has many negative values, or no positive one): send the map itself, "
            "not the CT or a colour picture of it",
        )
    if field not in _MAX_S:
        return ()
    most, highest = np.percentile(positive, [95, 99.5])
    if most > _MAX_S[field]:
        raise _refuse(
            field, "the values are too large for seconds: export the map in seconds, not in milliseconds or grey levels"
        )
    if field is not Input.TMAX:
        return ()
    if highest < _SHORTEST_S:
        return (_flag("tmax-doubtful", field, "no delay reaches 1.5 s; check that the map is in seconds"),)
    if highest < _NO_DELAY_S:
        return (_flag("tmax-no-delay", field, "no delay reaches 3 s; the map shows no delayed tissue"),)
    return ()


def _mask(volume: Volume) -> tuple[Flag, ...]:
    inside = vessels.is_vessel(volume)
    share = float(inside.mean())
    marked = volume.data[inside] * volume.slope + volume.inter if share < 0.25 else np.empty(0)
    grey = marked.size > 0 and np.unique(marked[:: max(1, marked.size // 100_000)]).size > _MASK_LEVELS
    if share >= 0.25 or (grey and np.mean(marked > 0.99 * marked.max()) < 0.5):
        raise _refuse(
            Input.VESSELS,
            "a vessel mask is expected (0 outside the vessels, 1 or labels inside): "
            "threshold the angiogram before upload",
        )
    return () if share else (_flag("vessels-empty", Input.VESSELS, "the mask contains no vessel"),)
