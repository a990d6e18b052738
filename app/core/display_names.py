"""Display names and values of clinical variables, images, regions and measures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line imports this module and must start fast
    from app.sdk.types import Flag, Interval

NO_MAP_NUMBERS = "The perfusion maps give no usable numbers; the warnings say why."
"""In place of the volumes of the maps, if none is given."""
NOT_RECORDED = "not recorded"
"""Name of the patients without a level, of a subgroup or of the sites."""
_ACRONYMS = re.compile(r"\b(nihss|mrs|bp|crp|inr|ldl|ivt|tia|aspects|cbv|hu)\b")
_UNITS = re.compile(r"_(ml|mm|hu|mmol_l|mmol_mol)$")
_DELAY = re.compile(r"^tmax(\d+)")
_PART_OF_NUMBER = re.compile(r"\s+\S*\d\S*$")
_FIELD = re.compile(r"\b[a-z][a-z0-9]*(?:[._][a-z0-9]+)+\b")
_NAME_FIELDS = ("imputed", "not-used")  # flags whose detail lists fields of the record
_NAMED = {"clot_hu": "clot density", "hba1c": "HbA1c"}
_SHORT = {"hypoperfusion_intensity_ratio": "HIR"}
_CHANNELS = {"ncct": "NCCT", "cta": "CTA", "vessels": "vessel mask", "tmax": "Tmax", "rcbf": "relative CBF"}
_CHANNEL_UNITS = {"ncct": "HU", "cta": "HU", "tmax": "s"}
_RULES = {
    "max-f1-out-of-fold": "largest F1 score in patients outside the training folds",
    "max-f1-recalibration": "largest F1 score in the patients of the recalibration",
}
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def label(name: str) -> str:
    """Display name of a variable, without section and unit: ``perfusion.tmax6_ml`` gives ``Tmax > 6 s``."""
    last = name.rpartition(".")[2]
    stem = _UNITS.sub("", last)
    plain = _NAMED.get(last) or _NAMED.get(stem) or stem.replace("_", " ")
    return _DELAY.sub(r"Tmax > \1 s", _ACRONYMS.sub(lambda match: match[0].upper(), plain)).replace("MRS", "mRS")


def format_value(value: float | bool | str | None) -> str:
    """Display text of a clinical value: yes, no, a number with four significant digits, or a word."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("_", " ")


def format_quantity(value: float | bool | str, unit: str) -> str:
    """Value with its unit: ``22.9 mL``, ``150 mmHg``, ``0.41``."""
    number = f"{value:.3g}" if isinstance(value, float) else format_value(value)
    return number if unit == "1" else f"{number} {unit}"


def named_quantity(name: str, value: float | bool | str, unit: str) -> str:
    """Variable, value and unit: ``core 22.9 mL``, ``HIR 0.41``, ``systolic BP 150 mmHg``."""
    return f"{_SHORT.get(name.rpartition('.')[2]) or label(name)} {format_quantity(value, unit)}"


def perfusion_value(name: str, value: float) -> str:
    """Perfusion measure with its unit: ``23 mL``, ``4.30``."""
    return f"{value:.0f} mL" if name.endswith("_ml") else f"{value:.2f}"


def channel_label(channel: str) -> str:
    """Display name of an image channel: ``rcbf`` gives ``relative CBF``."""
    return _CHANNELS.get(str(channel), str(channel))


def channel_unit(channel: str) -> str:
    """Unit of the values of an image channel; empty for a mask and a ratio."""
    return _CHANNEL_UNITS.get(str(channel), "")


def rule_text(rule: str) -> str:
    """Rule that chose a threshold, in words."""
    return _RULES.get(rule, rule)


def region_label(region: str) -> str:
    """Display name of a region; the remainder (skull, face, neck and air) is ``outside the brain``."""
    return "outside the brain" if region == "other" else region


def truncated(text: str, limit: int) -> str:
    """Text of at most ``limit`` characters, with two dots at the end if it was shortened.

    A number is shown whole or not at all, because a part of 106 reads as another number.
    """
    if len(text) <= limit:
        return text
    kept = text[: limit - 2]
    if not text[limit - 2].isspace():
        kept = _PART_OF_NUMBER.sub("", kept) or kept
    return f"{kept}.."


def percent(value: float) -> str:
    """Fraction as a whole percentage: 0.41 gives ``41 %``."""
    return f"{100 * value:.0f} %"


def interval_name(interval: Interval, folds: Sequence[float] | None) -> str:
    """What an interval is: ``spread of the four networks``, or a level with its measured coverage."""
    if interval.kind == "calibrated":
        return f"{percent(interval.level)} interval (measured coverage {percent(interval.coverage)})"
    count = len(folds or ())
    number = f"{_NUMBERS[count - 1] if count <= len(_NUMBERS) else count} " if count else ""
    return f"spread of the {number}networks"


def interval_text(interval: Interval, folds: Sequence[float] | None) -> str:
    """An interval with its name: ``spread of the four networks 20 % to 50 %``."""
    return f"{interval_name(interval, folds)} {percent(interval.low)} to {percent(interval.high)}"


def field_names_in_words(text: str) -> str:
    """Text with the fields of the record in words: ``perfusion.core_ml`` gives ``core``."""
    return _FIELD.sub(lambda match: label(match[0]), text)


def warnings_first(flags: Iterable[Flag]) -> list[Flag]:
    """Flags in the order of their severity; those of one severity keep their order."""
    return sorted(flags, key=lambda flag: flag.severity != "warning")


def flag_text(flag: Flag) -> str:
    """Detail of a flag and what to do: ``cta: the alignment is poor. What to do: Look at the aligned volumes.``"""
    detail = field_names_in_words(flag.detail) if flag.code in _NAME_FIELDS else flag.detail
    detail = detail if detail.endswith(".") else f"{detail}."
    return detail if flag.action == "None." else f"{detail} What to do: {flag.action}"
