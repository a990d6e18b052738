"""Names and values as a person writes them."""

from __future__ import annotations

import re

_ACRONYMS = re.compile(r"\b(nihss|mrs|bp|crp|inr|ldl|ivt|tia|aspects|cbv|hu)\b")
_UNITS = re.compile(r"_(ml|mm|hu|mmol_l)$")
_DELAY = re.compile(r"^tmax(\d+)")
_SHORT = {"hypoperfusion_intensity_ratio": "HIR"}


def label(name: str) -> str:
    """``perfusion.tmax6_ml`` and ``atrial_fibrillation`` in words; the unit is said elsewhere."""
    plain = _UNITS.sub("", name.rpartition(".")[2]).replace("_", " ")
    return _DELAY.sub(r"Tmax > \1 s", _ACRONYMS.sub(lambda found: found[0].upper(), plain)).replace("MRS", "mRS")


def shown(value: float | bool | str | None) -> str:
    """A clinical value: yes, no, a number in four digits, or a word."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("_", " ")


def quantity(value: float | bool | str, unit: str) -> str:
    """A value with its unit: ``22.9 mL``, ``150 mmHg``, ``0.41``."""
    number = f"{value:.3g}" if isinstance(value, float) else shown(value)
    return number if unit == "1" else f"{number} {unit}"


def measured(name: str, value: float | bool | str, unit: str) -> str:
    """One member of a group of variables: ``core 22.9 mL``, ``HIR 0.41``, ``systolic BP 150 mmHg``."""
    return f"{_SHORT.get(name.rpartition('.')[2]) or label(name)} {quantity(value, unit)}"


def volume(name: str, value: float) -> str:
    """A perfusion measure with its unit: ``23 mL``, ``4.3``."""
    return f"{value:.0f} mL" if name.endswith("_ml") else f"{value:.2f}"


def outside(region: str) -> str:
    """A region's name; what lies in none of them is said to."""
    return "outside the named regions" if region == "other" else region


def shortened(text: str, most: int) -> str:
    """At most ``most`` characters, with two dots where something was cut off."""
    return text if len(text) <= most else f"{text[: most - 2]}.."


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"
