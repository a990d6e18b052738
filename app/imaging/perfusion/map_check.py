"""Check that perfusion maps show what their fields claim, and find voxels without data beside delayed tissue.

Design notes:
- The maps are compared on one grid of 3 mm in MNI space, which is symmetric about the midline. Each map is sampled at
  the nearest voxel, so that 0 (no data) and the levels of a class map are kept.
- Tmax has a scale that every patient shows: the less affected hemisphere has 0 to 3 s. CBF and CBV have none, because
  only their ratios are used.
- A hole is a part of the brain without data that data enclose. Software leaves CSF and old infarcts without data; the
  CT shows them dark. A hole with the density of brain beside delayed tissue is probably a core that was blanked.
- An acute core is at most some HU darker than brain on a CT. What is as dark as CSF on one side, with low flow, is old.
- docs/input-checks.md states each limit with its measured distribution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from scipy import ndimage

from app.imaging import morphology
from app.imaging.io.nifti import Volume
from app.imaging.perfusion.summary import CORE_FRACTION, DELAYED_TMAX_S, NORMAL_TMAX_S
from app.imaging.registration import brain_mask
from app.sdk.errors import FieldError, ImplausibleModality
from app.sdk.types import Flag, Input, PerfusionSummary

__all__ = ["MapFindings", "PlacedVolume", "check", "withhold"]

_STEP_MM: Final = 3.0
_SHAPE: Final = (50, 62, 54)  # the MNI brain and a margin
_LOW_MM: Final = (-73.5, -111.0, -73.0)  # first grid point; x is symmetric about 0
_VOXEL_ML: Final = _STEP_MM**3 / 1000
_RIM_MM: Final = 3.0  # the outermost part of the brain is left out: alignment and atrophy

# Tmax of the less affected hemisphere, median. Valid phantoms reach 2.9 s, tenths of a second start at 8.
_MAX_USUAL_S: Final = 3.5
_MAX_COMPUTED_S: Final = 4.5  # our deconvolution gives up to 2 s more (docs/imaging.md)
_MAX_POSSIBLE_S: Final = 8.0
_MAX_DELAYED_SHARE: Final = 0.35  # share of that hemisphere with Tmax > 6 s; noise gives up to 0.2

_CLASSES: Final = 8  # a Tmax map of whole seconds with a lesion has more levels
_MIN_SHOWN: Final = 0.05  # share of the brain in the slab with a value; a map of the lesion only has none elsewhere

_MIN_LESION_ML: Final = 10.0
_MAX_FLOW_RATIO: Final = 1.0  # mean CBF of delayed over normal tissue: 0.3 to 0.8 in valid phantoms
_SIDE_RATIO: Final = 2.0
_MIN_SIDE_ML: Final = 20.0
_MAX_SPREAD: Final = 0.5  # interquartile range of log(CBV / (CBF x MTT)); 0.05 to 0.25 in valid phantoms
_UNIT_FACTORS: Final = (0.001, 0.01, 1 / 60, 1.0, 60.0, 100.0, 1000.0)  # of other units of the three maps
_UNIT_TOLERANCE: Final = 1.35
_SAME_RATIO: Final = (0.9, 1.1)
_SAME_SPREAD: Final = 0.1

# Median Tmax of a core. It lies within Tmax > 6 s; valid phantoms have 10 s or more, or 7.6 s with short delays.
_MIN_CORE_ML: Final = 5.0
_USUAL_CORE_S: Final = 8.0

_MIN_HOLE_ML: Final = 1.5
_CSF_BELOW_BRAIN_HU: Final = 15.0  # CSF is 20 to 30 HU below the brain, an acute infarct at most 10
_MIN_PLAIN_HOLE_ML: Final = 20.0

_MAP_SCALE: Final = (
    "these are not seconds of Tmax: normal tissue has 0 to 3 s. Check that the map is Tmax (not CBF, TTP or a colour "
    "picture) in seconds (not tenths), and send it again"
)
_SERIES_SCALE: Final = (
    "the Tmax of normal tissue, computed from the series, is far from the usual 0 to 3 s: send the seconds between its "
    "frames as ctp_interval_s, and the frames in the order of the scan"
)
_SERIES_ADVICE: Final = "check the order of the frames and the seconds between them (ctp_interval_s)"
_UNIT_ADVICE: Final = "check that the map is Tmax in seconds, not in frames, and that tmax and cbf are of one scan"


@dataclass(frozen=True)
class PlacedVolume:
    """A volume, and its RAS+ mm -> MNI152 mm, (4, 4)."""

    volume: Volume
    mni_from_world: np.ndarray


@dataclass(frozen=True)
class MapFindings:
    """Flags of the maps, and the maps that have a hole beside delayed tissue."""

    flags: tuple[Flag, ...]
    blanked: frozenset[Input]


def check(
    maps: Mapping[Input, Volume], mni_from_world: np.ndarray, ct: PlacedVolume, *, computed: bool = False
) -> MapFindings:
    """Check cleaned maps, alone and against each other.

    Args:
        maps: Tmax in seconds, CBF, CBV and MTT, 0 where there is no data; each may be missing.
        mni_from_world: (4, 4), the maps' RAS+ mm -> MNI152 mm.
        ct: the CT of the head, HU; it shows whether a hole is CSF.
        computed: Tmax was computed from the series, so that a wrong scale is a fault of the series.

    Raises:
        ImplausibleModality: the Tmax map is certainly not in seconds.
    """
    sampled = {name: _sample(volume, mni_from_world) for name, volume in maps.items()}
    flags: list[Flag] = []
    for name in (Input.TMAX, Input.CBF):
        if name in sampled:
            flags += _levels(sampled[name], name)
    if Input.TMAX in sampled:
        flags += _scale(sampled[Input.TMAX], computed=computed)
    flags += _relations(sampled)
    if Input.TMAX in sampled and Input.CBF in sampled and not any(flag.code == "maps-contradict" for flag in flags):
        flags += _core_delay(sampled[Input.TMAX], sampled[Input.CBF], ct, computed=computed)
    if Input.CBF in sampled:
        flags += _dark_core(sampled.get(Input.TMAX), sampled[Input.CBF], ct)
    blanked, plain = _holes(sampled, ct)
    if blanked:
        detail = (
            f"{' and '.join(sorted(blanked))}: no data within delayed tissue; this is probably severe hypoperfusion "
            "that the perfusion software left out. The core and the numbers that depend on it are not given: export "
            "the maps without a threshold, or send the core volume in the clinical record"
        )
        flags.append(Flag(code="core-blanked", detail=detail))
    if plain:
        detail = f"{' and '.join(sorted(plain))}: a large part of the brain has no data; the numbers do not include it"
        flags.append(Flag(code="map-hole", detail=detail))
    return MapFindings(tuple(flags), blanked)


def withhold(summary: PerfusionSummary, blanked: frozenset[Input]) -> PerfusionSummary:
    """The summary without the numbers that a hole in these maps makes too small."""
    unknown = set()
    if blanked:
        unknown |= {"core_ml", "mismatch_ml", "mismatch_ratio", "cbv_index"}
    if Input.TMAX in blanked:
        unknown |= {"tmax4_ml", "tmax6_ml", "tmax8_ml", "tmax10_ml", "hypoperfusion_intensity_ratio"}
    return summary.model_copy(update=dict.fromkeys(unknown))


# The grid ----------------------------------------------------------------------------------------------------------


@cache
def _brain() -> np.ndarray:
    """(X, Y, Z) bool: the grid's points in the brain, without its outermost part."""
    affine = np.diag([_STEP_MM, _STEP_MM, _STEP_MM, 1.0])
    affine[:3, 3] = _LOW_MM
    inside: np.ndarray = brain_mask.distance(affine, _SHAPE, np.eye(4)) < -_RIM_MM
    return inside


