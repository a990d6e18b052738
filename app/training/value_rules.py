"""What real columns of numbers look like: codes of missing values, times in hours, and values in another unit.

Design notes:
- Bounds lie where no real column does: a median creatinine of 0.35 mg/dL, or a median onset of a few minutes.
- A code is suspicious by its place in its own column: it stands apart beyond all other values by three interquartile
  ranges, or it is four times as frequent as any neighbour within a twentieth of it and twice as frequent as a usual
  value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.registry.own_variable import OWN
from app.sdk.clinical import ClinicalRecord

MISSING_CODES = (
    *(-999.0, -99.0, -9.0, -8.0, -1.0),
    *(8.0, 9.0, 9.9, 9.99, 77.0, 88.0, 99.0, 99.9, 99.99),
    *(777.0, 888.0, 999.0, 999.9, 7777.0, 8888.0, 9999.0),
)
READINGS = frozenset({("final_stenosis_percent", 99.0), *(("creatinine", code) for code in (8.0, 9.0, 9.9, 9.99))})
"""Codes that are a reading of their column: a near occlusion, or dialysis."""
MINUTES = ("onset_to_imaging", "onset_to_door")
NEIGHBOURS = 0.05
STEPS = (60, 30, 10, 5)
LEAST_FREQUENT = 50
LONGEST_HOURS = 48
"""Hours of the longest window of a stroke trial."""


@dataclass(frozen=True)
class UnitRule:
    """Bounds of a column in its unit.

    Attributes:
        least_median: Smallest median of the positive values of a site.
        largest: The median counts only if every value is below this bound.
        least: Smallest value of one patient.
        advice: What to do.
    """

    unit: str
    least_median: float
    largest: float
    least: float
    advice: str


UNITS = {
    "creatinine": UnitRule("mg/dL", 0.35, 2.0, 0.15, "for mmol/L, multiply by 11.3"),
    "platelets": UnitRule("10^9/L", 30, 100, 5, "for 10^11/L or 10^12/L, multiply by 100 or 1000"),
    "leukocytes": UnitRule("10^9/L", 2, 8, 0.3, "write 10^9/L, which is 1000 per uL"),
    "crp": UnitRule("mg/L", 1, 40, 0, "for mg/dL, multiply by 10"),
    "ldl": UnitRule("mg/dL", 20, 40, 8, "for mmol/L, multiply by 38.7"),
    "imaging_signs.clot_length_mm": UnitRule("mm", 4, 12, 0, "for cm, multiply by 10"),
    "perfusion.tmax6_ml": UnitRule("mL", 1, 1, 0, "for litres, multiply by 1000"),
}

RANGE_ADVICE = {
    ("glucose", "greater_than_equal"): "for mmol/L, name the column glucose_mmol_l",
    ("glucose_mmol_l", "less_than_equal"): "for mg/dL, name the column glucose",
    ("creatinine", "less_than_equal"): "for umol/L, divide by 88.4",
    ("creatinine", "greater_than_equal"): "for mmol/L, multiply by 11.3",
    ("platelets", "less_than_equal"): "for values per uL, divide by 1000",
    ("leukocytes", "less_than_equal"): "for values per uL, divide by 1000",
    ("hba1c", "less_than_equal"): "for mmol/mol, name the column hba1c_mmol_mol",
    ("hba1c_mmol_mol", "greater_than_equal"): "for per cent, name the column hba1c",
    ("hba1c", "greater_than_equal"): "for a fraction, multiply by 100",
    ("inr", "less_than_equal"): "a prothrombin time in percent or seconds is no INR",
    ("systolic_bp", "greater_than_equal"): "for kPa, multiply by 7.5",
    ("diastolic_bp", "greater_than_equal"): "for kPa, multiply by 7.5",
    ("onset_to_imaging", "less_than_equal"): "for seconds, divide by 60",
    ("onset_to_door", "less_than_equal"): "for seconds, divide by 60",
    ("perfusion.hypoperfusion_intensity_ratio", "less_than_equal"): "for percent, divide by 100",
}
"""What a value out of range can be, by column and type of the error."""


def number(record: ClinicalRecord, column: str) -> float | None:
    """Number of a column as the table has it; None for a flag, a category, a missing value or no clinical column."""
    section, _, name = column.rpartition(".")
    if column.startswith(OWN):
        value = record.value(column)
    else:
        value = getattr(getattr(record, section, None) if section else record, name, None)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


OUT_OF_RANGE = "greater_than_equal"
"""Type of error of a value that an own variable refuses, for ``range_advice``."""


def range_advice(column: str, error: str, cell: str) -> str:
    """What to do about a value out of range, for a message; ``error`` is the type of pydantic's error."""
    parts = [RANGE_ADVICE.get((column, error), "")]
    if error in ("less_than_equal", "greater_than_equal") and cell.strip("-9") in ("", ".") and cell:
        parts.append("if it means missing, declare it in columns.toml")
    if cell == "-1":
        parts.append("if it means missing, declare it in columns.toml")
    return "".join(f"; {part}" for part in parts if part)


def stands_apart(code: float, count: int, others: NDArray[np.float64]) -> bool:
    """Whether ``count`` cells with ``code`` are far beyond every other value (n,) of the column.

    One cell of two digits can be right: a CRP of 99 after an infection.
    """
    if code < 0:
        return bool(others.min() >= 0)
    low, high = np.percentile(others, [25, 75])
    beyond = code > others.max() * 1.5 and code - others.max() > 3 * (high - low)
    return bool(beyond and (count > 1 or not LEAST_FREQUENT < code < 100))


def too_frequent(code: float, count: int, others: NDArray[np.float64]) -> bool:
    """Whether ``count`` cells with ``code`` are too many, compared with the neighbours in the column (n,).

    A code of one digit is never too frequent, because it is a usual value of a score. If nearly all other values are
    multiples of a step, the neighbours are the other values between the steps.
    """
    typical = float(np.median(np.unique(others, return_counts=True)[1]))
    if code < LEAST_FREQUENT or count < 3:
        return False
    for step in STEPS:
        if code % step and np.mean(others % step == 0) >= 0.9:
            return count > 4 * _largest_count(others[others % step != 0])
    return count > 2 * typical and count > 4 * _largest_count(others[np.abs(others - code) <= NEIGHBOURS * code])


def _largest_count(values: NDArray[np.float64]) -> int:
    """Count of the most frequent value (n,); 0 for no value."""
    return int(np.unique(values, return_counts=True)[1].max()) if len(values) else 0


def look_like_hours(minutes: NDArray[np.float64]) -> bool:
    """Whether the positive times (n,) of a site are hours, or days, and not minutes.

    Hours of a stroke are below 48, and many are below 10. A patient needs more than some minutes to reach a hospital.
    """
    positive = minutes[minutes > 0]
    if len(positive) < 5 or positive.max() > LONGEST_HOURS:
        return False
    return bool(positive.max() <= LONGEST_HOURS / 2 or np.mean(positive < 10) >= 0.1)
