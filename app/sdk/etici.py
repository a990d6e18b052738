"""Grades of reperfusion (eTICI), and the one parser of their spellings."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated

from pydantic import BeforeValidator

__all__ = ["UNSUCCESSFUL", "Etici", "EticiField", "parse_etici"]


class Etici(StrEnum):
    """Reperfusion on the expanded Treatment In Cerebral Infarction scale (eTICI)."""

    NONE = "0"
    MINIMAL = "1"
    LESS_THAN_HALF = "2a"
    HALF_OR_MORE = "2b"
    """mTICI 2b, or an eTICI 2b that is not divided into 2b50 and 2b67."""
    HALF = "2b50"
    TWO_THIRDS = "2b67"
    NEAR_COMPLETE = "2c"
    COMPLETE = "3"


UNSUCCESSFUL = frozenset({Etici.NONE, Etici.MINIMAL, Etici.LESS_THAN_HALF})
"""Grades of unsuccessful reperfusion, 0 to 2a."""

_SPELLING = re.compile(
    r"\s*(?:(?:[em]-?|expanded |modified )?tici[\s:_=-]*)?(?:(?:grade|score)[\s:_=-]*)?"
    r"(0|1|2|3|i{1,3})(?:\.0|[\s_-]*([abc])(?:[\s_(-]*(50|67)[\s%)]*)?)?\s*"
)
_ROMAN = {"iii": "3", "ii": "2", "i": "1"}


def parse_etici(text: str) -> Etici:
    """Grade of a spelling as hospitals write it: ``2b``, ``2B``, ``2b-50``, ``TICI 2b``, ``eTICI 2b50``, ``IIb``.

    Raises:
        ValueError: The text is no grade; ``2`` alone is none, because 2a and 2b differ.
    """
    match = _SPELLING.fullmatch(text.casefold())
    level, letter, percent = match.groups("") if match else ("", "", "")
    try:
        return Etici(_ROMAN.get(level, level) + letter + percent)
    except ValueError:
        raise ValueError(f"expected one of {', '.join(Etici)}") from None


def _parsed(value: object) -> object:
    return parse_etici(value) if isinstance(value, str) else value


# The schema lists the plain grades. The parser also accepts other spellings, from JSON and from Python.
EticiField = Annotated[Etici, BeforeValidator(_parsed)]
