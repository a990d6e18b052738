"""Rules for a clinical record as a whole: values that contradict each other, and values that look like another unit.

Design notes:
- ``contradictions`` cannot be true of any patient; the service refuses such a record.
- ``doubts`` are possible, so they become flags: a warning for numbers that do not fit together, else information.
- docs/clinical.md lists every rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from .clinical import ClinicalRecord, PerfusionScalars
from .errors import FieldError
from .types import Flag

TMAX_FIELDS: Final = ("tmax4_ml", "tmax6_ml", "tmax8_ml", "tmax10_ml")

USUAL: Final[dict[str, tuple[float, float, str]]] = {
    "systolic_bp": (80, 280, "mmHg, not kPa"),
    "diastolic_bp": (40, 160, "mmHg, not kPa"),
    "glucose": (54, 700, "mg/dL; send mmol/L as glucose_mmol_l"),
    "glucose_mmol_l": (3.0, 38.9, "mmol/L; send mg/dL as glucose"),
    "crp": (0.5, 600, "mg/L, not mg/dL"),
    "leukocytes": (1.5, 40, "10^9/L"),
    "inr": (0.7, 8, "a ratio, not per cent"),
    "platelets": (50, 1000, "10^9/L"),
    "creatinine": (0.3, 10, "mg/dL, not µmol/L"),
    "ldl": (30, 500, "mg/dL, not mmol/L"),
    "hba1c": (4, 15, "per cent; send mmol/mol as hba1c_mmol_mol"),
    "hba1c_mmol_mol": (20, 140, "mmol/mol; send per cent as hba1c"),
    "onset_to_imaging": (15, 2880, "minutes, not hours"),
    "onset_to_door": (8, 2880, "minutes, not hours"),
    "perfusion.cbv_index": (0.05, 2, "a ratio"),
    "imaging_signs.clot_length_mm": (1.5, 100, "mm, not cm"),
}
"""Usual range and unit of fields that are often sent in another unit; 0 is always usual."""


def contradictions(record: ClinicalRecord) -> list[FieldError]:
    """Return one error for each pair of values that cannot belong to one patient."""
    return list(_contradictions(record))


def doubts(record: ClinicalRecord) -> tuple[Flag, ...]:
    """Return a flag for each group of values that hardly fit together, and one for all unusual values."""
    warnings = [Flag(code="record-contradiction", detail=text) for text in _misfits(record)]
    unusual = [*_unusual_values(record), *_unusual_pairs(record)]
    return (*warnings, *([Flag(code="record-unusual", detail="; ".join(unusual))] if unusual else []))


def _contradictions(record: ClinicalRecord) -> Iterator[FieldError]:
    systolic, diastolic = record.systolic_bp, record.diastolic_bp
    if systolic is not None and diastolic is not None and systolic <= diastolic:
        yield FieldError("systolic_bp", "must be above diastolic_bp")
    perfusion = record.perfusion
    if perfusion is None:
        return
    given = [name for name in TMAX_FIELDS if getattr(perfusion, name) is not None]
    for lower, higher in pairwise(given):
        if getattr(perfusion, higher) > 1.02 * getattr(perfusion, lower) + 1:  # the numbers may be rounded
            yield FieldError(f"perfusion.{higher}", f"must not exceed {lower}, because it is a part of that volume")
    if _core_exceeds(perfusion) and ((perfusion.mismatch_ml or 0) > 5 or (perfusion.mismatch_ratio or 0) > 1.1):
        yield FieldError("perfusion.core_ml", "must not exceed tmax6_ml if there is a mismatch")


def _core_exceeds(perfusion: PerfusionScalars) -> bool:
    core, tmax6 = perfusion.core_ml, perfusion.tmax6_ml
    return core is not None and tmax6 is not None and core > 1.1 * tmax6 + 5


def _misfits(record: ClinicalRecord) -> Iterator[str]:
    perfusion = record.perfusion
    if perfusion is None:
        return
    yield from _mismatch_misfits(perfusion)
    yield from _intensity_misfits(perfusion)


def _mismatch_misfits(perfusion: PerfusionScalars) -> Iterator[str]:
    """Misfits of core, delayed volumes, mismatch and its ratio."""
    core, tmax6, ratio = perfusion.core_ml, perfusion.tmax6_ml, perfusion.mismatch_ratio
    if _core_exceeds(perfusion):
        yield "perfusion.core_ml exceeds perfusion.tmax6_ml; check that they are not exchanged"
    if core is None or tmax6 is None:
        yield from _volume_misfits(perfusion)
        yield from _ratio_misfits(perfusion)
        return
    if perfusion.mismatch_ml is not None and _differs(perfusion.mismatch_ml, max(tmax6 - core, 0.0), 5, 0.1):
        yield "perfusion.mismatch_ml is not tmax6_ml minus core_ml"
    if ratio is not None and core >= 5 and _differs(ratio, tmax6 / core, 0.3):
        yield "perfusion.mismatch_ratio is not tmax6_ml over core_ml"


def _volume_misfits(perfusion: PerfusionScalars) -> Iterator[str]:
    """Core and mismatch that are larger than the delayed volume of which they are parts."""
    outer = next((name for name in ("tmax6_ml", "tmax4_ml") if getattr(perfusion, name) is not None), None)
    if outer is None:
        return
    for inner in ("core_ml", "mismatch_ml"):
        part = getattr(perfusion, inner)
        if part is not None and part > 1.1 * getattr(perfusion, outer) + 5:
            yield f"perfusion.{inner} exceeds perfusion.{outer}, and it is a part of that volume"


def _ratio_misfits(perfusion: PerfusionScalars) -> Iterator[str]:
    """A ratio that does not fit the mismatch and the core, or the mismatch and the delayed volume."""
    mismatch, ratio = perfusion.mismatch_ml, perfusion.mismatch_ratio
    if mismatch is None or ratio is None or ratio < 1:  # some software writes 0 for a ratio without a core
        return
    core, tmax6 = perfusion.core_ml, perfusion.tmax6_ml
    if core is not None and core >= 5 and _differs(core * ratio, core + mismatch, 5):
        yield "perfusion.mismatch_ratio does not fit core_ml and mismatch_ml"
    if tmax6 is not None and _differs(tmax6 / ratio, max(tmax6 - mismatch, 0.0), 5):
        yield "perfusion.mismatch_ratio does not fit tmax6_ml and mismatch_ml"


def _intensity_misfits(perfusion: PerfusionScalars) -> Iterator[str]:
    """Misfits of the hypoperfusion intensity ratio; a missing volume is limited by its neighbours."""
    intensity, tmax10 = perfusion.hypoperfusion_intensity_ratio, perfusion.tmax10_ml
    tmax4, tmax6, tmax8 = perfusion.tmax4_ml, perfusion.tmax6_ml, perfusion.tmax8_ml
    if intensity is None:
        return
    if tmax10 is not None and tmax6 is not None:
        if tmax6 >= 10 and _differs(intensity, tmax10 / tmax6, 0.1, 0):
            yield "perfusion.hypoperfusion_intensity_ratio is not tmax10_ml over tmax6_ml"
        return
    most = (tmax8, tmax6) if tmax10 is None else (tmax10, tmax8)  # tmax8_ml lies between the two volumes of the ratio
    if most[0] is not None and most[1] is not None and most[1] >= 10 and intensity > most[0] / most[1] + 0.1:
        yield "perfusion.hypoperfusion_intensity_ratio is above what tmax8_ml leaves"
    if tmax10 is not None and tmax4 is not None and tmax4 >= 10 and intensity < tmax10 / tmax4 - 0.1:
        yield "perfusion.hypoperfusion_intensity_ratio is below tmax10_ml over tmax4_ml"


def _differs(stated: float, computed: float, least: float, share: float = 0.2) -> bool:
    return abs(stated - computed) > least + share * abs(computed)


def _unusual_values(record: ClinicalRecord) -> Iterator[str]:
    for name, (low, high, unit) in USUAL.items():
        value = record.value(name) if "." in name else getattr(record, name)  # in the unit that was sent
        if isinstance(value, float | int) and value != 0 and not low <= value <= high:
            yield f"{name} is unusual; the unit is {unit}"


def _unusual_pairs(record: ClinicalRecord) -> Iterator[str]:
    imaging, arrival = record.onset_to_imaging, record.onset_to_door
    if imaging is not None and arrival is not None and imaging < arrival:
        yield "onset_to_imaging is shorter than onset_to_door, as after imaging at another hospital"
    hba1c = record.value("hba1c")
    if record.diabetes is False and isinstance(hba1c, float | int) and round(hba1c, 2) >= 6.5:
        yield "hba1c is 6.5 % or more, but diabetes is false"