@cache
def _brain_points() -> tuple[np.ndarray, np.ndarray]:
    """Flat indices (n,) of the points of ``_brain``, and their places, (4, n): MNI152 mm and 1."""
    places = np.argwhere(_brain()).T * _STEP_MM + np.array(_LOW_MM)[:, None]
    return np.flatnonzero(_brain()), np.vstack([places, np.ones(places.shape[1])]).astype(np.float32)


def _sample(volume: Volume, mni_from_world: np.ndarray) -> np.ndarray:
    """(X, Y, Z): value of the nearest voxel; 0 in a voxel without data, NaN outside the volume and the brain."""
    points, places = _brain_points()
    voxels = np.rint(np.linalg.inv(mni_from_world @ volume.affine)[:3].astype(np.float32) @ places).astype(np.int32)
    inside = np.logical_and.reduce([(at >= 0) & (at < n) for at, n in zip(voxels, volume.shape, strict=True)])
    stored = volume.data[tuple(voxels[:, inside])]
    found = np.full(_SHAPE, np.nan, np.float32)
    values = np.maximum(stored * np.float32(volume.slope) + np.float32(volume.inter), 0)
    found.ravel()[points[inside]] = values
    return found


def _has_data(values: np.ndarray) -> np.ndarray:
    data: np.ndarray = _brain() & (values > 0)  # NaN > 0 is False
    return data


