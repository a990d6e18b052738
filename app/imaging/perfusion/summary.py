"""Volumes and ratios of perfusion maps: core, delayed tissue, mismatch, collaterals.

Design notes:
- Core: CBF < 30 % of that of normal tissue in the other hemisphere (Campbell et al., Stroke 2011;42:3435), and
  Tmax > 4 s if there is a Tmax map: our choice, which excludes old infarcts and CSF.
- CBF of normal tissue is a median, away from voxels without data: interpolation mixes the surface of the brain with 0.
- Delayed tissue: Tmax > 6 s. HIR: Tmax > 10 s over Tmax > 6 s (Olivot et al., Stroke 2014;45:1018). CBV index: mean CBV
  of Tmax > 6 s over that of tissue with Tmax <= 4 s (Arenillas et al., J Cereb Blood Flow Metab 2018;38:1839).
- Islands under 1 mL are dropped as noise, but not within the Tmax > 6 s region, so that HIR is not biased.
- Only ratios of CBF and CBV are used, so their units do not matter; Tmax must be in seconds. A ratio with a zero
  denominator is None.
- Volumes are voxel counts times the determinant of the affine, which also holds for sheared and oblique grids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import ndimage

from app.imaging import morphology
from app.imaging.io.nifti import Volume
from app.imaging.registration import brain_mask
from app.imaging.resample import resample
from app.sdk.clinical import Side
from app.sdk.types import Input, PerfusionSummary

__all__ = ["PerfusionMeasurement", "measure", "summarise"]

CORE_FRACTION: Final = 0.30
NORMAL_TMAX_S: Final = 4.0
DELAYED_TMAX_S: Final = 6.0
ISLAND_ML: Final = 1.0
_SURFACE_MM: Final = 4.0  # this far from a voxel without data, the usual interpolation has mixed no 0 into a value
_REFERENCE_ML: Final = 10.0  # normal tissue of a smaller volume says little about the whole
_SIDE_RATIO: Final = 1.5  # the lesion is on one side if its delayed volume is this many times that of the other side


@dataclass(frozen=True)
class PerfusionMeasurement:
    """Volumes and ratios of the maps.

    Attributes:
        side: hemisphere of the lesion; None if unclear.
        reference_cbf: CBF of normal tissue (100 %), in the unit of the CBF map; None without such a map.
        core, delayed: (X, Y, Z) bool, the voxels of ``core_ml`` and ``tmax6_ml``; None if they are not measured.
    """

    summary: PerfusionSummary
    side: Side | None
    reference_cbf: float | None
    core: np.ndarray | None = None
    delayed: np.ndarray | None = None


def summarise(maps: Mapping[Input, Volume], mni_from_world: np.ndarray) -> PerfusionMeasurement:
    """Measure a patient's maps, resampled to the grid of Tmax (or else of CBF).

    Args:
        maps: ``tmax`` in seconds, ``cbf`` and ``cbv`` in any unit; at least ``tmax`` or ``cbf``.
        mni_from_world: (4, 4), the maps' RAS+ mm -> MNI152 mm; it locates the brain and its sides.
    """
    base = maps[Input.TMAX] if Input.TMAX in maps else maps[Input.CBF]
    values = {name: _on_grid(base, maps[name]) for name in (Input.TMAX, Input.CBF, Input.CBV) if name in maps}
    return measure(
        tmax=values.get(Input.TMAX),
        cbf=values.get(Input.CBF),
        cbv=values.get(Input.CBV),
        brain=brain_mask.distance(base.affine, base.shape, mni_from_world) < 0,
        mni_x_mm=brain_mask.x_mm(base.affine, base.shape, mni_from_world),
        voxel_ml=float(abs(np.linalg.det(base.affine[:3, :3]))) / 1000,
        edges_mm=base.spacing_mm,
    )


def _on_grid(base: Volume, volume: Volume) -> np.ndarray:
    """Values of a map on the grid of ``base``, 0 outside the map."""
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
    edges_mm: Sequence[float],
) -> PerfusionMeasurement:
    """Measure maps on one grid; each map may be missing.

    Args:
        tmax: (X, Y, Z) seconds.
        cbf: (X, Y, Z) in any unit; 0 where the software found no tissue.
        cbv: (X, Y, Z) in any unit.
        brain: (X, Y, Z) bool.
        mni_x_mm: (X, Y, Z), MNI x of each voxel, negative on the patient's left.
        voxel_ml: volume of one voxel, mL.
        edges_mm: (3,), voxel edges.
    """
    tissue = brain & np.isfinite(sum(values for values in (tmax, cbf, cbv) if values is not None))
    if cbf is not None:
        tissue &= cbf > 0
    left, right = tissue & (mni_x_mm < 0), tissue & (mni_x_mm > 0)
    smallest = ISLAND_ML / voxel_ml

    delayed = _without_islands(tissue & (tmax > DELAYED_TMAX_S), smallest) if tmax is not None else None
    flow = _ReferenceFlow(cbf, edges_mm, voxel_ml) if cbf is not None else None
    side = _lesion_side(delayed, flow, left, right, smallest)
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
    reference, core = None, None
    if cbf is not None and flow is not None:
        reference = flow.of(opposite & normal, normal, opposite, tissue)
        low = tissue & (cbf < CORE_FRACTION * reference) if reference is not None else np.zeros_like(tissue)
        if tmax is not None:
            low &= tmax > NORMAL_TMAX_S
        core = _without_islands(low, smallest)
        numbers["core_ml"] = _ml(core, voxel_ml)
    if (core_ml := numbers.get("core_ml")) is not None and (penumbra := numbers.get("tmax6_ml")) is not None:
        numbers["mismatch_ml"] = max(penumbra - core_ml, 0.0)
        numbers["mismatch_ratio"] = _ratio(penumbra, core_ml)
    return PerfusionMeasurement(PerfusionSummary(**numbers), side, reference, core, delayed)


def _ml(mask: np.ndarray, voxel_ml: float) -> float:
    return float(np.count_nonzero(mask) * voxel_ml)


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _without_islands(mask: np.ndarray, smallest: float) -> np.ndarray:
    """The mask without connected parts (26 neighbours) of fewer than ``smallest`` voxels."""
    kept = np.zeros_like(mask)
    for box in ndimage.find_objects(mask.view(np.uint8)):  # at most one box, which is much smaller than the head
        labels, _ = ndimage.label(mask[box], structure=np.ones((3, 3, 3)))
        keep = np.bincount(labels.ravel()) >= smallest
        keep[0] = False
        kept[box] = keep[labels]
    return kept


class _ReferenceFlow:
    """CBF of normal tissue in one map."""

    def __init__(self, cbf: np.ndarray, edges_mm: Sequence[float], voxel_ml: float) -> None:
        self.cbf = cbf
        self._inner = _away_from_no_data(cbf, edges_mm)
        self._least = _REFERENCE_ML / voxel_ml

    def of(self, *regions: np.ndarray) -> float | None:
        """Median CBF of the first region that is large enough, else of the last one; None if that is empty.

        The part of a region away from voxels without data is preferred if it is large enough.
        """
        for region in regions:
            for part in (region & self._inner, region):
                if np.count_nonzero(part) >= self._least:
                    return float(np.median(self.cbf[part]))
        return float(np.median(self.cbf[regions[-1]])) if regions[-1].any() else None


def _away_from_no_data(cbf: np.ndarray, edges_mm: Sequence[float]) -> np.ndarray:
    """Voxels farther than ``_SURFACE_MM`` from one without data; beyond the array there are none."""
    data: np.ndarray = np.isfinite(cbf) & (cbf > 0)
    away = data
    steps = [int(_SURFACE_MM / edge + 0.01) for edge in edges_mm]
    for count in set(steps) - {0}:  # axes with equal steps are eroded together, so that the shape is a rhomb
        away = np.logical_and(away, morphology.erode(data, [axis for axis in range(3) if steps[axis] == count], count))
    return away


def _lesion_side(
    delayed: np.ndarray | None, flow: _ReferenceFlow | None, left: np.ndarray, right: np.ndarray, smallest: float
) -> Side | None:
    """Hemisphere with clearly more delayed tissue (without Tmax: with clearly more low flow), or None."""
    if delayed is not None:
        lesion = delayed
    elif flow is not None and (whole := flow.of(left | right)) is not None:
        lesion = _without_islands((left | right) & (flow.cbf < CORE_FRACTION * whole), smallest)
    else:
        return None
    on_left, on_right = np.count_nonzero(lesion & left), np.count_nonzero(lesion & right)
    if max(on_left, on_right) < smallest or max(on_left, on_right) < _SIDE_RATIO * min(on_left, on_right):
        return None
    return Side.LEFT if on_left > on_right else Side.RIGHT
