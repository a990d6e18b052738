"""Perfusion maps in numbers: core, delayed tissue, mismatch, collaterals.

Notable choices:
- Core: CBF < 30 % of the mean of the other hemisphere's normal tissue (Campbell et al., Stroke 2011;42:3435). Where
  there is a Tmax map, only where Tmax > 4 s: our choice, which keeps old scars and cerebrospinal fluid out of it.
- Delayed tissue: Tmax > 6 s. HIR: Tmax > 10 s over Tmax > 6 s (Olivot et al., Stroke 2014;45:1018). CBV index: mean CBV
  of Tmax > 6 s over that of tissue with Tmax <= 4 s (Arenillas et al., J Cereb Blood Flow Metab 2018;38:1839).
- Islands under 1 mL are noise, and dropped; within the Tmax > 6 s region nothing more is dropped, so HIR is not biased.
- Only ratios of CBF and CBV are used: the units of a vendor's maps do not matter. Tmax has to be in seconds.
- A ratio to nothing (no core, no delayed tissue) is None, not infinity.
- Volumes are counts of voxels times the affine's determinant, so sheared and oblique grids are right too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import ndimage

from app.imaging.io.nifti import Volume
from app.imaging.registration import brain_mask
from app.imaging.resample import resample
from app.sdk.clinical import Side
from app.sdk.types import Input, PerfusionSummary

__all__ = ["Perfusion", "measure", "summarise"]

CORE_FRACTION: Final = 0.30
NORMAL_TMAX_S: Final = 4.0
DELAYED_TMAX_S: Final = 6.0
ISLAND_ML: Final = 1.0
_VESSEL_TIMES_MEDIAN: Final = 3.0
_SIDED: Final = 1.5
"""How many times larger the delayed volume of one side must be for the lesion to be on that side."""


@dataclass(frozen=True)
class Perfusion:
    """The numbers, and what they rest on.

    ``reference_cbf`` is the CBF that 100 % stands for, in the CBF map's own unit; None without such a map.
    """

    summary: PerfusionSummary
    side: Side | None
    reference_cbf: float | None


def summarise(maps: Mapping[Input, Volume], mni_from_world: np.ndarray) -> Perfusion:
    """The numbers of a patient's maps; those on other grids are brought to that of Tmax (or else CBF) first.

    :param maps: ``tmax`` in seconds, ``cbf`` and ``cbv`` in any unit; at least ``tmax`` or ``cbf``
    :param mni_from_world: (4, 4) the maps' RAS+ mm -> MNI152 mm, which tells brain and sides
    """
    base = maps[Input.TMAX] if Input.TMAX in maps else maps[Input.CBF]
    values = {name: _on(base, maps[name]) for name in (Input.TMAX, Input.CBF, Input.CBV) if name in maps}
    return measure(
        tmax=values.get(Input.TMAX),
        cbf=values.get(Input.CBF),
        cbv=values.get(Input.CBV),
        brain=brain_mask.distance(base.affine, base.shape, mni_from_world) < 0,
        mni_x_mm=brain_mask.x_mm(base.affine, base.shape, mni_from_world),
        voxel_ml=float(abs(np.linalg.det(base.affine[:3, :3]))) / 1000,
    )


def _on(base: Volume, volume: Volume) -> np.ndarray:
    """The values of a map on the grid of ``base``, 0 beyond its own."""
    values = volume.values()
    if volume.shape == base.shape and np.allclose(volume.affine, base.affine, atol=1e-3):
        return values
    return resample(values, np.linalg.inv(volume.affine) @ base.affine, base.shape)


def measure(
    *,
    tmax: np.ndarray | None,
    cbf: np.ndarray | None,
    cbv: np.ndarray | None,
    brain: np.ndarray,
    mni_x_mm: np.ndarray,
    voxel_ml: float,
) -> Perfusion:
    """The numbers of maps that lie on one grid; each map may be missing.

    :param tmax: (X, Y, Z) seconds
    :param cbf: (X, Y, Z) in any unit; 0 where the software saw no tissue
    :param cbv: (X, Y, Z) in any unit
    :param brain: (X, Y, Z) bool
    :param mni_x_mm: (X, Y, Z) each voxel's MNI x, negative on the patient's left
    :param voxel_ml: volume of one voxel
    """
    tissue = brain & np.isfinite(sum(values for values in (tmax, cbf, cbv) if values is not None))
    if cbf is not None:
        tissue &= cbf > 0
    left, right = tissue & (mni_x_mm < 0), tissue & (mni_x_mm > 0)
    smallest = ISLAND_ML / voxel_ml

    delayed = _without_islands(tissue & (tmax > DELAYED_TMAX_S), smallest) if tmax is not None else None
    side = _lesion_side(delayed, cbf, left, right, smallest)
    normal = tissue & (tmax <= NORMAL_TMAX_S) if tmax is not None else tissue
    opposite = {Side.LEFT: right, Side.RIGHT: left}.get(side, tissue) if side else tissue

    numbers: dict[str, float | None] = {}
    if tmax is not None and delayed is not None:
        numbers["tmax4_ml"] = _ml(_without_islands(tissue & (tmax > NORMAL_TMAX_S), smallest) | delayed, voxel_ml)
        numbers["tmax6_ml"] = _ml(delayed, voxel_ml)
        numbers["tmax8_ml"] = _ml(delayed & (tmax > 8), voxel_ml)
        numbers["tmax10_ml"] = _ml(delayed & (tmax > 10), voxel_ml)
        numbers["hypoperfusion_intensity_ratio"] = _ratio(numbers["tmax10_ml"], numbers["tmax6_ml"])
        if cbv is not None and delayed.any() and (normal & ~delayed).any():
            numbers["cbv_index"] = _ratio(float(cbv[delayed].mean()), float(cbv[normal & ~delayed].mean()))
    reference = None
    if cbf is not None:
        reference = _reference(cbf, opposite & normal if (opposite & normal).any() else opposite)
        low = tissue & (cbf < CORE_FRACTION * reference) if reference is not None else np.zeros_like(tissue)
        if tmax is not None:
            low &= tmax > NORMAL_TMAX_S
        numbers["core_ml"] = _ml(_without_islands(low, smallest), voxel_ml)
    if (core := numbers.get("core_ml")) is not None and (penumbra := numbers.get("tmax6_ml")) is not None:
        numbers["mismatch_ml"] = max(penumbra - core, 0.0)
        numbers["mismatch_ratio"] = _ratio(penumbra, core)
    return Perfusion(PerfusionSummary(**numbers), side, reference)


def _ml(mask: np.ndarray, voxel_ml: float) -> float:
    return float(np.count_nonzero(mask) * voxel_ml)


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _without_islands(mask: np.ndarray, smallest: float) -> np.ndarray:
    """The mask without connected parts (26 neighbours) of fewer than ``smallest`` voxels."""
    kept = np.zeros_like(mask)
    for box in ndimage.find_objects(mask.view(np.uint8)):  # one, if any: a lesion fills a small part of the head
        labels, _ = ndimage.label(mask[box], structure=np.ones((3, 3, 3)))
        keep = np.bincount(labels.ravel()) >= smallest
        keep[0] = False
        kept[box] = keep[labels]
    return kept


def _reference(cbf: np.ndarray, normal: np.ndarray) -> float | None:
    """Mean CBF of normal tissue; values above three times the median are large vessels and do not count."""
    values = cbf[normal]
    if not values.size:
        return None
    return float(values[values <= _VESSEL_TIMES_MEDIAN * np.median(values)].mean())


def _lesion_side(
    delayed: np.ndarray | None, cbf: np.ndarray | None, left: np.ndarray, right: np.ndarray, smallest: float
) -> Side | None:
    """The hemisphere with clearly more delayed tissue or, without Tmax, with clearly more low flow; None if neither."""
    if delayed is not None:
        lesion = delayed
    elif cbf is not None and (whole := _reference(cbf, left | right)) is not None:
        lesion = _without_islands((left | right) & (cbf < CORE_FRACTION * whole), smallest)
    else:
        return None
    on_left, on_right = np.count_nonzero(lesion & left), np.count_nonzero(lesion & right)
    if max(on_left, on_right) < smallest or max(on_left, on_right) < _SIDED * min(on_left, on_right):
        return None
    return Side.LEFT if on_left > on_right else Side.RIGHT
