"""Names and values as a person writes them."""

from __future__ import annotations

import re

_ACRONYMS = re.compile(r"\b(nihss|mrs|bp|crp|inr|ldl|ivt|tia|aspects|cbv|hu)\b")
_UNITS = re.compile(r"_(ml|mm|hu|mmol_l)$")
_DELAY = re.compile(r"^tmax(\d+)")


def label(name: str) -> str:
    """``perfusion.tmax6_ml`` and ``atrial_fibrillation`` in words; the unit is said elsewhere."""
    plain = _UNITS.sub("", name.rpartition(".")[2]).replace("_", " ")
    return _DELAY.sub(r"Tmax > \1 s", _ACRONYMS.sub(lambda found: found[0].upper(), plain)).replace("MRS", "mRS")


def shown(value: float | bool | str | None) -> str:
    """A clinical value: yes, no, a number in four digits, or a word."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("_", " ")


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"