def _hemispheres(mask: np.ndarray) -> list[np.ndarray]:
    """The part of a mask on the left and on the right of the midline."""
    left, right = mask.copy(), mask.copy()
    left[_SHAPE[0] // 2 :], right[: _SHAPE[0] // 2] = False, False
    return [left, right]


def _smooth(values: np.ndarray, data: np.ndarray, size: int) -> np.ndarray:
    """Mean of the data in a cube of ``size`` voxels; 0 where there are none."""
    weight = ndimage.uniform_filter(data.astype(np.float32), size)
    total = ndimage.uniform_filter(np.where(data, values, 0).astype(np.float32), size)
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 1e-4)


# Single maps -------------------------------------------------------------------------------------------------------


def _levels(values: np.ndarray, field: Input) -> list[Flag]:
    """Flag a map of classes, and a map that shows the lesion only."""
    data = _has_data(values)
    levels = np.unique(np.round(values[data], 3))
    if not levels.size:
        return []
    covered = _brain() & ~np.isnan(values)
    slices = data.any(axis=(0, 1))
    counts = [int(np.count_nonzero(side)) for side in _hemispheres(data)]
    possible = [int(np.count_nonzero(side)) for side in _hemispheres(covered & slices)]
    shown = min(some / max(whole, 1) for some, whole in zip(counts, possible, strict=True))
    numbered = bool(np.all(levels == np.rint(levels)) and levels[-1] <= levels.size + 1)
    if 1 < levels.size <= _CLASSES and (numbered or shown < _MIN_SHOWN):
        detail = "the map has a few levels only, like classes or colours: send the map with its original numbers"
        return [_flag("map-classes", field, detail)]
    if field is Input.TMAX and shown < _MIN_SHOWN:
        detail = "one hemisphere has no value; the map may show the lesion only: export it without a threshold"
        return [_flag("map-thresholded", field, detail)]
    return []


def _scale(tmax: np.ndarray, *, computed: bool) -> list[Flag]:
    """Refuse or flag a Tmax map whose less affected hemisphere is far from the usual 0 to 3 s."""
    data = _has_data(tmax)
    sides = [tmax[side] for side in _hemispheres(data) if np.count_nonzero(side) * _VOXEL_ML > _MIN_LESION_ML]
    if len(sides) < 2:  # a map of one hemisphere, or of the lesion, has no less affected side
        return []
    usual = min(float(np.median(side)) for side in sides)
    delayed = min(float(np.mean(side > DELAYED_TMAX_S)) for side in sides)
    source = Input.CTP if computed else Input.TMAX
    if usual > _MAX_POSSIBLE_S:
        detail = _SERIES_SCALE if computed else _MAP_SCALE
        raise ImplausibleModality(f"{source}: {detail}", errors=[FieldError(source, detail)])
    if usual > (_MAX_COMPUTED_S if computed else _MAX_USUAL_S) or delayed > _MAX_DELAYED_SHARE:
        advice = _SERIES_ADVICE if computed else "check that the map is Tmax in seconds, not MTT, TTP or tenths"
        detail = f"even the less affected hemisphere is delayed, where Tmax is usually 0 to 3 s; {advice}"
        return [_flag("tmax-scale", source, detail)]
    return []


# Several maps ------------------------------------------------------------------------------------------------------


def _relations(maps: Mapping[Input, np.ndarray]) -> list[Flag]:
    """Flags of maps that contradict each other."""
    tmax, cbf, cbv, mtt = (maps.get(name) for name in (Input.TMAX, Input.CBF, Input.CBV, Input.MTT))
    flags = []
    if tmax is not None and cbf is not None and _flow_contradicts(tmax, cbf):
        detail = (
            "tmax, cbf: blood flow is not low where Tmax is prolonged, or differs between the sides without any delay; "
            "check that the two maps are not exchanged"
        )
        flags.append(Flag(code="maps-contradict", detail=detail))
    if cbf is not None and cbv is not None and mtt is not None:
        median, spread = _volume_theorem(cbf, cbv, mtt)
        fits = [abs(float(np.log(median / factor))) < np.log(_UNIT_TOLERANCE) for factor in _UNIT_FACTORS]
        if spread > _MAX_SPREAD or not any(fits):
            detail = "cbf, cbv, mtt: CBV is not CBF times MTT; check that the three maps are not exchanged"
            flags.append(Flag(code="maps-contradict", detail=detail))
        elif not fits[_UNIT_FACTORS.index(1.0)]:
            detail = "cbf, cbv, mtt: the units differ from mL/100 g/min, mL/100 g and s; only ratios are used"
            flags.append(Flag(code="map-units", detail=detail))
    if tmax is not None and cbf is not None and cbv is not None:
        median, spread = _volume_theorem(cbf, cbv, tmax)
        if spread < _SAME_SPREAD and _SAME_RATIO[0] < median < _SAME_RATIO[1]:
            detail = "the map equals CBV / CBF, so it is MTT: send the Tmax map"
            flags.append(_flag("tmax-scale", Input.TMAX, detail))
    return flags


