"""Check that the values of a head CT are Hounsfield units: intercept, slope, sign, and display windows.

Design notes:
- Judged by tissue, not by low values: brain lies in a skull near 35 HU, and air around the head near -1000 HU.
- Padding (a constant below air) is ignored.
- If no brain is where it belongs, other scales are tried: each maps two peaks of the histogram to air and brain. A
  scale that shows a brain in a skull names the fault.
- All checks use block means over about 3 mm.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from app.imaging import enclosure
from app.imaging.enclosure import Enclosure

__all__ = ["Scale", "cut_level", "fault"]

MIN_BRAIN_CM2: Final = 40.0  # soft tissue within bone in one axial slice; only a head reaches it (spinal canal: 3)
_MIN_CORE_CM2: Final = 30.0
_PADDING_HU: Final = -1100.0  # no tissue and no air is lower, with noise averaged
_LOW_HU: Final = -300.0
_BRAIN_HU: Final = 35.0
_SPAN_HU: Final = 1035.0  # from air to brain
_SLOPE: Final = (0.8, 1.25)  # air at -1000 +- 60 and brain at 20 to 50 HU give 0.93 to 1.07
_AIR_SHARE: Final = 0.3  # of the low values, within 40 HU of their peak; a lung or partial volume is broader
_PEAK_SHARE: Final = 0.02
_TISSUE_SHARE: Final = 0.05  # bone has no peak this high
_MAX_PEAKS: Final = 6
_OFFSET_HU: Final = 300.0
_RANGE_HU: Final = (-1300.0, 4000.0)
_EDGE_OF_PADDING: Final = 0.1  # blocks that are half padding
_METAL: Final = 0.01
_CLEARLY: Final = 3.0
_SOFT_AND_FAT_HU: Final = (-150.0, 100.0)
_BONE_TO_SOFT: Final = 0.6  # a head has 0.2
_BIN_HU: Final = 20.0
_ENOUGH: Final = 100_000  # values of air, from which their peak is found
_CUT_ML: Final = 10.0  # blocks with exactly the highest value; without a cut it is one block


class Scale(NamedTuple):
    """Values as they are: ``slope`` times HU, plus ``inter``."""

    slope: float
    inter: float

    @property
    def reason(self) -> str:
        """What was probably done wrong, and what to do."""
        if self.slope < 0:
            return "the sign is inverted (air is brighter than bone): export the CT without inverting its grey values"
        if not _SLOPE[0] < self.slope < _SLOPE[1]:
            return (
                "a wrong slope was applied (air and brain are not 1000 HU apart): export the CT with the rescale slope "
                "of the scanner, applied once"
            )
        if self.inter > 0:
            return (
                "the rescale intercept is missing (air near 0, brain above 1000): export the CT with its rescale slope "
                "and intercept applied"
            )
        return "the rescale intercept was applied twice (brain near -1000): export the CT with it applied once"


def cut_level(values: np.ndarray, edges: np.ndarray) -> float | None:
    """Value, HU, at which all higher values were cut off; None if they were not."""
    highest = float(values.max())
    cut_ml = np.count_nonzero(values > highest - 0.5) * float(np.prod(edges)) / 1000
    return highest if cut_ml >= _CUT_ML else None


def fault(values: np.ndarray, space: Enclosure) -> Scale | None:
    """The wrong scale of a volume that certainly is not in Hounsfield units; None if nothing speaks against it.

    Args:
        values: (X, Y, Z) block means, as sent.
        space: what bone surrounds if the values are Hounsfield units.
    """
    shows_brain = space.brain_cm2 >= MIN_BRAIN_CM2
    known = _without_padding(values)
    if shows_brain.any():
        air = _air_level(np.compress(shows_brain, values, axis=space.axis), known)
        if air is not None:
            slope = (space.brain_hu - air) / _SPAN_HU
            return None if _SLOPE[0] < slope < _SLOPE[1] else Scale(slope, 0.0)
    return _better_scale(values, known, space)


def _without_padding(values: np.ndarray) -> np.ndarray:
    lowest = values.min()
    return values[values > lowest + 1] if lowest < _PADDING_HU else values.ravel()


def _air_level(values: np.ndarray, known: np.ndarray) -> float | None:
    """Peak of the low values around the head; None if there is no air, or only a constant in its place."""
    low = values[values < _LOW_HU]
    low = low[low > values.min() + 1] if low.size and values.min() < _PADDING_HU else low
    if low.size < _PEAK_SHARE * known.size:
        return None
    low = low[:: max(1, low.size // _ENOUGH)]
    level, share = _peaks(low)[0] if (low.max() - low.min()) > _BIN_HU else (float(low[0]), 1.0)
    near = low[np.abs(low - level) < 2 * _BIN_HU]
    is_constant = np.ptp(near) < 1 and not -1100 < level < -900
    return None if share < _AIR_SHARE or is_constant else float(np.median(near))


def _better_scale(values: np.ndarray, known: np.ndarray, space: Enclosure) -> Scale | None:
    """The scale that shows clearly more brain in a skull than the values as they are."""
    factor = _CLEARLY if _bone_is_plausible(known) else 1.0
    best, most = None, max(factor * float(space.core_cm2.sum()), _MIN_CORE_CM2)
    for scale in _scales(known):
        found = enclosure.find((values - np.float32(scale.inter)) / np.float32(scale.slope), space.edges, space.axis)
        areas = found.core_cm2
        if areas.max() >= _MIN_CORE_CM2 and areas.sum() > most:
            best, most = scale, float(areas.sum())
    return best


def _scales(known: np.ndarray) -> Iterator[Scale]:
    """Scales that put two peaks at air and brain, or one high peak at brain, unless close to the values as they are."""
    peaks = [(level, share) for level, share in _peaks(known)[:_MAX_PEAKS] if share >= _PEAK_SHARE]
    levels = [level for level, _ in peaks]
    tissues = np.array([level for level, share in peaks if share >= _TISSUE_SHARE])
    slopes = [(brain, (brain - air) / _SPAN_HU) for air, brain in itertools.permutations(levels, 2)]
    for brain, slope in [*slopes, *((level, 1.0) for level in levels if level > _OFFSET_HU)]:
        scale = Scale(slope, brain - _BRAIN_HU * slope)
        is_other = not _SLOPE[0] < slope < _SLOPE[1] or abs(scale.inter) > _OFFSET_HU
        if is_other and _could_be_head((known - scale.inter) / slope, (tissues - scale.inter) / slope):
            yield scale


def _could_be_head(hu: np.ndarray, levels: np.ndarray) -> bool:
    """Whether a histogram with these peaks can be that of a head: no tissue but bone is denser than brain."""
    in_range = np.mean(hu < _RANGE_HU[0]) < _EDGE_OF_PADDING and np.mean(hu > _RANGE_HU[1]) < _METAL
    return bool(in_range and _bone_is_plausible(hu) and not (levels > _BRAIN_HU + _OFFSET_HU).any())


def _bone_is_plausible(hu: np.ndarray) -> bool:
    soft = np.count_nonzero(enclosure.between(hu, _SOFT_AND_FAT_HU))
    return bool(np.count_nonzero(hu > enclosure.SKULL_HU) < _BONE_TO_SOFT * soft)


def _peaks(values: np.ndarray) -> list[tuple[float, float]]:
    """Levels of the peaks of a histogram and the share of the values within 40 HU of each, the highest peak first."""
    low, high = float(values.min()), float(values.max())
    width = max(_BIN_HU, (high - low) / 2000)
    counts, bounds = np.histogram(values, bins=max(3, int(np.ceil((high - low) / width))), range=(low, high))
    share = np.convolve(counts, np.ones(3), "same") / values.size
    around = np.lib.stride_tricks.sliding_window_view(np.pad(share, 5, constant_values=-1), 11).max(axis=1)
    tops = np.flatnonzero((share >= around) & (share > 0))
    tops = tops[np.diff(tops, prepend=-6) > 5]  # of equal neighbours, the first
    found = [(float((bounds[top] + bounds[top + 1]) / 2), float(share[top])) for top in tops]
    return sorted(found, key=lambda peak: -peak[1])
