"""Headers of the baseline table of ISLES'24 and their values, as public readers of the release show them.

Design notes:
- A value with two readings is left empty, and a note says so. A bound such as ``90+`` is read as its number.
- Glucose is in mg/dL or mmol/L. Between 30 and 40 both are possible. CRP has no known unit and is dropped.
- The release has missing values as the text ``nan``, and times as ``0 days 01:35:00`` or as times of a spreadsheet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, time, timedelta
from typing import Any

import pandas as pd
from openpyxl.utils.datetime import to_excel

FLAGS = {
    "atrial fibrillation": "atrial_fibrillation",
    "hypertension": "hypertension",
    "diabetes": "diabetes",
    "hyperlipidemia": "dyslipidemia",
    "anticoagulation": "anticoagulant",
    "lipid lowering drugs": "statin",
    "statins": "statin",
    "pais": "antiplatelet",
    "platelet aggregation inhibitors": "antiplatelet",
    "antiplatelet agents": "antiplatelet",
    "wake-up": "wake_up",
}
NUMBERS = {
    "age": "age",
    "leucocytes": "leukocytes",
    "leukocytes": "leukocytes",
    "inr": "inr",
    "nihss at admission": "nihss",
    "mrs premorbid": "prestroke_mrs",
}
TIMES = {"onset to door": "onset_to_door", "door to imaging": "door_to_imaging"}
OTHERS = {"center": "site", "sex": "sex", "glucose": "glucose"}
KNOWN: Mapping[str, str] = FLAGS | NUMBERS | TIMES | OTHERS
"""Field of each known header; ``door_to_imaging`` is added to ``onset_to_door``."""
WITHOUT_FIELD = ("in-house", "referral", "crp", "alert to door", "mrs at admission")
MISSING = ("nan", "nat", "none", "null", "na", "n/a", "-", "unknown")
SEXES = {"m": "male", "male": "male", "f": "female", "female": "female", "w": "female"}
TRUE, FALSE = ("1", "yes", "true", "y"), ("0", "no", "false", "n")

BOUND = re.compile(r"(?:[<>≤≥]=?\s*(?P<after>\d+(?:[.,]\d+)?))|(?:(?P<before>\d+(?:[.,]\d+)?)\s*\+)")
DURATION = re.compile(
    r"(?:(?P<days>[+-]?\d+) days?,? *\+?)?(?P<hours>\d+):(?P<minutes>[0-5]\d)(?::(?P<seconds>[0-5]\d)(?:\.\d+)?)?"
)
LONGEST = 2880  # minutes; twice the longest window of the thrombectomy trials
MMOL, MG = 30, 40
"""Glucose: mmol/L below ``MMOL``, mg/dL from ``MG`` upwards."""

Facts = tuple[dict[str, str], str]
"""Table cells of one value, and a note, or ""."""


def text_of(cell: Any) -> str:
    """Text of a cell; "" for a missing value, also as the text ``nan``."""
    text = "" if cell is None or cell is pd.NaT or cell != cell else str(cell).strip()
    return "" if text.casefold() in MISSING else text


def field_of(header: str) -> str:
    """Field of a known header; "" for any other."""
    return KNOWN.get(header, "")


def read(field: str, cell: Any) -> Facts:
    """Table cells of one field from a cell that is not missing; the cell of an unknown field stays as it is.

    Raises:
        ValueError: The value cannot be read.
        KeyError: The value is no known word.
    """
    text = text_of(cell)
    if field in FLAGS.values():
        return _flag(field, text)
    if field in NUMBERS.values():
        number, note = _number(text)
        return {field: f"{number:g}"}, note
    if field == "sex":
        return {"sex": SEXES[text.casefold()]}, ""
    if field == "glucose":
        return _glucose(text)
    if field in TIMES.values():
        return _time(field, cell)
    return {field: text.removesuffix(".0") if field == "site" else text}, ""


def _flag(field: str, text: str) -> Facts:
    word = text.casefold().removesuffix(".0")
    if word in (*TRUE, *FALSE):
        return {field: "1" if word in TRUE else "0"}, ""
    if word.isdecimal():
        return {}, "neither 0 nor 1, so it was left empty"
    raise ValueError


def _number(text: str) -> tuple[float, str]:
    """Number and note; a bound is read as its number."""
    if match := BOUND.fullmatch(text):
        return float((match["after"] or match["before"]).replace(",", ".")), "a bound, which was read as its number"
    number = float(text.replace(",", "."))
    if not abs(number) < float("inf"):
        raise ValueError
    return number, ""


def _glucose(text: str) -> Facts:
    number, note = _number(text)
    if MMOL <= number < MG:
        return {}, "mg/dL or mmol/L is not certain between 30 and 40, so it was left empty"
    return {"glucose" if number >= MG else "glucose_mmol_l": f"{number:g}"}, note


def _time(field: str, cell: Any) -> Facts:
    if isinstance(cell, bool | int | float) or re.fullmatch(r"-?\d+(?:[.,]\d+)?", text_of(cell)):
        return {}, "a time without a unit, so it was left empty"
    minutes = _minutes(cell)
    if not 0 <= minutes <= LONGEST:
        return {}, "below 0 or longer than 48 h, so it was left empty"
    return {field: f"{minutes:g}"}, ""


def _minutes(cell: Any) -> float:
    """Minutes of a duration: ``H:MM``, ``H:MM:SS``, ``D days HH:MM:SS``, or a time value of a spreadsheet."""
    if isinstance(cell, datetime):  # a spreadsheet shows more than 24 hours as a day of the year 1900
        return float(to_excel(cell)) * 1440
    if isinstance(cell, time):
        return cell.hour * 60 + cell.minute + cell.second / 60
    if isinstance(cell, timedelta):
        return cell.total_seconds() / 60
    match = DURATION.fullmatch(text_of(cell))
    if not match:
        raise ValueError
    parts = {name: int(part or 0) for name, part in match.groupdict().items()}
    return parts["days"] * 1440 + parts["hours"] * 60 + parts["minutes"] + parts["seconds"] / 60