def _flow_contradicts(tmax: np.ndarray, cbf: np.ndarray) -> bool:
    """Whether CBF is not lower in delayed tissue, or differs between the sides in a map pair without any delay."""
    data = _has_data(tmax) & _has_data(cbf)
    if not data.any():
        return False
    delayed = morphology.opened(data & (tmax > DELAYED_TMAX_S))
    normal = data & (tmax <= NORMAL_TMAX_S)
    if np.count_nonzero(delayed) * _VOXEL_ML > _MIN_LESION_ML and normal.any():
        return bool(cbf[delayed].mean() > _MAX_FLOW_RATIO * np.median(cbf[normal]))
    if np.percentile(tmax[data], 99.5) >= NORMAL_TMAX_S - 1:
        return False
    smooth = _smooth(cbf, data, 3)
    both = morphology.erode(data & data[::-1])
    one_sided = morphology.opened(both & (smooth > _SIDE_RATIO * smooth[::-1]))
    return bool(np.count_nonzero(one_sided) * _VOXEL_ML > _MIN_SIDE_ML)


def _core_delay(tmax: np.ndarray, cbf: np.ndarray, ct: PlacedVolume, *, computed: bool) -> list[Flag]:
    """Flag a short Tmax in tissue with the flow of a core: it is in frames, say. An old infarct is dark on the CT."""
    data = _has_data(tmax) & _has_data(cbf)
    flow = _smooth(cbf, data, 3)
    usual = max((float(np.median(flow[side])) for side in _hemispheres(data) if side.any()), default=0.0)
    one_sided = data[::-1] & (_SIDE_RATIO * flow < flow[::-1])
    core = morphology.opened(data & one_sided & (flow < CORE_FRACTION * usual))
    if np.count_nonzero(core) * _VOXEL_ML > _MIN_CORE_ML:
        core &= _brain_density(ct, data)
    if np.count_nonzero(core) * _VOXEL_ML <= _MIN_CORE_ML or (delay := float(np.median(tmax[core]))) >= _USUAL_CORE_S:
        return []
    code = "core-without-delay" if delay < DELAYED_TMAX_S else "core-delay-short"
    source, advice = (Input.CTP, _SERIES_ADVICE) if computed else (Input.TMAX, _UNIT_ADVICE)
    least = DELAYED_TMAX_S if delay < DELAYED_TMAX_S else _USUAL_CORE_S
    detail = (
        f"the median delay where blood flow is very low is {delay:.1f} s; {least:.0f} s or more is expected; {advice}"
    )
    return [_flag(code, source, detail)]


def _dark_core(tmax: np.ndarray | None, cbf: np.ndarray, ct: PlacedVolume) -> list[Flag]:
    """Say that a part of the core has the density of CSF on the CT, on one side: an old infarct counts as core."""
    data = _has_data(cbf) if tmax is None else _has_data(cbf) & _has_data(tmax)
    flow = _smooth(cbf, data, 3)
    usual = max((float(np.median(flow[side])) for side in _hemispheres(data) if side.any()), default=0.0)
    core = data & (flow < CORE_FRACTION * usual)
    if tmax is not None:
        core &= tmax > NORMAL_TMAX_S
    if np.count_nonzero(core) * _VOXEL_ML <= _MIN_CORE_ML:
        return []
    dense = _brain_density(ct, data)
    dark = morphology.opened(core & ~dense & dense[::-1])
    if (dark_ml := np.count_nonzero(dark) * _VOXEL_ML) <= _MIN_CORE_ML:
        return []
    detail = (
        f"about {dark_ml:.0f} mL of the core have the density of fluid on the CT, as of an old infarct or a cyst; core "
        "and mismatch count them as core"
    )
    return [_flag("core-dark", Input.CBF, detail)]


