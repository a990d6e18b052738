"""Declaration of an own variable of a site in the manifest: what the record's schema says of a field."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from app.core.schema import FrozenModel

LARGEST: Final = 1e12  # absolute value of a number that has no other bound
OWN: Final = "own."
"""Section of the record that holds the own variables, as the start of their names."""

Finite = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]


class OwnGroup(StrEnum):
    """Part of the form that shows an own variable."""

    PRESENTATION = "presentation"
    HISTORY = "history"
    IMAGING = "imaging"
    LABORATORY = "laboratory"
    OTHER = "other"


class OwnVariable(FrozenModel):
    """Declaration of a variable that is no field of the record; ``low`` and ``high`` bound a number, in its unit."""

    label: str = Field(min_length=1, max_length=60, pattern=r"^[^\x00-\x1f\x7f]+$", description="Name for a reader")
    group: OwnGroup = OwnGroup.OTHER
    low: Finite = 0.0
    high: Finite = 0.0
