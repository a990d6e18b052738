"""Values of DICOM attributes as plain numbers and texts; a wrong or missing value is None or empty."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from datetime import date
from functools import cache

from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

__all__ = ["date_time_s", "digest", "first", "floats", "integer", "text", "time_s", "values"]

_TIME = re.compile(r"(\d{2})(\d{2})?(\d{2})?(\.\d{1,6})?$")
_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})$")
_DATE_TIME = re.compile(r"(\d{8})(\d{2}[0-9.]*)?([+-]\d{4})?$")
_DAY_S = 86_400
_LARGEST = 1e6


def values(dataset: Dataset, name: str) -> tuple[str, ...]:
    """All values of an attribute as texts without padding."""
    try:
        tag = _tag(name)
        if tag not in dataset:
            return ()
        value = dataset[tag].value
        if value is None or isinstance(value, bytes):
            return ()
        several = not isinstance(value, str) and hasattr(value, "__iter__") and not hasattr(value, "components")
        return tuple(str(each).strip(" \0") for each in (value if several else (value,)))
    except Exception:  # noqa: BLE001 - pydicom converts a value when it is read; each kind of damage has its own error
        return ()


@cache
def _tag(name: str) -> BaseTag:
    """Tag of a keyword. pydicom looks it up, and makes a new one, at each access by keyword."""
    return Tag(name)


def text(dataset: Dataset, name: str) -> str:
    """The first value of an attribute, at most 256 characters; empty if there is none."""
    found = values(dataset, name)
    return found[0][:256] if found else ""


def floats(dataset: Dataset, name: str, count: int) -> tuple[float, ...] | None:
    """The values of an attribute that must have ``count`` finite numbers; None if it does not."""
    found = values(dataset, name)
    if len(found) != count:
        return None
    try:
        numbers = tuple(float(each) for each in found)
    except ValueError:
        return None
    return numbers if all(math.isfinite(n) and abs(n) < _LARGEST for n in numbers) else None


def first(dataset: Dataset, name: str) -> float | None:
    """The first number of an attribute."""
    found = values(dataset, name)[:1]
    try:
        number = float(found[0]) if found else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def integer(dataset: Dataset, name: str) -> int | None:
    """The first number of an attribute as an integer."""
    number = first(dataset, name)
    return None if number is None or number != int(number) else int(number)


def time_s(value: str) -> float | None:
    """Seconds since midnight of a DICOM time (TM), such as ``143005.25``."""
    match = _TIME.match(value.replace(":", ""))
    if match is None:
        return None
    hour, minute, second = (int(part or 0) for part in match.groups()[:3])
    return hour * 3600 + minute * 60 + second + float(match[4] or 0)


def date_time_s(value: str) -> float | None:
    """Seconds of a DICOM date and time (DT), such as ``20260102143005.25``, since a fixed day."""
    match = _DATE_TIME.match(value)
    clock = time_s(match[2] or "00") if match else None
    return None if match is None or clock is None else _join(match[1], clock)


def _join(day: str, clock_s: float) -> float:
    match = _DATE.match(day)
    try:
        days = date(int(match[1]), int(match[2]), int(match[3])).toordinal() if match else 0
    except ValueError:
        days = 0
    return days * _DAY_S + clock_s


def date_and_time_s(dataset: Dataset, day: str, clock: str) -> float | None:
    """Seconds of a date and a time in two attributes, since a fixed day."""
    seconds = time_s(text(dataset, clock))
    return None if seconds is None else _join(text(dataset, day), seconds)


def digest(value: str) -> str:
    """Digest of an identifier, equal for values that differ in case, accents, punctuation and padding only."""
    plain = unicodedata.normalize("NFKD", value.split("=")[0]).casefold()
    kept = "".join(each for each in plain if each.isalnum())
    return hashlib.sha256(kept.encode()).hexdigest() if kept else ""