def _volume_theorem(cbf: np.ndarray, cbv: np.ndarray, mtt: np.ndarray) -> tuple[float, float]:
    """Median of CBV / (CBF x MTT / 60) over blocks of tissue, and the interquartile range of its logarithm."""
    data = _has_data(cbf) & _has_data(cbv) & _has_data(mtt)
    inner = morphology.erode(data)
    if np.count_nonzero(inner) < 100:
        return 1.0, 0.0
    smooth = [_smooth(values, data, 3)[inner] for values in (cbf, cbv, mtt)]
    ratio = np.log(60 * smooth[1] / (smooth[0] * smooth[2]))
    low, median, high = np.percentile(ratio, [25, 50, 75])
    return float(np.exp(median)), float(high - low)


# Holes -------------------------------------------------------------------------------------------------------------


def _holes(maps: Mapping[Input, np.ndarray], ct: PlacedVolume) -> tuple[frozenset[Input], frozenset[Input]]:
    """Maps with a hole of brain density beside delayed tissue, and maps with another large one."""
    holes = {name: _enclosed(maps[name]) for name in (Input.TMAX, Input.CBF) if name in maps}
    holes = {name: hole for name, hole in holes.items() if np.count_nonzero(hole) * _VOXEL_ML > _MIN_HOLE_ML}
    if not holes:
        return frozenset(), frozenset()
    dense = _brain_density(ct, np.logical_or.reduce([_has_data(values) for values in maps.values()]))
    tissues = {name: morphology.opened(hole & dense) for name, hole in holes.items()}
    tissues = {name: tissue for name, tissue in tissues.items() if _largest_ml(tissue) > _MIN_HOLE_ML}
    delay = _nearest_delay(maps[Input.TMAX]) if tissues and Input.TMAX in maps else np.zeros(_SHAPE, np.float32)
    blanked, plain = set(), set()
    for name, tissue in tissues.items():
        if _largest_ml(tissue & (delay > NORMAL_TMAX_S)) > _MIN_HOLE_ML:
            blanked.add(name)
        elif (name is Input.CBF or Input.CBF not in maps) and _largest_ml(tissue) > _MIN_PLAIN_HOLE_ML:
            plain.add(name)  # Tmax beside CBF may be 0 in normal tissue
    return frozenset(blanked), frozenset(plain)


def _nearest_delay(tmax: np.ndarray) -> np.ndarray:
    """Tmax, s: the mean around the nearest voxel with data."""
    data = _has_data(tmax)
    if not data.any():
        return np.zeros(_SHAPE, np.float32)
    nearest = ndimage.distance_transform_edt(~data, return_distances=False, return_indices=True)
    delay: np.ndarray = _smooth(tmax, data, 3)[tuple(nearest)]
    return delay


def _enclosed(values: np.ndarray) -> np.ndarray:
    """Voxels of the brain without data that have data on both sides along an axis; thin gaps are left out."""
    data = _has_data(values)
    between = np.zeros(_SHAPE, bool)
    for axis in range(3):
        last = _SHAPE[axis] - 1
        at = np.arange(_SHAPE[axis]).reshape([-1 if other == axis else 1 for other in range(3)])
        first_data = data.argmax(axis=axis, keepdims=True)
        last_data = last - np.flip(data, axis).argmax(axis=axis, keepdims=True)
        between |= data.any(axis=axis, keepdims=True) & (at > first_data) & (at < last_data)
    hole: np.ndarray = morphology.opened(_brain() & between & ~data & ~np.isnan(values))
    return hole


def _brain_density(ct: PlacedVolume, tissue: np.ndarray) -> np.ndarray:
    """(X, Y, Z) bool: whether the CT shows brain, not CSF."""
    values = _smooth(np.nan_to_num(_hounsfield(ct)), _brain(), 2)
    usual = float(np.median(values[tissue])) if tissue.any() else 0.0
    dense: np.ndarray = values > usual - _CSF_BELOW_BRAIN_HU
    return dense


def _hounsfield(ct: PlacedVolume) -> np.ndarray:
    """(X, Y, Z) HU of the CT on the grid, not below 0, so that air and fat do not spread."""
    return _sample(ct.volume, ct.mni_from_world)


def _largest_ml(mask: np.ndarray) -> float:
    labels, count = ndimage.label(mask)
    return float(np.bincount(labels.ravel())[1:].max() * _VOXEL_ML) if count else 0.0


def _flag(code: str, field: Input, detail: str) -> Flag:
    return Flag(code=code, detail=f"{field}: {detail}")
